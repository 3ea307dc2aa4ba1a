"""`mielin` at a terminal: what it asks, how it ends when it is interrupted, and when nobody reads what it prints."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support.processes import APP, CLOSE_S, MIELIN, Deployment, deployment, lives, wait_for

IN_FRONT = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("terminal"), nodes=1) as running:
        yield running


@contextmanager
def begun(up: Deployment, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on, as a shell's foreground job: one in the background begins with SIGINT ignored, as this process may."""
    process = subprocess.Popen(
        [sys.executable, "-ISc", IN_FRONT, MIELIN, *words], cwd=up.folder, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def at_terminal(up: Deployment, answer: bytes, *words: str) -> tuple[int, str]:
    """The command at a terminal, where somebody types `answer`: its exit code, and all that the terminal shows."""
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    with open(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen([MIELIN, *words], cwd=up.folder, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        try:
            while data := terminal.read(4096):
                shown += data
        except OSError:  # the terminal's other end is closed
            pass
        return process.wait(CLOSE_S), shown.decode()


def test_an_irreversible_command_asks_for_confirmation_at_a_terminal(up: Deployment) -> None:
    up.value("spawn", "Counter", "anna")
    up.value("tell", "anna", "fail", "1")
    wait_for(lambda: bool(up.value("dead", "anna")), "a dead letter")
    for answer, words, question in (
        (b"n\n", ("dead", "anna", "--purge"), "Remove all dead letters of agent 'anna'? [y/N]"),
        (b"\x04", ("terminate", "anna"), "End agent 'anna' for good? [y/N]"),  # the end of what is typed
    ):
        code, shown = at_terminal(up, answer, *words)
        assert (code, question in shown, "nothing was done" in shown) == (3, True, True), shown
    assert len(up.value("dead", "anna")) == 1
    code, shown = at_terminal(up, b"", "dead", "anna", "--purge", "--yes")
    assert (code, "[y/N]" in shown) == (0, False)
    assert at_terminal(up, b"yes\n", "terminate", "anna")[0] == 0
    assert up.value("show", "anna")["state"] == "Terminated"


def test_a_script_is_not_asked(up: Deployment) -> None:
    up.value("spawn", "Counter", "bert")
    assert up.value("terminate", "bert")["state"] == "Terminated"


@pytest.mark.parametrize(
    "words",
    [
        ("ask", "slow", "slow", "marker", "60"),
        ("agents", "--watch"),
    ],
)
def test_an_interrupt_ends_a_command_in_one_sentence(up: Deployment, words: tuple[str, ...]) -> None:
    up.value("spawn", "Counter", "slow")
    marker = up.folder / "marker"
    marker.unlink(missing_ok=True)
    with begun(up, *words) as process:
        assert process.stdout is not None
        if words[0] == "ask":
            wait_for(marker.exists, "the turn")
        else:
            assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=CLOSE_S)
    assert (process.returncode, err) == (130, "mielin: interrupted\n"), (out, err)


def test_a_closed_output_pipe_ends_a_following_command_silently(up: Deployment) -> None:
    up.value("spawn", "Counter", "read")
    for words in (("log", "read", "--follow"), ("agents", "--watch")):
        with begun(up, *words) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            if "log" in words:
                up.value("ask", "read", "add")
            else:
                up.value("spawn", "Counter", "one-more")
            assert process.wait(CLOSE_S) in (0, 1)
            assert process.stderr.read() == ""


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_fleet_whose_lines_nobody_reads_stops_and_leaves_nothing(tmp_path: Path, is_terminal: bool) -> None:
    (tmp_path / "app.py").write_text(APP)
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    process = subprocess.Popen(
        [MIELIN, "up", "--app", "app.py", "--nodes", "1", "--sync", "lazy"], cwd=tmp_path, text=True,
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    assert process.stderr is not None
    try:
        shown = b""
        while (told := re.search(rb"node-1 serves \(process (\d+)", shown)) is None:
            shown += os.read(ours, 4096)
        tree = psutil.Process(process.pid).children(recursive=True)
        os.close(ours)
        psutil.Process(int(told[1])).kill()  # which it would tell
        assert process.wait(CLOSE_S) == 0
        assert not [child for child in tree if lives(child)]
    finally:
        process.kill()
        process.wait()
        assert process.stderr.read() == ""
        process.stderr.close()


def test_a_move_that_is_no_longer_watched_goes_on_and_says_so(up: Deployment) -> None:
    second = up.node("second", "app.py")
    marker = up.folder / "leaving"
    up.value("spawn", "Lingering", "slow-to-go", f"marker={marker}", "--on", "node-1")
    with begun(up, "migrate", "slow-to-go", "--to", "second") as process:
        wait_for(marker.exists, "the departure")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=CLOSE_S)
    assert (process.returncode, len(err.splitlines())) == (130, 2), (out, err)
    move = re.search(r"`mielin show (m-\w+)` shows it", err)
    assert move is not None
    wait_for(lambda: up.value("show", move[1])["outcome"] == "completed", "the move's end")
    assert up.value("show", "slow-to-go")["node"] == "second"
    second.close()
