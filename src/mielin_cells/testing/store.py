"""The reference implementation of `Log`: lists in memory, no waiting, nothing clever.

It is the truth under the simulated world, and a second opinion on what the port's contract says.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter

from mielin_cells.substrate.ports import Appended, Conflict, Entry

_seq = attrgetter("seq")


class Store:
    """Entries per subject, numbered by one counter that all subjects share."""

    def __init__(self) -> None:
        self._subjects: dict[str, list[Entry]] = {}
        self.seq = 0

    def append(self, subject: str, data: bytes, expect: int | None) -> Appended | Conflict:
        last = self.last(subject)
        actual = last.seq if last is not None else 0
        if expect is not None and expect != actual:
            return Conflict(actual)
        self.seq += 1
        self._subjects.setdefault(subject, []).append(Entry(self.seq, data))
        return Appended(self.seq)

    def read(self, subject: str, after: int, limit: int, upto: int | None = None) -> list[Entry]:
        """Entries with `after < seq <= upto`, at most `limit`."""
        entries = self._subjects.get(subject, [])
        first = bisect_right(entries, after, key=_seq)
        end = len(entries) if upto is None else bisect_right(entries, upto, key=_seq)
        return entries[first : min(end, first + limit)]

    def last(self, subject: str) -> Entry | None:
        entries = self._subjects.get(subject)
        return entries[-1] if entries else None

    def trim(self, subject: str, before: int) -> int:
        """Removes entries with `seq < before`; how many there were."""
        entries = self._subjects.get(subject, [])
        count = bisect_left(entries, before, key=_seq)
        del entries[:count]
        return count

    def subjects(self, prefix: str) -> list[tuple[str, int]]:
        found = sorted(name for name, entries in self._subjects.items() if entries and name.startswith(prefix))
        return [(name, self._subjects[name][-1].seq) for name in found]
