"""Pages of the documentation, run as they stand: their files are written, and their commands are given to one shell in order.

A block ```LANGUAGE NAME is a file.  A block ```console has commands behind `$ `, each followed by what it prints.  `...` as a line
stands for any lines, and at the end of a line for its rest.  Times, sizes, counts and ids differ each time, and are not compared.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

AS_A_READER = {
    "cli", "how-to-deploy", "how-to-metrics", "how-to-state", "how-to-substrate", "how-to-symptoms", "testing", "tutorial",
}  # fmt: skip
"""Pages that wait where they have to: no command is given twice."""
WITH_TRIES = {"how-to-operate"}
CLUSTERS = "how-to-clusters"
TALK = ("tutorial-talk", "how-to-talk", "concepts-talk", "reference-talk")
RUN = {*AS_A_READER, *WITH_TRIES, CLUSTERS, *TALK}
"""All pages of `docs/` whose files are written and whose commands are given (`tests/clusters`)."""
INSTALLING = {
    "tutorial": "tests/project/install_page.py", "how-to-systemd": "tests/deployment/test_install_pages.py",
    "how-to-kubernetes": "tests/deployment/test_install_pages.py",
}  # fmt: skip
"""Pages with blocks of the kind `sh`, and what runs these: they need more than a shell and the programs that are here."""

BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TRIES = 40
"""A page does not say how long processes take to start: a command is given again until it succeeds."""

SHELL = """
set -m
trap 'kill -9 $(jobs -p) 2> /dev/null' EXIT
number=0
give() {
  number=$((number + 1))
  for try in $(seq %d); do
    if eval "$1" > "out/$number" 2>&1; then return 0; fi
    sleep 0.5
  done
  echo "failed: $1" >&2
  cat "out/$number" >&2
  exit 1
}
"""


@dataclass
class Command:
    text: str
    prints: str

    @property
    def is_beside(self) -> bool:
        return self.text.endswith("&")

    @property
    def is_plain(self) -> bool:
        """It changes the shell, or runs beside it: it is given once, and what it prints is not compared."""
        return self.is_beside or self.text.startswith(("kill ", "wait ", "export "))


def commands(page: str) -> list[Command]:
    found: list[Command] = []
    for kind, _, text in BLOCK.findall(page):
        for line in text.splitlines() if kind == "console" else ():
            if line.startswith("$ "):
                found.append(Command(line.removeprefix("$ "), ""))
            else:
                found[-1].prints += f"{line}\n"
    return found


def run(page: str, folder: Path, limit_s: float, tries: int = TRIES) -> list[tuple[Command, str]]:
    """Each command whose output is compared, with what it printed.  Fails if one does not succeed."""
    for kind, name, text in BLOCK.findall(page):
        if name and kind != "console":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    (folder / "out").mkdir()
    given = commands(page)
    (folder / "page.sh").write_text(SHELL % tries + "".join(map(_line, given)))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MIELIN_", "PYTEST_"))}
    done = subprocess.run(
        ["bash", "page.sh"], cwd=folder, env=plain | {"PATH": path}, capture_output=True, text=True, timeout=limit_s, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    waited = [command for command in given if not command.is_plain]
    return [(command, (folder / "out" / str(n)).read_text()) for n, command in enumerate(waited, 1)]


def _line(command: Command) -> str:
    if command.is_beside:
        text = command.text.removesuffix("&")
        return f"{text} {'2>>' if '>' in text else '>>'} beside.log {'' if '>' in text else '2>&1'} &\n"
    return f"{command.text}\n" if command.is_plain else f"give {json.dumps(command.text).replace('$', chr(92) + '$')}\n"


def shaped(text: str) -> str:
    """Without what differs from run to run."""
    text = re.sub(r"\bm-[0-9a-f]{16}\b", "m-ID", text)
    text = re.sub(r"\brecord \d+\b", "record #", text)
    text = re.sub(r"\b(message|round|record)s\b", r"\1", text)
    text = re.sub(r"\b\d[\d.,]* (?=(?:ms|s|B|KiB|MiB|message|round|record)\b)", "# ", text)
    text = re.sub(r"# (?:KiB|MiB)\b", "# B", text)
    text = re.sub(r"\b\d+\.\d+s\b", "#s", text)
    return re.sub(r"[ \t]+", " ", text)


def fits(expected: str, printed: str) -> bool:
    pattern = ""
    for line in shaped(expected).splitlines():
        if line == "...":
            pattern += r"(?:.*\n)*?"
        elif line.endswith("..."):
            pattern += re.escape(line.removesuffix("...").rstrip()) + r".*\n"
        else:
            pattern += re.escape(line.rstrip()) + r" *\n"
    return re.fullmatch(pattern, shaped(printed)) is not None
