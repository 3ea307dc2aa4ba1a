"""A stream that another system writes, as a simulated world has it: what it stores, and what it has removed."""

from __future__ import annotations

from dataclasses import dataclass

from mielin_cells.errors import NoSuchStream
from mielin_cells.log.topics.names import matches
from mielin_cells.log.topics.outside import Extent, Foreign

STREAM = "ORDERS"
SUBJECTS = ("orders.eu", "orders.us")


@dataclass(slots=True)
class Kept:
    """A message of the stream, and when it was removed."""

    message: Foreign
    removed: float | None = None


class ForeignStream:
    """Positions count from 1; the oldest messages are removed, and sometimes all of it is deleted and made anew."""

    def __init__(self, made: int) -> None:
        self.made = made
        self.streams: dict[int, dict[int, Kept]] = {made: {}}
        """By the time at which each was made, what was ever stored, by position."""

    @property
    def _last(self) -> int:
        return max(self.streams[self.made], default=0)

    def extent(self, stream: str) -> Extent:
        self._check(stream)
        there = [seq for seq, kept in self.streams[self.made].items() if kept.removed is None]
        return Extent(self.made, min(there, default=self._last + 1), self._last)

    def store(self, subject: str, at: float) -> None:
        """The body says which message it is, since positions count again in a stream that is made anew."""
        seq = self._last + 1
        self.streams[self.made][seq] = Kept(Foreign(subject, seq, at, b"[%d, %d]" % (self.made, seq)))

    def remove_oldest(self, count: int, at: float) -> None:
        there = [kept for kept in self.streams[self.made].values() if kept.removed is None]
        for kept in there[:count]:
            kept.removed = at

    def make_anew(self, made: int, at: float) -> None:
        if made not in self.streams:
            self.remove_oldest(self._last, at)
            self.made, self.streams[made] = made, {}

    def read(self, stream: str, pattern: str, after: int, limit: int, seen: float) -> list[Foreign]:
        """As a replica reads that has what happened up to the time `seen`."""
        self._check(stream)
        found = [
            kept.message for seq, kept in sorted(self.streams[self.made].items())
            if seq > after and kept.message.at <= seen and (kept.removed is None or kept.removed > seen)
        ]  # fmt: skip
        return [message for message in found if matches(pattern, message.subject)][:limit]

    def find(self, at: float) -> int:
        return max((seq for seq, kept in self.streams[self.made].items() if kept.message.at < at), default=0)

    def _check(self, stream: str) -> None:
        if stream != STREAM:
            raise NoSuchStream(f"The server has no stream {stream}.", stream=stream)
