"""Pause and whole move against the size of the state, which changes meanwhile; beside the floor, and the peers' moves.

The small agent (1 KiB, 1,000 messages/s) is moved in turn with the large ones, so that what is compared was measured together.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any, NamedTuple

from benchmarks.agents import Store, Tally
from benchmarks.figures import SYNCS, Found, Size, Sync, kept, ratio, spread
from benchmarks.harness import run, say
from benchmarks.peer import of_others
from benchmarks.stage import LARGE, Stage, staged
from benchmarks.traffic import checked, traffic

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
ROW_BYTES = 1024
FILL_ROWS = 200
"""In one message; a `Buffer` grows by as many bytes."""

FILLS_AT_ONCE = 8
SMALL_PER_S = 1000
SMALL_MOVES: dict[Size, int] = {"smoke": 2, "quick": 20, "full": 40}
"""In each round."""

APPENDS = 2
REST_S = 0.05
NEXT_GAP_S = 0.25


class Load(NamedTuple):
    """A large agent: `changes` rows, or bytes of a `Buffer`, in each of so many messages a second; so many moves in each round."""

    bytes: int
    is_buffer: bool
    messages_per_s: float
    changes: int
    moves: int


def table(size: int, moves: int) -> Load:
    """1 % of the rows each second."""
    rows_per_s = size / ROW_BYTES / 100
    changes = max(1, round(rows_per_s / 64))
    return Load(size, False, rows_per_s / changes, changes, moves)


LOADS: dict[Size, tuple[Load, ...]] = {
    "smoke": (table(1 * MIB, 1), Load(4 * MIB, True, 10, 1, 1)),
    "quick": (table(1 * MIB, 3), table(100 * MIB, 4)),
    "full": (table(1 * MIB, 4), table(16 * MIB, 3), table(100 * MIB, 3), Load(1 * GIB, True, 10, 1, 1)),
}
ROUNDS: dict[Size, int] = {"smoke": 1, "quick": 1, "full": 3}
PEER_SIZES: dict[Size, tuple[tuple[int, int], ...]] = {
    "smoke": (),
    "quick": ((1 * KIB, 3), (100 * MIB, 1)),
    "full": ((1 * KIB, 8), (1 * MIB, 8), (16 * MIB, 4), (100 * MIB, 3)),
}
PEERS = (("paglets", "paglets_moves"), ("xoscar", "xoscar_calls"), ("ray", "ray_calls"))


class Mover:
    """One agent with its traffic, moved between two nodes; what it has found so far."""

    def __init__(
        self, stage: Stage, agent: Store | Tally, tell: Callable[[int], Awaitable[object]], per_s: float
    ) -> None:
        self._stage = stage
        self._agent = agent
        self._tell = tell
        self._per_s = per_s
        self._sent = 0
        self.pauses: list[float] = []
        self.seconds: list[float] = []
        self.phases: list[dict[str, float]] = []

    async def moves(self, count: int) -> None:
        """The first one of a round is to get warm."""
        async with traffic(self._tell, self._per_s, self._sent) as going:
            for number in range(count + 1):
                await asyncio.sleep(REST_S)
                at = time.perf_counter()
                report = await self._stage.cluster.migrate(self._agent)
                assert report.ok, report
                if number:
                    self.pauses.append(report.pause_ms)
                    self.seconds.append(time.perf_counter() - at)
                    self.phases.append(dict(report.phases))
        await checked(going, self._agent)
        self._sent = going.sent

    def told(self) -> dict[str, Any]:
        return {
            "pause_ms": spread(self.pauses), "pauses": kept(self.pauses), "seconds": spread(self.seconds),
            "phases_ms": {
                name: round(median(phases.get(name, 0.0) for phases in self.phases) * 1000, 2) for name in self.phases[-1]
            },
        }  # fmt: skip


async def filled(stage: Stage, load: Load) -> Store:
    agent = await stage.cluster.on("node-1").spawn(Store, f"s{load.bytes}")
    step = FILL_ROWS * ROW_BYTES
    todo = iter(range(0, load.bytes, step))

    async def worker() -> None:
        for first in todo:
            size = min(step, load.bytes - first)
            if load.is_buffer:
                await agent.extend(size)
            else:
                await agent.fill(first // ROW_BYTES, size // ROW_BYTES, ROW_BYTES)

    await asyncio.gather(*(worker() for _ in range(FILLS_AT_ONCE)))
    info = await stage.cluster.show(agent)
    assert info.bytes >= load.bytes, f"{info.bytes} of {load.bytes} bytes"
    return agent


def changing(agent: Store, load: Load) -> Callable[[int], Awaitable[object]]:
    span = load.bytes if load.is_buffer else load.bytes // ROW_BYTES
    return lambda n: agent.change.tell(n, [random.randrange(span) for _ in range(load.changes)])


async def ours(found: Found, sync: Sync, size: Size) -> None:
    figures: dict[str, Any] = {}
    async with staged(2, sync, LARGE) as stage:
        tally = await stage.cluster.on("node-1").spawn(Tally, "small", pad=b"x" * KIB)
        small = Mover(stage, tally, tally.take.tell, SMALL_PER_S)
        floors, parts = list[float](), list[float]()
        movers = dict[Load, Mover]()
        for load in LOADS[size]:
            at = time.perf_counter()
            agent = await filled(stage, load)
            say(f"sizes {sync}: {load.bytes >> 20} MiB stored in {time.perf_counter() - at:.1f} s")
            movers[load] = Mover(stage, agent, changing(agent, load), load.messages_per_s)
        for _ in range(ROUNDS[size]):
            await small.moves(SMALL_MOVES[size])
            floors += await stage.floor.do("handovers", appends=APPENDS, count=SMALL_MOVES[size])
            for load, mover in movers.items():
                await mover.moves(load.moves)
                say(
                    f"sizes {sync}: {load.bytes >> 20} MiB: pauses {mover.pauses[-load.moves :]}, s {mover.seconds[-load.moves :]}"
                )
            parts.append(await stage.floor.do("parts", size=LOADS[size][-1].bytes))
        figures = {
            "floor_ms": spread(floors), "parts_s": spread(parts), "parts_bytes": LOADS[size][-1].bytes,
            "sizes": {str(KIB): small.told(), **{str(load.bytes): mover.told() for load, mover in movers.items()}},
        }  # fmt: skip
    found.figures[sync] = figures
    rows(found, sync, figures)


def rows(found: Found, sync: Sync, figures: dict[str, Any]) -> None:
    small = figures["sizes"][str(KIB)]["pause_ms"]["p50"]
    for key, size, limit in (("pause-100m", 100 * MIB, 3.0), ("pause-1g", GIB, 5.0)):
        told = figures["sizes"].get(str(size))
        if told is None:
            found.row(key, sync, "not measured at this size of the run", None)
            continue
        pause = told["pause_ms"]
        times = ratio(pause["p50"], small)
        text = f"{times} times ({pause['p50']:.2f} ms, of 1 KiB {small:.2f} ms)"
        note = f"{pause['n']} moves, longest pause {pause['max']:.1f} ms; the whole move {told['seconds']['p50']:.2f} s"
        found.row(key, sync, text, times <= limit, note)
    if figures["parts_bytes"] != GIB:
        found.row("total-1g", sync, "not measured at this size of the run", None)
        return
    whole, parts = figures["sizes"][str(GIB)]["seconds"]["p50"], figures["parts_s"]["p50"]
    times = ratio(whole, parts)
    found.row("total-1g", sync, f"{times} times ({whole:.1f} s, appending {parts:.1f} s)", times <= 1.5)


async def measure(size: Size, found: Found) -> None:
    for sync in SYNCS:
        await ours(found, sync, size)
    for name, program in PEERS:
        async with of_others(program) as peer:
            if peer is None:
                continue
            told = found.figures[name] = {}
            for state, count in PEER_SIZES[size]:
                moves = (await peer.do("moves", size=state, count=count + 1))["ms"][1:]
                told[str(state)] = spread(moves)
                say(f"sizes {name} {state}: {median(moves):.0f} ms")


if __name__ == "__main__":
    run(measure)
