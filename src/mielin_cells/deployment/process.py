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
from typing import TYPE_CHECKING, Any

import msgspec

from mielin_cells.agents.reference import classes, policies_of, versions_of
from mielin_cells.client.client import Client
from mielin_cells.deployment.app import load_app
from mielin_cells.deployment.codes import DONE, FAILED
from mielin_cells.deployment.config import Config
from mielin_cells.deployment.connect import LOCKS_VARIABLE, Address, open_substrate
from mielin_cells.deployment.deploys.older import check_not_older
from mielin_cells.deployment.ending import GRACE_S, ORPHAN_S, Ending
from mielin_cells.deployment.facts.measuring import Measuring, installed_sensors
from mielin_cells.deployment.garbage import THRESHOLDS, Garbage
from mielin_cells.deployment.notices import Notices, ReadyFile, installed_notices
from mielin_cells.deployment.policies import warn_of_overlaps
from mielin_cells.errors import Fenced, RetryError, StoreUnreachable
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.heartbeat import Heartbeat, Listener
from mielin_cells.metrics.place import Place
from mielin_cells.node.metrics import read_metrics
from mielin_cells.node.moves.admission import room_of
from mielin_cells.node.node import Node
from mielin_cells.policy.selectors import Selector
from mielin_cells.substrate.ports import Substrate
from mielin_cells.tasks.supervision import Backoff, persist, supervised

if TYPE_CHECKING:
    from mielin_cells.deployment.metrics import Endpoint

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
    fleet: str = ""
    """Who has started the process, if it starts the new nodes of a deploy, too."""
    reserved: bool = False
    """Under a new name the node takes only agents that are moved to it by name, until it is uncordoned."""
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


def announcement(
    labels: dict[str, str], package: str, reserved: bool = False, selectors: tuple[Selector, ...] = ()
) -> Announcement:  # fmt: skip
    import psutil

    return Announcement(
        classes=versions_of(classes), policies=policies_of(classes),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total, architecture=platform.machine(), labels=labels,
        host=socket.gethostname(), process=os.getpid(), python=platform.python_version(),
        package=package, at=time.time(), is_reserved=reserved, selectors=selectors,
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
    endpoint = _endpoint(options.config)
    try:
        return await _serve_with(options, endpoint)
    finally:
        if endpoint is not None:
            endpoint.stop()


def _endpoint(config: Config) -> Endpoint | None:
    """What serves metrics, if that is wanted.  Raises `ConfigError` if it cannot listen."""
    if config.node.metrics is None:
        return None
    from mielin_cells.deployment.metrics import Endpoint

    return Endpoint(Place(config.node.metrics))


async def _serve_with(options: Options, endpoint: Endpoint | None) -> int:
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
        if not await ending.unless(_opened(client)) or not await ending.unless(_is_new_enough(options, substrate)):
            return DONE
        return await _run_node(options, ending, substrate, client, endpoint)
    finally:
        await client.close()
        try:
            async with asyncio.timeout(GRACE_S):
                await substrate.close()
        except TimeoutError:
            logger.warning("node %s: the connection did not close in time", options.name)


async def _opened(client: Client) -> bool:
    await client.open()
    return True


async def _is_new_enough(options: Options, substrate: Substrate) -> bool:
    """Raises `ConfigError` if the last deploy has brought newer code.  Nodes of the next deploy are checked by that."""

    def failed(error: Exception) -> None:
        logger.info("node %s waits for the store: %s", options.name, error)

    if not options.reserved:
        work = functools.partial(check_not_older, substrate.log, options.app, versions_of(classes))
        await persist(work, RetryError, failed)
    return True


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


async def _run_node(
    options: Options, ending: Ending, substrate: Substrate, client: Client, endpoint: Endpoint | None
) -> int:
    settings, config = options.config.settings, options.config
    warn_of_overlaps(config.policies)
    replaced_by: list[int] = []

    def replaced(incarnation: int) -> None:
        replaced_by.append(incarnation)
        ending.end("replaced", ORPHAN_S)

    listener = Listener()
    measuring = Measuring(installed_sensors, every_s=settings.facts_s, cost_per_hour=config.node.cost_per_hour)
    node = _make_node(options, substrate, client, listener, measuring, replaced)
    if endpoint is not None:
        endpoint.serve(node.name, lambda: read_metrics(node))
    heartbeat: Heartbeat | None = None

    def entered() -> None:
        nonlocal heartbeat
        heartbeat = Heartbeat(
            node.name, lambda: open_substrate(options.address.existing, makes=False), settings, listener,
            lambda stuck_s: (node.beat(stuck_s), node.leads),
        )  # fmt: skip
        heartbeat.start()

    async def start() -> bool:
        await node.start(entered)
        return True

    notices = Notices(ending, node.name, config.node.drain_file, installed_notices)
    garbage = Garbage(node.activations.live.values, time.monotonic)
    looking = asyncio.ensure_future(supervised(f"node {options.name}: looking for garbage", garbage.run))
    measuring.start()
    notices.start()
    ready = ReadyFile(config.node.ready_file)
    try:
        if await ending.unless(start()):
            options.say({
                "event": "serving", "node": node.name, "incarnation": node.home.incarnation, "agents": node.activations.count,
                "classes": node.about.classes, "process": os.getpid(), **({"metrics": endpoint.url} if endpoint is not None else {}),
            })  # fmt: skip
            ready.make()
            await ending.wait()
        ready.remove()
        if replaced_by:
            raise _fenced(node, replaced_by[0])
        return await _stop(node, ending, options)
    finally:
        ready.remove()
        notices.stop()
        measuring.stop()
        looking.cancel()
        node.kill()
        if heartbeat is not None:
            await heartbeat.stop()


def _make_node(
    options: Options, substrate: Substrate, client: Client, listener: Listener, measuring: Measuring,
    replaced: Callable[[int], None],
) -> Node:  # fmt: skip
    config = options.config
    about = announcement({**config.node.labels, **options.labels}, options.package, options.reserved, config.policies)
    node = Node(
        options.name, substrate.log, substrate.wire, classes.get, settings=config.settings, wall=time.time, clock=time.monotonic,
        about=msgspec.structs.replace(about, fleet=options.fleet), room=room_of(None), recovery=config.recovery,
        recovery_of=config.classes, listener=listener, replaced=replaced, cluster=client, measure=measuring.facts,
    )  # fmt: skip
    if options.faults is not None:
        options.faults(node, substrate)
    return node


def _fenced(node: Node, incarnation: int) -> Fenced:
    why = (
        f"Node {node.name} was started again as incarnation {incarnation}; this process has stopped."
        if incarnation != node.home.incarnation
        else f"Node {node.name} was silent for so long that the others replaced it; this process has stopped. Start it again."
    )
    return Fenced(why, node=node.name, epoch=incarnation)


async def _stop(node: Node, ending: Ending, options: Options) -> int:
    """Drains the node if that is asked for, and stops it: cleanly if there is time, else as a crash would.

    Nothing that was acknowledged is lost.
    """
    facts = {"node": node.name, "reason": ending.reason}
    if ending.drains:
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
    while not (draining.done() or hurried.done()):
        shortened = asyncio.ensure_future(ending.shortened.wait())
        await asyncio.wait((draining, hurried, shortened), return_when=asyncio.FIRST_COMPLETED)
        if shortened.done():
            ending.shortened.clear()
            drain.extend(ending.left_s * DRAIN_SHARE)
        else:
            shortened.cancel()
    hurried.cancel()
    if not draining.done():
        drain.stop()  # moves that have begun are left to the log, which decides
        draining.cancel()
    [_, error] = await asyncio.gather(hurried, draining, return_exceptions=True)
    if isinstance(error, Exception):
        logger.error("node %s: the drain failed; other nodes can claim its agents", node.name, exc_info=error)
