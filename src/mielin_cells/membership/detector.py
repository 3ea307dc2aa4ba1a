"""Which members are silent: decided from the heartbeats that a node hears, without any I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable

from mielin_cells.rpc.answers import Beat

LATE_KEPT_S = 30.0
"""How long a late round of this node's own makes it more patient with others."""


def find_silent(
    me: str, members: Collection[str], beats: Iterable[Beat], listening_s: float, limit_s: float
) -> set[str]:
    """The members that have been silent for longer than `limit_s`.

    None, while this node has not listened for as long, or does not hear itself: then it is the one that is cut off.
    """
    ages: dict[str, float] = {}
    for beat in beats:
        ages[beat.node] = min(beat.ago_s, ages.get(beat.node, beat.ago_s))
    if listening_s <= limit_s or ages.get(me, limit_s) >= limit_s:
        return set()
    return {name for name in members if name != me and ages.get(name, listening_s) > limit_s}


def patience(limit_s: float, late_s: float) -> float:
    """How long a member may be silent if the watcher's own rounds were up to `late_s` late: what starves one starves all."""
    return limit_s + 2 * late_s


class FailureDetector:
    """Suspects members.  A member that has just joined has time for its first heartbeat, as one has that was heard."""

    def __init__(self, me: str, clock: Callable[[], float], limit_s: float) -> None:
        self._me = me
        self._clock = clock
        self._base_s = limit_s
        self.limit_s = limit_s
        """A member that is silent for longer is suspected."""
        self._late = deque[tuple[float, float]]()
        """When this node's own rounds were late, and by how much."""
        self._since = 0.0
        """When this node began to listen without a gap."""
        self._joined: dict[str, float] = {}
        """Members that were not heard since they joined, with the time when this node learned of them."""

    def start(self) -> None:
        """This node begins to listen."""
        self._since = self._clock()

    def woke(self, late_s: float) -> None:
        """This node's own loop was `late_s` late: if it was stopped it has not listened, and if it is starved it waits longer."""
        now = self._clock()
        if late_s > self._base_s / 2:
            self._since = now
        while self._late and now - self._late[0][0] > LATE_KEPT_S:
            self._late.popleft()
        if late_s > self._base_s / 50:
            while self._late and self._late[-1][1] <= late_s:  # the new one counts for longer, and for more
                self._late.pop()
            self._late.append((now, late_s))
        self.limit_s = patience(self._base_s, min(self._base_s, self._late[0][1] if self._late else 0.0))

    def joined(self, name: str) -> None:
        self._joined.setdefault(name, self._clock())

    def heard(self, name: str) -> None:
        self._joined.pop(name, None)

    def forget(self, members: Collection[str]) -> None:
        """Forgets all but these."""
        self._joined = {name: at for name, at in self._joined.items() if name in members}

    @property
    def has_listened(self) -> bool:
        """True once this node has listened for as long as a member may be silent."""
        return self._clock() - self._since > self.limit_s

    def suspects(self, members: Collection[str], beats: Iterable[Beat]) -> set[str]:
        now = self._clock()
        silent = find_silent(self._me, members, beats, now - self._since, self.limit_s)
        return {name for name in silent if now - self._joined.get(name, self._since) > self.limit_s}
