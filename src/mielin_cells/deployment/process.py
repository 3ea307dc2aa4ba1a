"""One process that is one node: loads the app, serves until it is told to stop, and stops cleanly.

What ends it: SIGTERM (its agents are moved to other nodes, turns end, commits land), SIGINT (the same, and nothing is moved), the
end of the parent that holds its standard input (as SIGINT, in less time), a newer process of its name (at once), a second SIGINT
(at once).  A thread of its own sees to it that the
process ends in time even while a handler holds the event loop.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib
import importlib.util
import logging
import math
import os
import platform
import re
import signal
import socket
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from mielin_cells.agents.reference import classes
from mielin_cells.agents.spec import spec_of
from mielin_cells.client.client import Client
from mielin_cells.deployment.config import Config
from mielin_cells.deployment.connect import LOCKS_VARIABLE, Address, import_store, open_substrate
from mielin_cells.errors import ConfigError, Fenced, FieldRefused, StoreUnreachable, never
from mielin_cells.membership.heartbeat import Ear, Heartbeat
from mielin_cells.membership.table import Announcement
from mielin_cells.migration.recovery import of_class
from mielin_cells.node.moves.admission import room_of
from mielin_cells.node.node import Node
from mielin_cells.substrate.ports import Substrate

logger = logging.getLogger("mielin_cells.process")

ORPHAN_S = 0.5
"""For turns to end when the parent has died, and most likely the server with it."""

GRACE_S = 1.5
"""Between the end of the turns' time and that of a clean stop, and again to the end of the process."""

GC_THRESHOLDS = 20_000, 20, 10
"""Thousands of agents are objects that stay: with Python's 700 a node that creates agents spends most of its time on looking
for garbage among them (20,000 spawns: 2,800 instead of 900 a second)."""

DRAIN_SHARE = 0.8
"""Of the time to end, for moving agents away; the rest is for the turns of those that stay."""

STORE_WAIT_S_MIN, STORE_WAIT_S_MAX = 0.1, 2.0
"""Between two tries to reach a server that is not there when the node starts."""

EXIT_INTERRUPTED = 130


@dataclass(slots=True, kw_only=True)
class Options:
    name: str
    app: str
    address: Address
    labels: dict[str, str] = field(default_factory=dict)
    config: Config = field(default_factory=Config)
    faults: Callable[[Node, Substrate], None] | None = None
    """Gives the node a substrate and steps that fail: for tests."""
    wait_s: float = math.inf
    """For how long a server that does not answer at the start is waited for."""
    package: str = ""
    """Its version, for the announcement."""
    follows_stdin: bool = False
    """Stop when standard input ends: whoever holds its other end has died."""
    say: Callable[[dict[str, Any]], None] = lambda event: None
    """Told what happens: entered, serving, stopping, stopped."""


# ---- the app -------------------------------------------------------------------------------------------------


def load_app(app: str, config: Config) -> None:
    """Imports a file or a module, so that its agent classes are known.

    Raises `ConfigError` with the line that failed, or with the class whose recovery settings cannot be on this node.
    """
    path = folder = Path(app)
    try:
        if app.endswith(".py"):
            if not path.is_file():
                raise ConfigError(f"--app {app}: there is no such file.", field="app", range="a .py file or a module")
            _look_in(folder := path.resolve().parent)
            _run_file(path)
        else:
            _look_in(folder := Path.cwd())
            importlib.import_module(app)
        for name, cls in list(classes.items()):
            spec_of(cls)
            of_class(cls, config.recovery, config.classes.get(name))
    except ConfigError:
        raise
    except FieldRefused as error:
        raise ConfigError(
            f"--app {app}: {error.message}", field="app", range="agent classes that can be stored"
        ) from error
    except (Exception, SystemExit) as error:  # whatever the user's module does when it is imported
        raise ConfigError(
            f"--app {app} cannot be imported: {_place_of(error)}{type(error).__name__}: {error}.{_shadowed(folder, str(error))}",
            field="app", range="a .py file or a module",
        ) from error  # fmt: skip
    if not classes:
        raise ConfigError(
            f"--app {app} defines no agent class: derive one from mielin_cells.Agent.{_shadowed(folder, app)}",
            field="app",
            range="agent classes",
        )


def _look_in(folder: Path) -> None:
    """Has the app find its neighbours: before what is installed, and behind Python's own modules, which all of us need."""
    import psutil  # noqa: F401 - what we import later is imported before: a neighbour of such a name is not it

    import_store()
    installed = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    at = next((i for i, place in enumerate(sys.path) if place in installed), len(sys.path))
    sys.path.insert(at, str(folder))


def _shadowed(folder: Path, text: str) -> str:
    """A hint, if `text` is about a module of Python's own that a file of the folder has the name of."""
    words = set(re.findall(r"\w+", text))
    found = [
        place for name in sorted(words & sys.stdlib_module_names)
        for place in (folder / f"{name}.py", folder / name / "__init__.py") if place.is_file()
    ]  # fmt: skip
    return "".join(f" {place} has the name of a module of Python's own, which is taken; rename it." for place in found)


def _run_file(path: Path) -> None:
    is_free = path.stem.isidentifier() and path.stem not in sys.modules and path.stem not in sys.stdlib_module_names
    name = path.stem if is_free else f"mielin_app_{os.getpid()}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None:
        raise never("found is not None does not hold")
    if found.loader is None:
        raise never("found.loader is not None does not hold")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # annotations are resolved through it
    found.loader.exec_module(module)


def _place_of(error: BaseException) -> str:
    """The user's own line that failed: the last one outside this package, the standard library and what is installed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {(error.text or '').strip()}: "
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    others = ("<frozen", str(Path(__file__).resolve().parents[1]), *(sysconfig.get_path(kind) for kind in kinds))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(others)]
    return f"{frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}: " if frames else ""


def announcement(labels: dict[str, str], package: str) -> Announcement:
    import psutil

    return Announcement(
        classes={name: cls.__mielin_version__ for name, cls in sorted(classes.items())},
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total, architecture=platform.machine(), labels=labels,
        host=socket.gethostname(), process=os.getpid(), python=platform.python_version(),
        package=package, at=time.time(),
    )  # fmt: skip


# ---- the end -------------------------------------------------------------------------------------------------


class Ending:
    """Why the process is to end; the first reason counts.  Set from signal handlers and threads."""

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._interrupts = 0
        self._until = 0.0
        self.reason = ""
        self.hurried = asyncio.Event()
        """There is a second reason to end."""

    def end(self, reason: str, within_s: float) -> None:
        """Ends the process soon; by force if it takes longer than `within_s` and a little."""
        if not self.reason:
            self.reason = reason
            self._until = time.monotonic() + within_s
            timer = threading.Timer(within_s + 2 * GRACE_S, self._by_force)
            timer.daemon = True
            timer.start()
        else:
            self._loop.call_soon_threadsafe(self.hurried.set)
        self._loop.call_soon_threadsafe(self._event.set)

    @property
    def left_s(self) -> float:
        """The time that there still is."""
        return max(ORPHAN_S, self._until - time.monotonic())

    def _by_force(self) -> None:
        logger.critical("the node did not stop in time and is ended; what is not committed will run again elsewhere")
        os._exit(1)

    async def wait(self) -> None:
        await self._event.wait()

    def on_signal(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                os._exit(EXIT_INTERRUPTED)
        self.end(signal.Signals(number).name, self._drain_s)

    def follow_stdin(self) -> None:
        """Ends the process when standard input does."""

        def read() -> None:
            while True:
                try:
                    if not os.read(0, 4096):
                        break
                except OSError:
                    break
            self.end("its parent has died", ORPHAN_S)

        threading.Thread(target=read, name="parent", daemon=True).start()


# ---- the node ------------------------------------------------------------------------------------------------


def run(options: Options) -> int:
    """Serves until the process is told to end; the exit code.  Raises `ConfigError` for an app that cannot be used."""
    _keep_locks()
    load_app(options.app, options.config)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(options))


def _keep_locks() -> None:
    """A process that a handler starts, and that may outlive this one, holds none of them."""
    for lock in map(int, os.environ.pop(LOCKS_VARIABLE, "").split()):
        os.set_inheritable(lock, False)
        os.register_at_fork(after_in_child=functools.partial(os.close, lock))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where the extra `[speed]` is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(options: Options) -> int:
    ending = Ending(options.config.settings.drain_s)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ending.on_signal)
    if options.follows_stdin:
        ending.follow_stdin()
    substrate: Substrate | None = await _unless(ending, _connected(options))
    if substrate is None:
        return 0
    client = Client(substrate.log, substrate.wire, settings=options.config.settings)
    try:
        await client.open()
        return await _live(options, ending, substrate, client)
    finally:
        await client.close()
        try:
            async with asyncio.timeout(GRACE_S):
                await substrate.close()
        except TimeoutError:
            logger.warning("node %s: the connection did not close in time", options.name)


async def _connected(options: Options) -> Substrate:
    """Tries again while the server does not answer, and says so once.  What waiting does not mend is raised at once."""
    loop = asyncio.get_running_loop()
    until, delay, told = loop.time() + options.wait_s, STORE_WAIT_S_MIN, False
    while True:
        try:
            return await open_substrate(options.address)
        except StoreUnreachable as error:
            if loop.time() >= until or error.facts.get("host_unknown"):
                raise
            if not told:
                options.say({"event": "waiting", "node": options.name, "reason": error.message})
                told = True
        await asyncio.sleep(min(delay, max(0.0, until - loop.time())))
        delay = min(delay * 2, STORE_WAIT_S_MAX)


async def _live(options: Options, ending: Ending, substrate: Substrate, client: Client) -> int:
    newer: list[int] = []

    def replaced(incarnation: int) -> None:
        newer.append(incarnation)
        ending.end("replaced", ORPHAN_S)

    ear = Ear()
    node = Node(
        options.name, substrate.log, substrate.wire, classes.get, settings=options.config.settings, wall=time.time,
        clock=time.monotonic, about=announcement(options.labels, options.package), room=room_of(None),
        recovery=options.config.recovery, recovery_of=options.config.classes, heard=ear.heard, replaced=replaced,
    )  # fmt: skip
    node.home.cluster = client
    if options.faults is not None:
        options.faults(node, substrate)
    heartbeat: Heartbeat | None = None

    def entered() -> None:
        nonlocal heartbeat
        heartbeat = Heartbeat(
            node.name, node.home.incarnation, lambda: open_substrate(options.address.met), options.config.settings,
            ear, lambda: node.is_starting, node.failover.refused_s,
        )  # fmt: skip
        heartbeat.start()

    try:
        if await _unless(ending, _started(node, entered)):
            options.say({
                "event": "serving", "node": node.name, "incarnation": node.home.incarnation, "agents": len(node.activations.live),
                "classes": node.about.classes, "process": os.getpid(),
            })  # fmt: skip
            await ending.wait()
        if newer:
            raise Fenced(
                f"Node {node.name} was started again as incarnation {newer[0]}; this process has stopped."
                if newer[0] != node.home.incarnation
                else f"Node {node.name} was not heard for long, and the others gave it up; this process has stopped. Start it again.",
                node=node.name, epoch=newer[0],
            )  # fmt: skip
        if ending.reason == signal.SIGTERM.name:
            options.say({"event": "draining", "node": node.name, "agents": len(node.activations.live)})
            await _drained(node, ending)
        options.say(
            {"event": "stopping", "node": node.name, "reason": ending.reason, "agents": len(node.activations.live)}
        )
        is_clean = await _stopped(node, ending.left_s)
        options.say({"event": "stopped", "node": node.name, "clean": is_clean})
        return 0 if is_clean else 1
    finally:
        node.kill()
        if heartbeat is not None:
            await heartbeat.stop()


async def _started(node: Node, entered: Callable[[], None]) -> bool:
    await node.start(entered)
    return True


async def _drained(node: Node, ending: Ending) -> None:
    """Moves the agents to where there is room, in most of the time that is left, unless there are more reasons to end."""
    node.leave()
    drain = node.drains.new(ending.left_s * DRAIN_SHARE, is_patient=False)
    draining, hurried = asyncio.ensure_future(drain.run()), asyncio.ensure_future(ending.hurried.wait())
    await asyncio.wait((draining, hurried), return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if not draining.done():
        drain.stop()  # whoever is on the way is left to the log, which decides
        draining.cancel()
    [_, error] = await asyncio.gather(hurried, draining, return_exceptions=True)
    if isinstance(error, Exception):
        logger.error("the drain of node %s failed, its agents stay claimable", node.name, exc_info=error)


async def _stopped(node: Node, within_s: float) -> bool:
    """Stops the node cleanly, if that is done in time; else as a crash would, which loses nothing that was acknowledged."""
    try:
        async with asyncio.timeout(within_s + GRACE_S):
            await node.stop(within_s)
    except TimeoutError:
        logger.warning("node %s did not stop in %g s; its agents stay claimable", node.name, within_s + GRACE_S)
        return False
    return True


async def _unless(ending: Ending, work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` returns; None if the process is to end before."""
    task, wait = asyncio.ensure_future(work), asyncio.ensure_future(ending.wait())
    try:
        await asyncio.wait((task, wait), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for pending in (task, wait):
            if not pending.done():
                pending.cancel()
        await asyncio.gather(task, wait, return_exceptions=True)
