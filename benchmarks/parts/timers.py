"""Timers: what it takes to set one and to send its message, while an agent has few and while it has many others."""

from __future__ import annotations

import asyncio
import time

import mielin_cells as cells
from benchmarks.figures import Found, Size, ratio
from benchmarks.harness import run, say

AGENTS = 10
MANY: dict[Size, int] = {"smoke": 500, "quick": 9_000, "full": 9_000}
"""Of each agent, whose limit is 10,000."""
FEW = 10
LOT = 50
ROUNDS: dict[Size, int] = {"smoke": 2, "quick": 10, "full": 50}
FAR_S = 1e6
SET_AT_ONCE = 1000
TIMES = 2.0


class Ringer(cells.Agent, name="BenchRinger"):
    rung: int = 0

    @cells.handler
    async def fill(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            cells.after(FAR_S + number, self.ring, id=f"far-{number}")()

    @cells.handler
    async def soon(self, tag: int) -> None:
        for number in range(LOT):
            cells.after(0.0, self.ring, id=f"soon-{tag}-{number}")()

    @cells.handler
    async def ring(self) -> None:
        self.rung += 1

    @cells.handler
    async def count(self) -> int:
        return self.rung


async def each(cluster: cells.Cluster, timers: int, rounds: int) -> float:
    """Microseconds of the processor for each timer that is set and fires."""
    agents = [await cluster.spawn(Ringer, f"ringer-{timers}-{n}") for n in range(AGENTS)]
    for agent in agents:
        for first in range(0, timers, SET_AT_ONCE):
            await agent.fill(first, min(SET_AT_ONCE, timers - first))
    begun, wanted = time.process_time(), 0
    for tag in range(rounds):
        await asyncio.gather(*(agent.soon(tag) for agent in agents))
        wanted += LOT * AGENTS
        while sum([await agent.count() for agent in agents]) < wanted:
            await asyncio.sleep(0)
    return (time.process_time() - begun) / wanted * 1e6


async def measure(size: Size, found: Found) -> None:
    async with cells.local() as cluster:
        few, many = await each(cluster, FEW, ROUNDS[size]), await each(cluster, MANY[size], ROUNDS[size])
    times, total = ratio(many, few), MANY[size] * AGENTS
    found.figures["timers"] = {"few_us": round(few, 1), "many_us": round(many, 1), "timers": total}
    found.row(
        "timers-many", "", f"{times} times ({many:.0f} µs, {few:.0f} µs)", times <= TIMES,
        f"{total:,} timers of {AGENTS} agents, against {FEW * AGENTS}; processor time, in memory",
    )  # fmt: skip
    say(f"timers: {times} times with {total:,}")


if __name__ == "__main__":
    run(measure)
