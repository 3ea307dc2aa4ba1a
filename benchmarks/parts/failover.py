"""A node's process is killed: how long until the last of its agents has answered, by number of agents.

Detection is a setting (heartbeats that are missed), measured here from the kill to the leader's first word of it.  What counts
is the rest, beside the bare takeover: of each agent two reads, a claim, a commit and a subscription.
"""

from __future__ import annotations

import asyncio
import os
import time
from statistics import median
from typing import Any

from benchmarks.agents import Counter
from benchmarks.figures import SYNCS, Found, Size, Sync, ratio
from benchmarks.harness import run, say
from benchmarks.stage import Stage, staged

COUNTS: dict[Size, tuple[int, ...]] = {"smoke": (10,), "quick": (200, 1_000), "full": (100, 300, 1_000, 3_000, 3_000)}
"""One node after another is killed."""

KNOWN_S = 6.0
"""The leader reads every few seconds which nodes have entered; until then it cannot miss a node."""

AT_ONCE = 128
TIMES = 3.0
ANSWER_S = 60.0


async def one(stage: Stage, victim: str, count: int, *, asks_later: bool = False) -> dict[str, Any]:
    """`asks_later`: what is measured ends with the takeover, and has no asks in it."""
    names = [f"{victim}-{number}" for number in range(count)]
    todo = iter(names)

    async def worker() -> None:
        for name in todo:
            agent = await stage.cluster.on(victim).spawn(Counter, name, pad=b"x" * 1024)
            await agent.add()

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    floor = await stage.floor.do("takeovers", agents=names)
    child = next(child for child in stage.fleet.children if child.name == victim)
    answered = list[float]()
    assert child.process is not None
    child.gone.set()
    stage.fleet.children.remove(child)
    killed = time.perf_counter()
    child.process.kill()
    spending = asyncio.create_task(_spent_at(stage, f"{victim} is silent"))

    async def asked(name: str) -> None:
        total = await stage.cluster.get(Counter, name).add.options(timeout=ANSWER_S)()
        answered.append(time.perf_counter() - killed)
        assert total == 2, f"{name} has counted {total} of 2"

    taken = await _spent_at(stage, "were taken over in") if asks_later else None
    await asyncio.gather(*(asked(name) for name in names))
    detected = stage.heard(f"{victim} is silent") - killed
    before, after = await spending, taken or _spent(stage)
    spent = {who: round((after[who] - before[who]) * 1000 / count, 3) for who in after if who in before}
    seconds = max(answered)
    say(f"failover of {count}: {seconds:.2f} s, of which detection {detected:.2f}; floor {floor:.2f}")
    return {
        "agents": count, "seconds": round(seconds, 3), "detection_s": round(detected, 3), "floor_s": round(floor, 3),
        "first_s": round(min(answered), 3), "p50_s": round(median(answered), 3), "processor_ms": spent,
    }  # fmt: skip


def _spent(stage: Stage) -> dict[str, float]:
    """Seconds of processor time of each process until now."""
    times = {who: process.cpu_times() for who, process in stage.processes().items()}
    return {who: spent.user + spent.system for who, spent in times.items()}


async def _spent_at(stage: Stage, words: str) -> dict[str, float]:
    """As `_spent`, when a node says so."""
    while not any(words in line for _, line in stage.lines):
        await asyncio.sleep(0.01)
    return _spent(stage)


async def measured(found: Found, sync: Sync, size: Size) -> None:
    victims = [f"node-{number + 3}" for number in range(len(COUNTS[size]))]
    async with staged(2 + len(victims), sync) as stage:
        for victim in victims:  # they take nothing from those that are killed before them
            await stage.cluster.cordon(victim)
        if size != "smoke":
            await asyncio.sleep(KNOWN_S)
        series = list[dict[str, Any]]()
        for victim, count in zip(victims, COUNTS[size], strict=True):
            await stage.cluster.uncordon(victim)
            series.append(await one(stage, victim, count))
    found.figures[sync] = series
    most = COUNTS[size][-1]
    last = [one for one in series if one["agents"] == most]
    after = median([one["seconds"] - one["detection_s"] for one in last])
    floor = median([one["floor_s"] for one in last])
    times = ratio(after, floor)
    text = f"{times} times ({after:.2f} s, floor {floor:.2f} s; detection {last[-1]['detection_s']:.2f} s before)"
    each = median([sum(one["processor_ms"].values()) for one in last])
    cores = os.cpu_count() or 1
    note = (
        f"{most:,} agents, onto two nodes that have others already; each takes {each:.2f} ms of processor time of all processes, "
        f"and so all of them at least {each * most / 1000 / cores:.2f} s of {cores} cores"
    )
    found.row("failover", sync, text, times <= TIMES, note)


async def measure(size: Size, found: Found) -> None:
    for sync in SYNCS:
        await measured(found, sync, size)


if __name__ == "__main__":
    run(measure)
