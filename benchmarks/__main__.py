"""`python -m benchmarks [--smoke]`: the speed goals, each a ratio of two things measured in this run, medians of several."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import mielin_cells as cells
from benchmarks.agents import Counter, Store
from benchmarks.autogen import autogen_asks
from benchmarks.callers import CALLERS, rate
from mielin_cells.node.client import Client
from mielin_cells.substrate.ports import Appended


async def medians(work: Callable[[], Awaitable[float]], runs: int) -> float:
    return statistics.median([await work() for _ in range(runs)])


async def asks(count: int, runs: int) -> float:
    """Pipelined asks per second, in process, memory: `CALLERS` callers, each with one ask on its way; 16 agents."""
    async with cells.local() as cluster:
        agents = [await cluster.spawn(Counter, f"c{n}") for n in range(16)]
        return await medians(lambda: rate(lambda caller: agents[caller % 16].add(), count), runs)


async def turns(rows: int, count: int, runs: int) -> tuple[float, float]:
    """Seconds of a turn that changes one key: of a table of `rows` rows of 1 KiB, and of an agent of 1 KiB."""
    async with cells.local(settings=cells.Settings(retention_s=0)) as cluster:
        large = await cluster.spawn(Store, "large")
        for first in range(0, rows, 200):
            await large.fill(first, 200, 1024)
        small = await cluster.spawn(Store, "small")
        await small.fill(0, 1, 1024)
        data = b"y" * 1024

        async def timed(agent: Store, span: int) -> float:
            at = time.perf_counter()
            for n in range(count):
                await agent.put(n * 7919 % span, data)
            return (time.perf_counter() - at) / count

        await timed(large, rows)
        pairs = [(await timed(large, rows), await timed(small, 1)) for _ in range(runs)]
        return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


async def pauses(moves: int, path: Path | None) -> tuple[float, float]:
    """Median pause in ms of a 1 KiB agent under 200 messages/s, and of two conditional appends, one after the other."""
    async with cells.local(nodes=2, path=path) as cluster:
        counter = await cluster.spawn(Counter, "c", pad=b"x" * 1024)
        assert isinstance(cluster, Client)
        going = True

        async def traffic() -> None:
            while going:
                await counter.add.tell(1)
                await asyncio.sleep(0.005)

        task = asyncio.create_task(traffic())
        found, floors = [], []
        for n in range(moves):
            await asyncio.sleep(0.01)  # the same rest before both: what has just run is faster
            found.append((await cluster.migrate(counter)).pause_ms)
            await asyncio.sleep(0.01)
            at, last = time.perf_counter(), 0
            for _ in range(2):
                outcome = await cluster.log.append(f"floor.{n}", b"x" * 300, last)
                assert isinstance(outcome, Appended)
                last = outcome.seq
            floors.append((time.perf_counter() - at) * 1000)
        going = False
        await task
        return statistics.median(found), statistics.median(floors)


async def measure(smoke: bool) -> dict[str, object]:
    count, runs, rows, moves = (4_096, 1, 2_000, 20) if smoke else (40_960, 5, 100_000, 300)
    ours = await asks(count, runs)
    theirs = await autogen_asks(min(count, 8_192), runs)
    large, small = await turns(rows, 200 if smoke else 2_000, 1 if smoke else 5)
    figures: dict[str, object] = {
        "callers": CALLERS,
        "asks_per_s": round(ours),
        "autogen_core_asks_per_s": round(theirs) if theirs else None,
        "asks_ratio": round(ours / theirs, 2) if theirs else None,
        "turn_large_us": round(large * 1e6),
        "turn_small_us": round(small * 1e6),
        "turn_ratio": round(large / small, 2),
    }
    with tempfile.TemporaryDirectory() as folder:
        for where, path in (("memory", None), ("file", Path(folder) / "pause.db")):
            pause, floor = await pauses(moves, path)
            figures[f"{where}_pause_ms"] = round(pause, 3)
            figures[f"{where}_two_appends_ms"] = round(floor, 3)
            figures[f"{where}_pause_ratio"] = round(pause / floor, 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--smoke", action="store_true", help="small sizes: that it runs, not how fast")
    options = parser.parse_args()
    json.dump(asyncio.run(measure(options.smoke)), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
