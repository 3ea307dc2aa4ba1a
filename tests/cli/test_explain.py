"""`mielin explain`, and the code at the end of each error that a terminal shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mielin_cells import errors
from mielin_cells.cli.explain.entries import nearest, public
from mielin_cells.cli.show import Printer

MIELIN = str(Path(sys.executable).parent / "mielin")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MIELIN, *words], capture_output=True, text=True, timeout=60, check=False)


def test_a_code_is_explained() -> None:
    done = run("explain", "AskTimeout")
    assert (done.returncode, done.stderr) == (0, "")
    said = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in done.stdout.splitlines())
    assert said["error"] == "AskTimeout"
    assert said["meaning"].startswith("No answer in time.")
    assert said["exit code"] == "5 (unknown)"
    assert said["next"]
    assert run("explain", "[asktimeout]").stdout == done.stdout, "as it stands at the end of an error, in any case"


def test_as_json_an_entry_is_one_line() -> None:
    (line,) = run("explain", "InboxFull", "--json").stdout.splitlines()
    one = json.loads(line)
    assert (one["code"], one["facts"], one["exit"], one["retry_after"]) == (
        "InboxFull",
        "agent, waiting, limit",
        3,
        1.0,
    )


def test_without_a_code_all_are_listed() -> None:
    lines = run("explain").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(public())


def test_a_code_that_is_none_is_refused_with_those_that_are_like_it() -> None:
    done = run("explain", "AskTimout")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean AskTimeout" in done.stderr
    assert done.stderr.endswith("[UsageError]\n")
    assert nearest("xyzzy") == []


@pytest.mark.parametrize("code", public())
def test_every_error_ends_with_its_code(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    Printer(as_json=False).fail(public()[code]("It says what happened."))
    assert capsys.readouterr().err == f"mielin: It says what happened. [{code}]\n"


def test_an_error_that_a_command_line_raises_ends_with_its_code() -> None:
    for words in (("agents", "--connect", "http://x"), ("ask",), ("bogus",), ("demo", "--nodes", "x")):
        done = run(*words)
        assert done.returncode != 0
        assert re.search(r" \[(\w+)\]\n\Z", done.stderr), done.stderr
        assert done.stderr.rpartition("[")[2].rstrip("]\n") in errors.__all__
