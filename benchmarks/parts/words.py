"""What else agents say: pages of a search, waits for somebody outside, and what becomes of messages that come too late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median

import mielin_cells as cells
from benchmarks.agents import Counter, Patient, Settler
from benchmarks.figures import Found, Size, ratio
from benchmarks.harness import alternating, run, say
from benchmarks.stage import Stage, staged
from mielin_cells.log.message import Mail, Message, Terms
from mielin_cells.store.mail import store_mail
from mielin_cells.store.reader import load

AT_ONCE = 128
SETTLERS: dict[Size, int] = {"smoke": 100, "quick": 2_000, "full": 10_000}
WANTED = 10
BLOCK = 10
BLOCKS: dict[Size, int] = {"smoke": 2, "quick": 10, "full": 40}
EXPIRED: dict[Size, int] = {"smoke": 20_000, "quick": 200_000, "full": 1_000_000}
MAIL = 1_000
FIND, WAIT, MEMORY_MIB = 5.0, 6.0, 64.0


async def _ms(work: Callable[[], Awaitable[object]]) -> list[float]:
    taken = list[float]()
    for _ in range(BLOCK):
        at = time.perf_counter()
        await work()
        taken.append((time.perf_counter() - at) * 1000)
    return taken


async def _settle(stage: Stage, count: int) -> None:
    numbers = iter(range(count))

    async def some() -> None:
        for number in numbers:
            settler = await stage.cluster.spawn(Settler, f"settler-{number}")
            await settler.settle("here" if number < WANTED else f"far-{number % 50}")

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    async with asyncio.timeout(60):
        while await stage.cluster.find(Settler, where=cells.attr("settled") == True).count() < count:  # noqa: E712 - a condition
            await asyncio.sleep(0.1)


async def _beside_asks(stage: Stage, size: Size, found: Found) -> None:
    """A page of a search, and a wait that is opened and resolved, each in turn with a durable ask."""
    await _settle(stage, SETTLERS[size])
    counter, patient = await stage.cluster.spawn(Counter, "beside"), await stage.cluster.spawn(Patient, "patient")
    times: dict[str, list[float]] = {"ask": [], "find": [], "wait": []}

    async def find() -> None:
        page = await stage.cluster.find(Settler, where=cells.attr("region") == "here").page(limit=WANTED)
        assert len(page.items) == WANTED, f"{len(page.items)} were found"

    async def wait() -> None:
        token = await patient.begin()
        await stage.cluster.resolve(token, 1)

    works: dict[str, Callable[[], Awaitable[object]]] = {"ask": counter.add, "find": find, "wait": wait}
    for number, who in enumerate(alternating(BLOCKS[size] + 1, *works)):
        block = await _ms(works[who])
        if number >= len(works):  # the first block of each is to get warm
            times[who] += block
    while await patient.count() < (BLOCKS[size] + 1) * BLOCK:
        await asyncio.sleep(0.01)
    ask, page, waited = (median(times[who]) for who in ("ask", "find", "wait"))
    found.figures["beside asks"] = {who: round(median(taken), 3) for who, taken in times.items()}
    found.row(
        "find-page", "lazy", f"{ratio(page, ask)} times ({page:.2f} ms, ask {ask:.2f} ms)", ratio(page, ask) <= FIND,
        f"{WANTED} of {SETTLERS[size]:,} agents, by one attribute",
    )  # fmt: skip
    found.row(
        "wait-resolve", "lazy", f"{ratio(waited, ask)} times ({waited:.2f} ms, ask {ask:.2f} ms)", ratio(waited, ask) <= WAIT,
        "an ask that opens a wait with then=, and the call that resolves it, until the outcome is recorded",
    )  # fmt: skip
    say(f"beside asks: find {page:.2f} ms, wait {waited:.2f} ms, ask {ask:.2f} ms")


async def _expired(stage: Stage, size: Size, found: Found) -> None:
    """Messages whose deadline has passed when they are stored."""
    counter, log = await stage.cluster.on("node-1").spawn(Counter, "late"), stage.cluster.log
    process, count = stage.process("node-1"), EXPIRED[size]
    terms, args = Terms(1.0), b"\x81\xa1n\x01"
    before = most = process.memory_info().rss
    at = time.perf_counter()
    for first in range(1, count, MAIL):
        messages = [Message(n, "add", args, terms=terms) for n in range(first, first + MAIL)]
        await store_mail(log, Mail("late", "BenchCounter", "another", 0, first, "", messages))
        most = max(most, process.memory_info().rss)
    total = await counter.add.options(timeout=300)()
    taken = time.perf_counter() - at
    most = max(most, process.memory_info().rss)
    assert total == 1, f"{total} messages ran"
    letters = (await load(log, "late")).ledger.dead
    assert all("Expired" in letter.cause and "SessionExpired" not in letter.cause for letter in letters)
    grown = (most - before) / (1 << 20)
    found.figures["expired"] = {"count": count, "mib": round(grown, 1), "per_s": round(count / taken)}
    found.row(
        "expired-memory", "lazy", f"{grown:.0f} MiB", grown <= MEMORY_MIB,
        f"{count:,} expired messages to one agent, {count / taken:,.0f}/s; resident memory of its node",
    )  # fmt: skip
    say(f"expired: {count:,} messages, {grown:.1f} MiB, {count / taken:,.0f}/s")


async def measure(size: Size, found: Found) -> None:
    async with staged(1, "lazy") as stage:
        await _beside_asks(stage, size, found)
        await _expired(stage, size, found)


if __name__ == "__main__":
    run(measure)
