"""Messages published to many subscribers on several nodes: deliveries a second, and how long the publisher is busy."""

from __future__ import annotations

import asyncio
import time

from benchmarks.agents import Listener, Speaker
from benchmarks.figures import Found, Size
from benchmarks.harness import run, say
from benchmarks.stage import staged

NODES = 3
SUBSCRIBERS: dict[Size, int] = {"smoke": 60, "quick": 3_000, "full": 10_000}
MESSAGES: dict[Size, int] = {"smoke": 5, "quick": 20, "full": 20}
ROUNDS: dict[Size, int] = {"smoke": 1, "quick": 3, "full": 5}
AT_ONCE = 128
LIMIT_S = 240.0
BAR = 20_000
ALONE = 64
"""Asks that publish one message each, and as many that publish none."""


async def measure(size: Size, found: Found) -> None:
    """All subscribers count what comes; the messages carry the numbers that they count."""
    async with staged(NODES, "lazy") as stage:
        count, numbers = SUBSCRIBERS[size], iter(range(SUBSCRIBERS[size]))

        async def worker() -> None:
            for n in numbers:
                listener = await stage.cluster.on(f"node-{n % NODES + 1}").spawn(Listener, f"l{n}")
                await listener.listen("bench.*")

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        speaker = await stage.cluster.spawn(Speaker, "speaker")
        listeners = [stage.cluster.get(Listener, f"l{n}") for n in range(count)]
        rates, busy, total = list[float](), list[float](), 0
        for number in range(ROUNDS[size]):
            began = time.perf_counter()
            await speaker.say("bench.all", MESSAGES[size])
            busy.append(time.perf_counter() - began)
            total += MESSAGES[size]
            async with asyncio.timeout(LIMIT_S):
                await _all_have(listeners, total)
            rates.append(count * MESSAGES[size] / (time.perf_counter() - began))
            say(f"topics {number}: {rates[-1]:,.0f}/s, publisher busy for {busy[-1] * 1000:.1f} ms")
        with_one, without = await _alone(speaker, "bench"), await _alone(speaker, "")
    rate = max(rates)
    found.figures["lazy"] = {"per_s": [round(one) for one in rates], "busy_ms": [round(one * 1000, 2) for one in busy]}
    found.row(
        "topics-deliveries", "lazy", f"{rate:,.0f}/s", rate >= BAR,
        f"{count:,} subscribers on {NODES} nodes, {MESSAGES[size]} messages at a time, best of {ROUNDS[size]}; counted when the last "
        "subscriber has handled the last one",
    )  # fmt: skip
    found.row(
        "topics-publisher", "lazy", f"{with_one / without:.2f} times", with_one <= 1.5 * without,
        f"an ask that publishes to {count:,} subscribers {with_one * 1000:.2f} ms, one that publishes nothing {without * 1000:.2f} ms",
    )  # fmt: skip


async def _all_have(listeners: list[Listener], total: int) -> None:
    """Each is asked until it has all, many at a time."""
    left = iter(listeners)

    async def worker() -> None:
        for listener in left:
            while (heard := await listener.heard()) < total:
                await asyncio.sleep(0.05)
            assert heard == total, f"{heard} came, of {total}"

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def _alone(speaker: Speaker, topic: str) -> float:
    """Seconds of an ask: to a topic that nobody hears, or to none."""
    began = time.perf_counter()
    for _ in range(ALONE):
        await speaker.say(f"{topic}.nobody.hears" if topic else "", 1)
    return (time.perf_counter() - began) / ALONE


if __name__ == "__main__":
    run(measure)
