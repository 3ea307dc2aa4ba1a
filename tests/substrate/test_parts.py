"""Data larger than one entry: whatever happens to a part is named, and what a writer left behind is never taken."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from random import Random

import pytest

from mielin_cells.errors import (
    DigestMismatch,
    PartMisplaced,
    PartMissing,
    RecordInvalid,
    RecordTruncated,
    StoreFull,
    TrailingData,
    UnsupportedFormat,
)
from mielin_cells.log.records import PartRef
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.parts import (
    FRAME_BYTES,
    IN_FLIGHT,
    PART_BYTES,
    READ_AHEAD,
    get_parts,
    iter_parts,
    put_parts,
)
from mielin_cells.substrate.ports import ENTRY_BYTES_MAX, Entry, Log, Outcome, Unknown

SUBJECT = "part.a.x"
PAYLOAD_MAX = ENTRY_BYTES_MAX - FRAME_BYTES


@pytest.fixture
async def log() -> AsyncIterator[Log]:
    substrate = await Embedded.open()
    yield substrate.log
    await substrate.close()


class Changed:
    """A log of which some entries read other than they were stored; None: it is gone."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.entries: dict[int, bytes | None] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self.log, name)

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        found = []
        for entry in await self.log.read(subject, after, limit):
            data = self.entries.get(entry.seq, entry.data)
            if data is not None:
                found.append(Entry(entry.seq, data))
        return found


class Faulty:
    """A log that gives the outcomes it is told to before the real one; `lands`: an unknown append is stored all the same."""

    def __init__(self, log: Log, outcomes: Sequence[Outcome | Exception | None], *, lands: bool = False) -> None:
        self.log = log
        self.outcomes = list(outcomes)
        self.lands = lands

    def __getattr__(self, name: str) -> object:
        return getattr(self.log, name)

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is None or self.lands:
            stored = await self.log.append(subject, data, expect, owner)
            return stored if outcome is None else outcome
        return outcome


class Slow:
    """A log that stores each append when it is let."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.is_open = False

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        if not self.is_open:
            gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.append(gate)
            await gate
        return await self.log.append(subject, data, expect, owner)


async def frames_of(log: Log, subject: str, refs: Sequence[PartRef]) -> list[bytes]:
    by_seq = {entry.seq: entry.data for entry in await log.read(subject)}
    return [by_seq[ref.seq] for ref in refs]


# ---- sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [0, 1, 2, READ_AHEAD, READ_AHEAD + 1, 3 * READ_AHEAD])
@pytest.mark.parametrize("more", [-1, 0, 1])
async def test_data_of_any_size_comes_back_in_as_few_parts_as_hold_it(parts: int, more: int, log: Log) -> None:
    size = max(parts * PART_BYTES + more, 0)
    data = Random(size).randbytes(size)

    refs = await put_parts(log, SUBJECT, data)

    assert len(refs) == -(-size // PART_BYTES)
    assert sum(ref.size for ref in refs) == size
    assert await get_parts(log, SUBJECT, refs) == data


async def test_items_come_out_one_by_one_as_they_went_in_also_those_larger_than_an_entry(log: Log) -> None:
    edges = [0, 1, PAYLOAD_MAX - 1, PAYLOAD_MAX, PAYLOAD_MAX + 1, 2 * PAYLOAD_MAX, 2 * PAYLOAD_MAX + 1, 0]
    items = [Random(n).randbytes(size) for n, size in enumerate(edges)]

    refs = await put_parts(log, SUBJECT, iter(items))

    assert [ref.size for ref in refs] == [
        0, 1, PAYLOAD_MAX - 1, PAYLOAD_MAX, PAYLOAD_MAX, 1, PAYLOAD_MAX, PAYLOAD_MAX, PAYLOAD_MAX, PAYLOAD_MAX, 1, 0,
    ]  # fmt: skip
    assert [item async for item in iter_parts(log, SUBJECT, refs)] == items
    assert max(len(entry.data) for entry in await log.read(SUBJECT)) == ENTRY_BYTES_MAX


async def test_no_items_make_no_parts_and_no_parts_make_no_bytes(log: Log) -> None:
    assert await put_parts(log, SUBJECT, iter(())) == ()
    assert await put_parts(log, SUBJECT, b"") == ()
    assert await get_parts(log, SUBJECT, ()) == b""
    assert await log.subjects("") == []


async def test_items_are_asked_for_as_they_are_stored_and_few_are_on_their_way(log: Log) -> None:
    """So that a snapshot of any size takes the memory of a few slices."""
    slow = Slow(log)
    asked = 0

    def items() -> Iterator[bytes]:
        nonlocal asked
        for asked in range(1, 41):
            yield b"%d" % asked

    writing = asyncio.create_task(put_parts(slow, SUBJECT, items()))  # type: ignore[arg-type]
    for answered in range(35):
        for _ in range(30):  # more turns than it could need
            await asyncio.sleep(0)
        assert len(slow.waiting) == IN_FLIGHT
        assert asked == answered + IN_FLIGHT + 1
        slow.waiting.popleft().set_result(None)
    slow.is_open = True
    for gate in slow.waiting:
        gate.set_result(None)
    assert await get_parts(log, SUBJECT, await writing) == b"".join(b"%d" % n for n in range(1, 41))


# ---- one part that is not as it was --------------------------------------------------------------------------


async def test_any_flipped_bit_of_a_part_is_named(log: Log) -> None:
    refs = await put_parts(log, SUBJECT, iter([b"first one", b"the second", b"third"]))
    changed = Changed(log)
    kinds: set[type[RecordInvalid]] = set()
    for number, frame in enumerate(await frames_of(log, SUBJECT, refs)):
        for at, bit in itertools.product(range(len(frame)), range(8)):
            flipped = bytearray(frame)
            flipped[at] ^= 1 << bit
            changed.entries = {refs[number].seq: bytes(flipped)}
            with pytest.raises(RecordInvalid) as raised:
                await get_parts(changed, SUBJECT, refs)  # type: ignore[arg-type]
            kinds.add(type(raised.value))
            assert (raised.value.subject, raised.value.part) == (SUBJECT, number)
            assert raised.value.seq == refs[number].seq
            assert "Nothing was changed" in raised.value.message
    assert kinds == {DigestMismatch, RecordTruncated, TrailingData, UnsupportedFormat}


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_part_cut_at_any_length_or_with_more_bytes_is_named(number: int, log: Log) -> None:
    refs = await put_parts(log, SUBJECT, iter([b"first one", b"the second", b"third"]))
    frame = (await frames_of(log, SUBJECT, refs))[number]
    changed = Changed(log)
    for size in range(len(frame)):
        changed.entries = {refs[number].seq: frame[:size]}
        with pytest.raises(RecordTruncated) as truncated:
            await get_parts(changed, SUBJECT, refs)  # type: ignore[arg-type]
        assert truncated.value.part == number
    for more in (b"\0", b"x" * 1000, frame):
        changed.entries = {refs[number].seq: frame + more}
        with pytest.raises(TrailingData) as trailing:
            await get_parts(changed, SUBJECT, refs)  # type: ignore[arg-type]
        assert trailing.value.part == number


@pytest.mark.parametrize("count", [1, 2, READ_AHEAD, 3 * READ_AHEAD + 1])
async def test_a_missing_part_is_named_wherever_it_was(count: int, log: Log) -> None:
    refs = await put_parts(log, SUBJECT, iter([b"%d" % n for n in range(count)]))
    changed = Changed(log)
    for number in range(count):
        changed.entries = {refs[number].seq: None}
        with pytest.raises(PartMissing) as raised:
            await get_parts(changed, SUBJECT, refs)  # type: ignore[arg-type]
        assert (raised.value.part, raised.value.seq) == (number, refs[number].seq)
        assert "an older snapshot may be whole" in raised.value.message


async def test_a_reference_that_says_other_than_the_part_is_named(log: Log) -> None:
    refs = await put_parts(log, SUBJECT, iter([b"same", b"size", b"last"]))
    wrong = [
        PartRef(refs[1].seq, refs[1].size, bytes(32)),
        PartRef(refs[1].seq, refs[1].size + 1, refs[1].digest),
        PartRef(refs[2].seq, refs[1].size, refs[1].digest),
    ]
    for ref in wrong:
        with pytest.raises(PartMisplaced) as raised:
            await get_parts(log, SUBJECT, (refs[0], ref, refs[2]))
        assert raised.value.part == 1
    for seq in (0, refs[-1].seq + 1, 1 << 62):
        with pytest.raises(PartMissing):
            await get_parts(log, SUBJECT, (refs[0], PartRef(seq, 4, refs[1].digest)))


async def test_references_that_end_within_an_item_are_named(log: Log) -> None:
    refs = await put_parts(log, SUBJECT, iter([bytes(2 * PAYLOAD_MAX + 5), b"next"]))
    assert len(refs) == 4
    for kept in (1, 2):
        with pytest.raises(PartMissing, match="end within an item"):
            await get_parts(log, SUBJECT, refs[:kept])
    with pytest.raises(PartMisplaced):
        await get_parts(log, SUBJECT, (refs[0], *refs[2:]))


# ---- parts that belong elsewhere -----------------------------------------------------------------------------


async def test_every_order_but_the_right_one_is_refused_also_of_equal_parts(log: Log) -> None:
    refs = await put_parts(log, SUBJECT, iter([b"equal", b"equal", b"other", b"equal"]))
    for order in itertools.product(range(4), repeat=4):
        if order == (0, 1, 2, 3):
            continue
        with pytest.raises(PartMisplaced):
            await get_parts(log, SUBJECT, [refs[n] for n in order])
    assert await get_parts(log, SUBJECT, refs) == b"equalequalotherequal"


async def test_a_part_of_another_snapshot_or_agent_cannot_stand_in_though_it_holds_the_same(log: Log) -> None:
    """As a store would show it that gives one subject's entry for another's."""
    items = [b"the same", b"in all"]
    mine = await put_parts(log, SUBJECT, iter(items))
    changed = Changed(log)
    for foreign in ("part.a.y", "part.b.x"):
        theirs = await put_parts(log, foreign, iter(items))
        frames = await frames_of(log, foreign, theirs)
        for refs in (mine, [PartRef(m.seq, t.size, t.digest) for m, t in zip(mine, theirs, strict=True)]):
            changed.entries = {refs[1].seq: frames[1]}
            with pytest.raises(PartMisplaced) as raised:
                await get_parts(changed, SUBJECT, (mine[0], refs[1]))  # type: ignore[arg-type]
            assert raised.value.part == 1
        with pytest.raises(PartMissing):
            await get_parts(log, SUBJECT, theirs)


async def test_two_parts_whose_bytes_were_swapped_in_the_store_are_refused(log: Log) -> None:
    refs = await put_parts(log, SUBJECT, iter([b"one", b"two", b"six"]))
    frames = await frames_of(log, SUBJECT, refs)
    changed = Changed(log)
    for a, b in itertools.combinations(range(3), 2):
        changed.entries = {refs[a].seq: frames[b], refs[b].seq: frames[a]}
        with pytest.raises(PartMisplaced) as raised:
            await get_parts(changed, SUBJECT, refs)  # type: ignore[arg-type]
        assert raised.value.part == a


# ---- writers that were interrupted ---------------------------------------------------------------------------


@pytest.mark.parametrize("lands", [True, False])
async def test_an_unknown_outcome_is_repeated_and_what_is_stored_twice_counts_once(lands: bool, log: Log) -> None:
    faulty = Faulty(log, [None, Unknown("lost"), None, Unknown("lost"), None], lands=lands)
    items = [b"%d" % n for n in range(8)]

    refs = await put_parts(faulty, SUBJECT, iter(items))  # type: ignore[arg-type]

    assert len(await log.read(SUBJECT)) == 8 + (2 if lands else 0)
    assert [item async for item in iter_parts(log, SUBJECT, refs)] == items


async def test_parts_of_a_broken_writer_are_not_taken_for_those_of_the_next_one(log: Log) -> None:
    """It had the same data, subject and numbers: only the references say which are meant."""
    items = [b"a" * 100, b"b" * 100, b"c" * 100]
    with pytest.raises(StoreFull, match="disk"):
        await put_parts(Faulty(log, [None, None, StoreFull("the disk is full")]), SUBJECT, iter(items))  # type: ignore[arg-type]
    left = await log.read(SUBJECT)
    assert len(left) == 2

    refs = await put_parts(log, SUBJECT, iter(items))

    assert {ref.seq for ref in refs}.isdisjoint(entry.seq for entry in left)
    await log.trim(SUBJECT, refs[0].seq)
    assert await get_parts(log, SUBJECT, refs) == b"".join(items)
    assert [entry.seq for entry in await log.read(SUBJECT)] == [ref.seq for ref in refs]


async def test_a_writer_that_is_cancelled_or_whose_source_raises_leaves_no_append_going_on(log: Log) -> None:
    def breaks() -> Iterator[bytes]:
        yield b"one"
        yield b"two"
        raise OSError("the source broke")

    with pytest.raises(OSError, match="the source broke"):
        await put_parts(log, SUBJECT, breaks())
    never = Faulty(log, [Unknown("lost")] * 1000)
    writing = asyncio.create_task(put_parts(never, SUBJECT, iter([b"one", b"two"])))  # type: ignore[arg-type]
    while len(never.outcomes) == 1000:
        await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_parts_that_are_trimmed_while_they_are_read_are_missing_or_whole(log: Log) -> None:
    """What was read ahead is verified by its own bytes, wherever it is now; what was not is missing."""
    refs = await put_parts(log, SUBJECT, iter([b"%d" % n for n in range(READ_AHEAD + 1)]))
    reading = iter_parts(log, SUBJECT, refs)
    assert await anext(reading) == b"0"

    await log.trim(SUBJECT, refs[-1].seq + 1)

    assert [await anext(reading) for _ in range(READ_AHEAD - 1)] == [b"%d" % n for n in range(1, READ_AHEAD)]
    with pytest.raises(PartMissing):
        await anext(reading)
