"""All agents of a node moved off it, as `mielin drain` does: how many a second."""

from __future__ import annotations

import asyncio
from statistics import median

from benchmarks.agents import Counter
from benchmarks.figures import SYNCS, Found, Size, Sync
from benchmarks.harness import run, say
from benchmarks.stage import staged
from mielin_cells.node.drain import MOVES

AGENTS: dict[Size, int] = {"smoke": 20, "quick": 500, "full": 3_000}
ROUNDS: dict[Size, int] = {"smoke": 1, "quick": 2, "full": 3}
STATE_BYTES = 1024
AT_ONCE = 128
DEADLINE_S = 120.0
ANSWER_S = 60.0
"""All are asked at once."""

APPENDS = 2
"""The handover and its acceptance: the least that a move appends to the agent's log."""

BARS = {"always": 150.0, "lazy": 300.0}


async def one(found: Found, sync: Sync, size: Size) -> None:
    async with staged(2, sync) as stage:
        count, rates = AGENTS[size], list[float]()
        numbers = iter(range(count))

        async def worker() -> None:
            for number in numbers:
                await stage.cluster.on("node-1").spawn(Counter, f"d{number}", pad=b"x" * STATE_BYTES)

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        agents = [stage.cluster.get(Counter, f"d{number}") for number in range(count)]
        for number in range(ROUNDS[size]):
            source = f"node-{number % 2 + 1}"
            report = await stage.cluster.drain(source, DEADLINE_S)
            assert (report.moved, report.left) == (count, 0), report
            rates.append(report.moved / report.seconds)
            await stage.cluster.uncordon(source)
            say(f"drain {sync}: {rates[-1]:.0f}/s")
            totals = set(await asyncio.gather(*(agent.add.options(timeout=ANSWER_S)() for agent in agents)))
            assert totals == {number + 1}, f"counts {totals} after {number + 1} messages each"
        floor = await stage.floor.do("pipelined", appends=APPENDS, count=max(64, count // 2), window=MOVES)
    rate = median(rates)
    found.figures[sync] = {"agents": count, "per_s": [round(one) for one in rates], "floor_per_s": round(floor)}
    found.row(
        f"drain-{sync}", sync, f"{rate:,.0f}/s", rate >= BARS[sync],
        f"{count:,} agents, {ROUNDS[size]} drains, {MOVES} moves at a time; {APPENDS} dependent appends and a delivery, "
        f"as many at a time: {floor:,.0f}/s",
    )  # fmt: skip


async def measure(size: Size, found: Found) -> None:
    for sync in SYNCS:
        await one(found, sync, size)


if __name__ == "__main__":
    run(measure)
