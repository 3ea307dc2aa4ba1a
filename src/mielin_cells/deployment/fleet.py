"""Node processes that this process starts and keeps: restarted when they crash, ended when it ends.

Each child holds the read end of a pipe as its standard input; when this process dies, in whatever way, the pipe ends and the
child stops by itself.  Children also inherit the lock of the folder, so it is free only once all of them are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from mielin_cells.deployment.codes import FAILED, USAGE
from mielin_cells.deployment.connect import LOCKS_VARIABLE, URL_VARIABLE, Address
from mielin_cells.errors import never
from mielin_cells.metrics.place import Place

RESTART_S_MIN, RESTART_S_MAX = 0.5, 30.0
"""The wait before a crashed node is started again, which doubles with each crash."""

STEADY_S = 10.0
"""After so long, a node's next crash is followed by the shortest wait again."""

STOP_S = 35.0
"""A child's own limit for a clean stop, and a little; a child that still lives then is killed."""

LINE_BYTES_MAX = 1024 * 1024

LOOK_S = 0.1
"""How often a child's process is checked: processes that it has started may hold its pipes open after its end."""

LAST_WORDS_S = 0.5
"""The time for reading what an ended child has left in its pipes."""


@dataclass(slots=True)
class Child:
    """One node's process.  `state`: starting, serving, crashed, stopping or stopped."""

    name: str
    state: str = "starting"
    process: Process | None = None
    incarnation: int = 0
    restarts: int = 0
    code: int | None = None
    """The exit code of its last process."""
    last_line: str = ""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the child is killed or stopped on purpose, and is not to be started again."""
    app: str = ""
    """Of a new node of a deploy, with its own configuration file; "": the fleet's."""
    config: str = ""
    failed: asyncio.Future[Child] | None = None
    """Of a new node of a deploy: done once its app proves unusable."""
    left: int = 0
    """How many agents it had when it stopped."""
    since: float = field(default_factory=time.monotonic)
    place: int = 0
    """Which of the ports for metrics it has."""

    def become(self, state: str) -> None:
        self.state, self.since = state, time.monotonic()

    @property
    def lives(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                self.process.send_signal(number)


class Fleet:
    """Call `start`, then `stop`.  `say` is called with each event, a value to be printed."""

    def __init__(
        self, app: str, address: Address, say: Callable[[dict[str, Any]], None], pass_fds: tuple[int, ...] = (),
        options: Iterable[str] = (), name: str = "", metrics: Place | None = None,
    ) -> None:  # fmt: skip
        """`metrics`: where the first node serves its metrics; the others take the ports that follow."""
        self.name = name
        """What its nodes say of who has started them; "": nothing."""
        self._app = app
        self._address = address
        self._say = say
        self._pass_fds = pass_fds
        self._options = list(options)
        self._metrics = metrics
        self._keepers: list[asyncio.Task[None]] = []
        self.children: list[Child] = []
        self._all: list[Child] = []
        """Includes children that were replaced: one of them may still be ending."""
        self._numbered = 0
        self.failed: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        """The child that cannot be started at all, since its app is wrong."""

    def start(self, count: int) -> None:
        for _ in range(count):
            self._another()

    def add(self, name: str, app: str = "", config: str = "") -> Child:
        """Starts one more node: of another app, the new node of a deploy, which is reserved at first."""
        child = Child(name, app=app, config=config, failed=asyncio.get_running_loop().create_future() if app else None)
        return self._begin(child)

    def is_ending(self, name: str) -> bool:
        """True while a process of this name that was dismissed has not ended."""
        return any(child.name == name and child.gone.is_set() and child.state != "stopped" for child in self._all)

    def dismiss(self, child: Child) -> None:
        """Has a node move its agents away and stop; it is not started again."""
        child.gone.set()
        self.children.remove(child)
        child.signal(signal.SIGTERM)

    def replace(self, child: Child) -> None:
        """Kills a node without warning; another one, with a new name, replaces it."""
        child.gone.set()
        child.signal(signal.SIGKILL)
        self.children.remove(child)
        self._another()

    async def retire(self, child: Child) -> int:
        """Starts another node, then SIGTERMs this one, which moves its agents away; its exit code."""
        instead = self._another()
        while instead.state != "serving" and not self.failed.done():
            await asyncio.sleep(0.02)
        child.gone.set()
        self.children.remove(child)
        child.signal(signal.SIGTERM)
        while child.state != "stopped":  # its last lines must be read, too
            await asyncio.sleep(0.01)
        return child.code if child.code is not None else FAILED

    def _another(self) -> Child:
        self._numbered += 1
        return self._begin(Child(f"node-{self._numbered}"))

    def _begin(self, child: Child) -> Child:
        taken = {one.place for one in self._all if one.state != "stopped"}
        child.place = next(place for place in itertools.count() if place not in taken)
        self.children.append(child)
        self._all.append(child)
        self._keepers.append(asyncio.create_task(self._keep(child)))
        return child

    async def serving(self) -> None:
        """Returns when every node serves, or one of them never will."""
        while not self.failed.done() and any(child.state != "serving" for child in self.children):
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Sends SIGINT to all, since no node is to take their agents, and SIGKILL to those that outlast the time for a clean stop."""
        for child in self._all:
            child.gone.set()
            if child.lives:
                # A child that is starting may not handle SIGINT yet; it has no agents to move.
                child.signal(signal.SIGINT if child.state == "serving" else signal.SIGTERM)
                child.become("stopping")
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=STOP_S)
        self.kill()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def kill(self) -> None:
        for child in self._all:
            child.signal(signal.SIGKILL)

    # ---- one child -------------------------------------------------------------------------------------------

    async def _keep(self, child: Child) -> None:
        delay = RESTART_S_MIN
        while not child.gone.is_set():
            begun, why = time.monotonic(), dict[str, Any]()
            try:
                child.code = await self._run(child)
            except Exception as error:  # noqa: BLE001 - no more processes or descriptors, or a bug: it is shown, and tried again
                child.code, child.last_line = None, f"its process cannot be started or read: {error}"
                why = {"reason": child.last_line}
            if child.gone.is_set():
                break
            child.become("crashed")
            event = {"event": "node", "node": child.name, "state": "crashed", "code": child.code, **why}
            if child.code == USAGE:
                self._say(event)
                if child.failed is not None:
                    child.failed.set_result(child)
                elif not self.failed.done():
                    self.failed.set_result(child)
                return
            delay = RESTART_S_MIN if time.monotonic() - begun > STEADY_S else delay
            self._say({**event, "restart_s": delay})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.gone.wait(), delay)
            delay = min(delay * 2, RESTART_S_MAX)
            child.restarts += 1
        child.become("stopped")
        self._say({"event": "node", "node": child.name, "state": "stopped", "code": child.code})

    async def _run(self, child: Child) -> int:
        child.become("starting")
        process = child.process = await asyncio.create_subprocess_exec(
            *self._command(child), stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=LINE_BYTES_MAX,
            env={
                **os.environ, URL_VARIABLE: self._address.url,  # not an argument: it may hold a password
                LOCKS_VARIABLE: " ".join(map(str, self._pass_fds)),
            },
            pass_fds=self._pass_fds, start_new_session=True,  # so that Ctrl-C reaches this process alone
        )  # fmt: skip
        readers: list[asyncio.Task[None]] = []
        try:
            if child.gone.is_set():  # while it was started
                process.terminate()
            if process.stdout is None or process.stderr is None:
                raise never("a process that was started with pipes has none")
            readers.append(asyncio.create_task(self._lines(process.stdout, lambda line: self._on_output(child, line))))
            readers.append(asyncio.create_task(self._lines(process.stderr, lambda line: self._on_log(child, line))))
            code = await _ended(process)
            await asyncio.wait(readers, timeout=LAST_WORDS_S)
            return code
        finally:
            if process.returncode is None:
                process.kill()
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            process._transport.close()  # type: ignore[attr-defined]  # else its pipes stay while anybody holds them

    def _command(self, child: Child) -> list[str]:
        address, name = self._address, child.name
        # -P: a random.py of the directory that this is started in is not Python's own.
        command = [
            sys.executable,
            "-P",
            "-m",
            "mielin_cells.cli",
            "node",
            "--name",
            name,
            "--app",
            child.app or self._app,
        ]
        command += ["--stop-with-stdin", "--json", "--deployment", address.deployment]
        command += ["--config", child.config] if child.config else self._options
        command += ["--reserved"] if child.app else []
        command += ["--fleet", self.name] if self.name else []
        command += ["--metrics", str(self._metrics.after(child.place))] if self._metrics is not None else []
        if address.creds is not None:
            command += ["--creds", address.creds]
        if address.tls_ca is not None:
            command += ["--tls-ca", address.tls_ca]
        if address.domain is not None:
            command += ["--domain", address.domain]
        for tag in address.placement_tags:
            command += ["--placement-tag", tag]
        for option, value in (("--replicas", address.replicas), ("--shards", address.shards)):
            if value is not None:
                command += [option, str(value)]
        return command

    async def _lines(self, stream: asyncio.StreamReader, take: Callable[[str], None]) -> None:
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # the line is above the limit; what was read of it is dropped
                continue
            if not line:
                return
            take(line.decode(errors="replace").rstrip("\n"))

    def _on_output(self, child: Child, line: str) -> None:
        """A line of the child's standard output: one of its events, or what a handler prints."""
        event: Any = None
        with contextlib.suppress(ValueError):
            event = json.loads(line)
        match event:
            case {"event": "serving", "node": child.name, "incarnation": int(incarnation), "process": int()}:
                child.incarnation = incarnation
                child.become("serving")
                self._say({**event, "event": "node", "state": "serving", "restarts": child.restarts})
            case {"event": "stopping", "node": child.name, "agents": int(left)}:
                child.left = left
            case {"event": "waiting", "node": child.name, "reason": str(reason)}:
                self._say({"event": "log", "node": child.name, "line": f"waits until its server answers: {reason}"})
            case {"event": "draining" | "stopped", "node": child.name}:
                pass
            case {"error": {"message": str(message)}}:
                child.last_line = message
                self._say({"event": "log", "node": child.name, "line": message})
            case _:
                self._on_log(child, line)

    def _on_log(self, child: Child, line: str) -> None:
        if line.strip():
            child.last_line = line
            self._say({"event": "log", "node": child.name, "line": line})


async def _ended(process: Process) -> int:
    """The exit code as soon as the process has ended; `process.wait` may also wait for the end of its pipes."""
    waiting = asyncio.ensure_future(process.wait())
    try:
        while process.returncode is None:
            await asyncio.wait((waiting,), timeout=LOOK_S)
        return process.returncode
    finally:
        waiting.cancel()
