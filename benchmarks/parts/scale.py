"""What a deployment costs that does nothing, and what a spawn and an ask cost, as agents and known members grow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import psutil

from benchmarks.agents import Counter
from benchmarks.figures import Found, Size, percentile, ratio
from benchmarks.harness import run, say
from benchmarks.stage import Stage, staged
from mielin_cells.membership import table

NODES = 3
AT_ONCE = 256
AGENTS: dict[Size, tuple[int, int]] = {"smoke": (100, 300), "quick": (1_000, 20_000), "full": (1_000, 100_000)}
MEMBERS: dict[Size, int] = {"smoke": 20, "quick": 997, "full": 997}
"""Nodes that have entered and are gone."""

REST_S: dict[Size, float] = {"smoke": 0.2, "quick": 45.0, "full": 60.0}
"""Until nodes have compared their logs for the last time."""

WATCH_S: dict[Size, float] = {"smoke": 0.2, "quick": 20.0, "full": 60.0}
SAMPLES: dict[Size, int] = {"smoke": 20, "quick": 300, "full": 1_000}
CPU_PERCENT, KB_PER_S, GROWTH = 2.0, 50.0, 1.2
SAME = 1.1


class Idle(NamedTuple):
    cpu_percent: float
    kb_per_s: float


def _cpu_s(stage: Stage) -> float:
    """Of the server and the nodes."""
    return sum(
        sum(process.cpu_times()[:2]) for name, process in stage.processes().items() if name != "client"
    )  # fmt: skip


def _loopback_bytes() -> int:
    """What all connections on this machine have carried."""
    counters = psutil.net_io_counters(pernic=True)
    return sum(counters[name].bytes_sent for name in ("lo", "lo0") if name in counters)


async def _idle(stage: Stage, size: Size) -> Idle:
    await asyncio.sleep(REST_S[size])
    cpu, sent, at = _cpu_s(stage), _loopback_bytes(), time.perf_counter()
    await asyncio.sleep(WATCH_S[size])
    took = time.perf_counter() - at
    return Idle(round(100 * (_cpu_s(stage) - cpu) / took, 2), round((_loopback_bytes() - sent) / took / 1000, 1))


async def _median_ms(work: Callable[[int], Awaitable[object]], count: int) -> float:
    samples = list[float]()
    for number in range(count):
        at = time.perf_counter()
        await work(number)
        samples.append((time.perf_counter() - at) * 1000)
    return percentile(samples, 0.5)


async def _costs(stage: Stage, size: Size, tag: str) -> tuple[float, float]:
    """Medians of a spawn whose node the client chooses, and of an ask, in milliseconds."""
    cluster, count = stage.cluster, SAMPLES[size]

    async def spawn(number: int) -> None:
        await cluster.spawn(Counter, f"{tag}-{number}")

    some = cluster.get(Counter, "idle-0")
    await some.add()
    return await _median_ms(spawn, count), await _median_ms(lambda _: some.add(), count)


async def measure(size: Size, found: Found) -> None:
    async with staged(NODES, "lazy") as stage:
        cluster, idle, numbers = stage.cluster, list[Idle](), iter(range(AGENTS[size][1]))
        costs = list[tuple[float, float]]()

        async def spawn_until(count: int) -> None:
            for number in numbers:
                await cluster.on(f"node-{number % NODES + 1}").spawn(Counter, f"idle-{number}")
                if number >= count - AT_ONCE:
                    return

        for agents in AGENTS[size]:
            await asyncio.gather(*(spawn_until(agents) for _ in range(AT_ONCE)))
            idle.append(await _idle(stage, size))
            costs.append(await _costs(stage, size, f"with-{agents}"))
            say(f"scale: {agents} agents: {idle[-1]}, spawn and ask {costs[-1]} ms")
        for number in range(MEMBERS[size]):
            place = await table.enter(cluster.log, f"former-{number}", table.Announcement(), lambda: b"x" * 12)
            await table.leave(cluster.log, f"former-{number}", place.incarnation, b"y" * 12)
        costs.append(await _costs(stage, size, "with-members"))
        say(f"scale: {MEMBERS[size]} members that are gone: spawn and ask {costs[-1]} ms")
    few, many = AGENTS[size]
    found.figures |= {"idle": [one._asdict() for one in idle], "costs_ms": costs, "server": stage.server}
    says = f"{many:,} agents on {NODES} nodes"
    found.row("scale-idle-cpu", "lazy", f"{idle[1].cpu_percent} % of a core", idle[1].cpu_percent <= CPU_PERCENT,
              f"{says}; server and nodes; with {few:,} agents {idle[0].cpu_percent} %")  # fmt: skip
    found.row("scale-idle-bytes", "lazy", f"{idle[1].kb_per_s} KB/s", idle[1].kb_per_s <= KB_PER_S,
              f"{says}; all connections; with {few:,} agents {idle[0].kb_per_s} KB/s")  # fmt: skip
    grown = ratio(idle[1].kb_per_s, idle[0].kb_per_s)
    found.row(
        "scale-idle-growth", "lazy", f"{grown} times", grown <= GROWTH, f"KB/s with {many:,} and with {few:,} agents"
    )
    for key, before, after, how in (
        ("scale-agents", costs[0], costs[1], f"with {many:,} and with {few:,} agents"),
        ("scale-members", costs[1], costs[2], f"with {MEMBERS[size] + NODES:,} known members and with {NODES}"),
    ):
        spawn, ask = ratio(after[0], before[0]), ratio(after[1], before[1])
        found.row(key, "lazy", f"spawn {spawn} times, ask {ask} times", max(spawn, ask) <= SAME,
                  f"{how}: medians of {SAMPLES[size]}")  # fmt: skip


if __name__ == "__main__":
    run(measure)
