"""What a reader makes of a stream's entries: parts to give out, parts that are replaced, gaps, and the end (rule T7).  No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mielin_cells.errors import StreamGap
from mielin_cells.log.streams.entries import AnyStreamEntry, Ended, Parts


class Position(NamedTuple):
    """Where a reader of a stream is, and where another one may go on."""

    seq: int = 0
    """The last entry that was applied.  An offset alone would hide that parts before it were replaced."""
    offset: int = 0
    """How many parts stood behind that entry."""
    given: int = 0
    """How many parts of the next entry the reader has had."""


START = Position()


class Part(NamedTuple):
    offset: int
    data: bytes
    after: Position
    """Where a reader is that has had it."""


class Replaced(NamedTuple):
    """Parts from `offset` on, which the reader has had, do not stand any more."""

    offset: int
    after: Position


class StreamReading:
    """What a reader of call `n` has applied.  No I/O."""

    def __init__(self, n: int, position: Position = START) -> None:
        self.n = n
        self.position = position
        self.answer: bytes | None = None
        """The call's stored answer, once the end of the stream was read."""

    def apply(self, seq: int, entry: AnyStreamEntry) -> list[Part | Replaced]:
        """The next entry of the subject.  Raises `StreamGap` if entries that the reader has not had were removed."""
        before, offset, given = self.position
        if seq <= before:
            return []
        if offset and entry.prev > before:  # what was removed may have replaced parts that the reader has had
            raise self._gap(f"entries {before + 1} to {entry.prev} were removed")
        if entry.n != self.n:
            self.position = Position(seq, offset, given)
            return []
        if entry.at > offset:
            raise self._gap(f"parts {offset} to {entry.at - 1} were removed")
        had = offset + given if isinstance(entry, Parts) and entry.at == offset else 0
        return self._applied(seq, offset + given, entry, had)

    def _applied(self, seq: int, offset: int, entry: AnyStreamEntry, had: int) -> list[Part | Replaced]:
        """`had`: offsets below it are of this very entry, and were given out."""
        before, end = self.position, entry.at + (len(entry.data) if isinstance(entry, Parts) else 0)
        self.position = Position(seq, end)
        news = list[Part | Replaced]()
        if entry.at < offset and not had:
            before = Position(before.seq, entry.at)
            news.append(Replaced(entry.at, before if isinstance(entry, Parts) else self.position))
        if isinstance(entry, Parts):
            for k, data in enumerate(entry.data, 1):
                if entry.at + k > had:
                    after = self.position if entry.at + k == end else before._replace(given=k)
                    news.append(Part(entry.at + k - 1, data, after))
        elif isinstance(entry, Ended):
            self.answer = entry.answer
        return news

    def _gap(self, why: str) -> StreamGap:
        return StreamGap(
            f"The stream of call {self.n} cannot be read on from part {self.position.offset}: {why}, because they were kept for no "
            "longer. Read sooner, raise the setting stream_keep_s, or take the call's answer.",
            offset=self.position.offset, call=self.n,
        )  # fmt: skip


def without_replaced(news: Iterable[Part | Replaced], offset: int) -> list[Part | Replaced]:
    """The same for a reader that has had `offset` parts, but for parts that were replaced before they were given out."""
    kept = list[Part | Replaced]()
    for one in news:
        if isinstance(one, Replaced):
            kept = [other for other in kept if other.offset < one.offset]
            if one.offset >= offset:
                continue
            offset = one.offset
        kept.append(one)
    return kept
