"""Durable turns on SQLite beside dbos' durable steps: write-ahead journal, synced in full, both.

A step is dbos' unit of durable work, a turn is ours.  dbos is measured in each way in which its users run workflows, alone and
many at a time, and its best counts.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import mielin_cells as cells
from benchmarks.agents import Counter
from benchmarks.figures import Found, Size, ratio
from benchmarks.harness import pipelined, run
from benchmarks.peer import of_others

AGENTS = 16
WINDOW = 1024
TURNS: dict[Size, int] = {"smoke": 2_048, "quick": 20_480, "full": 81_920}
SEQUENTIAL: dict[Size, int] = {"smoke": 50, "quick": 500, "full": 2_000}
STEPS: dict[Size, int] = {"smoke": 64, "quick": 320, "full": 1_280}
ROUNDS: dict[Size, int] = {"smoke": 1, "quick": 1, "full": 4}
WAYS = {
    "one workflow": {"workflows": 1, "is_async": False},
    "8 workflows": {"workflows": 8, "is_async": False},
    "8 workflows, async": {"workflows": 8, "is_async": True},
    "64 workflows, async": {"workflows": 64, "is_async": True},
}


async def turns(path: Path, size: Size) -> tuple[float, float]:
    """Turns per second pipelined, and one after another, on a fresh file; each is one agent's commit of one message."""
    async with cells.local(path=path, sync="power") as cluster:
        agents = [await cluster.spawn(Counter, f"c{n}") for n in range(AGENTS)]
        asked = 2_048
        await pipelined(lambda caller: agents[caller % AGENTS].add(), asked, WINDOW)  # to get warm
        rate = await pipelined(lambda caller: agents[caller % AGENTS].add(), TURNS[size], WINDOW)
        asked += TURNS[size] // WINDOW * WINDOW
        at = time.perf_counter()
        for _ in range(SEQUENTIAL[size]):
            await agents[0].add()
        single = SEQUENTIAL[size] / (time.perf_counter() - at)
        total = sum([await agent.add(0) for agent in agents])
        assert total == asked + SEQUENTIAL[size], f"{total} of {asked + SEQUENTIAL[size]}"
    return rate, single


async def measure(size: Size, found: Found) -> None:
    rates, singles = list[float](), list[float]()
    theirs: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="mielin-bench-") as folder:
        async with of_others("dbos_steps") as peer:
            for number in range(ROUNDS[size]):
                rate, single = await turns(Path(folder) / f"{number}.db", size)
                rates.append(rate)
                singles.append(single)
                if peer is None:
                    continue
                await peer.do("launch", journal="wal")
                await peer.do("steps", count=64, workflows=8, is_async=False)  # to get warm
                for name, way in WAYS.items():
                    theirs.setdefault(name, []).append(await peer.do("steps", count=STEPS[size], **way))
                await peer.do("end")
    ours = median(rates)
    found.figures = {
        "turns_per_s": [round(rate) for rate in rates], "sequential_turns_per_s": [round(rate) for rate in singles],
        "dbos_steps_per_s": {name: [round(rate) for rate in values] for name, values in theirs.items()},
    }  # fmt: skip
    if not theirs:
        found.row("turns-dbos", "always", f"{ours:,.0f}/s; dbos is not there", None)
        return
    best: Any = max(theirs, key=lambda name: median(theirs[name]))
    times = ratio(ours, median(theirs[best]))
    found.row(
        "turns-dbos", "always", f"{times} times ({ours:,.0f}/s, dbos {median(theirs[best]):,.0f}/s)", times >= 20,
        f"{WINDOW:,} asks on their way; dbos' best is {best}; one after another: {median(singles):,.0f}/s "
        f"against {median(theirs['one workflow']):,.0f}/s",
    )  # fmt: skip


if __name__ == "__main__":
    run(measure)
