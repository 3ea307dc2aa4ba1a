"""Checks of tails."""

from __future__ import annotations

import asyncio

from mielin_cells.substrate.ports import Entry, Substrate
from mielin_cells.testing.conformance.kit import check, fill, in_time, must, read_tail, store

WATCHED_S = 10.0
"""In a cluster a tail reads once more before it can be watched."""


@check
async def a_tail_has_no_gap_and_no_repeat(substrate: Substrate) -> None:
    """Started before, amid and after the appends, and read slowly."""
    log, count = substrate.log, 400

    async def follow(slow: bool) -> list[bytes]:
        entries: list[bytes] = []
        tail = log.tail("t.x")
        async for batch in tail:
            must(bool(batch), "A batch is empty.")
            entries += [entry.data for entry in batch]
            if slow:
                await asyncio.sleep(0)
            if len(entries) >= count:
                tail.close()
        return entries

    before = [asyncio.create_task(follow(slow)) for slow in (False, True)]
    for n in range(count // 2):
        await store(log, "t.x", b"%d" % n)
    amid = asyncio.create_task(follow(True))
    await asyncio.gather(*(store(log, "t.x", b"%d" % n) for n in range(count // 2, count)))
    wanted = [b"%d" % n for n in range(count)]
    for task in (*before, amid, asyncio.create_task(follow(False))):
        entries = await in_time(task, "A tail lacks entries, or does not end when it is closed.")
        must(entries == wanted, "A tail has a gap, a repeat or another order.")


@check
async def a_tail_begins_behind_its_place_and_goes_on_live(substrate: Substrate) -> None:
    """At each place: what is stored behind it, then what comes, with nothing left out between."""
    log = substrate.log
    every = await fill(log, "b.x", 10)
    for at in range(11):
        after = every[at - 1].seq if at else 0
        if at < 10:
            begun = await read_tail(log, "b.x", after, 10 - at)
            must(begun == every[at : at + len(begun)], f"A tail after {after} begins elsewhere.")
        entries, tail = list[Entry](), log.tail("b.x", after)
        wanted = len(every) - at + 3

        async def follow(tail: object = tail, entries: list[Entry] = entries, wanted: int = wanted) -> None:
            async for batch in tail:  # type: ignore[attr-defined]
                entries.extend(batch)
                if len(entries) >= wanted:
                    return

        following = asyncio.ensure_future(follow())
        for n in range(3):
            data = b"live %d" % n
            every.append(Entry(await store(log, "b.x", data), data))
            await asyncio.sleep(0)
        try:
            await in_time(following, f"A tail after {after} lacks what came while it caught up.")
        finally:
            tail.close()
        must(entries == every[at:], f"A tail after {after} has a gap, or a repeat, where it went live.")


@check
async def a_tail_ends_when_it_is_closed(substrate: Substrate) -> None:
    waiting = substrate.log.tail("t.none")
    ended = asyncio.ensure_future(waiting.__anext__())
    await asyncio.sleep(0)
    waiting.close()
    waiting.close()
    result = (await asyncio.gather(in_time(ended, "Closing does not end a tail that waits."), return_exceptions=True))[
        0
    ]
    must(isinstance(result, StopAsyncIteration), f"Closing does not end a tail that waits: {result!r}.")


@check
async def a_watched_tail_calls_when_an_entry_has_come(substrate: Substrate) -> None:
    """Once, and what has come is given by the next read; with something unread it is not watched."""
    log, calls, tail = substrate.log, list[int](), substrate.log.tail("w.x")
    waiting = asyncio.ensure_future(anext(tail))
    first = await store(log, "w.x", b"first")
    must(await in_time(waiting, "A tail does not give what is stored.") == [Entry(first, b"first")], "Another entry.")
    reading = asyncio.ensure_future(anext(tail))
    watched, until = False, asyncio.get_running_loop().time() + WATCHED_S
    while not watched and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.01)
        watched = tail.watch(lambda: calls.append(1))
    must(watched, "A tail that has given all there is cannot be watched.")
    reading.cancel()
    await asyncio.wait((reading,))
    await asyncio.sleep(0.05)
    must(not calls, "A watched tail calls although nothing has come.")
    seqs = [await store(log, "w.x", data) for data in (b"second", b"third")]

    async def called() -> None:
        while not calls:
            await asyncio.sleep(0.005)

    await in_time(asyncio.ensure_future(called()), "A watched tail does not call when an entry has come.")
    must(not tail.watch(lambda: calls.append(2)), "A tail with something unread is watched.")
    entries = list[Entry]()
    while len(entries) < 2:
        entries += await in_time(asyncio.ensure_future(anext(tail)), "A watched tail does not give what has come.")
    must(entries == [Entry(seqs[0], b"second"), Entry(seqs[1], b"third")], "A watched tail gives something else.")
    must(calls == [1], "A watched tail has called more than once.")
    tail.close()
