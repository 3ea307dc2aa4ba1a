"""Tails and trims of the embedded substrate beyond the common contract: slow readers, many of them, and entries that go."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.embedded.log import TRIM_ROWS
from mielin_cells.substrate.ports import Appended, Conflict, Entry, Log, Tail
from mielin_cells.substrate.tail import PAGE, WAITING_MAX


async def stored(log: Log, subject: str, data: bytes, expect: int | None = None) -> int:
    outcome = await log.append(subject, data, expect)
    assert isinstance(outcome, Appended), outcome
    return outcome.seq


async def everything(log: Log, subject: str) -> list[Entry]:
    found: list[Entry] = []
    while page := await log.read(subject, found[-1].seq if found else 0):
        found += page
    return found


# ---- tails ---------------------------------------------------------------------------------------------------


async def taken(tail: Tail, count: int, *, slowly: bool = False) -> list[Entry]:
    found: list[Entry] = []
    while len(found) < count:
        found += await anext(tail)
        for _ in range(5 if slowly else 0):
            await asyncio.sleep(0)
    return found


@pytest.mark.parametrize("on_disk", [False, True])
async def test_many_tails_from_many_places_have_no_gap_and_no_repeat_while_others_append(
    on_disk: bool, tmp_path: Path
) -> None:
    store = await Embedded.open(tmp_path / "store.db" if on_disk else None)
    log, count = store.log, 3 * PAGE
    seqs = [await stored(log, "a", b"%d" % n) for n in range(100)]

    async def append(first: int) -> None:
        for n in range(first, count, 4):
            seqs.append(await stored(log, "a", b"%d" % n))
            await stored(log, "b", b"beside")

    tails = [log.tail("a", after) for after in (0, 1, seqs[50], seqs[98])]
    readers = [asyncio.create_task(taken(tail, count - have, slowly=n % 2 == 0)) for n, (tail, have) in
               enumerate(zip(tails, (0, 1, 51, 99), strict=True))]  # fmt: skip
    appending = [asyncio.create_task(append(100 + first)) for first in range(4)]
    for n in range(40):
        late = log.tail("a", seqs[-1])
        readers.append(asyncio.create_task(taken(late, count - len(seqs), slowly=n % 2 == 0)))
        tails.append(late)
        await asyncio.sleep(0)
    await asyncio.gather(*appending)

    found = await asyncio.gather(*readers)

    everyone = await everything(log, "a")
    assert len(everyone) == count
    for entries in found:
        assert entries == everyone[count - len(entries) :]
    for tail in tails:
        tail.close()
    await store.close()


async def test_a_reader_that_falls_far_behind_costs_bounded_memory_and_misses_nothing() -> None:
    store = await Embedded.open()
    log, count = store.log, 2 * WAITING_MAX
    tail = log.tail("a")
    _, batch = await asyncio.gather(stored(log, "a", b"first"), anext(tail))
    assert [entry.data for entry in batch] == [b"first"]
    for start in range(1, count, 1024):  # nobody reads meanwhile
        await asyncio.gather(*(stored(log, "a", b"%d" % n) for n in range(start, min(start + 1024, count))))
        assert len(tail._waiting) <= WAITING_MAX
    assert await taken(tail, count - 1) == (await everything(log, "a"))[1:]
    seq = await stored(log, "a", b"live again")
    assert await anext(tail) == [Entry(seq, b"live again")]
    await store.close()


async def test_closing_a_tail_or_the_store_ends_those_that_wait_and_those_that_read() -> None:
    store = await Embedded.open()
    log = store.log
    waiting, other, unread = log.tail("a"), log.tail("a"), log.tail("b")
    await stored(log, "b", b"never read")
    tasks = [asyncio.ensure_future(anext(tail, None)) for tail in (waiting, other)]
    await asyncio.sleep(0)
    waiting.close()
    waiting.close()
    assert await tasks[0] is None
    assert not tasks[1].done()
    await store.close()
    assert await tasks[1] is None
    assert await anext(unread, None) is None


async def test_a_reader_that_is_cancelled_loses_nothing() -> None:
    store = await Embedded.open()
    tail = store.log.tail("a")
    impatient = asyncio.ensure_future(anext(tail))
    await asyncio.sleep(0)
    impatient.cancel()
    seq = await stored(store.log, "a", b"1")
    await asyncio.gather(impatient, return_exceptions=True)
    assert await anext(tail) == [Entry(seq, b"1")]
    await store.close()


# ---- trims ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [False, True])
async def test_a_trim_of_many_entries_lets_others_append_and_opens_no_place(on_disk: bool, tmp_path: Path) -> None:
    store = await Embedded.open(tmp_path / "store.db" if on_disk else None)
    log, count = store.log, 3 * TRIM_ROWS
    seqs = await asyncio.gather(*(stored(log, "a", b"%d" % n) for n in range(count)))

    trimming = asyncio.create_task(log.trim("a", seqs[-1]))
    beside = 0
    while not trimming.done():
        assert isinstance(await log.append("a", b"stale", 0), Conflict)
        await stored(log, "b", b"beside")
        beside += 1

    await trimming
    assert beside > 1
    assert [entry.seq for entry in await everything(log, "a")] == [seqs[-1]]
    await stored(log, "a", b"next", seqs[-1])
    await store.close()


async def test_a_trim_of_everything_gives_the_place_free_but_no_sequence() -> None:
    store = await Embedded.open()
    log = store.log
    first = await stored(log, "a", b"1")
    await asyncio.gather(log.trim("a", 10**6), log.trim("a", first), log.trim("none", 5))
    assert await log.last("a") is None
    assert await log.subjects("") == []
    assert await stored(log, "a", b"2", 0) > first
    await store.close()
