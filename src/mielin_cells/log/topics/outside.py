"""Streams that other systems write, as topics: names, and what a subscriber takes of one.  Pure.

Such a subscription has the pattern `<stream> <subjects>`: no pattern of a topic holds a space.  Its positions are the stream's own
sequences, and the mark under `MADE` says which stream they belong to: one that was deleted and made anew counts from 1 again.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mielin_cells.errors import TopicInvalid
from mielin_cells.log.topics.names import check_pattern, matches
from mielin_cells.log.topics.subs import Gap, Sub, Subs, Took

MADE = ""
"""Among the marks of a subscription, when its stream was made.  No subject is empty."""

_STREAM = re.compile(r"[^\s.*>/\\\x00-\x1f\x7f]{1,255}")


class Foreign(NamedTuple):
    """A message of a stream that another system writes."""

    subject: str
    seq: int
    at: float
    """When the server stored it, in wall seconds by its clock."""
    data: bytes
    id: str = ""
    """The id that its publisher gave it, by which the server drops repetitions."""


class Extent(NamedTuple):
    """Which stream it is, and what it holds now."""

    made: int
    """When it was made, in microseconds; another one of its name was made at another time."""
    first: int
    """Everything before this position is gone."""
    last: int
    """The highest position that was given."""


class Page(NamedTuple):
    """Some messages of a stream, in order, and its extent as it was read after them."""

    extent: Extent
    messages: list[Foreign]
    passed: int = 0
    """Up to here there is nothing else that matches."""


def check_outside(stream: object, subjects: str) -> str:
    """The pattern of a subscription to these subjects of a stream.  Raises `TopicInvalid`."""
    if not isinstance(stream, str) or _STREAM.fullmatch(stream) is None:
        raise TopicInvalid(
            f"{stream!r:.80} is no stream of NATS: up to 255 characters without space, dot, *, > and slash.",
            topic=repr(stream)[:80],
        )
    return f"{stream} {check_pattern(subjects)}"


def is_outside(pattern: str) -> bool:
    return " " in pattern


def split(pattern: str) -> tuple[str, str]:
    """The stream, and the pattern of its subjects."""
    stream, _, subjects = pattern.partition(" ")
    return stream, subjects


def publisher_of(pattern: str) -> str:
    """Who publishes the messages of a stream is not known: it stands for them."""
    return f"stream {split(pattern)[0]}"


class PageTaking(NamedTuple):
    """What a subscriber does with a page."""

    took: Took
    gap: Gap | None
    """Positions that were removed before they were read; messages of these subjects may have been among them.  `last` is 0 if the
    stream was made anew: then all from `first` on is gone."""
    messages: list[Foreign]


def judge_page(subs: Subs, key: str, position: int, page: Page, most: int) -> PageTaking | None:
    """What becomes of a page that was read behind `position` or earlier; None: nothing.  At most so many messages are taken.

    Who reads behind a position that the stream does not hold any more cannot tell whether what is gone matched: it is a gap.
    """
    sub, extent = subs.by_key[key], page.extent
    cursor = sub.cursor[0]
    if extent.made != sub.marks.get(MADE, extent.made):
        return PageTaking(Took(key, 0, extent.first - 1, MADE, extent.made, 0, 1), Gap(cursor + 1, 0), [])
    fresh = [message for message in page.messages if message.seq > position][:most]
    gap = _gap(position, [message.seq for message in fresh], extent.first)
    if fresh:
        end = fresh[-1].seq
    else:
        end = max(position, extent.first - 1, page.passed)
        if gap is None and extent.first <= cursor + 1:
            return None  # what was passed over is noted once the stream does not hold it any more, and not for each message
    wanted = [message for message in fresh if not _has_come(subs, sub, extent.made, message)]
    missed = gap.at_least if gap is not None else 0
    return PageTaking(Took(key, 0, end, MADE, extent.made, len(wanted), missed), gap, wanted)


def _gap(position: int, seqs: list[int], first: int) -> Gap | None:
    """From the first position that is gone to the last one, behind `position` and up to where the stream was looked at."""
    begin = end = 0
    for seq in seqs or (first,):
        upto = min(seq, first)
        if position + 1 < upto:
            begin, end = begin or position + 1, upto - 1
        position = max(position, seq)
    return Gap(begin, end) if begin else None


def _has_come(subs: Subs, sub: Sub, made: int, message: Foreign) -> bool:
    """True if another subscription of the same handler has taken the message."""
    stream, _ = split(sub.pattern)
    for other in subs.by_key.values():
        if other is sub or other.handler != sub.handler or not is_outside(other.pattern):
            continue
        name, subjects = split(other.pattern)
        is_same = name == stream and other.marks.get(MADE) == made
        if is_same and other.start[0] < message.seq <= other.cursor[0] and matches(subjects, message.subject):
            return True
    return False
