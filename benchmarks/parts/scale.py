"""What grows with a deployment: its cost at rest, the restart of a node, a spawn and an ask as agents and known members grow.

Besides, what the failover of an agent costs all processes together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import NamedTuple

from benchmarks import beats, beside
from benchmarks.agents import Counter
from benchmarks.figures import SYNCS, Found, Size, percentile, ratio
from benchmarks.harness import run, say
from benchmarks.parts import failover
from benchmarks.reads import spent_on_reads
from benchmarks.stage import Stage, staged
from benchmarks.wakeups import count_wakeups, empty_wakeup_s
from mielin_cells.membership import table
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.table import Members

NODES = 3
AT_ONCE = 256
AGENTS: dict[Size, tuple[int, int]] = {"smoke": (100, 300), "quick": (1_000, 20_000), "full": (1_000, 100_000)}
OWN: dict[Size, int] = {"smoke": 60, "quick": 2_000, "full": 10_000}
"""Agents of the node that is started again: first there are no others but the few, and then all."""

MEMBERS: dict[Size, int] = {"smoke": 20, "quick": 997, "full": 997}
"""Nodes that have entered and are gone."""

REST_S: dict[Size, float] = {"smoke": 0.2, "quick": 45.0, "full": 40.0}
"""Until nodes have compared their logs for the last time."""

WATCH_S: dict[Size, float] = {"smoke": 0.2, "quick": 20.0, "full": 40.0}
LOADS_S = 60.0
"""For the leader to hear how many agents a node has, and to say so."""
AFTER_S: dict[Size, float] = {"smoke": 0.2, "quick": 12.0, "full": 12.0}
"""A node that has started looks once more for agents that are its own; that counts as part of its restart."""

SAMPLES: dict[Size, int] = {"smoke": 20, "quick": 300, "full": 1_000}
BEATING: dict[Size, tuple[int, ...]] = {"smoke": (10,), "quick": (100, 1_000), "full": (100, 1_000)}
FAILED: dict[Size, int] = {"smoke": 10, "quick": 1_000, "full": 3_000}
PROBES = 32
PATIENT = "[settings]\nheartbeat_misses = 30\n"
"""A node that is started again keeps its agents, also on a busy machine."""

CPU_PERCENT, KB_PER_S, GROWTH = 2.0, 50.0, 1.2
FIRST_S, FLOORS = 1.0, 3.0
FAILOVER_MS = 1.0
SAME = 1.1


class Idle(NamedTuple):
    cpu_percent: float
    kb_per_s: float
    server_percent: float
    """Of `cpu_percent`."""
    server_mib: float
    nodes_mib: float
    """Resident memory of all nodes."""
    stored_mib: float
    """On the server's disk."""
    wakeups: float
    """A second, of all threads of the server and the nodes."""
    empty_percent: float
    """Of a core, for an event loop that wakes up as often and does nothing."""


def _spent(stage: Stage) -> dict[str, float]:
    """Seconds of processor time: of the server, the nodes together, and this client."""
    spent = {"server": 0.0, "nodes": 0.0, "client": 0.0}
    for name, process in stage.processes().items():
        times = process.cpu_times()
        spent[name if name in spent else "nodes"] += times.user + times.system
    return spent


async def _idle(stage: Stage, size: Size) -> Idle:
    await asyncio.sleep(REST_S[size])
    threads = [process.pid for name, process in stage.processes().items() if name != "client"]
    before, sent, at, rested = _spent(stage), stage.sent_bytes(), time.perf_counter(), count_wakeups(threads)
    await asyncio.sleep(WATCH_S[size])
    took, after = time.perf_counter() - at, _spent(stage)
    wakeups = (count_wakeups(threads) - rested) / took
    empty_s = await empty_wakeup_s(WATCH_S[size] / 2)
    percent = {who: 100 * (after[who] - before[who]) / took for who in after}
    memory = {name: process.memory_info().rss / 2**20 for name, process in stage.processes().items()}
    return Idle(
        round(percent["server"] + percent["nodes"], 2), round((stage.sent_bytes() - sent) / took / 1000, 1),
        round(percent["server"], 2), round(memory["server"], 1),
        round(sum(mib for name, mib in memory.items() if name.startswith("node-")), 1),
        round(stage.counted("jsz")["storage"] / 2**20, 1),
        round(wakeups, 1), round(100 * wakeups * empty_s, 2),
    )  # fmt: skip


async def _median_ms(work: Callable[[int], Awaitable[object]], count: int) -> float:
    samples = list[float]()
    for number in range(count):
        at = time.perf_counter()
        await work(number)
        samples.append((time.perf_counter() - at) * 1000)
    return percentile(samples, 0.5)


class Costs(NamedTuple):
    """Medians of a spawn whose node the client chooses and of an ask, one after another; and processor time of each, in ms."""

    spawn_ms: float
    ask_ms: float
    spawn_spent: dict[str, float]
    ask_spent: dict[str, float]


async def _costs(stage: Stage, size: Size, tag: str) -> Costs:
    cluster, count, spent = stage.cluster, SAMPLES[size], list[dict[str, float]]()

    async def spawn(number: int) -> None:
        await cluster.spawn(Counter, f"{tag}-{number}")

    some = cluster.get(Counter, "idle-0")
    await some.add()
    spent.append(_spent(stage))
    spawn_ms = await _median_ms(spawn, count)
    spent.append(_spent(stage))
    ask_ms = await _median_ms(lambda _: some.add(), count)
    spent.append(_spent(stage))
    each = [{who: round((b[who] - a[who]) * 1000 / count, 3) for who in b} for a, b in pairwise(spent)]
    return Costs(round(spawn_ms, 3), round(ask_ms, 3), each[0], each[1])


async def _beats(stage: Stage, size: Size) -> dict[int, float]:
    """Percent of a core that the server spends on the heartbeats of so many nodes, by their number."""
    return {
        nodes: round(100 * await beats.spend(stage.url, nodes, WATCH_S[size] / 4, lambda: _spent(stage)["server"]), 2)
        for nodes in BEATING[size]
    }


class Restart(NamedTuple):
    """Seconds since the node answers requests again."""

    agents: int
    others: int
    first_s: float
    """Until the first of its agents has answered."""
    probes_s: float
    """Until the median of `PROBES` of them has, which are asked from the kill on."""
    all_s: float
    """Until it has taken all of them."""
    floor_s: float
    kb: float
    """That the server has sent to the new process."""


async def _answers(stage: Stage, node: str, before: int) -> float:
    """When a new process of the node has answered its first request."""
    while True:
        info = await stage.cluster.ping(node)
        if info is not None and info.incarnation > before:
            return time.perf_counter()
        await asyncio.sleep(0.005)


async def _restart(stage: Stage, node: str, names: list[str], others: int, size: Size) -> Restart:
    """Kills the node, which has these agents, and lets it be started again.

    Each restart adds a record to the log of each agent, so agents that are compared have been through equally many.
    """
    child = next(child for child in stage.fleet.children if child.name == node)
    assert child.process is not None
    floor = await stage.floor.do("takeovers", agents=[f"{others}-{name}" for name in names])
    await asyncio.sleep(1.0)
    incarnation, before, answered = child.incarnation, stage.sent_to(), list[float]()
    child.process.kill()

    async def probe(name: str) -> None:
        await stage.cluster.get(Counter, name).add()
        answered.append(time.perf_counter())

    probes = asyncio.gather(*(probe(name) for name in names[:: max(1, len(names) // PROBES)][:PROBES]))
    serves = await _answers(stage, node, incarnation)
    while child.incarnation == incarnation:
        await asyncio.sleep(0.005)
    everything = time.perf_counter() - serves
    await probes
    await asyncio.sleep(AFTER_S[size])
    await _has_all(stage, node, len(names))
    kb = sum(sent for connection, sent in stage.sent_to().items() if connection not in before) / 1000
    return Restart(
        len(names), others, round(max(0.0, min(answered) - serves), 3), round(max(0.0, percentile(answered, 0.5) - serves), 3),
        round(everything, 3), round(floor, 3), round(kb, 1),
    )  # fmt: skip


async def _has_all(stage: Stage, node: str, count: int) -> None:
    """Waits until the table of members says that the node has so many agents: it hears of loads with a delay."""
    agents = 0
    try:
        async with asyncio.timeout(LOADS_S):
            while agents < count:
                agents = next(info.agents for info in await stage.cluster.nodes() if info.name == node)
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{node} has {agents} of its {count} agents") from None


async def _failover(size: Size, found: Found) -> None:
    for sync in SYNCS:
        async with staged(NODES, sync) as stage:
            if size != "smoke":
                await asyncio.sleep(failover.KNOWN_S)
            one = await failover.one(stage, f"node-{NODES}", FAILED[size], asks_later=True)
        found.figures[f"failover_{sync}"] = one
        spent: dict[str, float] = one["processor_ms"]
        each = round(sum(spent.values()), 2)
        parts = ", ".join(f"{who} {ms:.2f}" for who, ms in spent.items())
        found.row(
            "scale-failover-cpu",
            sync,
            f"{each} ms",
            each <= FAILOVER_MS,
            f"{FAILED[size]:,} agents, until the last is owned again, and none is asked meanwhile; {parts} ms",
        )


async def _spawn_until(stage: Stage, made: int, count: int, nodes: tuple[str, ...], prefix: str) -> None:
    """Creates agents number `made` to `count`, on these nodes in turn."""
    numbers = iter(range(made, count))

    async def worker() -> None:
        for number in numbers:
            await stage.cluster.on(nodes[number % len(nodes)]).spawn(Counter, f"{prefix}-{number}")

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def _former_members(stage: Stage, count: int) -> None:
    members = Members(stage.cluster.log)
    for number in range(count):
        await table.enter(members, f"former-{number}", Announcement(), b"x")
        await table.leave(members, f"former-{number}", 1)


async def measure(size: Size, found: Found) -> None:
    idle, costs, restarts = list[Idle](), list[Costs](), list[Restart]()
    few, many = AGENTS[size]
    own, later = ([f"{name}-{number}" for number in range(OWN[size])] for name in ("own", "later"))
    others = many - len(own)
    async with staged(NODES, "lazy", PATIENT) as stage:

        async def at_rest(tag: str) -> None:
            idle.append(await _idle(stage, size))
            costs.append(await _costs(stage, size, tag))
            say(f"scale: {tag}: {idle[-1]}, spawn and ask {costs[-1]} ms")

        heard = await _beats(stage, size)
        say(f"scale: heartbeats of so many nodes, percent of the server's core: {heard}")
        await _spawn_until(stage, 0, few, ("node-1", "node-2", "node-3"), "idle")
        await at_rest(f"{few} agents")
        await _spawn_until(stage, 0, len(own), ("node-1",), "own")
        restarts.append(await _restart(stage, "node-1", own, 0, size))
        say(f"scale: {restarts[-1]}")
        await _spawn_until(stage, 0, len(later), ("node-2",), "later")
        await _spawn_until(stage, few, others - len(later), ("node-3",), "idle")
        await at_rest(f"{many} agents")
        restarts.append(await _restart(stage, "node-2", later, others, size))
        say(f"scale: {restarts[-1]}")
        await asyncio.sleep(REST_S[size])
        costs.append(await _costs(stage, size, "again"))
        await _former_members(stage, MEMBERS[size])
        costs.append(await _costs(stage, size, "with members"))
        reads = await spent_on_reads(stage, "node-1", 3)
        say(f"scale: {reads}")
        say(f"scale: {MEMBERS[size]} members that are gone: spawn and ask {costs[-1]} ms, before them {costs[-2]} ms")
    found.figures |= {
        "idle": [one._asdict() for one in idle], "costs": [one._asdict() for one in costs],
        "restarts": [one._asdict() for one in restarts],
        "beats_percent": heard, "reads": reads, "server": stage.server,
    }  # fmt: skip
    _tell_idle(found, idle, few, many)
    _tell_restarts(found, restarts)
    _tell_costs(found, costs, size)
    await _failover(size, found)
    await beside.takeover(size, found)


def _tell_idle(found: Found, idle: list[Idle], few: int, many: int) -> None:
    says = f"{many:,} agents on {NODES} nodes"
    empty = f"an empty event loop that wakes up as often, {idle[1].wakeups} times a second, {idle[1].empty_percent} %"
    found.row("scale-idle-cpu", "lazy", f"{idle[1].cpu_percent} % of a core", idle[1].cpu_percent <= CPU_PERCENT,
              f"{says}; server and nodes; with {few:,} agents {idle[0].cpu_percent} %; {empty}")  # fmt: skip
    found.row("scale-idle-bytes", "lazy", f"{idle[1].kb_per_s} KB/s", idle[1].kb_per_s <= KB_PER_S,
              f"{says}; out of the server; with {few:,} agents {idle[0].kb_per_s} KB/s")  # fmt: skip
    grown, spent = ratio(idle[1].kb_per_s, idle[0].kb_per_s), ratio(idle[1].cpu_percent, idle[0].cpu_percent)
    found.row("scale-idle-growth", "lazy", f"{grown} times the bytes, {spent} times the processor time",
              max(grown, spent) <= GROWTH, f"with {many:,} and with {few:,} agents")  # fmt: skip


def _tell_restarts(found: Found, restarts: list[Restart]) -> None:
    alone, among = restarts
    says = f"{among.agents:,} agents of {among.agents + among.others:,}"
    times = ratio(among.kb, alone.kb)
    found.row("scale-restart-reads", "lazy", f"{times} times", times <= GROWTH,
              f"{says}: {among.kb:,.0f} KB to its connections, without the others {alone.kb:,.0f} KB")  # fmt: skip
    found.row("scale-restart-first", "lazy", f"{among.first_s} s", among.first_s <= FIRST_S,
              f"{says}; the median of {PROBES} that were asked from the kill on {among.probes_s} s")  # fmt: skip
    times = ratio(among.all_s, among.floor_s)
    found.row("scale-restart-all", "lazy", f"{times} times ({among.all_s} s, floor {among.floor_s} s)", times <= FLOORS,
              f"{says}; without the others {alone.all_s} s, floor {alone.floor_s} s")  # fmt: skip


def _tell_costs(found: Found, costs: list[Costs], size: Size) -> None:
    few, many = AGENTS[size]
    for key, before, after, how in (
        ("scale-agents", costs[0], costs[1], f"with {many:,} and with {few:,} agents"),
        ("scale-members", costs[2], costs[3], f"with {MEMBERS[size] + NODES:,} known members and with {NODES}"),
    ):
        spawn, ask = ratio(after.spawn_ms, before.spawn_ms), ratio(after.ask_ms, before.ask_ms)
        says = f"spawn {before.spawn_ms:.2f} and {after.spawn_ms:.2f} ms, ask {before.ask_ms:.2f} and {after.ask_ms:.2f} ms"
        found.row(key, "lazy", f"spawn {spawn} times, ask {ask} times", max(spawn, ask) <= SAME,
                  f"{how}: medians of {SAMPLES[size]}; {says}")  # fmt: skip


if __name__ == "__main__":
    run(measure)
