"""Rule T7 in a reader and in an owner: what stands in a stream, what is replaced, and what is a gap."""

from __future__ import annotations

import pytest

from mielin_cells.errors import RecordInvalid, StreamGap
from mielin_cells.log.streams.entries import (
    AnyStreamEntry,
    Ended,
    Parts,
    Restarted,
    StreamView,
    decode_stream_entry,
    encode_stream_entry,
)
from mielin_cells.log.streams.reading import Part, Position, Replaced, StreamReading, without_replaced


def parts(at: int, *data: bytes, n: int = 1, prev: int = 0, epoch: int = 1, attempt: int = 0) -> Parts:
    return Parts(epoch, 1, n, prev, at, data=list(data), attempt=attempt)


def restarted(at: int, *, n: int = 1, prev: int = 0, epoch: int = 1) -> Restarted:
    return Restarted(epoch, 1, n, prev, at, attempt=1)


def ended(at: int, *, n: int = 1, prev: int = 0, epoch: int = 1) -> Ended:
    return Ended(epoch, 1, n, prev, at, answer=b"answer")


def given(reading: StreamReading, *entries: AnyStreamEntry, start: int = 1) -> list[object]:
    news = [one for seq, entry in enumerate(entries, start) for one in reading.apply(seq, entry)]
    return [one.data if isinstance(one, Part) else ("replaced", one.offset) for one in news]


def view(*entries: AnyStreamEntry) -> StreamView:
    seen = StreamView(1)
    for seq, entry in enumerate(entries, 1):
        seen.add(seq, entry)
    return seen


def test_an_entry_reads_as_it_was_written() -> None:
    for entry in (parts(0, b"a", b"b", prev=7), restarted(3), ended(4)):
        assert decode_stream_entry(encode_stream_entry(entry), "here") == entry


def test_bytes_that_are_no_entry_are_refused() -> None:
    with pytest.raises(RecordInvalid):
        decode_stream_entry(b"rubbish", "here")


def test_parts_are_given_in_order_and_once() -> None:
    reading = StreamReading(1)
    assert given(reading, parts(0, b"a", b"b"), parts(2, b"c", prev=1), ended(3, prev=2)) == [b"a", b"b", b"c"]
    assert reading.answer == b"answer"
    assert reading.position == Position(3, 3)
    assert given(reading, parts(0, b"a", b"b")) == []  # an entry that was applied already


def test_entries_of_other_calls_are_passed_over() -> None:
    reading = StreamReading(2)
    assert given(reading, parts(0, b"x"), ended(1, prev=1), parts(0, b"a", n=2, prev=2)) == [b"a"]
    assert reading.answer is None


def test_a_restart_replaces_what_stands_behind_it() -> None:
    reading = StreamReading(1)
    entries = parts(0, b"a", b"b", b"c"), restarted(1, prev=1), parts(1, b"B", prev=2, attempt=2), ended(2, prev=3)
    assert given(reading, *entries) == [b"a", b"b", b"c", ("replaced", 1), b"B"]
    assert view(*entries).parts == [b"a", b"B"]


def test_an_end_drops_what_a_former_owner_had_sent_behind_it() -> None:
    reading = StreamReading(1)
    assert given(reading, parts(0, b"a", b"b"), ended(1, prev=1)) == [b"a", b"b", ("replaced", 1)]


def test_a_restart_at_the_end_of_what_was_given_replaces_nothing() -> None:
    assert given(StreamReading(1), parts(0, b"a"), restarted(1, prev=1), parts(1, b"b", prev=2)) == [b"a", b"b"]


def test_parts_that_were_removed_are_a_gap() -> None:
    with pytest.raises(StreamGap) as caught:
        given(StreamReading(1), parts(4, b"e", prev=3), start=4)
    assert (caught.value.call, caught.value.offset) == (1, 0)


def test_removed_entries_of_earlier_calls_are_no_gap() -> None:
    assert given(StreamReading(2), parts(0, b"a", n=2, prev=6), start=7) == [b"a"]


def test_entries_removed_behind_a_reader_are_a_gap_although_the_offsets_fit() -> None:
    """A restart and new parts may have been removed: what the reader has had may not stand."""
    reading = StreamReading(1)
    given(reading, parts(0, b"a", b"b"))
    with pytest.raises(StreamGap):
        given(reading, parts(2, b"c", prev=3), start=4)


def test_a_reader_comes_back_in_the_middle_of_an_entry() -> None:
    reading = StreamReading(1, Position(0, 0, 2))
    assert given(reading, parts(0, b"a", b"b", b"c"), parts(3, b"d", prev=1)) == [b"c", b"d"]


def test_a_reader_that_comes_back_is_told_that_parts_of_the_entry_do_not_stand() -> None:
    reading = StreamReading(1, Position(1, 1, 1))
    assert given(reading, restarted(0, prev=1), parts(0, b"A", prev=2), start=2) == [("replaced", 0), b"A"]


def test_a_view_knows_of_parts_that_were_removed_by_the_offsets_that_follow() -> None:
    seen = view(parts(2, b"c", prev=5, epoch=3))
    assert seen.parts == [None, None, b"c"]
    assert (seen.epoch, seen.last, seen.has_ended) == (3, 1, False)


def test_a_view_sees_the_end_of_its_own_call_only() -> None:
    assert not view(ended(1, n=7)).has_ended
    assert view(parts(0, b"a"), ended(1)).has_ended


def test_each_part_says_where_a_reader_is_that_has_had_it() -> None:
    reading = StreamReading(1)
    news = [*reading.apply(1, parts(0, b"a", b"b")), *reading.apply(2, parts(2, b"c", prev=1))]
    assert [one.after for one in news] == [Position(0, 0, 1), Position(1, 2), Position(2, 3)]
    for one in news:
        back = StreamReading(1, one.after)
        entries = (1, parts(0, b"a", b"b")), (2, parts(2, b"c", prev=1))
        rest = [part for seq, entry in entries for part in back.apply(seq, entry)]
        assert [part.offset for part in rest] == list(range(one.offset + 1, 3))


def test_parts_that_were_replaced_before_they_were_given_out_are_left_out() -> None:
    reading = StreamReading(1)
    first = reading.apply(1, parts(0, b"a", b"b", b"c"))
    second = [*reading.apply(2, restarted(1, prev=1)), *reading.apply(3, parts(1, b"B", prev=2))]
    assert [one.offset for one in without_replaced((*first, *second), 0)] == [0, 1]
    assert [type(one) for one in without_replaced((*first[2:], *second), 2)] == [Replaced, Part]
