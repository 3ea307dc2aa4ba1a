"""Failover: the agents of a node that is not heard any more are claimed by other nodes.

Every node listens; one of them, the leader, acts.  Its name is in a log of its own, to which nodes append conditionally.  Two leaders
at once, or a suspicion that was wrong, cost time and nothing else: a leader only asks nodes to claim, and the agent's log decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from mielin_cells.errors import CellError, RetryError
from mielin_cells.membership import leader, table
from mielin_cells.membership.detector import FailureDetector
from mielin_cells.membership.takeover import Takeover
from mielin_cells.rpc.answers import Beat
from mielin_cells.tasks.supervision import supervised

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations

logger = logging.getLogger("mielin_cells.failover")

RETRY_S_MAX = 300.0
"""Between two takeovers from nodes that left long ago."""

FORGET_STOPPED_S = 600.0
"""A node that stopped cleanly and owns nothing is forgotten after this, so that deployments whose nodes have ever new names do not
pay for old ones."""

FORGET_SILENT_S = 3600.0
"""A node that fell silent and owns nothing is given up after this: told to stop, in case its process lives, and then forgotten."""


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
        """`is_over`: the nodes that are gone own nothing any more."""
        self._at = now + self._wait_s
        self._wait_s = min(self._wait_s * 2, RETRY_S_MAX) if is_over else self._first_s


class Failover:
    """Of one node that hears heartbeats.  `run` until the node stops."""

    def __init__(
        self, activations: Activations, heard: Callable[[], list[Beat]], failures: Counter[str] | None = None
    ) -> None:
        settings, home = activations.settings, activations.home
        self._activations = activations
        self._home = home
        self._clock = activations.clock
        self._heard = heard
        self._failures = failures
        """Of the loop, which is started again."""
        self._heartbeat_s, self._reconcile_s = settings.heartbeat_s, settings.reconcile_s
        self._limit_s = settings.heartbeat_s * settings.heartbeat_misses
        self._detector = FailureDetector(home.name, activations.clock, self._limit_s)
        self._takeover = Takeover(home.log, home.wire, activations.clock)
        self._schedule = Schedule(settings.reconcile_s)
        self._takeover_task: asyncio.Task[None] | None = None
        self._members: dict[str, table.Entered] = {}
        self._members_read_at = -1e9
        self._unknown: set[str] = set()
        """Names that were heard and had not entered: a name on the wire need not be a node's."""
        self._silent: set[str] = set()
        """Suspects of the last round: a new one may just have noted that it stops."""
        self._announced: set[str] = set()
        """Suspects that this node has logged."""
        self._former: set[str] = set()
        """Nodes that had entered before this one began to listen, and that it has not heard."""
        self._empty: dict[str, int] = {}
        """Suspects that owned nothing at the last takeover, with their incarnation then."""
        self._empty_since: dict[str, float] = {}
        self._leader = ""
        """As this node last read it."""
        self._term_read_at = -1e9
        self._refused_at: float | None = None
        """Since when the store has refused this node's failover, or has not answered; None while it answers."""
        self._is_waiting = False
        """The last round ended because the store did not answer."""
        self.taken = 0
        """Agents that other nodes took over at this node's request."""

    def refused_s(self) -> float:
        """For how long the store has refused this node, or has not answered.  May be called from any thread."""
        since = self._refused_at
        return max(0.0, self._clock() - since) if since is not None else 0.0

    async def run(self) -> None:
        self._detector.start()
        await supervised(f"node {self._home.name}: failover", self._run, failures=self._failures)

    async def _run(self) -> None:
        name, interval = self._home.name, self._heartbeat_s / 5
        while not self._activations.is_stopping:
            before = self._clock()
            await asyncio.sleep(interval)
            self._detector.woke(self._clock() - before - interval)
            try:
                await self.look()
            except CellError as error:
                if self._refused_at is None:  # its heartbeats say so: another node is to lead
                    self._refused_at = self._clock()
                if not isinstance(error, RetryError):
                    raise
                if not self._is_waiting:  # once: there are ten rounds a second, and a store may be away for hours
                    logger.info("node %s: failover waits for the store: %s", name, error)
                self._is_waiting = True
            else:
                if self._is_waiting:
                    logger.info("node %s: failover works again", name)
                self._is_waiting = False

    async def look(self) -> None:
        """One round: finds out which nodes are silent and which node leads; a leader takes over, and does not wait for that here."""
        name, now = self._home.name, self._clock()
        await self._read_members(now)
        beats = self._heard()
        heard = {beat.node for beat in beats if beat.ago_s < self._detector.limit_s}
        for beat in beats:
            member = self._members.get(beat.node)
            if beat.node in heard and member is not None and beat.incarnation >= member.incarnation:
                self._detector.heard(beat.node)
        suspects = self._silent = self._detector.suspects(self._members.keys(), beats)
        for other in self._announced & heard:
            logger.warning("node %s is heard again", other)
        self._announced &= suspects
        self._former -= heard
        self._empty = {
            other: number for other, number in self._empty.items()
            if other in suspects and self._members[other].incarnation == number
        }  # fmt: skip
        self._empty_since = {other: self._empty_since.get(other, now) for other in self._empty}
        owners = suspects - self._empty.keys()
        is_due = bool(suspects) and self._schedule.is_due(now, owners)
        acts = is_due and self._leader in {"", name, *suspects, *self._stuck()}
        if now - self._term_read_at < self._limit_s / 2 and not acts:
            return
        if not await self._leads(suspects):
            return
        for other in sorted(owners - self._announced - self._former):
            if not self._members[other].has_stopped:
                logger.warning("node %s is silent: its agents are taken over", other)
        self._announced |= suspects
        if is_due and (self._takeover_task is None or self._takeover_task.done()):
            self._schedule.began(now, owners)
            self._takeover_task = self._home.start(self._take(frozenset(suspects), dict(self._members)))
        await self._forget(now)

    async def _read_members(self, now: float) -> None:
        """Reads which nodes have entered: when a new name is heard, when a node falls silent, and now and then."""
        beats = self._heard()
        silent, names = self._detector.suspects(self._members.keys(), beats), {beat.node for beat in beats}
        is_new = not names - self._unknown <= self._members.keys()
        if not (is_new or now - self._members_read_at > self._reconcile_s or not silent <= self._silent):
            return
        before = self._members
        self._members, self._members_read_at = await table.read_members(self._home.log), now
        self._unknown = names - self._members.keys()
        self._former = self._former & self._members.keys() if before else set(self._members)
        for name, entered in self._members.items():
            if name not in before or before[name].incarnation != entered.incarnation:
                self._detector.joined(name)
        self._detector.forget(self._members.keys())

    async def _take(self, gone: frozenset[str], members: dict[str, table.Entered]) -> None:
        """Has the agents of all nodes that are gone taken over, also of those that owned none: what they had sent may land late."""
        try:
            self.taken += await self._takeover.take(gone, members, strays=True)
        except RetryError as error:
            logger.info("node %s: failover waits for the store: %s", self._home.name, error)
            return
        owners = set(self._takeover.owners.values())
        self._empty.update({name: members[name].incarnation for name in gone - owners})
        self._schedule.ended(self._clock(), is_over=not owners)

    async def _forget(self, now: float) -> None:
        """Removes nodes that have left for good; not one that is cordoned: an operator's word outlives a node's processes."""
        home = self._home
        for name, since in list(self._empty_since.items()):
            entered = self._members[name]
            if entered.is_cordoned or now - since <= (FORGET_STOPPED_S if entered.has_stopped else FORGET_SILENT_S):
                continue
            self._empty_since[name] = now  # whatever comes of this, it is not tried again at once
            if not entered.has_stopped:
                logger.warning("node %s was silent for %g s, and owns nothing: it is forgotten", name, now - since)
                await table.leave(home.log, name, entered.incarnation, home.rng.randbytes(12))
            elif await table.forget(home.log, name, entered, self._me, lambda: home.rng.randbytes(12)):
                logger.info("node %s has left and owns nothing: it is forgotten", name)

    @property
    def _me(self) -> tuple[str, int]:
        return self._home.name, self._home.incarnation

    def _stuck(self) -> set[str]:
        """Nodes whose processes live, but whose main loops do not, or that the store refuses: they lead nothing."""
        return {beat.node for beat in self._heard() if beat.stuck_s > self._detector.limit_s}

    async def _leads(self, suspects: Collection[str]) -> bool:
        """True if the log names this incarnation, or does so now because it names no node that is heard and can act."""
        home = self._home
        last = await leader.read_term(home.log, await home.log.last(leader.SUBJECT))
        self._term_read_at, self._refused_at = self._clock(), None
        term = last.term
        self._leader = term.node if term is not None else ""
        if term is not None and (term.node, term.incarnation) == self._me:
            return True
        if term is not None and term.node not in {home.name, *suspects, *self._stuck()} and term.node in self._members:
            return False
        if not self._detector.has_listened:
            return False  # this node may only not have heard the leader yet
        number = term.number + 1 if term is not None else 1
        mine = leader.Term(home.name, home.incarnation, number, home.rng.randbytes(12), last.floor)
        if not await leader.append_term(home.log, mine, last.seq):
            return False  # another node was first, or the outcome is not known: the next round reads it
        self._leader = home.name
        logger.info("node %s leads failover, term %d", home.name, number)
        return True
