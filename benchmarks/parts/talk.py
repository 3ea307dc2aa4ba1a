"""What agents say besides answers: the parts of a stream, reads beside a turn, and tells from one agent to another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median

import mielin_cells as cells
from benchmarks.agents import Counter, Talker
from benchmarks.figures import Found, Size, ratio
from benchmarks.harness import alternating, pipelined, run, say
from benchmarks.stage import Stage, staged

BLOCK = 20
BLOCKS: dict[Size, int] = {"smoke": 2, "quick": 15, "full": 50}
PARTS: dict[Size, int] = {"smoke": 200, "quick": 10_000, "full": 50_000}
PART_BYTES = 100
TURN_S = 1.0
TELLS: dict[Size, int] = {"smoke": 1_024, "quick": 8_192, "full": 32_768}
ROUNDS: dict[Size, int] = {"smoke": 1, "quick": 3, "full": 5}
AGENTS, WINDOW = 16, 1024
TELLS_A_TURN = 64
FIRST, PARTS_A_SECOND, READ, TELL_SHARE = 1.5, 10_000, 1.0, 0.6


async def _ms(work: Callable[[], Awaitable[object]]) -> list[float]:
    taken = list[float]()
    for _ in range(BLOCK):
        at = time.perf_counter()
        await work()
        taken.append((time.perf_counter() - at) * 1000)
    return taken


async def _firsts(talker: Talker) -> list[float]:
    """Milliseconds to the first part of a stream; its end is waited for, and not counted."""
    taken = list[float]()
    for _ in range(BLOCK):
        at = time.perf_counter()
        stream = talker.count(1, PART_BYTES)
        await anext(stream)
        taken.append((time.perf_counter() - at) * 1000)
        assert [part async for part in stream] == []
    return taken


async def _streams(stage: Stage, size: Size, found: Found) -> None:
    counter, talker = await stage.cluster.spawn(Counter, "c"), await stage.cluster.spawn(Talker, "t")
    times: dict[str, list[float]] = {"ask": [], "first": []}
    for number, who in enumerate(alternating(BLOCKS[size] + 1, "ask", "first")):
        block = await (_ms(counter.add) if who == "ask" else _firsts(talker))
        if number >= len(times):  # the first block of each is to get warm
            times[who] += block
    ask, first = median(times["ask"]), median(times["first"])
    rates = list[float]()
    for _ in range(ROUNDS[size]):
        at, came = time.perf_counter(), 0
        async for part in talker.count(PARTS[size], PART_BYTES):
            assert part[:4] == came.to_bytes(4, "big"), f"part {part[:4]!r} came as number {came}"
            came += 1
        assert came == PARTS[size], f"{came} parts of {PARTS[size]}"
        rates.append(came / (time.perf_counter() - at))
    found.figures["streams"] = {
        "ask_ms": round(ask, 3),
        "first_ms": round(first, 3),
        "parts_per_s": [round(rate) for rate in rates],
    }
    times_ask, rate = ratio(first, ask), median(rates)
    found.row("stream-first", "lazy", f"{times_ask} times ({first:.2f} ms, ask {ask:.2f} ms)", times_ask <= FIRST)
    found.row(
        "stream-parts",
        "lazy",
        f"{rate:,.0f}/s",
        rate >= PARTS_A_SECOND,
        f"{PART_BYTES} bytes each, one stream, one reader",
    )
    say(f"streams: first {first:.2f} ms, ask {ask:.2f} ms; {rate:,.0f} parts/s")


async def _reads(stage: Stage, size: Size, found: Found) -> None:
    """Reads while a turn runs, and asks of an agent that has nothing else to do, in turn."""
    idle, busy = await stage.cluster.spawn(Counter, "idle"), await stage.cluster.spawn(Talker, "busy")
    times: dict[str, list[float]] = {"ask": [], "read": []}
    turns = 0
    for number in range(BLOCKS[size] + 1):
        pondering = asyncio.ensure_future(busy.ponder(TURN_S if size != "smoke" else 0.2))
        while await busy.seen() != turns or pondering.done():
            await asyncio.sleep(0)
        for who in ("ask", "read") if number % 2 else ("read", "ask"):
            block = await _ms(idle.add if who == "ask" else busy.seen)
            if number:
                times[who] += block
        assert not pondering.done(), "the turn was over before its reads"
        turns = await pondering
    ask, read = median(times["ask"]), median(times["read"])
    times_ask = ratio(read, ask)
    found.figures["reads"] = {"ask_ms": round(ask, 3), "read_ms": round(read, 3)}
    found.row("read-busy", "lazy", f"{times_ask} times ({read:.2f} ms, ask {ask:.2f} ms)", times_ask <= READ)
    say(f"reads: {read:.2f} ms beside a turn, ask {ask:.2f} ms")


async def _tells(size: Size, found: Found) -> None:
    """In one process, in memory: agents tell others, beside asks from outside."""
    rates: dict[str, list[float]] = {"ask": [], "tell": []}
    async with cells.local() as cluster:
        counters = [await cluster.spawn(Counter, f"c{n}") for n in range(AGENTS)]
        talkers = [await cluster.spawn(Talker, f"t{n}") for n in range(AGENTS)]
        asked = told = 0

        async def tell(number: int) -> None:
            await talkers[number].pass_on(f"c{number}", TELLS_A_TURN)

        for number, who in enumerate(alternating(ROUNDS[size] + 1, "ask", "tell")):
            if who == "ask":
                rate = await pipelined(lambda caller: counters[caller % AGENTS].add(), TELLS[size], WINDOW)
                asked += TELLS[size] // WINDOW * WINDOW
            else:
                at, turns = time.perf_counter(), TELLS[size] // TELLS_A_TURN // AGENTS
                for _ in range(turns):
                    await asyncio.gather(*(tell(one) for one in range(AGENTS)))
                told += turns * AGENTS * TELLS_A_TURN
                while sum([await counter.add(0) for counter in counters]) < asked + told:
                    await asyncio.sleep(0)
                rate = turns * AGENTS * TELLS_A_TURN / (time.perf_counter() - at)
            if number >= len(rates):
                rates[who].append(rate)
        total = sum([await counter.add(0) for counter in counters])
        assert total == asked + told, f"{total} of {asked + told}"
    ask, rate = median(rates["ask"]), median(rates["tell"])
    share = ratio(rate, ask)
    found.figures["tells"] = {who: [round(one) for one in values] for who, values in rates.items()}
    found.row(
        "tell-agents", "", f"{share} of the asks ({rate:,.0f}/s, asks {ask:,.0f}/s)", share >= TELL_SHARE,
        f"{AGENTS} agents tell {AGENTS} others, {TELLS_A_TURN} messages a turn; counted when all have been handled",
    )  # fmt: skip
    say(f"tells: {rate:,.0f}/s, asks {ask:,.0f}/s")


async def measure(size: Size, found: Found) -> None:
    async with staged(2, "lazy") as stage:
        await _streams(stage, size, found)
        await _reads(stage, size, found)
    await _tells(size, found)


if __name__ == "__main__":
    run(measure)
