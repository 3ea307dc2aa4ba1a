"""The pause of an agent of 1 KiB under 1,000 messages/s, move by move beside its floor under the same messages."""

from __future__ import annotations

import asyncio
import time

from benchmarks.agents import Tally
from benchmarks.figures import SYNCS, Found, Size, Sync, kept, percentile, ratio, spread
from benchmarks.harness import run, say
from benchmarks.stage import Stage, staged
from benchmarks.traffic import checked, traffic

MESSAGES_PER_S = 1000
STATE_BYTES = 1024
REST_S = 0.01
MOVES: dict[Size, int] = {"smoke": 5, "quick": 120, "full": 600}
WARM: dict[Size, int] = {"smoke": 1, "quick": 15, "full": 40}
APPENDS = 2
"""The handover, and its acceptance."""


async def pauses(stage: Stage, size: Size) -> tuple[list[float], list[float], dict[str, float]]:
    """Milliseconds of each pause, and of each floor; and what else there is to tell."""
    agent = await stage.cluster.on("node-1").spawn(Tally, "small", pad=b"x" * STATE_BYTES)
    found, floors, took = list[float](), list[float](), list[float]()
    async with traffic(agent.take.tell, MESSAGES_PER_S) as going:
        for number in range(MOVES[size] + WARM[size]):
            await asyncio.sleep(REST_S)
            at = time.perf_counter()
            report = await stage.cluster.migrate(agent)
            whole = (time.perf_counter() - at) * 1000
            assert report.ok, report
            await asyncio.sleep(REST_S)  # the same rest before both: what has just run is faster
            (floor,) = await stage.floor.do("handovers", appends=APPENDS, count=1)
            if number >= WARM[size]:
                found.append(report.pause_ms)
                floors.append(floor)
                took.append(whole)
    await checked(going, agent)
    return found, floors, {"messages_per_s": round(going.rate), "move_ms": round(percentile(took, 0.5), 2)}


async def one(found: Found, sync: Sync, size: Size) -> None:
    async with staged(2, sync) as stage:
        found.figures.setdefault("server", stage.server)
        pause, floor, more = await pauses(stage, size)
    ours, bare = spread(pause), spread(floor)
    found.figures[sync] = {"pause_ms": ours, "floor_ms": bare, **more, "pauses": kept(pause), "floors": kept(floor)}
    note = f"{len(pause)} moves; {more['messages_per_s']} messages/s came"
    for point, limit in (("p50", 2.0), ("p99", 4.0)):
        times = ratio(ours[point], bare[point])
        text = f"{times} times ({ours[point]:.2f} ms, floor {bare[point]:.2f} ms)"
        found.row(f"pause-{point}", sync, text, times <= limit, note)
        say(f"pause {sync} {point}: {text}")


async def measure(size: Size, found: Found) -> None:
    for sync in SYNCS:
        await one(found, sync, size)


if __name__ == "__main__":
    run(measure)
