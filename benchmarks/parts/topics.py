"""Messages published to many subscribers on several nodes: deliveries a second, and how long the publisher is busy."""

from __future__ import annotations

import asyncio
import time

from benchmarks.agents import Listener, Speaker
from benchmarks.figures import Found, Size
from benchmarks.harness import run, say
from benchmarks.stage import Stage, staged

NODES = 3
SUBSCRIBERS: dict[Size, int] = {"smoke": 60, "quick": 3_000, "full": 10_000}
MESSAGES: dict[Size, int] = {"smoke": 5, "quick": 20, "full": 20}
ROUNDS: dict[Size, int] = {"smoke": 1, "quick": 3, "full": 5}
AT_ONCE = 128
LIMIT_S = 240.0
LOOK_S = 0.1
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
        rates, busy, costs, total = list[float](), list[float](), list[tuple[float, float]](), 0
        for number in range(ROUNDS[size]):
            began, at, before = time.time(), time.perf_counter(), _spent(stage)
            await speaker.say("bench.all", MESSAGES[size])
            busy.append(time.perf_counter() - at)
            total += MESSAGES[size]
            async with asyncio.timeout(LIMIT_S):
                for last in listeners[-NODES:]:  # few asks while messages come: asking all of them would take a core
                    while await last.heard() < total:
                        await asyncio.sleep(LOOK_S)
                after = await _at_rest(stage)
                ended = await _all_have(listeners, total)
            rates.append(count * MESSAGES[size] / (ended - began))
            each = 1e6 / (count * MESSAGES[size])
            costs.append(((after[0] - before[0]) * each, (after[1] - before[1]) * each))
            say(
                f"topics {number}: {rates[-1]:,.0f}/s, publisher busy for {busy[-1] * 1000:.1f} ms, a delivery takes the nodes "
                f"{costs[-1][0]:.1f} µs of a processor and the server {costs[-1][1]:.1f}"
            )
        with_one, without = await _alone(speaker, "bench"), await _alone(speaker, "")
    rate, (nodes_us, server_us) = max(rates), min(costs, key=sum)
    found.figures["lazy"] = {
        "per_s": [round(one) for one in rates], "busy_ms": [round(one * 1000, 2) for one in busy],
        "nodes_us": [round(one, 1) for one, _ in costs], "server_us": [round(one, 1) for _, one in costs],
    }  # fmt: skip
    found.row(
        "topics-deliveries", "lazy", f"{rate:,.0f}/s", rate >= BAR,
        f"{count:,} subscribers on {NODES} nodes, {MESSAGES[size]} messages at a time, best of {ROUNDS[size]}; counted when the last "
        f"subscriber has handled the last one; a delivery takes the nodes {nodes_us:.1f} µs of a processor and the server "
        f"{server_us:.1f}, so a processor carries {1e6 / (nodes_us + server_us):,.0f}/s",
    )  # fmt: skip
    found.row(
        "topics-publisher", "lazy", f"{with_one / without:.2f} times", with_one <= 1.5 * without,
        f"an ask that publishes to {count:,} subscribers {with_one * 1000:.2f} ms, one that publishes nothing {without * 1000:.2f} ms",
    )  # fmt: skip


def _spent(stage: Stage) -> tuple[float, float]:
    """Processor seconds of the nodes together, and of the server."""
    times = {who: process.cpu_times() for who, process in stage.processes().items()}
    spent = {who: one.user + one.system for who, one in times.items()}
    return sum(one for who, one in spent.items() if who.startswith("node")), spent["server"]


async def _at_rest(stage: Stage) -> tuple[float, float]:
    """What they have spent once the nodes have nothing more to do."""
    before = _spent(stage)
    while True:
        await asyncio.sleep(LOOK_S)
        now = _spent(stage)
        if now[0] - before[0] < LOOK_S / 20:
            return now
        before = now


async def _all_have(listeners: list[Listener], total: int) -> float:
    """Each is asked until it has all, many at a time.  Returns when the last one had the last message, in wall seconds."""
    left, ends = iter(listeners), list[float]()

    async def worker() -> None:
        for listener in left:
            while (came := await listener.came())[0] < total:
                await asyncio.sleep(LOOK_S)
            assert came[0] == total, f"{came[0]} came, of {total}"
            ends.append(came[1])

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return max(ends)


async def _alone(speaker: Speaker, topic: str) -> float:
    """Seconds of an ask: to a topic that nobody hears, or to none."""
    began = time.perf_counter()
    for _ in range(ALONE):
        await speaker.say(f"{topic}.nobody.hears" if topic else "", 1)
    return (time.perf_counter() - began) / ALONE


if __name__ == "__main__":
    run(measure)
