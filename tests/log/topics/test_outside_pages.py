"""What a subscription takes of a stream that another system writes: by positions alone."""

from __future__ import annotations

import pytest

from mielin_cells.errors import TopicInvalid
from mielin_cells.log.topics.outside import (
    MADE,
    Extent,
    Foreign,
    Page,
    PageTaking,
    check_outside,
    is_outside,
    judge_page,
)
from mielin_cells.log.topics.subs import Gap, Sub, Subs, Took

STREAM = 7_000


def subs(*cursors: tuple[str, int], made: int = STREAM) -> Subs:
    made_of = {MADE: made}
    found = [Sub(pattern, "on", "", [0], 0.0, [cursor], dict(made_of)) for pattern, cursor in cursors]
    return Subs({sub.key: sub for sub in found})


def page(*seqs: int, first: int = 1, last: int = 0, passed: int = 0, made: int = STREAM) -> Page:
    messages = [Foreign("orders.new", seq, 1.0, b"1") for seq in seqs]
    return Page(Extent(made, first, max(last, *seqs, 0)), messages, passed)


def judged(there: Subs, position: int, what: Page, most: int = 100) -> PageTaking | None:
    return judge_page(there, "on ORDERS orders.>", position, what, most)


def test_what_is_new_is_taken_in_order_and_the_position_moves_over_it() -> None:
    there = subs(("ORDERS orders.>", 2))
    taking = judged(there, 2, page(1, 2, 3, 5, 9))
    assert taking is not None
    assert [message.seq for message in taking.messages] == [3, 5, 9]
    assert taking.gap is None, "holes are of other subjects as long as the stream holds what is around them"
    there.apply(taking.took)
    assert there.by_key["on ORDERS orders.>"].cursor == [9]
    assert judged(there, 9, page(1, 2, 3, 5, 9)) is None


def test_no_more_is_taken_than_there_is_room_for() -> None:
    taking = judged(subs(("ORDERS orders.>", 0)), 0, page(1, 2, 3), most=2)
    assert taking is not None
    assert taking.took.seq == 2
    assert [message.seq for message in taking.messages] == [1, 2]


@pytest.mark.parametrize(
    ("seqs", "first", "gap"),
    [
        ((8, 9), 8, Gap(3, 7)),
        ((8, 9), 5, Gap(3, 4)),
        ((8, 9), 3, None),
        ((3, 4, 8), 7, Gap(5, 6)),  # removed while the page was read
        ((4, 9), 9, Gap(3, 8)),
        ((), 6, Gap(3, 5)),
        ((), 3, None),
    ],
)
def test_what_was_removed_before_it_was_read_is_a_gap(seqs: tuple[int, ...], first: int, gap: Gap | None) -> None:
    taking = judged(subs(("ORDERS orders.>", 2)), 2, page(*seqs, first=first, last=9))
    assert (taking.gap if taking is not None else None) == gap
    if gap is not None and taking is not None:
        assert taking.took.missed == gap.at_least
        assert taking.took.seq == (seqs[-1] if seqs else first - 1)


def test_what_was_passed_over_is_no_gap_and_is_noted_once_the_stream_does_not_hold_it() -> None:
    """Else a subscription of which nothing came for long would find a gap after each restart of its node."""
    there = subs(("ORDERS orders.>", 2))
    assert judged(there, 50, page(first=3, last=60, passed=60)) is None
    taking = judged(there, 60, page(first=40, last=60, passed=60))
    assert taking is not None
    assert (taking.gap, taking.took.seq, taking.took.missed) == (None, 60, 0)


def test_a_stream_that_was_made_anew_is_a_gap_and_is_read_from_its_beginning() -> None:
    there = subs(("ORDERS orders.>", 90))
    taking = judged(there, 90, page(91, 95, first=4, made=STREAM + 1))
    assert taking is not None
    assert (taking.gap, taking.messages) == (Gap(91, 0), []), "what was read behind the old place is read again"
    there.apply(taking.took)
    sub = there.by_key["on ORDERS orders.>"]
    assert (sub.start, sub.cursor, sub.marks) == ([3], [3], {MADE: STREAM + 1})
    again = judged(there, 3, page(4, 5, made=STREAM + 1, first=4))
    assert again is not None
    assert [message.seq for message in again.messages] == [4, 5]


def test_a_handler_gets_a_message_once_however_often_it_subscribed() -> None:
    there = subs(("ORDERS orders.>", 2), ("ORDERS orders.new", 4), ("OTHER orders.>", 9), ("orders.>", 9))
    taking = judged(there, 2, page(3, 4, 5))
    assert taking is not None
    assert [message.seq for message in taking.messages] == [5]
    assert taking.took == Took("on ORDERS orders.>", 0, 5, MADE, STREAM, 1, 0)


@pytest.mark.parametrize("stream", ["", "a b", "a.b", "a*", ">", "a/b", "x" * 256, 5, None])
def test_what_is_no_stream_is_refused(stream: object) -> None:
    with pytest.raises(TopicInvalid):
        check_outside(stream, "orders.>")


def test_subjects_of_a_stream_are_checked_and_told_from_topics() -> None:
    with pytest.raises(TopicInvalid):
        check_outside("ORDERS", "orders..new")
    assert is_outside(check_outside("ORDERS", "orders.>"))
    assert not is_outside("orders.>")
