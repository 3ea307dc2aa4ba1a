"""Idle agents: how fast they are created on one node, and what each takes of its memory."""

from __future__ import annotations

import asyncio
import gc
import time

from benchmarks.agents import Counter
from benchmarks.figures import Found, Size
from benchmarks.harness import run, say
from benchmarks.stage import staged

AT_ONCE = 256
STEPS: dict[Size, tuple[int, ...]] = {
    "smoke": (200, 400),
    "quick": (1_000, 3_000, 10_000),
    "full": (1_000, 3_000, 10_000, 30_000, 100_000),
}
KIB = 10.0
SPAWNS_PER_S = 2000.0
REST_S = 1.0
SAMPLE = 97
"""Every so many-th agent is asked at the end whether it is there."""


async def measure(size: Size, found: Found) -> None:
    async with staged(1, "lazy") as stage:
        process, on_node = stage.process("node-1"), stage.cluster.on("node-1")
        warm = await on_node.spawn(Counter, "warm")
        await warm.add()
        await asyncio.sleep(REST_S)
        before, made, series = process.memory_info().rss, 0, list[dict[str, float]]()
        numbers = iter(range(STEPS[size][-1]))

        async def until(count: int) -> None:
            nonlocal made
            while made < count:
                made += 1
                await on_node.spawn(Counter, f"idle-{next(numbers)}")

        for step in STEPS[size]:
            first, at = made, time.perf_counter()
            await asyncio.gather(*(until(step) for _ in range(AT_ONCE)))
            took = time.perf_counter() - at
            await asyncio.sleep(REST_S)
            grown = (process.memory_info().rss - before) / made / 1024
            series.append({"agents": made, "kib_each": round(grown, 2), "per_s": round((made - first) / took)})
            say(f"idle: {series[-1]}")
            gc.collect()
        (node,) = [info for info in await stage.cluster.nodes() if info.name == "node-1"]
        assert node.agents == made + 1, f"{node.agents} of {made + 1} agents"
        for number in range(0, made, SAMPLE):
            assert await stage.cluster.get(Counter, f"idle-{number}").add(2) == 2
    last = series[-1]
    found.figures["idle"] = series
    whole = STEPS[size][-1] / (
        sum((b["agents"] - a) / b["per_s"] for a, b in zip((0, *STEPS[size]), series, strict=False))
    )
    found.row(
        "idle-memory", "lazy", f"{last['kib_each']} KiB", last["kib_each"] <= KIB, f"{made:,} agents; resident memory"
    )
    is_met = True if made >= 100_000 else None
    found.row("idle-count", "lazy", f"{made:,} agents, each {SAMPLE}th asked at the end", is_met)
    note = f"{AT_ONCE} at a time, over all {made:,}; the last step {last['per_s']:,.0f}/s"
    found.row("spawn", "lazy", f"{whole:,.0f}/s", whole >= SPAWNS_PER_S, note)


if __name__ == "__main__":
    run(measure)
