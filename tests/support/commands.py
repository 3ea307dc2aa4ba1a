"""`mielin` commands for tests, each in a process of its own that was forked from one which has imported everything.

What a command costs is four fifths the start of an interpreter and its imports.  The process, its exit code, its output and what it
does are the real ones; that the installed program starts by itself is shown wherever a test starts it (`processes.Running`).
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT_S = 120.0
"""Nothing here takes that long; a test that waits for it has failed."""

_IMPORTED = [
    "mielin_cells.cli.app", "mielin_cells.cli.look", "mielin_cells.cli.drain", "mielin_cells.cli.doctor",
    "mielin_cells.cli.up", "mielin_cells.cli.node", "mielin_cells.deployment.process",
    "mielin_cells.substrate.jetstream", "mielin_cells.testing.faults", "rich.live", "rich.table",
]  # fmt: skip
"""None of these defines an agent class: which there are is what some commands are about."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_IMPORTED)


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in `folder`, to its end.  Raises `subprocess.TimeoutExpired` as `subprocess.run` does."""
    with tempfile.TemporaryDirectory(prefix="command-") as name:
        out, err = Path(name) / "out", Path(name) / "err"
        process = _context.Process(
            target=_command, args=(words, str(folder), {**os.environ, **environment}, str(out), str(err))
        )
        process.start()
        process.join(LIMIT_S)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["mielin", *words], LIMIT_S, out.read_bytes(), err.read_bytes())
        code = process.exitcode
        process.close()
        return subprocess.CompletedProcess(["mielin", *words], code, out.read_text(), err.read_text())


def _command(words: tuple[str, ...], folder: str, environment: dict[str, str], out: str, err: str) -> None:
    """In the new process: what the installed program does."""
    for path, number in ((out, 1), (err, 2)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.setsid()
    sys.argv = ["mielin", *words]
    from mielin_cells.cli import main

    main()
