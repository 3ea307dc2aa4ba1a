"""What a watcher remembers of the other nodes between two rounds of failover.  No I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from mielin_cells.membership.table import Entered

LONG_AGO = -1e9
"""Before any time of a node's clock."""

RETRY_S_MAX = 300.0
"""Between two takeovers from nodes that left long ago."""


@dataclass(slots=True)
class Roster:
    """The nodes that have entered, as this node last read it."""

    members: dict[str, Entered] = field(default_factory=dict)
    read_at: float = LONG_AGO
    unknown: set[str] = field(default_factory=set)
    """Names that were heard but have not entered: a name on the wire may not be a node's."""
    former: set[str] = field(default_factory=set)
    """Nodes that had entered before this one began to listen, and that it has not heard."""

    def names_new(self, heard: set[str]) -> bool:
        """True if a name was heard that may have entered since the last read."""
        return not heard - self.unknown <= self.members.keys()

    def update(self, members: dict[str, Entered], heard: set[str], now: float) -> list[str]:
        """Takes what was read, and returns the nodes that have joined, or have a new incarnation."""
        before, self.members, self.read_at = self.members, members, now
        self.unknown = heard - members.keys()
        self.former = self.former & members.keys() if before else set(members)
        return [
            name for name, entered in members.items()
            if name not in before or before[name].incarnation != entered.incarnation
        ]  # fmt: skip


@dataclass(slots=True)
class Suspects:
    """The silent members, and what is known about each."""

    names: set[str] = field(default_factory=set)
    """Those of the last round."""
    announced: set[str] = field(default_factory=set)
    """Those that this node has logged."""
    empty: dict[str, int] = field(default_factory=dict)
    """Those that owned nothing at the last takeover, with their incarnation then."""
    empty_since: dict[str, float] = field(default_factory=dict)
    """When a round first saw that."""

    def update(self, silent: set[str], members: Mapping[str, Entered], now: float) -> None:
        """A round begins: `silent` are the members that are suspected in it."""
        self.names = silent
        self.announced &= silent
        self.empty = {
            name: number for name, number in self.empty.items()
            if name in silent and members[name].incarnation == number
        }  # fmt: skip
        self.empty_since = {name: self.empty_since.get(name, now) for name in self.empty}

    @property
    def owners(self) -> set[str]:
        """Those that may own agents."""
        return self.names - self.empty.keys()


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
