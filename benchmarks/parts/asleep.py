"""Agents that have left memory: what each takes of it, beside one in memory, and how long the ask takes that wakes it."""

from __future__ import annotations

import asyncio
import time

from benchmarks.agents import Counter, Sleepy
from benchmarks.figures import Found, Size, ratio, spread
from benchmarks.harness import run, say
from benchmarks.stage import Stage, staged

AT_ONCE = 128
LOT: dict[Size, int] = {"smoke": 100, "quick": 1_000, "full": 5_000}
LOTS: dict[Size, int] = {"smoke": 3, "quick": 11, "full": 21}
"""Memory that a lot has freed is taken by the next one, so what grows is what sleeping agents take."""
WOKEN: dict[Size, int] = {"smoke": 20, "quick": 200, "full": 1_000}
PAD = bytes(1024)
SHARE = 0.5
"""Of what an agent in memory takes."""
WAKE = 2.0
PAUSE_S = 0.25


async def spawn(stage: Stage, cls: type[Counter] | type[Sleepy], first: int, count: int) -> None:
    on_node, numbers = stage.cluster.on("node-1"), iter(range(first, first + count))

    async def some() -> None:
        for number in numbers:
            await on_node.spawn(cls, f"{cls.__name__.lower()}-{number}", pad=PAD)

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


async def all_asleep(stage: Stage, wanted: int) -> None:
    """Looks a quarter of the time at most: a list of 100,000 agents keeps the node busy for seconds."""
    while True:
        at = time.perf_counter()
        if sum(info.is_idle for info in await stage.cluster.agents()) >= wanted:
            return
        await asyncio.sleep(max(PAUSE_S, 3 * (time.perf_counter() - at)))


async def asked(stage: Stage, count: int) -> list[float]:
    """Milliseconds of an ask of each, one after another."""
    times = list[float]()
    for number in range(count):
        agent = stage.cluster.get(Sleepy, f"sleepy-{number}")
        at = time.perf_counter()
        await agent.add()
        times.append((time.perf_counter() - at) * 1000)
    return times


async def measure(size: Size, found: Found) -> None:
    async with staged(1, "lazy") as stage:
        process, lot = stage.process("node-1"), LOT[size]
        await spawn(stage, Counter, 0, lot)
        before = process.memory_info().rss
        await spawn(stage, Counter, lot, lot)
        await asyncio.sleep(1.0)
        active = (process.memory_info().rss - before) / lot
        base = 0
        for number in range(LOTS[size]):
            await spawn(stage, Sleepy, number * lot, lot)
            await all_asleep(stage, (number + 1) * lot)
            base = base or process.memory_info().rss
        asleep = (process.memory_info().rss - base) / (lot * (LOTS[size] - 1))
        say(f"asleep: {asleep:.0f} bytes each, in memory {active:.0f}")
        count = WOKEN[size]
        await asked(stage, count)
        await all_asleep(stage, LOTS[size] * lot)
        waking = await asked(stage, count)
        awake = await asked(stage, count)
        for number in range(count):
            assert await stage.cluster.get(Sleepy, f"sleepy-{number}").add(0) == 3
    share, one, other = ratio(asleep, active), spread(waking), spread(awake)
    times = ratio(one["p50"], other["p50"])
    found.figures["asleep"] = {
        "bytes": round(asleep),
        "active_bytes": round(active),
        "waking_ms": one,
        "awake_ms": other,
    }
    found.row(
        "asleep-memory", "lazy", f"{share} of one in memory ({asleep / 1024:.2f} KiB, {active / 1024:.2f} KiB)", share <= SHARE,
        f"{lot * (LOTS[size] - 1):,} agents of 1 KiB; resident memory",
    )  # fmt: skip
    found.row(
        "asleep-wake", "lazy", f"{times} times ({one['p50']:.2f} ms, {other['p50']:.2f} ms)", times <= WAKE,
        f"{count:,} agents, each asked asleep and then awake; p99 {one['p99']:.2f} ms, {other['p99']:.2f} ms",
    )  # fmt: skip
    say(f"asleep: waking {times} times, p50 {one['p50']:.2f} ms, awake {other['p50']:.2f} ms")


if __name__ == "__main__":
    run(measure)
