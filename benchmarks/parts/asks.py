"""Durable asks from another process, beside their floor, and beside Ray's and xoscar's calls, which keep nothing.

The floor of an ask: its message's append, the append of the turn's commit that depends on it, and one delivery of the answer.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from benchmarks.agents import Counter
from benchmarks.figures import SYNCS, Found, Size, Sync, kept, ratio, spread
from benchmarks.floors import floor_beside
from benchmarks.harness import alternating, pipelined, run, say
from benchmarks.peer import Peer, of_others
from benchmarks.stage import Stage, staged

AGENTS = 16
WINDOW = 1024
BLOCK = 20
"""Asks one after another, before as many of the floor's."""

BLOCKS: dict[Size, int] = {"smoke": 2, "quick": 15, "full": 100}
COUNT: dict[Size, int] = {"smoke": 2_048, "quick": 8_192, "full": 32_768}
FLOOR_COUNT: dict[Size, int] = {"smoke": 1_024, "quick": 1_024, "full": 4_096}
PEER_COUNT: dict[Size, int] = {"smoke": 1_024, "quick": 2_048, "full": 8_192}
ROUNDS: dict[Size, int] = {"smoke": 1, "quick": 2, "full": 5}
RAY_ROUNDS = 3
RAY_WAYS = [
    {"actors_used": actors, "is_async": is_async, "window": WINDOW} for actors in (1, 2) for is_async in (False, True)
]
"""Ray's best counts.  More actors than cores are slower."""


async def ours(found: Found, sync: Sync, size: Size) -> float:
    """Asks per second, pipelined; the rows against the floor are written."""
    async with staged(2, sync) as stage:
        agents = [await stage.cluster.on(f"node-{n % 2 + 1}").spawn(Counter, f"c{n}") for n in range(AGENTS)]
        times, floors, between = await one_by_one(stage, agents[0], size)
        asked = len(times) + BLOCK
        rates, floor_rates = list[float](), list[float]()
        for number, who in enumerate(alternating(ROUNDS[size] + 1, "ours", "floor")):
            if who == "ours":
                rate = await pipelined(lambda caller: agents[caller % AGENTS].add(), COUNT[size], WINDOW)
                asked += COUNT[size] // WINDOW * WINDOW
            else:
                rate = await stage.floor.do("pipelined", appends=2, count=FLOOR_COUNT[size], window=WINDOW)
            if number >= 2:
                (rates if who == "ours" else floor_rates).append(rate)
        total = sum([await agent.add(0) for agent in agents])
        assert total == asked, f"{total} of {asked}"
    one, bare, rate, floor_rate = spread(times), spread(floors), median(rates), median(floor_rates)
    crossing = spread(between)
    found.figures[sync] = {
        "ask_ms": one, "floor_ms": bare, "between_ms": crossing, "asks_per_s": [round(r) for r in rates], "asks": kept(times),
        "floor_per_s": [round(r) for r in floor_rates],
    }  # fmt: skip
    times_floor = ratio(one["p50"], bare["p50"])
    text = f"{times_floor} times ({one['p50']:.2f} ms, floor {bare['p50']:.2f} ms)"
    found.row(
        "ask-p50",
        sync,
        text,
        times_floor <= 1.3,
        f"{len(times)} asks; p99 {one['p99']:.2f} ms, floor's {bare['p99']:.2f} ms; the same steps between two bare processes: "
        f"{crossing['p50']:.2f} ms",
    )
    share = ratio(rate, floor_rate)
    pipe = f"{share} times the floor's ({rate:,.0f}/s, floor {floor_rate:,.0f}/s)"
    found.row(
        "ask-pipelined", sync, pipe, share >= 0.8, f"{WINDOW:,} asks on their way to {AGENTS} agents on two nodes"
    )
    say(f"asks {sync}: {text}; pipelined {pipe}")
    return rate


async def one_by_one(stage: Stage, agent: Counter, size: Size) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of asks, of their floor, and of the floor's steps where two bare processes share them."""
    times, floors, between = list[float](), list[float](), list[float]()
    async with floor_beside(stage.url) as owner:
        await owner.do("owns")
        for number in range(BLOCKS[size] + 1):
            block = list[float]()
            for _ in range(BLOCK):
                at = time.perf_counter()
                await agent.add()
                block.append((time.perf_counter() - at) * 1000)
            bare = await stage.floor.do("dependent", appends=2, count=BLOCK)
            crossing = await stage.floor.do("between", count=BLOCK)
            if number:  # the first block is to get warm
                times += block
                floors += bare
                between += crossing
    return times, floors, between


async def of_ray(peer: Peer, size: Size) -> dict[str, Any]:
    rates = dict[str, list[float]]()
    for number in range(min(ROUNDS[size], RAY_ROUNDS) + 1):
        for way in RAY_WAYS:
            rate = await peer.do("pipelined", count=PEER_COUNT[size], **way)
            if number:
                kind = "async" if way["is_async"] else "plain"
                rates.setdefault(f"{way['actors_used']} {kind} actors", []).append(rate)
    singles = await peer.do("sequential", count=BLOCK * BLOCKS[size], is_async=False)
    return {"rates": rates, "singles": singles}


async def of_xoscar(peer: Peer, size: Size) -> dict[str, Any]:
    rates = [
        await peer.do("pipelined", count=PEER_COUNT[size], actors_used=AGENTS, window=WINDOW)
        for _ in range(ROUNDS[size] + 1)
    ]
    return {
        "rates": {f"{AGENTS} actors": rates[1:]},
        "singles": await peer.do("sequential", count=BLOCK * BLOCKS[size]),
    }


async def measure(size: Size, found: Found) -> None:
    rates, theirs = dict[str, float](), dict[str, float]()
    for sync in SYNCS:
        rates[sync] = await ours(found, sync, size)
    for name, program, work in (("ray", "ray_calls", of_ray), ("xoscar", "xoscar_calls", of_xoscar)):
        async with of_others(program) as peer:
            if peer is None:
                continue
            told = await work(peer, size)
        best = max(told["rates"], key=lambda way: median(told["rates"][way]))
        theirs[name] = median(told["rates"][best])
        found.figures[name] = {
            "way": best, "asks_per_s": {way: [round(r) for r in values] for way, values in told["rates"].items()},
            "ask_ms": spread(told["singles"]), "asks": kept(told["singles"]),
        }  # fmt: skip
        say(f"{name}: {theirs[name]:,.0f}/s with {best}")
    for key, name, syncs in (("ask-ray", "ray", SYNCS), ("ask-xoscar", "xoscar", ("lazy",))):
        for sync in syncs:
            if name not in theirs:
                found.row(key, sync, f"{rates[sync]:,.0f}/s; {name} is not there", None)
                continue
            times = ratio(rates[sync], theirs[name])
            text = f"{times} times ({rates[sync]:,.0f}/s, {name} {theirs[name]:,.0f}/s)"
            found.row(key, sync, text, times > 1, f"{name}'s best: {found.figures[name]['way']}")


if __name__ == "__main__":
    run(measure)
