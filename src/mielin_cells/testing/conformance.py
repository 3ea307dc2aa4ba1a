"""The contract of the ports, as checks: an adapter is right when every one of `CHECKS` passes against it.

    for check in CHECKS:
        await check(substrate)        # a fresh, empty substrate each time

Each check raises `AssertionError` with a sentence, also under `python -O`.  Not checked: what survives the end of a process,
which is an adapter's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

from mielin_cells.errors import MessageTooLarge, NoResponder, PartMisplaced, PartMissing, WireTimeout
from mielin_cells.substrate.parts import get_parts, put_parts
from mielin_cells.substrate.ports import ENTRY_BYTES_MAX, Appended, Conflict, Entry, Log, Outcome, Substrate, Unknown

T = TypeVar("T")
Check: TypeAlias = Callable[[Substrate], Awaitable[None]]

CONTENDERS, SUBJECTS = 12, 60

WAIT_S = 10.0
"""What does not come within it, does not come."""


def _must(holds: bool, why: str) -> None:
    if not holds:
        raise AssertionError(why)


def _there(found: T | None, why: str) -> T:
    if found is None:
        raise AssertionError(why)
    return found


async def _soon(work: Awaitable[T], why: str) -> T:
    try:
        return await asyncio.wait_for(work, WAIT_S)
    except TimeoutError:
        raise AssertionError(why) from None


async def _stored(log: Log, subject: str, data: bytes, expect: int | None = None) -> int:
    outcome = await log.append(subject, data, expect)
    if not isinstance(outcome, Appended):
        raise AssertionError(f"An append to {subject} was answered {outcome}.")
    return outcome.seq


async def _filled(log: Log, subject: str, count: int) -> list[Entry]:
    """As many entries, as they should be read."""
    data = [b"%d" % n for n in range(count)]
    return [Entry(await _stored(log, subject, one), one) for one in data]


# ---- appending and reading -----------------------------------------------------------------------------------


async def entries_come_back_in_order(substrate: Substrate) -> None:
    """Appends called without waiting are stored in that order, with growing sequences."""
    log = substrate.log
    seqs = await asyncio.gather(*(_stored(log, "a.x", b"%d" % n) for n in range(300)))
    _must(seqs == sorted(set(seqs)), "Sequences do not grow.")
    wanted = [Entry(seq, b"%d" % n) for n, seq in enumerate(seqs)]
    found, after = list[Entry](), 0
    while page := await log.read("a.x", after, 64):
        _must(len(page) <= 64, "A read gave more than its limit.")
        _must(page[0].seq > after, "A read gave an entry that is not behind its `after`.")
        found += page
        after = page[-1].seq
    _must(found == wanted, "Entries are not in the order of their appends, or not as they were answered.")
    _must(await log.read("a.y") == [], "Another subject has entries.")


async def a_read_gives_what_is_behind_its_place_up_to_its_limit(substrate: Substrate) -> None:
    log = substrate.log
    every = await _filled(log, "r.x", 12)
    for at in range(len(every) + 1):
        for after in {0, every[at - 1].seq if at else 0, (every[at].seq - 1) if at < len(every) else every[-1].seq + 5}:
            wanted = [entry for entry in every if entry.seq > after]
            for limit in (1, 2, 5, 100):
                _must(await log.read("r.x", after, limit) == wanted[:limit], f"A read after {after}, up to {limit}.")
    _must(await log.read("r.x") == every, "A read of all.")


async def subjects_do_not_touch_each_other(substrate: Substrate) -> None:
    """Also where one's name begins as another's, and their entries lie between each other's."""
    log, names = substrate.log, ("i.x", "i.x.y", "i.xx", "i", "ii.x")
    wanted: dict[str, list[Entry]] = {name: [] for name in names}
    for n in range(8):
        for name in names:
            data = f"{name} {n}".encode()
            wanted[name].append(Entry(await _stored(log, name, data), data))
    for name in names:
        _must(await log.read(name) == wanted[name], f"{name} does not have just its own entries.")
        _must(await log.last(name) == wanted[name][-1], f"The last entry of {name} is not its own.")
        _must(await _tailed(log, name, 0, 8) == wanted[name], f"A tail of {name} does not have just its own entries.")
    await log.trim("i.x", wanted["i.x"][-1].seq + 1)
    for name in names[1:]:
        _must(await log.read(name) == wanted[name], f"A trim of i.x has changed {name}.")


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
            _must((len(won), len(lost)) == (1, CONTENDERS - 1), f"{len(won)} contenders won a place.")
            last[subject] = won[0]
    for subject, seq in last.items():
        _must(len(await log.read(f"c.{subject}")) == 2, "A loser's entry was stored, or a winner's was not.")
        entry = _there(await log.last(f"c.{subject}"), "`last` does not see an acknowledged append.")
        _must(entry.seq == seq, "`last` is not the winner's entry.")


async def only_the_place_that_is_expected_is_taken(substrate: Substrate) -> None:
    log = substrate.log
    seqs = [await _stored(log, "e.x", b"%d" % n) for n in range(3)]
    await _stored(log, "e.y", b"another's")
    for wrong in (0, seqs[0], seqs[1], seqs[2] - 1, seqs[2] + 1, seqs[2] + 1000):
        if wrong != seqs[2]:
            outcome = await log.append("e.x", b"wrong", wrong)
            _must(isinstance(outcome, Conflict), f"Expecting {wrong} of a subject that ends at {seqs[2]}: {outcome}.")
    _must(isinstance(await log.append("e.z", b"wrong", 1), Conflict), "An entry was expected where there is none.")
    right = await _stored(log, "e.x", b"right", seqs[2])
    _must([entry.seq for entry in await log.read("e.x")] == [*seqs, right], "What was refused was stored.")


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
        _must(isinstance(await faulty.append(subject, b"nonce", 0), Unknown), "The first answer is lost.")
        again = await faulty.append(subject, b"nonce", 0)
        _must(isinstance(again, Conflict if lands else Appended), f"Sent again: {again}.")
        _must([entry.data for entry in await substrate.log.read(subject)] == [b"nonce"], "Stored not once.")


async def the_same_bytes_are_stored_as_often_as_they_are_sent(substrate: Substrate) -> None:
    """Without an expectation nothing is taken for a repeat: senders send their mail again, and receivers count."""
    seqs = [await _stored(substrate.log, "d.x", b"same") for _ in range(3)]
    _must([entry.seq for entry in await substrate.log.read("d.x")] == seqs, "Of equal entries not all are stored.")


async def last_sees_every_acknowledged_append(substrate: Substrate) -> None:
    log = substrate.log

    async def writer(subject: str) -> None:
        for n in range(40):
            data = b"%d" % n
            written = Entry(await _stored(log, subject, data), data)
            _must(await log.last(subject) == written, "`last` is stale, or another entry.")
            _must(await log.settled(subject) == written, "`settled` is stale, or another entry.")

    await asyncio.gather(*(writer(f"l.{n}") for n in range(6)))
    _must(await log.last("l.none") is None, "An empty subject has a last entry.")
    _must(await log.settled("l.none") is None, "An empty subject has a settled entry.")


# ---- tails ---------------------------------------------------------------------------------------------------


async def _tailed(log: Log, subject: str, after: int, count: int) -> list[Entry]:
    """The first `count` entries of a tail, and whatever comes with them."""
    found, tail = list[Entry](), log.tail(subject, after)

    async def follow() -> None:
        async for batch in tail:
            _must(bool(batch), "A batch is empty.")
            found.extend(batch)
            if len(found) >= count:
                return

    try:
        await _soon(follow(), f"A tail of {subject} after {after} gave {len(found)} entries of {count}.")
    finally:
        tail.close()
    return found


async def a_tail_has_no_gap_and_no_repeat(substrate: Substrate) -> None:
    """Started before, amid and after the appends, and read slowly."""
    log, count = substrate.log, 400

    async def follow(slow: bool) -> list[bytes]:
        found: list[bytes] = []
        tail = log.tail("t.x")
        async for batch in tail:
            _must(bool(batch), "A batch is empty.")
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
        found = await _soon(task, "A tail lacks entries, or does not end when it is closed.")
        _must(found == wanted, "A tail has a gap, a repeat or another order.")


async def a_tail_begins_behind_its_place_and_goes_on_live(substrate: Substrate) -> None:
    """At each place: what is stored behind it, then what comes, with nothing left out between."""
    log = substrate.log
    every = await _filled(log, "b.x", 10)
    for at in range(11):
        after = every[at - 1].seq if at else 0
        if at < 10:
            begun = await _tailed(log, "b.x", after, 10 - at)
            _must(begun == every[at : at + len(begun)], f"A tail after {after} begins elsewhere.")
        found, tail = list[Entry](), log.tail("b.x", after)
        wanted = len(every) - at + 3

        async def follow(tail: object = tail, found: list[Entry] = found, wanted: int = wanted) -> None:
            async for batch in tail:  # type: ignore[attr-defined]
                found.extend(batch)
                if len(found) >= wanted:
                    return

        following = asyncio.ensure_future(follow())
        for n in range(3):
            data = b"live %d" % n
            every.append(Entry(await _stored(log, "b.x", data), data))
            await asyncio.sleep(0)
        try:
            await _soon(following, f"A tail after {after} lacks what came while it caught up.")
        finally:
            tail.close()
        _must(found == every[at:], f"A tail after {after} has a gap, or a repeat, where it went live.")


async def a_tail_ends_when_it_is_closed(substrate: Substrate) -> None:
    waiting = substrate.log.tail("t.none")
    ended = asyncio.ensure_future(waiting.__anext__())
    await asyncio.sleep(0)
    waiting.close()
    waiting.close()
    result = (await asyncio.gather(_soon(ended, "Closing does not end a tail that waits."), return_exceptions=True))[0]
    _must(isinstance(result, StopAsyncIteration), f"Closing does not end a tail that waits: {result!r}.")


# ---- trims, subjects, last entries ---------------------------------------------------------------------------


async def a_trim_keeps_what_is_behind_it_and_the_fence(substrate: Substrate) -> None:
    log = substrate.log
    seqs = [await _stored(log, "m.x", b"%d" % n) for n in range(6)]
    for _ in range(2):
        await log.trim("m.x", seqs[4])
        await log.trim("m.x", seqs[1])
    left = await log.read("m.x")
    _must([entry.seq for entry in left] == seqs[4:], "A trim removed too much, or too little.")
    _must(isinstance(await log.append("m.x", b"stale", seqs[4]), Conflict), "A trim has opened the fence.")
    newest = await _stored(log, "m.x", b"next", seqs[5])
    _must(newest > seqs[5], "A sequence was used again.")
    found = await _tailed(log, "m.x", 0, 3)
    _must([entry.seq for entry in found] == [*seqs[4:], newest], "A tail gives what was trimmed.")


async def a_trim_removes_all_that_it_is_asked_to(substrate: Substrate) -> None:
    """Also the last entry: of parts and of inboxes that are done nothing stays."""
    log = substrate.log
    every = await _filled(log, "n.x", 4)
    await _filled(log, "n.y", 1)
    await log.trim("n.x", every[-1].seq + 1)
    _must(await log.read("n.x") == [], "A trim of everything leaves something.")
    _must([name for name, _ in await log.subjects("n.")] == ["n.y"], "A subject without entries is listed.")
    again = await _stored(log, "n.x", b"again")
    _must(again > every[-1].seq, "A sequence was used again.")
    _must([entry.seq for entry in await log.read("n.x")] == [again], "What was trimmed is back.")


async def subjects_are_found_by_prefix(substrate: Substrate) -> None:
    log = substrate.log
    seqs = {name: await _stored(log, name, b"") for name in ("s.b", "s.a", "sx.c")}
    seqs["s.a"] = await _stored(log, "s.a", b"")
    _must(await log.subjects("s.") == [("s.a", seqs["s.a"]), ("s.b", seqs["s.b"])], "Wrong subjects.")
    _must(await log.subjects("nobody.") == [], "There are subjects of a prefix that none has.")
    many = {f"s.many.{n:04}": await _stored(log, f"s.many.{n:04}", b"") for n in range(300)}
    _must(await log.subjects("s.many.") == list(many.items()), "Of many subjects some are missing, or out of order.")


async def the_last_entries_of_many_subjects_are_read_at_once(substrate: Substrate) -> None:
    log, names = substrate.log, [f"l.{n}" for n in range(1100)]
    for name in names:
        await log.append(name, b"first")
    seqs = {name: await _stored(log, name, name.encode()) for name in names[::100]}
    lasts = await log.lasts([*names[::100], "l.none", names[1]])
    said = {name: entry for name, entry in lasts.items() if name in seqs}
    _must(said == {name: Entry(seq, name.encode()) for name, seq in seqs.items()}, "A last entry is another one.")
    _must(lasts.keys() == {*seqs, names[1]}, "There are entries of subjects that have none, or some are missing.")
    _must((await log.lasts(names)).keys() == set(names), "Of many, some are missing.")
    _must(await log.lasts([]) == {}, "There are last entries of no subjects.")


# ---- sizes ---------------------------------------------------------------------------------------------------


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
    _must([entry.data for entry in await log.read("z.x")] == [largest, b""], "Bytes were changed.")
    _must([entry.data for entry in await _tailed(log, "z.x", 0, 2)] == [largest, b""], "A tail has changed bytes.")


async def larger_data_goes_in_parts(substrate: Substrate) -> None:
    log, data = substrate.log, bytes(range(251)) * 8000
    refs = await put_parts(log, "p.x", data)
    _must(len(refs) > 1, "It fits in one part: the check shows nothing.")
    _must(await get_parts(log, "p.x", refs) == data, "The parts do not make the data.")
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


# ---- the wire ------------------------------------------------------------------------------------------------


async def the_wire_carries_to_those_who_listen(substrate: Substrate) -> None:
    wire, heard = substrate.wire, list[bytes]()
    too, done = list[bytes](), asyncio.Event()

    def receive(data: bytes) -> None:
        heard.append(data)
        if len(heard) == len(too) == 2:
            done.set()

    def receive_too(data: bytes) -> None:
        too.append(data)
        if len(heard) == len(too) == 2:
            done.set()

    subscription = await wire.subscribe("w.x", receive)
    another = await wire.subscribe("w.x", receive_too)
    for data in (b"1", b"2"):
        await wire.publish("w.x", data)
    await wire.publish("w.y", b"not for us")
    await _soon(done.wait(), f"Of two messages to two listeners these were heard: {heard}, {too}.")
    for one in (subscription, subscription, another):
        one.close()
    await wire.publish("w.x", b"3")

    async def answer(data: bytes) -> bytes:
        if data == b"silence":
            await asyncio.sleep(3600)
        return data + b"!"

    serving = await wire.serve("w.ask", answer)
    _must(await wire.request("w.ask", b"hello", WAIT_S) == b"hello!", "A wrong answer.")
    said = await asyncio.gather(*(wire.request("w.ask", b"%d" % n, WAIT_S) for n in range(40)))
    _must(said == [b"%d!" % n for n in range(40)], "Of requests made at once one has another's answer.")
    for subject, data, wanted in (("w.ask", b"silence", WireTimeout), ("w.nobody", b"", NoResponder)):
        try:
            await _soon(wire.request(subject, data, 0.05), f"A request on {subject} is never given up.")
            raise AssertionError(f"A request on {subject} was answered.")
        except wanted:
            pass
    serving.close()
    try:
        await _soon(wire.request("w.ask", b"late", 0.2), "A request is never given up.")
        raise AssertionError("A request was answered that nobody serves any more.")
    except (NoResponder, WireTimeout):
        pass
    _must(sorted(heard) == [b"1", b"2"], f"Heard {heard}.")
    _must(sorted(too) == [b"1", b"2"], f"Heard {too}.")


CHECKS: tuple[Check, ...] = (
    entries_come_back_in_order,
    a_read_gives_what_is_behind_its_place_up_to_its_limit,
    subjects_do_not_touch_each_other,
    one_contender_wins_each_place,
    only_the_place_that_is_expected_is_taken,
    an_unknown_outcome_is_settled_by_the_same_bytes,
    the_same_bytes_are_stored_as_often_as_they_are_sent,
    last_sees_every_acknowledged_append,
    a_tail_has_no_gap_and_no_repeat,
    a_tail_begins_behind_its_place_and_goes_on_live,
    a_tail_ends_when_it_is_closed,
    a_trim_keeps_what_is_behind_it_and_the_fence,
    a_trim_removes_all_that_it_is_asked_to,
    subjects_are_found_by_prefix,
    the_last_entries_of_many_subjects_are_read_at_once,
    entries_have_a_largest_size,
    larger_data_goes_in_parts,
    the_wire_carries_to_those_who_listen,
)
