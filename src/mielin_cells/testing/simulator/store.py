"""The reference implementation of `Log`: lists in memory, no waiting, nothing clever.

It is the truth under the simulated world, and a second opinion on what the port's contract says.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from operator import attrgetter
from typing import TypeAlias

from mielin_cells.log.ids import LOGS, SCANNED, is_agents_log, keeps_last
from mielin_cells.substrate.patterns import matcher
from mielin_cells.substrate.ports import Appended, Conflict, Entry, Found

_seq = attrgetter("seq")

Change: TypeAlias = tuple[str, bytes | int, str | None]
"""A subject with the bytes that were appended and the owner that they name, or with the sequence up to which it was trimmed."""


class Store:
    """Entries per subject, numbered by one counter that all subjects share."""

    def __init__(self) -> None:
        self._subjects: dict[str, list[Entry]] = {}
        self._removed: dict[str, list[Entry]] = {}
        """By subject, what was trimmed: a leader that was cut off has it yet."""
        self._names: list[str] = []
        """Of the subjects, in order; those that came since the last listing are not yet among them."""
        self._new_names: list[str] = []
        self._owners: dict[str, dict[str, list[int]]] = {}
        """By owner and subject, the sequences of the ownership records that name it, also of those that were trimmed."""
        self._owned_last: dict[str, int] = {}
        """By subject, the sequence of its last ownership record."""
        self.lost: set[tuple[str, int]] = set()
        """Ownership records that the index has lost: subject and sequence."""
        self.seq = 0
        self.changes: list[Change] = []
        """All that was ever stored and removed, in order."""

    def append(self, subject: str, data: bytes, expect: int | None, owner: str | None = None) -> Appended | Conflict:
        last = self.last(subject)
        actual = last.seq if last is not None else 0
        if expect is not None and expect != actual:
            return Conflict(actual)
        self.seq += 1
        if subject not in self._subjects:
            self._subjects[subject] = []
            self._new_names.append(subject)
        self._subjects[subject].append(Entry(self.seq, data))
        self.changes.append((subject, data, owner))
        if owner is not None:
            self._owners.setdefault(owner, {}).setdefault(subject, []).append(self.seq)
            self._owned_last[subject] = self.seq
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

    def last_at(self, subject: str, seq: int) -> Entry | None:
        """The last entry when the store was at `seq`."""
        there = list[Entry]()
        for entries in (self._subjects.get(subject, []), self._removed.get(subject, [])):
            end = bisect_right(entries, seq, key=_seq)
            there += entries[max(end - 1, 0) : end]
        return max(there, key=_seq, default=None)

    def lasts(self, subjects: Sequence[str], upto: int | None = None) -> dict[str, Entry]:
        """The last entry with `seq <= upto` of each that has one."""
        entries_of = dict[str, Entry]()
        for subject in subjects:
            entries = self._subjects.get(subject, [])
            end = len(entries) if upto is None else bisect_right(entries, upto, key=_seq)
            if end:
                entries_of[subject] = entries[end - 1]
        return entries_of

    def trim(self, subject: str, before: int) -> int:
        """Removes entries with `seq < before`; how many there were.  A log keeps its last entry and its last ownership record."""
        entries = self._subjects.get(subject, [])
        count = bisect_left(entries, before, key=_seq)
        kept = list[Entry]()
        if keeps_last(subject):
            count = min(count, max(len(entries) - 1, 0))
        if is_agents_log(subject):
            kept = [entry for entry in entries[:count] if entry.seq == self._owned_last.get(subject)]
        gone = [entry for entry in entries[:count] if entry not in kept]
        if gone:
            removed = self._removed.setdefault(subject, [])
            removed += gone
            removed.sort(key=_seq)
            entries[:count] = kept
            self.changes.append((subject, before, None))
        return len(gone)

    def owned(self, owner: str, upto: int | None, *, by_logs: bool = False) -> list[str]:
        """As the index of a server: what came in up to `upto`, former owners included, without what it has lost (`by_logs`: with)."""
        lost = set[tuple[str, int]]() if by_logs else self.lost
        return sorted(
            subject for subject, seqs in self._owners.get(owner, {}).items()
            if any((upto is None or seq <= upto) and (subject, seq) not in lost for seq in seqs)
        )  # fmt: skip

    def owned_by_others(self, nodes: Collection[str]) -> list[str]:
        """By the logs: former owners included."""
        others = self._owners.keys() - {"", *nodes}
        owned = {subject for owner in others for subject in self.owned(owner, None, by_logs=True)}
        nobodys = {subject for subject, _ in self.subjects(LOGS) if subject not in self._owned_last}
        return sorted(owned | nobodys)

    def lacks_owned(self) -> int:
        """Logs whose owner the index does not name at it."""
        return sum(
            1 for owner, logs in self._owners.items() if owner for subject, seqs in logs.items()
            if seqs and seqs[-1] == self._owned_last[subject] and all((subject, seq) in self.lost for seq in seqs)
        )  # fmt: skip

    def forget_owned(self, owner: str, subject: str, seq: int) -> None:
        seqs = self._owners.get(owner, {}).get(subject, [])
        if seqs and seqs[-1] < seq:
            self.lost.update((subject, one) for one in seqs)

    def subjects(self, prefix: str) -> list[tuple[str, int]]:
        names, subjects, listed = self._names, self._subjects, list[tuple[str, int]]()
        if self._new_names:
            names += self._new_names
            names.sort()  # nearly sorted already, which costs little
            self._new_names.clear()
        for index in range(bisect_left(names, prefix), len(names)):
            name = names[index]
            if not name.startswith(prefix):
                break
            entries = subjects[name]
            if entries:
                listed.append((name, entries[-1].seq))
        return listed

    def scan(self, pattern: str, after: int, limit: int, upto: int | None = None) -> list[Found]:
        """Entries of topics and attributes with `after < seq <= upto` whose subjects match, in order of seq."""
        matches, found = matcher(pattern), list[Found]()
        prefix = next(prefix for prefix in SCANNED if pattern.startswith(prefix))
        for subject, _ in self.subjects(prefix):
            if matches(subject):
                found += [Found(subject, *entry) for entry in self.read(subject, after, limit, upto)]
        return sorted(found, key=_seq)[:limit]

    def forget(self, kept: int) -> None:
        """As a power cut: only the first `kept` of all `changes` were on the disk.  Sequences are given again from there."""
        changes = self.changes[:kept]
        self.__init__()  # type: ignore[misc] # a store that has just been made, in the place of this one
        for subject, change, owner in changes:
            if isinstance(change, bytes):
                self.append(subject, change, None, owner)
            else:
                self.trim(subject, change)
