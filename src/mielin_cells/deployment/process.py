"""One process that is one node: it loads the app, serves until it is told to stop, and stops cleanly.

It ends on SIGTERM (agents move to other nodes, turns end, commits land), on SIGINT (the same, but nothing moves), when the parent
that holds its standard input ends (as on SIGINT, in less time), and at once when a newer process takes its name or on a second SIGINT.
A thread sees to it that the process ends in time even while a handler holds the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import math
import os
import platform
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mielin_cells.agents.reference import classes
from mielin_cells.client.client import Client
from mielin_cells.deployment.app import load_app
from mielin_cells.deployment.codes import DONE, FAILED
from mielin_cells.deployment.config import Config
from mielin_cells.deployment.connect import LOCKS_VARIABLE, Address, open_substrate
from mielin_cells.deployment.ending import GRACE_S, ORPHAN_S, Ending
from mielin_cells.deployment.garbage import THRESHOLDS, Garbage
from mielin_cells.errors import Fenced, StoreUnreachable
from mielin_cells.membership.heartbeat import Heartbeat, Listener
from mielin_cells.membership.members import Announcement
from mielin_cells.node.moves.admission import room_of
from mielin_cells.node.node import Node
from mielin_cells.substrate.ports import Substrate
from mielin_cells.tasks.supervision import Backoff, supervised

logger = logging.getLogger("mielin_cells.process")

DRAIN_SHARE = 0.8
"""The share of the time to end that goes to moving agents; the rest is for the turns of the agents that stay."""

STORE_WAIT_S_MIN, STORE_WAIT_S_MAX = 0.1, 2.0
"""Between two tries to reach a server that does not answer when the node starts."""


@dataclass(slots=True, kw_only=True)
class Options:
    name: str
    app: str
    address: Address
    labels: dict[str, str] = field(default_factory=dict)
    config: Config = field(default_factory=Config)
    faults: Callable[[Node, Substrate], None] | None = None
    """For tests: makes the node's substrate and steps fail."""
    wait_s: float = math.inf
    """How long to wait for a server that does not answer at the start."""
    package: str = ""
    """The version of this package, for the announcement."""
    follows_stdin: bool = False
    """Stop when standard input ends: the process that holds its other end has died."""
    say: Callable[[dict[str, Any]], None] = lambda event: None
    """Called with each event: waiting, serving, draining, stopping, stopped."""


def announcement(labels: dict[str, str], package: str) -> Announcement:
    import psutil

    return Announcement(
        classes={name: cls.__mielin_version__ for name, cls in sorted(classes.items())},
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total, architecture=platform.machine(), labels=labels,
        host=socket.gethostname(), process=os.getpid(), python=platform.python_version(),
        package=package, at=time.time(),
    )  # fmt: skip


def run(options: Options) -> int:
    """Serves until the process is told to end; the exit code.  Raises `ConfigError` for an app that cannot be used."""
    _hide_locks()
    load_app(options.app, options.config)
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(options))


def _hide_locks() -> None:
    """Keeps the locks from processes that handlers start, which may outlive this one."""
    for lock in map(int, os.environ.pop(LOCKS_VARIABLE, "").split()):
        os.set_inheritable(lock, False)
        os.register_at_fork(after_in_child=functools.partial(os.close, lock))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """That of uvloop, if the extra `[speed]` is installed."""
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
    substrate = await ending.unless(_connect(options))
    if substrate is None:
        return DONE
    client = Client(substrate.log, substrate.wire, settings=options.config.settings)
    try:
        await client.open()
        return await _run_node(options, ending, substrate, client)
    finally:
        await client.close()
        try:
            async with asyncio.timeout(GRACE_S):
                await substrate.close()
        except TimeoutError:
            logger.warning("node %s: the connection did not close in time", options.name)


async def _connect(options: Options) -> Substrate:
    """Retries while the server does not answer, and says so once.  What waiting does not mend is raised at once."""
    clock, has_said = asyncio.get_running_loop().time, False
    until, backoff = clock() + options.wait_s, Backoff(STORE_WAIT_S_MIN, STORE_WAIT_S_MAX)
    while True:
        try:
            return await open_substrate(options.address)
        except StoreUnreachable as error:
            if clock() >= until or error.facts.get("host_unknown"):
                raise
            if not has_said:
                options.say({"event": "waiting", "node": options.name, "reason": error.message})
                has_said = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(None if math.isinf(until) else until):
                await backoff.wait()


async def _run_node(options: Options, ending: Ending, substrate: Substrate, client: Client) -> int:
    settings, config = options.config.settings, options.config
    replaced_by: list[int] = []

    def replaced(incarnation: int) -> None:
        replaced_by.append(incarnation)
        ending.end("replaced", ORPHAN_S)

    listener = Listener()
    node = Node(
        options.name, substrate.log, substrate.wire, classes.get, settings=settings, wall=time.time, clock=time.monotonic,
        about=announcement(options.labels, options.package), room=room_of(None), recovery=config.recovery,
        recovery_of=config.classes, listener=listener, replaced=replaced,
        cluster=client,
    )  # fmt: skip
    if options.faults is not None:
        options.faults(node, substrate)
    heartbeat: Heartbeat | None = None

    def entered() -> None:
        nonlocal heartbeat
        heartbeat = Heartbeat(
            node.name, lambda: open_substrate(options.address.existing), settings, listener,
            lambda stuck_s: (node.beat(stuck_s), node.leads),
        )  # fmt: skip
        heartbeat.start()

    async def start() -> bool:
        await node.start(entered)
        return True

    garbage = Garbage(node.activations.live.values, time.monotonic)
    looking = asyncio.ensure_future(supervised(f"node {options.name}: looking for garbage", garbage.run))
    try:
        if await ending.unless(start()):
            options.say({
                "event": "serving", "node": node.name, "incarnation": node.home.incarnation, "agents": node.activations.count,
                "classes": node.about.classes, "process": os.getpid(),
            })  # fmt: skip
            await ending.wait()
        if replaced_by:
            raise _fenced(node, replaced_by[0])
        return await _stop(node, ending, options)
    finally:
        looking.cancel()
        node.kill()
        if heartbeat is not None:
            await heartbeat.stop()


def _fenced(node: Node, incarnation: int) -> Fenced:
    why = (
        f"Node {node.name} was started again as incarnation {incarnation}; this process has stopped."
        if incarnation != node.home.incarnation
        else f"Node {node.name} was silent for so long that the others replaced it; this process has stopped. Start it again."
    )
    return Fenced(why, node=node.name, epoch=incarnation)


async def _stop(node: Node, ending: Ending, options: Options) -> int:
    """Drains the node on SIGTERM, and stops it: cleanly if there is time, else as a crash would, which loses nothing acknowledged."""
    facts = {"node": node.name, "reason": ending.reason}
    if ending.reason == signal.SIGTERM.name:
        options.say({"event": "draining", "node": node.name, "agents": node.activations.count})
        await _drain(node, ending)
    options.say({"event": "stopping", **facts, "agents": node.activations.count})
    within_s = ending.left_s
    is_clean = True
    try:
        async with asyncio.timeout(within_s + GRACE_S):
            await node.stop(within_s)
    except TimeoutError:
        is_clean = False
        logger.warning("node %s did not stop in %g s; other nodes can claim its agents", node.name, within_s + GRACE_S)
    options.say({"event": "stopped", "node": node.name, "clean": is_clean})
    return DONE if is_clean else FAILED


async def _drain(node: Node, ending: Ending) -> None:
    """Moves the agents to where there is room, in most of the time that is left.  A second reason to end stops it."""
    node.leave()
    drain = node.drains.new(ending.left_s * DRAIN_SHARE, is_patient=False)
    draining, hurried = asyncio.ensure_future(drain.run()), asyncio.ensure_future(ending.hurried.wait())
    await asyncio.wait((draining, hurried), return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if not draining.done():
        drain.stop()  # moves that have begun are left to the log, which decides
        draining.cancel()
    [_, error] = await asyncio.gather(hurried, draining, return_exceptions=True)
    if isinstance(error, Exception):
        logger.error("node %s: the drain failed; other nodes can claim its agents", node.name, exc_info=error)
