"""Real processes for tests: `mielin up` and `mielin node` in a folder of their own, and commands against them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from support.commands import run

MIELIN = str(Path(sys.executable).with_name("mielin"))
CLOSE_S = 120.0
"""Nothing here takes that long; a test that waits for it has failed."""

APP = '''
import asyncio
import pathlib
import time

import mielin_cells as cells


class Counter(cells.Agent):
    n: int = 0
    label: str = ""

    @cells.handler
    async def add(self, n: int = 1, label: str = "") -> int:
        self.n += n
        self.label = label
        return self.n

    @cells.handler
    async def get(self) -> tuple[int, str]:
        return self.n, self.label

    @cells.handler
    async def slow(self, marker: str, seconds: float) -> int:
        """Takes its time; the marker tells when it has begun."""
        pathlib.Path(marker).touch()
        await asyncio.sleep(seconds)
        self.n += 1
        return self.n

    @cells.handler
    async def hold(self, marker: str, seconds: float) -> int:
        """Holds the event loop, as a handler should not."""
        pathlib.Path(marker).touch()
        time.sleep(seconds)
        self.n += 1
        return self.n

    @cells.handler
    async def fail(self, n: int) -> int:
        if self.label != "mended":
            raise ValueError(f"cannot {n}")
        self.n += n
        return self.n


class Lingering(cells.Agent):
    """Takes its time to leave."""

    n: int = 0
    marker: str = ""

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.n += n
        return self.n

    async def on_depart(self) -> None:
        if self.marker:
            pathlib.Path(self.marker).touch()
            await asyncio.sleep(1.0)
'''


class Lines:
    """What a process prints, read by a thread; `wait` finds a line that is there or comes."""

    def __init__(self, stream: Any) -> None:
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._has_ended = False
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: Any) -> None:
        for line in stream:
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def all(self) -> list[str]:
        with self._changed:
            return list(self._lines)

    def wait(self, fits: Callable[[str], bool], count: int = 1) -> str:
        """The line with which `count` lines fit.  Fails with everything printed if they do not come."""
        until = time.monotonic() + CLOSE_S
        with self._changed:
            while True:
                found = [line for line in self._lines if fits(line)]
                if len(found) >= count:
                    return found[count - 1]
                left = until - time.monotonic()
                if left <= 0 or self._has_ended:
                    raise AssertionError("the line did not come; printed was:\n" + "\n".join(self._lines))
                self._changed.wait(left)

    def end(self) -> list[str]:
        self._thread.join(CLOSE_S)
        return self.all()


class Running:
    """A process that goes on, with what it prints."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [MIELIN, *words], cwd=folder, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.out, self.err = Lines(self.process.stdout), Lines(self.process.stderr)

    def tree(self) -> list[psutil.Process]:
        """It and its children."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        code = self.process.wait(CLOSE_S)
        self.out.end()
        self.err.end()
        return code

    def must_end(self, code: int) -> None:
        """Waits for its end.  Fails with everything that it has printed if it ends with another exit code."""
        found = self.end()
        said = "\n".join([*self.out.all(), *self.err.all()])
        assert found == code, f"it ended with {found} instead of {code}; printed was:\n{said}"

    def close(self) -> None:
        if self.process.poll() is None:
            tree = self.tree()
            for found in tree:
                try:
                    found.send_signal(signal.SIGCONT)
                    found.kill()
                except psutil.NoSuchProcess:
                    pass
            self.process.wait(CLOSE_S)
        self.out.end()
        self.err.end()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


class Deployment(Running):
    """`mielin up` in `folder`, ready when every node serves."""

    def __init__(self, folder: Path, nodes: int = 2, *options: str) -> None:
        self.folder = folder
        self.nodes = nodes
        if not (folder / "app.py").exists():
            (folder / "app.py").write_text(APP)
        super().__init__(folder, "up", "--app", "app.py", "--nodes", str(nodes), "--sync", "lazy", "--json", *options)
        self._others: list[Running] = []
        try:
            self.wait({"event": "node", "state": "serving"}, nodes)
        except AssertionError:
            self.close()
            raise

    def wait(self, event: dict[str, Any], count: int = 1) -> dict[str, Any]:
        """The event that has these values."""
        line = self.out.wait(lambda line: event.items() <= json.loads(line).items(), count)
        found: dict[str, Any] = json.loads(line)
        return found

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.all()]

    def process_of(self, node: str) -> psutil.Process:
        found = [event for event in self.events() if event.get("node") == node and event.get("state") == "serving"]
        return psutil.Process(found[-1]["process"])

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return run(self.folder, *words)

    def value(self, *words: str) -> Any:
        """The last value that the command prints with --json; it must exit with 0."""
        done = self.run(*words, "--json")
        assert done.returncode == 0, done
        return json.loads(done.stdout.splitlines()[-1])

    def start(self, *words: str) -> Running:
        """Another process in this folder, ended with the deployment."""
        running = Running(self.folder, *words)
        self._others.append(running)
        return running

    def node(self, name: str, app: str = "app.py", *options: str) -> Running:
        address = json.loads((self.folder / ".mielin" / "address.json").read_text())
        words = ["node", "--name", name, "--app", app, "--connect", address["url"], *options]
        if address["creds"]:
            words += ["--creds", address["creds"]]
        running = self.start(*words)
        running.out.wait(lambda line: "serves" in line)
        return running

    def close(self) -> None:
        for other in self._others:
            other.close()
        super().close()


@contextmanager
def deployment(folder: Path, nodes: int = 2, *options: str) -> Iterator[Deployment]:
    running = Deployment(folder, nodes, *options)
    try:
        yield running
    finally:
        running.close()


def wait_for(is_so: Callable[[], bool], what: str) -> None:
    """Watches for what another process does to the world; there is nothing to be told by."""
    until = time.monotonic() + CLOSE_S
    while not is_so():
        assert time.monotonic() < until, f"{what} did not come about"
        time.sleep(0.01)


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
