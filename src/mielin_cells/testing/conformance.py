"""The contract of the ports, as checks: an adapter is right when every one of `CHECKS` passes against it.

    for check in CHECKS:
        await check(substrate)        # a fresh, empty substrate each time

Each check raises `AssertionError` with a sentence.  Not checked: what survives the end of a process, which is an adapter's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from mielin_cells.errors import MessageTooLarge, NoResponder, PartMisplaced, PartMissing, WireTimeout
from mielin_cells.substrate.parts import get_parts, put_parts
from mielin_cells.substrate.ports import ENTRY_BYTES_MAX, Appended, Conflict, Entry, Log, Outcome, Substrate, Unknown

Check: TypeAlias = Callable[[Substrate], Awaitable[None]]

CONTENDERS, SUBJECTS = 12, 60


async def _stored(log: Log, subject: str, data: bytes, expect: int | None = None) -> int:
    outcome = await log.append(subject, data, expect)
    assert isinstance(outcome, Appended), f"An append to {subject} was answered {outcome}."
    return outcome.seq


async def entries_come_back_in_order(substrate: Substrate) -> None:
    """Appends called without waiting are stored in that order, with growing sequences."""
    log = substrate.log
    seqs = await asyncio.gather(*(_stored(log, "a.x", b"%d" % n) for n in range(300)))
    assert seqs == sorted(set(seqs)), "Sequences do not grow."
    found, after = [], 0
    while page := await log.read("a.x", after, 64):
        assert len(page) <= 64, "A read gave more than its limit."
        found += [entry.data for entry in page]
        after = page[-1].seq
    assert found == [b"%d" % n for n in range(300)], "Entries are not in the order of their appends."
    assert await log.read("a.y") == [], "Another subject has entries."


async def one_contender_wins_each_place(substrate: Substrate) -> None:
    """Twelve at once on sixty subjects, twice: exactly one `Appended` each, the others `Conflict`."""
    log = substrate.log
    last = dict.fromkeys(range(SUBJECTS), 0)
    for _ in range(2):
        for subject in range(SUBJECTS):
            calls = [log.append(f"c.{subject}", b"%d" % n, last[subject]) for n in range(CONTENDERS)]
            outcomes = await asyncio.gather(*calls)
            won = [outcome.seq for outcome in outcomes if isinstance(outcome, Appended)]
            lost = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
            assert (len(won), len(lost)) == (1, CONTENDERS - 1), f"{len(won)} contenders won a place."
            last[subject] = won[0]
    for subject, seq in last.items():
        assert len(await log.read(f"c.{subject}")) == 2, "A loser's entry was stored."
        entry = await log.last(f"c.{subject}")
        assert entry is not None, "`last` does not see an acknowledged append."
        assert entry.seq == seq, "`last` is not the winner's entry."


class _Loses:
    """A log that loses the answer to one append, before or after it is stored."""

    def __init__(self, log: Log, lands: bool) -> None:
        self.log = log
        self.lands = lands
        self.left = 1

    async def append(self, subject: str, data: bytes, expect: int | None = None) -> Outcome:
        if self.left:
            self.left -= 1
            if self.lands:
                await self.log.append(subject, data, expect)
            return Unknown("the answer was lost")
        return await self.log.append(subject, data, expect)


async def an_unknown_outcome_is_settled_by_the_same_bytes(substrate: Substrate) -> None:
    """Sent again with the same expectation they are stored once, and a reader can tell by their nonce."""
    for lands in (True, False):
        subject, faulty = f"u.{lands}", _Loses(substrate.log, lands)
        assert isinstance(await faulty.append(subject, b"nonce", 0), Unknown)
        again = await faulty.append(subject, b"nonce", 0)
        assert isinstance(again, Conflict if lands else Appended), f"Sent again: {again}."
        assert [entry.data for entry in await substrate.log.read(subject)] == [b"nonce"], "Stored not once."


async def last_sees_every_acknowledged_append(substrate: Substrate) -> None:
    log = substrate.log

    async def writer(subject: str) -> None:
        for n in range(40):
            seq = await _stored(log, subject, b"%d" % n)
            entry = await log.last(subject)
            assert entry is not None, "`last` misses an acknowledged append."
            assert entry.seq >= seq, "`last` is stale."
            entry = await log.settled(subject)
            assert entry is not None, "`settled` misses an acknowledged append."
            assert entry.seq >= seq, "`settled` is stale."

    await asyncio.gather(*(writer(f"l.{n}") for n in range(6)))
    assert await log.last("l.none") is None, "An empty subject has a last entry."
    assert await log.settled("l.none") is None, "An empty subject has a settled entry."


async def a_tail_has_no_gap_and_no_repeat(substrate: Substrate) -> None:
    """Started before, amid and after the appends, and read slowly."""
    log, count = substrate.log, 400

    async def follow(slow: bool) -> list[bytes]:
        found: list[bytes] = []
        tail = log.tail("t.x")
        async for batch in tail:
            assert batch, "A batch is empty."
            found += [entry.data for entry in batch]
            if slow:
                await asyncio.sleep(0)
            if len(found) >= count:
                tail.close()
        return found

    before = [asyncio.create_task(follow(slow)) for slow in (False, True)]
    for n in range(count // 2):
        await _stored(log, "t.x", b"%d" % n)
    amid = asyncio.create_task(follow(True))
    await asyncio.gather(*(_stored(log, "t.x", b"%d" % n) for n in range(count // 2, count)))
    wanted = [b"%d" % n for n in range(count)]
    for task in (*before, amid, asyncio.create_task(follow(False))):
        assert await task == wanted, "A tail has a gap, a repeat or another order."
    waiting = log.tail("t.none")
    ended = asyncio.ensure_future(waiting.__anext__())
    await asyncio.sleep(0)
    waiting.close()
    result = (await asyncio.gather(ended, return_exceptions=True))[0]
    assert isinstance(result, StopAsyncIteration), "Closing does not end a tail that waits."


async def a_trim_keeps_what_is_behind_it_and_the_fence(substrate: Substrate) -> None:
    log = substrate.log
    seqs = [await _stored(log, "m.x", b"%d" % n) for n in range(6)]
    for _ in range(2):
        await log.trim("m.x", seqs[4])
        await log.trim("m.x", seqs[1])
    left = await log.read("m.x")
    assert [entry.seq for entry in left] == seqs[4:], "A trim removed too much, or too little."
    assert isinstance(await log.append("m.x", b"stale", seqs[4]), Conflict), "A trim has opened the fence."
    newest = await _stored(log, "m.x", b"next", seqs[5])
    assert newest > seqs[5], "A sequence was used again."


async def subjects_are_found_by_prefix(substrate: Substrate) -> None:
    seqs = {name: await _stored(substrate.log, name, b"") for name in ("s.b", "s.a", "sx.c")}
    assert await substrate.log.subjects("s.") == [("s.a", seqs["s.a"]), ("s.b", seqs["s.b"])], "Wrong subjects."


async def the_last_entries_of_many_subjects_are_read_at_once(substrate: Substrate) -> None:
    names = [f"l.{n}" for n in range(1100)]
    for name in names:
        await substrate.log.append(name, b"first")
    seqs = {name: await _stored(substrate.log, name, name.encode()) for name in names[::100]}
    lasts = await substrate.log.lasts([*names[::100], "l.none", names[1]])
    assert {name: entry for name, entry in lasts.items() if name in seqs} == {
        name: Entry(seq, name.encode()) for name, seq in seqs.items()
    }, "A last entry is another one."
    assert lasts.keys() == {*seqs, names[1]}, "There are entries of subjects that have none, or some are missing."
    assert (await substrate.log.lasts(names)).keys() == set(names), "Of many, some are missing."


async def entries_have_a_largest_size(substrate: Substrate) -> None:
    """The largest is stored whole; one byte more is refused, and the store goes on."""
    log = substrate.log
    largest = bytes(range(256)) * (ENTRY_BYTES_MAX // 256)
    await _stored(log, "z.x", largest, 0)
    try:
        await log.append("z.x", largest + b"!")
        raise AssertionError("An entry above the limit was taken.")
    except MessageTooLarge:
        pass
    await _stored(log, "z.x", b"")
    assert [entry.data for entry in await log.read("z.x")] == [largest, b""], "Bytes were changed."


async def larger_data_goes_in_parts(substrate: Substrate) -> None:
    log, data = substrate.log, bytes(range(251)) * 8000
    refs = await put_parts(log, "p.x", data)
    assert len(refs) > 1, "It fits in one part: the check shows nothing."
    assert await get_parts(log, "p.x", refs) == data, "The parts do not make the data."
    swapped = (refs[1], refs[0], *refs[2:])
    try:
        await get_parts(log, "p.x", swapped)
        raise AssertionError("Swapped parts were taken.")
    except PartMisplaced:
        pass
    await log.trim("p.x", refs[1].seq)
    try:
        async with asyncio.timeout(10):
            await get_parts(log, "p.x", refs)
        raise AssertionError("A missing part was not missed.")
    except PartMissing:
        pass


async def the_wire_carries_to_those_who_listen(substrate: Substrate) -> None:
    wire, heard = substrate.wire, list[bytes]()
    done = asyncio.Event()

    def receive(data: bytes) -> None:
        heard.append(data)
        if len(heard) == 2:
            done.set()

    subscription = await wire.subscribe("w.x", receive)
    for data in (b"1", b"2"):
        await wire.publish("w.x", data)
    await wire.publish("w.y", b"not for us")
    await asyncio.wait_for(done.wait(), 10)
    subscription.close()
    subscription.close()
    await wire.publish("w.x", b"3")

    async def answer(data: bytes) -> bytes:
        if data == b"silence":
            await asyncio.sleep(3600)
        return data + b"!"

    serving = await wire.serve("w.ask", answer)
    assert await wire.request("w.ask", b"hello", 10) == b"hello!", "A wrong answer."
    for subject, data, wanted in (("w.ask", b"silence", WireTimeout), ("w.nobody", b"", NoResponder)):
        try:
            await wire.request(subject, data, 0.05)
            raise AssertionError(f"A request on {subject} was answered.")
        except wanted:
            pass
    serving.close()
    assert sorted(heard) == [b"1", b"2"], f"Heard {heard}."


CHECKS: tuple[Check, ...] = (
    entries_come_back_in_order,
    one_contender_wins_each_place,
    an_unknown_outcome_is_settled_by_the_same_bytes,
    last_sees_every_acknowledged_append,
    a_tail_has_no_gap_and_no_repeat,
    a_trim_keeps_what_is_behind_it_and_the_fence,
    subjects_are_found_by_prefix,
    the_last_entries_of_many_subjects_are_read_at_once,
    entries_have_a_largest_size,
    larger_data_goes_in_parts,
    the_wire_carries_to_those_who_listen,
)
