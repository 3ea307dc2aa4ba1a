"""Checks of a log: appending, reading, trimming, subjects, sizes."""

from __future__ import annotations

import asyncio

from mielin_cells.errors import MessageTooLarge, PartMisplaced, PartMissing
from mielin_cells.substrate.parts import get_parts, put_parts
from mielin_cells.substrate.ports import ENTRY_BYTES_MAX, Appended, Conflict, Entry, Log, Outcome, Substrate, Unknown
from mielin_cells.testing.conformance.kit import check, contend, fails, fill, must, read_tail, store

SLACK_S = 0.05
"""Between two clocks of one machine, one of which may be slewed."""


@check
async def entries_come_back_in_order(substrate: Substrate) -> None:
    """Appends called without waiting are stored in that order, with growing sequences."""
    log = substrate.log
    seqs = await asyncio.gather(*(store(log, "a.x", b"%d" % n) for n in range(300)))
    must(seqs == sorted(set(seqs)), "Sequences do not grow.")
    wanted = [Entry(seq, b"%d" % n) for n, seq in enumerate(seqs)]
    entries, after = list[Entry](), 0
    while page := await log.read("a.x", after, 64):
        must(len(page) <= 64, "A read gave more than its limit.")
        must(page[0].seq > after, "A read gave an entry that is not behind its `after`.")
        entries += page
        after = page[-1].seq
    must(entries == wanted, "Entries are not in the order of their appends, or not as they were answered.")
    must(await log.read("a.y") == [], "Another subject has entries.")


@check
async def a_read_gives_what_is_behind_its_place_up_to_its_limit(substrate: Substrate) -> None:
    log = substrate.log
    every = await fill(log, "r.x", 12)
    for at in range(len(every) + 1):
        for after in {0, every[at - 1].seq if at else 0, (every[at].seq - 1) if at < len(every) else every[-1].seq + 5}:
            wanted = [entry for entry in every if entry.seq > after]
            for limit in (1, 2, 5, 100):
                must(await log.read("r.x", after, limit) == wanted[:limit], f"A read after {after}, up to {limit}.")
    must(await log.read("r.x") == every, "A read of all.")


@check
async def subjects_do_not_touch_each_other(substrate: Substrate) -> None:
    """Also where one's name begins as another's, and their entries lie between each other's."""
    log, names = substrate.log, ("i.x", "i.x.y", "i.xx", "i", "ii.x")
    wanted: dict[str, list[Entry]] = {name: [] for name in names}
    for n in range(8):
        for name in names:
            data = f"{name} {n}".encode()
            wanted[name].append(Entry(await store(log, name, data), data))
    for name in names:
        must(await log.read(name) == wanted[name], f"{name} does not have just its own entries.")
        must(await log.last(name) == wanted[name][-1], f"The last entry of {name} is not its own.")
        must(await read_tail(log, name, 0, 8) == wanted[name], f"A tail of {name} does not have just its own entries.")
    await log.trim("i.x", wanted["i.x"][-1].seq + 1)
    for name in names[1:]:
        must(await log.read(name) == wanted[name], f"A trim of i.x has changed {name}.")


@check
async def one_contender_wins_each_place(substrate: Substrate) -> None:
    """Twelve at once on sixty subjects, twice: exactly one `Appended` each, the others `Conflict`."""
    await contend(substrate.log, [f"c.{n}" for n in range(60)], 2, lambda n: None)


@check
async def only_the_place_that_is_expected_is_taken(substrate: Substrate) -> None:
    log = substrate.log
    seqs = [await store(log, "e.x", b"%d" % n) for n in range(3)]
    await store(log, "e.y", b"another's")
    for wrong in (0, seqs[0], seqs[1], seqs[2] - 1, seqs[2] + 1, seqs[2] + 1000):
        if wrong != seqs[2]:
            outcome = await log.append("e.x", b"wrong", wrong)
            must(isinstance(outcome, Conflict), f"Expecting {wrong} of a subject that ends at {seqs[2]}: {outcome}.")
    must(isinstance(await log.append("e.z", b"wrong", 1), Conflict), "An entry was expected where there is none.")
    right = await store(log, "e.x", b"right", seqs[2])
    must([entry.seq for entry in await log.read("e.x")] == [*seqs, right], "What was refused was stored.")


class _Loses:
    """A log that loses the answer to one append, before or after it is stored."""

    def __init__(self, log: Log, lands: bool) -> None:
        self.log = log
        self.lands = lands
        self.left = 1

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        if self.left:
            self.left -= 1
            if self.lands:
                await self.log.append(subject, data, expect, owner)
            return Unknown("the answer was lost")
        return await self.log.append(subject, data, expect, owner)


@check
async def an_unknown_outcome_is_settled_by_the_same_bytes(substrate: Substrate) -> None:
    """Sent again with the same expectation they are stored once, and a reader can tell by their nonce."""
    for lands in (True, False):
        subject, faulty = f"u.{lands}", _Loses(substrate.log, lands)
        must(isinstance(await faulty.append(subject, b"nonce", 0), Unknown), "The first answer is lost.")
        again = await faulty.append(subject, b"nonce", 0)
        must(isinstance(again, Conflict if lands else Appended), f"Sent again: {again}.")
        must([entry.data for entry in await substrate.log.read(subject)] == [b"nonce"], "Stored not once.")


@check
async def the_same_bytes_are_stored_as_often_as_they_are_sent(substrate: Substrate) -> None:
    """Without an expectation nothing is taken for a repeat: senders send their mail again, and receivers count."""
    seqs = [await store(substrate.log, "d.x", b"same") for _ in range(3)]
    must([entry.seq for entry in await substrate.log.read("d.x")] == seqs, "Of equal entries not all are stored.")


@check
async def last_sees_every_acknowledged_append(substrate: Substrate) -> None:
    log = substrate.log

    async def writer(subject: str) -> None:
        for n in range(40):
            data = b"%d" % n
            written = Entry(await store(log, subject, data), data)
            must(await log.last(subject) == written, "`last` is stale, or another entry.")
            must(await log.settled(subject) == written, "`settled` is stale, or another entry.")

    await asyncio.gather(*(writer(f"l.{n}") for n in range(6)))
    must(await log.last("l.none") is None, "An empty subject has a last entry.")
    must(await log.settled("l.none") is None, "An empty subject has a settled entry.")


@check
async def a_trim_keeps_what_is_behind_it_and_the_fence(substrate: Substrate) -> None:
    log = substrate.log
    seqs = [await store(log, "m.x", b"%d" % n) for n in range(6)]
    for _ in range(2):
        await log.trim("m.x", seqs[4])
        await log.trim("m.x", seqs[1])
    left = await log.read("m.x")
    must([entry.seq for entry in left] == seqs[4:], "A trim removed too much, or too little.")
    must(isinstance(await log.append("m.x", b"stale", seqs[4]), Conflict), "A trim has opened the fence.")
    newest = await store(log, "m.x", b"next", seqs[5])
    must(newest > seqs[5], "A sequence was used again.")
    entries = await read_tail(log, "m.x", 0, 3)
    must([entry.seq for entry in entries] == [*seqs[4:], newest], "A tail gives what was trimmed.")


@check
async def a_trim_removes_all_that_it_is_asked_to(substrate: Substrate) -> None:
    """Also the last entry: of parts and of inboxes that are done nothing stays."""
    log = substrate.log
    every = await fill(log, "n.x", 4)
    await fill(log, "n.y", 1)
    await log.trim("n.x", every[-1].seq + 1)
    must(await log.read("n.x") == [], "A trim of everything leaves something.")
    must([name for name, _ in await log.subjects("n.")] == ["n.y"], "A subject without entries is listed.")
    again = await store(log, "n.x", b"again")
    must(again > every[-1].seq, "A sequence was used again.")
    must([entry.seq for entry in await log.read("n.x")] == [again], "What was trimmed is back.")


@check
async def subjects_are_found_by_prefix(substrate: Substrate) -> None:
    log = substrate.log
    seqs = {name: await store(log, name, b"") for name in ("s.b", "s.a", "sx.c")}
    seqs["s.a"] = await store(log, "s.a", b"")
    must(await log.subjects("s.") == [("s.a", seqs["s.a"]), ("s.b", seqs["s.b"])], "Wrong subjects.")
    must(await log.subjects("nobody.") == [], "There are subjects of a prefix that none has.")
    many = {f"s.many.{n:04}": await store(log, f"s.many.{n:04}", b"") for n in range(300)}
    must(await log.subjects("s.many.") == list(many.items()), "Of many subjects some are missing, or out of order.")


@check
async def the_position_moves_with_every_append(substrate: Substrate) -> None:
    log, before = substrate.log, set[tuple[int, ...]]()
    for n in range(40):
        position = await log.position()
        must(await log.position() == position, "The position moved, and nothing was appended.")
        must(position not in before, "The position is where it was before an append.")
        before.add(position)
        await store(log, f"p.{n % 13}", b"", 0 if n < 13 else None)


@check
async def the_last_entries_of_many_subjects_are_read_at_once(substrate: Substrate) -> None:
    log, names = substrate.log, [f"l.{n}" for n in range(1100)]
    for name in names:
        await log.append(name, b"first")
    seqs = {name: await store(log, name, name.encode()) for name in names[::100]}
    lasts = await log.lasts([*names[::100], "l.none", names[1]])
    said = {name: entry for name, entry in lasts.items() if name in seqs}
    must(said == {name: Entry(seq, name.encode()) for name, seq in seqs.items()}, "A last entry is another one.")
    must(lasts.keys() == {*seqs, names[1]}, "There are entries of subjects that have none, or some are missing.")
    must((await log.lasts(names)).keys() == set(names), "Of many, some are missing.")
    must(await log.lasts([]) == {}, "There are last entries of no subjects.")


@check
async def the_store_has_one_time_that_goes_on(substrate: Substrate) -> None:
    """The time is never ahead of what passes here, so a later answer is later by what has passed, or by what two answers took."""
    log, clock = substrate.log, asyncio.get_running_loop().time
    began, first, heard = clock(), await log.now(), clock()
    await asyncio.sleep(0.2)
    asked, second, ended = clock(), await log.now(), clock()
    must(asked - heard - SLACK_S <= second - first <= ended - began + SLACK_S, "The store's time goes at another pace.")


@check
async def entries_have_a_largest_size(substrate: Substrate) -> None:
    """The largest is stored whole; one byte more is refused, and the store goes on."""
    log = substrate.log
    largest = bytes(range(256)) * (ENTRY_BYTES_MAX // 256)
    await store(log, "z.x", largest, 0)
    await fails(log.append("z.x", largest + b"!"), (MessageTooLarge,), "An entry above the limit was taken.")
    await store(log, "z.x", b"")
    must([entry.data for entry in await log.read("z.x")] == [largest, b""], "Bytes were changed.")
    must([entry.data for entry in await read_tail(log, "z.x", 0, 2)] == [largest, b""], "A tail has changed bytes.")


@check
async def larger_data_goes_in_parts(substrate: Substrate) -> None:
    log, data = substrate.log, bytes(range(251)) * 8000
    refs = await put_parts(log, "p.x", data)
    must(len(refs) > 1, "It fits in one part: the check shows nothing.")
    must(await get_parts(log, "p.x", refs) == data, "The parts do not make the data.")
    swapped = (refs[1], refs[0], *refs[2:])
    await fails(get_parts(log, "p.x", swapped), (PartMisplaced,), "Swapped parts were taken.")
    await log.trim("p.x", refs[1].seq)
    try:
        async with asyncio.timeout(10):
            await get_parts(log, "p.x", refs)
        raise AssertionError("A missing part was not missed.")
    except PartMissing:
        pass
