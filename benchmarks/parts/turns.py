"""A turn that changes one key, against the size of the state: in process, in memory, and the two turns in turn."""

from __future__ import annotations

import random
import time

import mielin_cells as cells
from benchmarks.agents import Store
from benchmarks.figures import Found, Size, ratio, spread
from benchmarks.harness import run

ROW_BYTES = 1024
FILL_ROWS = 200
"""In one message."""

ROWS: dict[Size, tuple[int, ...]] = {
    "smoke": (1, 1_000),
    "quick": (1, 1_024, 102_400),
    "full": (1, 32, 1_024, 10_240, 102_400),
}
BLOCK = 100
BLOCKS: dict[Size, int] = {"smoke": 1, "quick": 10, "full": 30}


async def measure(size: Size, found: Found) -> None:
    data = b"y" * ROW_BYTES
    async with cells.local(settings=cells.Settings(retention_s=0)) as cluster:
        agents = dict[int, Store]()
        for rows in ROWS[size]:
            agents[rows] = await cluster.spawn(Store, f"s{rows}")
            for first in range(0, rows, FILL_ROWS):
                await agents[rows].fill(first, min(FILL_ROWS, rows - first), ROW_BYTES)
        times: dict[int, list[float]] = {rows: [] for rows in agents}
        for number in range(BLOCKS[size] + 1):
            for rows, agent in agents.items():
                for _ in range(BLOCK):
                    key, at = random.randrange(rows), time.perf_counter()
                    await agent.put(key, data)
                    if number:  # the first block is to get warm
                        times[rows].append((time.perf_counter() - at) * 1e6)
        for rows, agent in agents.items():
            done = await agent.put(0, data)
            assert done == (BLOCKS[size] + 1) * BLOCK + 1, f"{done} turns"
            info = await cluster.show(agent)
            assert info.bytes >= rows * ROW_BYTES
    found.figures = {str(rows * ROW_BYTES): spread(values) for rows, values in times.items()}
    small, large = (spread(times[rows]) for rows in (ROWS[size][0], ROWS[size][-1]))
    means = [sum(times[rows]) / len(times[rows]) for rows in (ROWS[size][0], ROWS[size][-1])]
    whole = ratio(large["p50"], small["p50"])
    found.row(
        "turn-table", "", f"{whole} times ({large['p50']:.0f} µs, of 1 KiB {small['p50']:.0f} µs)", whole <= 2,
        f"{ROWS[size][-1]:,} rows of 1 KiB; means, with snapshots: {means[1]:.0f} and {means[0]:.0f} µs",
    )  # fmt: skip


if __name__ == "__main__":
    run(measure)
