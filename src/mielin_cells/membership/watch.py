"""Who watches, who is silent, and who leads: what one node decides from the table and from the heartbeats that it hears.

No I/O and no clock: each call is given the time.  A node that is right about a silence is still only a witness: the leader suspects
a node if a second watcher does not hear it either, and the log of the members takes its record only if nothing else came before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mielin_cells.membership.members import NOBODY, Doubted, Leads, Member, Status, Suspected, Table
from mielin_cells.rpc.answers import Beat

LATE_KEPT_S = 30.0
"""How long a late round of this node's own makes it more patient with others."""

DOUBLED_MAX = 4
"""Waits are doubled at most so often."""

LONG_AGO = -1e9
"""Before any time of a node's clock."""


@dataclass(slots=True)
class Ears:
    """What a node listens to, and since when without a gap, by its own clock; None: it does not listen."""

    all_since: float | None = None
    """To the heartbeats of all nodes."""
    leader_since: float | None = None
    """To those of the leader."""


@dataclass(slots=True)
class Repeated:
    """Something that proved wrong, or was lost, and is tried again after twice the time."""

    times: int = 0
    at: float = LONG_AGO
    """When it was tried last."""

    def is_due(self, now: float, first_s: float) -> bool:
        return self.times == 0 or now - self.at >= first_s * 2 ** min(self.times, DOUBLED_MAX)

    def note(self, now: float, calm_s: float) -> None:
        """It is tried now.  After a calm time the waits are short again."""
        self.times = self.times + 1 if now - self.at < calm_s * 2 ** min(self.times, DOUBLED_MAX) else 1
        self.at = now


class Known(NamedTuple):
    """What a node knows of a member's place in the table."""

    seq: int
    """The position of its status."""
    since: float
    """When this node read that."""
    said_at: float
    """When this node read what the member last said itself: it has time for its next heartbeat."""


def _known_now(now: float, member: Member, before: Known | None) -> Known:
    if before is not None and before.seq == member.seq:
        return before
    if before is None or member.status in (Status.JOINED, Status.SERVING):
        return Known(member.seq, now, now)
    return Known(member.seq, now, before.said_at)


def patience(limit_s: float, late_s: float) -> float:
    """How long a member may be silent if the watcher's own rounds were up to `late_s` late: what starves one starves all."""
    return limit_s + 2 * late_s


class Watch:
    """Of one incarnation of one node.  `limit_s`: a member that is silent for longer is suspected."""

    def __init__(self, name: str, incarnation: int, limit_s: float, now: float) -> None:
        self._name = name
        self._incarnation = incarnation
        self._base_s = limit_s
        self.limit_s = limit_s
        self._since = now
        """When the process began, or last woke up."""
        self._late = deque[tuple[float, float]]()
        """When this node's own rounds were late, and by how much."""
        self._read = (0, 0)
        """The position of the table that was taken in last, and how many members it had."""
        self._known: dict[str, Known] = {}
        self._leads: tuple[int, float] = (-1, now)
        """The last term (0: nobody leads), and when this node read of it."""
        self._suspicions: dict[str, tuple[int, Repeated]] = {}
        """By member, with its incarnation: one that refutes a suspicion is suspected again after twice the time."""
        self._elections = Repeated()
        self.silent: list[str] | None = None
        """The members that this node does not hear; None while it is no witness: it has not listened for long enough, or does not
        hear itself."""
        self.wants_all = False
        """It is to listen to the heartbeats of all nodes."""
        self.calm_s = 0.0
        """For so long nothing new can be decided, unless the table changes: every node that is watched was heard a moment ago."""

    def woke(self, now: float, late_s: float) -> None:
        """The node's own loop was `late_s` late: if it was stopped it has not listened, and if it is starved it waits longer."""
        if late_s > self._base_s / 2:
            self._since = now
        while self._late and now - self._late[0][0] > LATE_KEPT_S:
            self._late.popleft()
        if late_s > self._base_s / 50:
            while self._late and self._late[-1][1] <= late_s:  # the new one counts for longer, and for more
                self._late.pop()
            self._late.append((now, late_s))
        self.limit_s = patience(self._base_s, min(self._base_s, self._late[0][1] if self._late else 0.0))

    # ---- what it knows ---------------------------------------------------------------------------------------

    def is_leader(self, table: Table) -> bool:
        return table.leader == (self._name, self._incarnation)

    def is_overdue(self, now: float, name: str, table: Table) -> bool:
        """True of a member that has not refuted a doubt for as long as it may be silent."""
        member = table.get(name)
        if member is None or member.status is not Status.DOUBTED:
            return False
        return self.stood_s(now, name, table) > self.limit_s

    def has_read(self, name: str, table: Table) -> bool:
        """True from the round on that follows the one in which the member's status was appended: it may have refuted it by then."""
        member, known = table.get(name), self._known.get(name)
        return member is not None and known is not None and known.seq == member.seq

    def stood_s(self, now: float, name: str, table: Table) -> float:
        """For how long this node has known the member's status."""
        member = table.get(name)
        known = self._known.get(name)
        return now - known.since if member is not None and known is not None and known.seq == member.seq else 0.0

    def observe(self, now: float, table: Table, beats: Iterable[Beat], ears: Ears) -> dict[str, Beat]:
        """A round begins: takes in the table and the heartbeats.  Returns those that are of current incarnations, by node."""
        fresh = dict[str, Beat]()
        for beat in beats:
            member = table.get(beat.node)
            if member is not None and beat.incarnation >= member.incarnation:
                fresh[beat.node] = beat
        if self._read != (table.seq, len(table.members)):  # idle rounds cost the same with any number of members
            self._read, known, self._known = (table.seq, len(table.members)), self._known, {}
            for member in table:
                self._known[member.name] = _known_now(now, member, known.get(member.name))
            self._suspicions = {name: one for name, one in self._suspicions.items() if name in table.members}
        if self._leads[0] != self._term(table):
            self._leads = self._term(table), now
        self._listen(now, table, fresh, ears)
        return fresh

    @staticmethod
    def _term(table: Table) -> int:
        return table.term if table.leader != NOBODY else 0

    def _listen(self, now: float, table: Table, fresh: dict[str, Beat], ears: Ears) -> None:
        leader_s = self._leader_silence(now, table, fresh, ears)
        lost = leader_s > self.limit_s / 2
        self.wants_all = lost or self._name in table.watchers
        self.silent = None
        self.calm_s = 0.0 if self.wants_all or table.leader == NOBODY else self.limit_s / 2 - leader_s
        if ears.all_since is None:
            return
        since, me = max(self._since, ears.all_since), fresh.get(self._name)
        if now - since <= self.limit_s or me is None or me.ago_s >= self.limit_s:
            return
        silences = [
            (self._silence(now, member.name, fresh, since), member.name)
            for member in table
            if member.is_present and member.name != self._name
        ]
        self.silent = [name for seconds, name in silences if seconds > self.limit_s]
        longest = max((seconds for seconds, _ in silences), default=0.0)
        if self.wants_all and not lost and table.leader != NOBODY:
            self.calm_s = min(self.limit_s - longest, self.limit_s / 2 - leader_s)

    def _silence(self, now: float, name: str, fresh: dict[str, Beat], since: float) -> float:
        beat = fresh.get(name)
        return min(beat.ago_s if beat is not None else now - since, now - since, now - self._known[name].said_at)

    def _leader_silence(self, now: float, table: Table, fresh: dict[str, Beat], ears: Ears) -> float:
        """For how long the leader has not been heard, or has been unable to act, or nobody has led."""
        since = max(self._since, self._leads[1])
        if table.leader == NOBODY:
            return now - since
        beat = fresh.get(table.leader[0])
        heard = [one for one in (ears.all_since, ears.leader_since) if one is not None]
        if not heard:
            return 0.0
        silence = now - max(since, min(heard))
        if beat is None:
            return silence
        return max(min(beat.ago_s, silence), beat.stuck_s)

    # ---- what it decides -------------------------------------------------------------------------------------

    def elect(self, now: float, table: Table, fresh: dict[str, Beat], ears: Ears) -> Leads | None:
        """This node follows a leader that is lost: a deputy after the limit, any other serving member after twice that."""
        me = table.get(self._name)
        if (
            me is None
            or me.status is not Status.SERVING
            or me.incarnation != self._incarnation
            or self.is_leader(table)
        ):
            return None
        is_deputy = self._name in table.deputies
        if table.leader == NOBODY:
            waits_s = 0.0 if is_deputy else self.limit_s
        else:
            waits_s = self.limit_s * (1 if is_deputy else 2)
        if self._leader_silence(now, table, fresh, ears) < waits_s or not self._elections.is_due(now, self._base_s / 2):
            return None
        self._elections.note(now, 10 * self._base_s)
        return Leads(self._name, self._incarnation)

    def suspect(self, now: float, table: Table, fresh: dict[str, Beat]) -> Suspected | Doubted | None:
        """The next silent member that this leader makes known; None if there is no other, or this node does not lead."""
        if not self.is_leader(table) or self.silent is None:
            return None
        witnesses = [
            beat for beat in fresh.values()
            if beat.silent is not None and beat.node != self._name and max(beat.ago_s, beat.stuck_s) < self.limit_s
        ]  # fmt: skip
        for name in self.silent:
            member = table.get(name)
            if member is None or not member.is_present:  # what was appended in this round counts
                continue
            asked = [beat for beat in witnesses if beat.node != name]
            confirmed = any(name in (beat.silent or ()) for beat in asked)
            suspicion = self._suspicion(name, member.incarnation)
            if member.status is Status.DOUBTED:
                if confirmed:  # a watcher has woken up that does not hear it either
                    return Suspected(name, member.incarnation, table.term)
                continue
            if (asked and not confirmed) or not suspicion.is_due(now, self._base_s):
                continue
            suspicion.note(now, 10 * self._base_s)
            return (Suspected if confirmed else Doubted)(name, member.incarnation, table.term)
        return None

    def _suspicion(self, name: str, incarnation: int) -> Repeated:
        known = self._suspicions.get(name)
        if known is None or known[0] != incarnation:
            known = self._suspicions[name] = incarnation, Repeated()
        return known[1]
