"""Failover: other nodes claim the agents of a node whose heartbeats have stopped.

Every node listens; one of them, the leader, acts.  Its name is in a log of its own, to which nodes append conditionally.  Two leaders
at once, or a suspicion that was wrong, cost time and nothing else: a leader only asks nodes to claim, and the agent's log decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mielin_cells.errors import CellError, RetryError
from mielin_cells.membership import leader, table
from mielin_cells.membership.detector import FailureDetector
from mielin_cells.membership.suspects import LONG_AGO, Roster, Schedule, Suspects
from mielin_cells.membership.takeover import Takeover
from mielin_cells.rpc.answers import Beat
from mielin_cells.tasks.supervision import supervised

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations

logger = logging.getLogger("mielin_cells.failover")

FORGET_STOPPED_S = 600.0
"""A node that stopped cleanly and owns nothing is forgotten after this, so that deployments whose nodes have ever new names do not
pay for old ones."""

FORGET_SILENT_S = 3600.0
"""A silent node that owns nothing is marked as left after this, so that its process stops if it still lives; then it is forgotten."""


@dataclass(slots=True)
class LeaderRead:
    """Which node leads, as this node last read it."""

    node: str = ""
    """"": none, or not read yet."""
    at: float = LONG_AGO


@dataclass(slots=True)
class StoreTrouble:
    """What has kept this node's failover from the store."""

    since: float | None = None
    """The store has refused it, or has not answered, from then on; None while it answers."""
    is_waiting: bool = False
    """The last round ended because the store did not answer."""


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
        self._listed: frozenset[str] = frozenset()
        """Nodes whose agents the last takeover has listed."""
        self._compared_at = -1e9
        self._takeover_task: asyncio.Task[None] | None = None
        self._schedule = Schedule(settings.reconcile_s)
        self._roster = Roster()
        self._suspects = Suspects()
        self._leader = LeaderRead()
        self._trouble = StoreTrouble()
        self.taken = 0
        """Agents that other nodes took over at this node's request."""

    @property
    def is_leader(self) -> bool:
        """True while this node leads, as it last read."""
        return self._leader.node == self._home.name

    def refused_s(self) -> float:
        """For how long the store has refused this node, or has not answered.  May be called from any thread."""
        since = self._trouble.since
        return max(0.0, self._clock() - since) if since is not None else 0.0

    async def run(self) -> None:
        self._detector.start()
        await supervised(f"node {self._home.name}: failover", self._run, failures=self._failures)

    async def _run(self) -> None:
        interval = self._heartbeat_s / 5
        while not self._activations.is_stopping:
            before = self._clock()
            await asyncio.sleep(interval)
            self._detector.woke(self._clock() - before - interval)
            try:
                await self.look()
            except CellError as error:
                self._note_trouble(error)
                if not isinstance(error, RetryError):
                    raise
            else:
                self._note_round()

    def _note_trouble(self, error: CellError) -> None:
        """A round failed.  This node's heartbeats say since when, so that another node leads."""
        trouble = self._trouble
        if trouble.since is None:
            trouble.since = self._clock()
        if isinstance(error, RetryError):
            if not trouble.is_waiting:  # once: there are ten rounds a second, and a store may be away for hours
                logger.info("node %s: failover waits for the store: %s", self._home.name, error)
            trouble.is_waiting = True

    def _note_round(self) -> None:
        if self._trouble.is_waiting:
            logger.info("node %s: failover works again", self._home.name)
        self._trouble.is_waiting = False

    # ---- one round -------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Finds out which nodes are silent and which node leads; a leader takes over, and does not wait for that here."""
        now = self._clock()
        await self._read_members(now)
        self._suspect(now)
        suspects, owners = self._suspects.names, self._suspects.owners
        is_due = bool(suspects) and self._schedule.is_due(now, owners)
        acts = is_due and self._leader.node in {"", self._home.name, *suspects, *self._stuck()}
        if now - self._leader.at < self._limit_s / 2 and not acts:
            return
        if not await self._leads():
            return
        self._announce(owners)
        if is_due and (self._takeover_task is None or self._takeover_task.done()):
            self._schedule.began(now, owners)
            self._takeover_task = self._home.start(self._take(frozenset(suspects), dict(self._roster.members)))
        await self._forget(now)

    async def _read_members(self, now: float) -> None:
        """Reads which nodes have entered: when a new name is heard, when a node falls silent, and now and then."""
        roster, beats = self._roster, self._heard()
        names, silent = {beat.node for beat in beats}, self._detector.suspects(roster.members.keys(), beats)
        is_late = now - roster.read_at > self._reconcile_s
        if not (is_late or roster.names_new(names) or not silent <= self._suspects.names):
            return
        for name in roster.update(await table.read_members(self._home.log), names, now):
            self._detector.joined(name)
        self._detector.forget(roster.members.keys())

    def _suspect(self, now: float) -> None:
        """Finds out which members are silent now."""
        roster, suspects, beats = self._roster, self._suspects, self._heard()
        heard = self._note_heard(beats)
        silent = self._detector.suspects(roster.members.keys(), beats)
        for name in suspects.announced & heard:
            logger.warning("node %s is heard again", name)
        roster.former -= heard
        suspects.update(silent, roster.members, now)

    def _note_heard(self, beats: Iterable[Beat]) -> set[str]:
        """The names that are heard.  The beats of an earlier incarnation do not end a member's time to be heard for the first time."""
        heard = {beat.node for beat in beats if beat.ago_s < self._detector.limit_s}
        for beat in beats:
            member = self._roster.members.get(beat.node)
            if beat.node in heard and member is not None and beat.incarnation >= member.incarnation:
                self._detector.heard(beat.node)
        return heard

    def _stuck(self) -> set[str]:
        """Nodes whose processes live, but whose main loops do not, or that the store refuses: they lead nothing."""
        return {beat.node for beat in self._heard() if beat.stuck_s > self._detector.limit_s}

    # ---- the leader ------------------------------------------------------------------------------------------

    @property
    def _me(self) -> tuple[str, int]:
        return self._home.name, self._home.incarnation

    async def _leads(self) -> bool:
        """True if the log names this incarnation, or does so now because it names no node that is heard and can act."""
        home = self._home
        last = await leader.read_term(home.log, await home.log.last(leader.SUBJECT))
        term, self._leader = last.term, LeaderRead(last.term.node if last.term is not None else "", self._clock())
        self._trouble.since = None
        if term is not None and (term.node, term.incarnation) == self._me:
            return True
        if term is not None and self._can_lead(term.node):
            return False
        if not self._detector.has_listened:
            return False  # this node may only not have heard the leader yet
        number = term.number + 1 if term is not None else 1
        mine = leader.Term(home.name, home.incarnation, number, home.rng.randbytes(12), last.floor)
        if not await leader.append_term(home.log, mine, last.seq):
            return False  # another node was first, or the outcome is not known: the next round reads it
        self._leader.node = home.name
        logger.info("node %s leads failover, term %d", home.name, number)
        return True

    def _can_lead(self, node: str) -> bool:
        """True of another member that is heard and not stuck."""
        return node in self._roster.members and node not in {self._home.name, *self._suspects.names, *self._stuck()}

    def _announce(self, owners: set[str]) -> None:
        """Logs the new suspects that may own agents, but not those that had gone before this node began to listen, or that stopped."""
        suspects, roster = self._suspects, self._roster
        for name in sorted(owners - suspects.announced - roster.former):
            if not roster.members[name].has_stopped:
                logger.warning("node %s is silent: its agents are taken over", name)
        suspects.announced |= suspects.names

    async def _take(self, gone: frozenset[str], members: dict[str, table.Entered]) -> None:
        """Takes over the agents of all nodes that are gone, also of those that owned none: records they had sent may land late.

        The index names the agents of a node that has just gone.  Now and then all logs are compared: the index may have missed some.
        """
        is_due = self._clock() - self._compared_at >= self._activations.settings.compare_s
        compares = gone <= self._listed and (is_due or not gone <= self._suspects.empty.keys())
        try:
            taken = await self._takeover.take(gone, members, by_index=not compares, strays=compares)
        except RetryError as error:
            logger.info("node %s: failover waits for the store: %s", self._home.name, error)
            return
        self.taken += taken.claimed
        self._listed = gone
        if compares:  # only that shows that a node owns nothing
            self._compared_at = self._clock()
            self._suspects.empty.update({name: members[name].incarnation for name in gone - taken.owners})
        self._schedule.ended(self._clock(), is_over=not taken.owners)

    async def _forget(self, now: float) -> None:
        """Removes nodes that have left for good, except cordoned ones: a cordon outlives the node's processes."""
        since = self._suspects.empty_since
        for name, at in list(since.items()):
            entered = self._roster.members[name]
            if entered.is_cordoned or now - at <= (FORGET_STOPPED_S if entered.has_stopped else FORGET_SILENT_S):
                continue
            since[name] = now  # whatever comes of this, it is not tried again at once
            await self._remove(name, entered, now - at)

    async def _remove(self, name: str, entered: table.Entered, silent_s: float) -> None:
        """Gives up a node that fell silent, so that it stops if it lives; forgets one that has stopped."""
        home = self._home
        if not entered.has_stopped:
            logger.warning("node %s was silent for %g s, and owns nothing: it is noted as stopped", name, silent_s)
            await table.leave(home.log, name, entered.incarnation, home.rng.randbytes(12))
        elif await table.forget(home.log, name, entered, self._me, lambda: home.rng.randbytes(12)):
            logger.info("node %s has left and owns nothing: it is forgotten", name)
