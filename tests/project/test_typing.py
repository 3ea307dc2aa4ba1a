"""The public typing: both checkers accept what is right and refuse each planted error, on its line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from support.paths import ROOT

HERE = Path(__file__).parent
PLANTED = HERE / "typing" / "planted.py"
CHECKER_S = 120


def marked() -> set[int]:
    return {n for n, line in enumerate(PLANTED.read_text().splitlines(), 1) if "# ERROR" in line}


def found_by_mypy() -> set[int]:
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--enable-error-code",
        "unused-awaitable",
        "--config-file=",
        str(PLANTED),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CHECKER_S, check=False, cwd=ROOT)
    return {int(m[1]) for m in re.finditer(r"planted\.py:(\d+): error", done.stdout)}


def found_by_basedpyright(tmp_path: Path) -> set[int]:
    config = tmp_path / "pyrightconfig.json"
    config.write_text(json.dumps({"include": [str(PLANTED)], "typeCheckingMode": "strict"}))
    program = Path(sys.executable).with_name("basedpyright")
    command = [str(program), "--outputjson", "--pythonpath", sys.executable, "-p", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CHECKER_S, check=False, cwd=ROOT)
    report = json.loads(done.stdout)
    errors = [d for d in report["generalDiagnostics"] if d["severity"] == "error"]
    hard = [d for d in errors if not d.get("rule", "").startswith(("reportUnknown", "reportUntyped"))]
    return {d["range"]["start"]["line"] + 1 for d in hard}


def test_mypy_refuses_every_planted_error_and_nothing_else() -> None:
    assert found_by_mypy() == marked()


def test_basedpyright_refuses_every_planted_error_and_nothing_else(tmp_path: Path) -> None:
    assert found_by_basedpyright(tmp_path) == marked()
