"""One deployment from its start to the failure of some of its nodes: what it costs at rest and at work, and how long moves take."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from mielin_cells.testing.scale.counted import AGENTS, BEATS, MEMBERS, Tally
from mielin_cells.testing.scale.scene import ScaleScene
from mielin_cells.testing.simulator import loop

T = TypeVar("T")

REST_S = 30.0
"""Virtual seconds between the last spawn and the first window: nodes compare their logs for the last time."""

WINDOW_S = 10.0
ASKS_EACH_S = 1.0
"""Of each node, in the second window."""

STEPS_MAX = 1 << 60
LIVENESS = ("Ping", "ListCopies", "ListBeats")
"""Requests by which nodes and clients find out who is there."""


@dataclass(slots=True, kw_only=True)
class Window:
    """Counts for each node and virtual second."""

    beats_sent: float
    beats_heard: float
    beats_heard_most: float
    """By the node that has heard most."""
    member_calls: float
    """Reads of and appends to the logs of membership."""
    member_entries: float
    """Entries of those that came back, or were shown by tails."""
    pings: float
    index_calls: float
    """Calls of `owned`, `forget_owned` and `position`."""
    index_entries: float
    logs_listed: float
    """Names that came back from listings of agents' logs."""
    log_reads: float
    log_entries: float
    """Records that these brought."""
    log_appends: float
    inbox_calls: float

    @classmethod
    def of(cls, tally: Tally, nodes: int, seconds: float) -> Window:
        calls, entries, each = tally.calls, tally.entries, nodes * seconds

        def per(count: float) -> float:
            return round(count / each, 4)

        index = ("owned", "forget_owned", "position")
        reads = ("read", "last", "lasts", "settled")
        return cls(
            beats_sent=per(calls["publish", BEATS]),
            beats_heard=per(calls["deliver", BEATS]),
            beats_heard_most=round(max(tally.heard.values(), default=0) / seconds, 2),
            member_calls=per(sum(count for (_, kind), count in calls.items() if kind == MEMBERS)),
            member_entries=per(sum(count for (_, kind), count in entries.items() if kind == MEMBERS)),
            pings=per(sum(tally.requests[name] for name in LIVENESS)),
            index_calls=per(sum(calls[what, AGENTS] for what in index)),
            index_entries=per(entries["owned", AGENTS]),
            logs_listed=per(entries["subjects", AGENTS]),
            log_reads=per(sum(calls[what, AGENTS] for what in reads)),
            log_entries=per(sum(entries[what, AGENTS] for what in reads)),
            log_appends=per(calls["append", AGENTS]),
            inbox_calls=per(sum(count for (what, kind), count in calls.items() if kind == "inboxes" and what != "deliver")),
        )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Result:
    nodes: int
    agents: int
    idle: Window | None = None
    busy: Window | None = None
    lost_at_once: int = 0
    """Nodes that were drained, and then nodes that failed, at the same time."""
    drain_s: float = 0.0
    """Virtual seconds until all of them were empty."""
    failover_s: float = 0.0
    """Virtual seconds until others served all agents."""
    drain: Window | None = None
    failover: Window | None = None
    moved: int = 0
    asks: int = 0
    unknown: int = 0
    cpu_s: dict[str, float] = field(default_factory=dict)
    """By phase: what the simulation took of a processor."""
    violations: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Run:
    """One size."""

    def __init__(self, nodes: int, agents_each: int, say: Callable[[str], None]) -> None:
        self._scene = ScaleScene(nodes, agents_each)
        self.result = Result(nodes=nodes, agents=nodes * agents_each, lost_at_once=max(1, min(10, nodes // 10)))
        self._say = say

    async def _phase(self, name: str, work: Awaitable[T]) -> tuple[T, Window]:
        scene, result = self._scene, self.result
        before, began, at = scene.counted.tally.copy(), scene.world.loop.time(), time.process_time()
        value = await work
        seconds = scene.world.loop.time() - began
        result.cpu_s[name] = round(time.process_time() - at, 2)
        self._say(f"{result.nodes} nodes: {name}: {seconds:.1f} virtual s in {result.cpu_s[name]:.1f} s of a processor")
        return value, Window.of(scene.counted.tally.since(before), result.nodes, seconds or 1.0)

    async def play(self, *, moves: bool = True, rest_s: float = REST_S, window_s: float = WINDOW_S) -> None:
        scene, result = self._scene, self.result
        await self._phase("start", scene.begin())
        await self._phase("spawn", scene.spawn_all())
        gc.collect()
        gc.freeze()
        if rest_s:
            await self._phase("rest", asyncio.sleep(rest_s))
        _, result.idle = await self._phase("idle", asyncio.sleep(window_s))
        _, result.busy = await self._phase("busy", scene.ask_for(window_s, ASKS_EACH_S))
        if moves:
            count, homes = result.lost_at_once, scene.homes
            drained, failed = list(scene.names[:count]), list(scene.names[count : 2 * count])
            moved = {agent for agent, home in homes.items() if home in {*drained, *failed}}
            result.drain_s, result.drain = await self._phase("drain", scene.drain(drained))
            result.failover_s, result.failover = await self._phase("failover", scene.fail(failed))
            await self._phase("check", scene.check(moved))
            result.moved = len(moved)
        result.asks, result.unknown = scene.asked, scene.unknown.total()
        result.violations = scene.violations
        scene.end()


def measure(nodes: int, agents_each: int, say: Callable[[str], None] = lambda _: None, **options: Any) -> Result:
    """Plays one size in virtual time; `options` are those of `Run.play`."""
    logger, made = logging.getLogger("mielin_cells"), list[Run]()
    before = logger.level

    async def main() -> None:
        made.append(Run(nodes, agents_each, say))
        await made[0].play(**options)

    logger.setLevel(logging.CRITICAL)  # a node that fails is news to all others
    try:
        loop.run(main(), steps_max=STEPS_MAX)
    finally:
        logger.setLevel(before)
        gc.unfreeze()
    return made[0].result
