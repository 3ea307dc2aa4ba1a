"""What the leader of failover remembers of nodes that are gone.  No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mielin_cells.membership.members import Member

RETRY_S_MAX = 300.0
"""Between two takeovers from nodes that left long ago."""


class Vacant:
    """The nodes that are gone and own nothing.

    What is known of a node ends with its next record: it was found empty before that, and may own agents since.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, float]] = {}

    def __contains__(self, member: Member) -> bool:
        return self._known.get(member.name, (-1, 0.0))[0] == member.seq

    def note(self, members: Iterable[Member], now: float) -> None:
        """A list behind a marker, which was appended after the last record of each of these, has found no agent of it."""
        for member in members:
            if member not in self:
                self._known[member.name] = member.seq, now

    def keep(self, gone: Iterable[Member]) -> None:
        """Forgets what is known of all but these."""
        self._known = {member.name: self._known[member.name] for member in gone if member in self}

    def since(self, member: Member) -> float:
        return self._known[member.name][1]

    def touch(self, member: Member, now: float) -> None:
        """Counts its time from now."""
        self._known[member.name] = member.seq, now


class Schedule:
    """When a leader takes over from nodes that are gone: at once from a new one, then after growing waits.

    It goes on although nothing was left to take: what a node had sent before it died may land late.
    """

    def __init__(self, first_s: float) -> None:
        self._first_s = self._wait_s = first_s
        self._at = 0.0
        self._tried: frozenset[str] = frozenset()

    def is_due(self, now: float, gone: Collection[str]) -> bool:
        return now >= self._at or not self._tried.issuperset(gone)

    def began(self, now: float, gone: Collection[str]) -> None:
        if not self._tried.issuperset(gone):
            self._wait_s = self._first_s
        self._tried, self._at = frozenset(gone), now + self._first_s

    def ended(self, now: float, *, is_over: bool) -> None:
        """`is_over`: the nodes that are gone own nothing now."""
        self._at = now + self._wait_s
        self._wait_s = min(self._wait_s * 2, RETRY_S_MAX) if is_over else self._first_s
