"""Failover: other nodes claim the agents of a node whose heartbeats have stopped.

The leader and two deputies listen to all nodes, and every node listens to the leader.  `membership.watch` decides who is silent and
who leads; this module appends that to the log of the members, and the leader takes over from those that are gone.  A suspicion that
was wrong costs time and nothing else: a leader only asks nodes to claim, and each agent's log decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from mielin_cells.errors import CellError, RetryError
from mielin_cells.log.ids import BEATS
from mielin_cells.membership.heartbeat import Listener, encode_beat
from mielin_cells.membership.loads import NotedLoads
from mielin_cells.membership.members import AnyRecord, Forgotten, Left, Member, Status, Suspected
from mielin_cells.membership.takeover import Taken, Takeover
from mielin_cells.membership.vacant import Schedule, Vacant
from mielin_cells.membership.watch import LONG_AGO, Repeated, Watch
from mielin_cells.rpc.answers import Beat
from mielin_cells.substrate.ports import Source
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
class StoreTrouble:
    """What has kept this node's failover from the store."""

    since: float | None = None
    """The store has refused it, or has not answered, from then on; None while it answers."""
    is_waiting: bool = False
    """The last round ended because the store did not answer."""


class Failover:
    """Of one node that hears heartbeats.  `run` until the node stops."""

    def __init__(
        self, activations: Activations, listener: Listener, beat: Callable[[], Beat], failures: Counter[str] | None = None
    ) -> None:  # fmt: skip
        settings, home = activations.settings, activations.home
        self._activations = activations
        self._home = home
        self._members = activations.members
        self._clock = activations.clock
        self._listener = listener
        self._make_beat = beat
        self._failures = failures
        """Of the loop, which is started again."""
        self._heartbeat_s, self._reconcile_s = settings.heartbeat_s, settings.reconcile_s
        self._limit_s = settings.heartbeat_s * settings.heartbeat_misses
        self.watch = Watch(home.name, 0, self._limit_s, 0.0)
        self._takeover = Takeover(home.log, home.wire, activations.clock)
        self._listed: frozenset[str] = frozenset()
        """Nodes whose agents the last takeover has listed."""
        self._compare_at = self._probed_at = LONG_AGO
        self._loads = NotedLoads(activations.members, settings.reconcile_s)
        self._takeover_task: asyncio.Task[None] | None = None
        self._mending: asyncio.Task[None] | None = None
        self._mended = Repeated()
        self._schedule = Schedule(settings.reconcile_s)
        self.vacant = Vacant()
        self._trouble = StoreTrouble()
        self.taken = 0
        """Agents that other nodes took over at this node's request."""

    @property
    def is_leader(self) -> bool:
        """True while this node leads, as far as it has read."""
        return self.watch.is_leader(self._members.table)

    def refused_s(self) -> float:
        """For how long the store has refused this node, or has not answered.  May be called from any thread."""
        since = self._trouble.since
        return max(0.0, self._clock() - since) if since is not None else 0.0

    async def run(self) -> None:
        self.watch = Watch(self._home.name, self._home.incarnation, self._limit_s, self._clock())
        await supervised(f"node {self._home.name}: failover", self._run, failures=self._failures)

    async def _run(self) -> None:
        while not self._activations.is_stopping:
            before, rest_s = self._clock(), self._rest_s()
            await asyncio.sleep(rest_s)
            self.watch.woke(self._clock(), self._clock() - before - rest_s)
            try:
                await self.look()
            except CellError as error:
                self._note_trouble(error)
                if not isinstance(error, RetryError):
                    raise
            else:
                self._note_round()

    def _rest_s(self) -> float:
        """Until the next round.  Rounds are ten a second while something is under way, and two while all nodes are heard."""
        shortest = self._heartbeat_s / 5
        table, is_waiting = self._members.table, self._trouble.since is not None
        if is_waiting or (self.is_leader and any(member.status is not Status.SERVING for member in table)):
            return shortest
        return max(shortest, min(self._heartbeat_s, self.watch.calm_s))

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
        self._trouble = StoreTrouble()

    # ---- one round -------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Finds out which nodes are silent and which node leads; a leader takes over, and does not wait for that here.

        An idle round reads nothing from the store, except that a leader asks now and then whether it still answers.
        """
        now, watch, table = self._clock(), self.watch, self._members.table
        if self._trouble.since is not None or (self.is_leader and now - self._probed_at > self._reconcile_s):
            self._probed_at = now
            table = await self._members.read_to_end()
        before = watch.silent
        beats = watch.observe(now, table, self._listener.beats(), self._listener.ears)
        self._listener.wants_all = watch.wants_all
        if watch.silent and watch.silent != before:  # the leader waits for a second witness
            await self._home.wire.publish(BEATS, encode_beat(self._make_beat()))
        leads = watch.elect(now, table, beats, self._listener.ears)
        if leads is not None and (term := await self._members.try_append(leads)):
            logger.info("node %s leads failover, term %d", self._home.name, term)
        while (suspicion := watch.suspect(now, self._members.table, beats)) is not None:
            if not await self._members.try_append(suspicion):
                return  # somebody was first, or the outcome is not known: the next round decides anew
            says = "is silent: its agents are taken over" if isinstance(suspicion, Suspected) else "may be silent"
            logger.warning("node %s %s", suspicion.name, says)
        if self.is_leader:
            await self._lead(now, beats)

    # ---- the leader ------------------------------------------------------------------------------------------

    async def _lead(self, now: float, beats: Mapping[str, Beat]) -> None:
        gone = self._list_gone(now)
        self.vacant.keep(gone)
        owners = {member.name for member in gone if member not in self.vacant}
        compares = now >= self._compare_at
        is_due = compares or (gone and self._schedule.is_due(now, owners))
        if is_due and (self._takeover_task is None or self._takeover_task.done()):
            self._schedule.began(now, owners)
            if compares:
                self._compare_at = now + self._reconcile_s  # unless it succeeds
            self._takeover_task = self._home.start(self._take(gone, dict(beats), compares=compares))
        for member in gone:
            if member in self.vacant:
                await self._forget(now, member)
        await self._loads.note(now, beats)
        if self._members.table.is_long and (seq := await self._members.try_append(self._members.table.image())):
            await self._members.trim(seq)

    def _list_gone(self, now: float) -> list[Member]:
        """Whose agents are claimed.  A node that has left has a moment to be started again."""
        table, watch = self._members.table, self.watch
        return [
            member for member in table
            if (member.status is Status.SUSPECTED and watch.has_read(member.name, table))
            or (member.status is Status.LEFT and watch.stood_s(now, member.name, table) > watch.limit_s)
            or watch.is_overdue(now, member.name, table)
        ]  # fmt: skip

    async def _take(self, gone: list[Member], beats: dict[str, Beat], *, compares: bool) -> None:
        """Takes over the agents of all nodes that are gone, also of those that owned none: records they had sent may land late.

        The index names the agents of a node that has just gone.  After that its name is looked for in the logs themselves, which finds
        what the index has lost, and then behind a marker: only a list that certainly lacks nothing shows that it owns nothing.
        """
        names = frozenset(member.name for member in gone)
        sources: list[Source | None] = ["index"]
        if names <= self._listed and any(member not in self.vacant for member in gone):
            sources = ["logs", "settled index"]
        taken = list[Taken]()
        try:
            for source in [*sources, None] if compares else sources:
                taken.append(await self._take_listed(names, beats, source))
        except RetryError as error:
            logger.info("node %s: failover waits for the store: %s", self._home.name, error)
            return
        self._listed = names
        if compares:
            self._compare_at = self._clock() + self._activations.settings.compare_s
            if self._mending is None or self._mending.done():
                self._mending = self._home.start(self._mend())
        if "settled index" in sources:
            found = {name for one in taken for name in one.found}
            self.vacant.note([member for member in gone if member.name not in found], self._clock())
        self._schedule.ended(self._clock(), is_over=not any(one.owners for one in taken))

    async def _mend(self) -> None:
        """Makes the index of owners anew if it has lost agents; after that less and less often, since somebody has to see to it."""
        now, compare_s = self._clock(), self._activations.settings.compare_s
        if not self._mended.is_due(now, compare_s / 2):
            return
        try:
            lost = await self._home.log.mend_owned()
        except CellError as error:
            logger.info("node %s: the index of owners was not compared with the logs: %s", self._home.name, error)
            return
        if lost:
            self._mended.note(now, 4 * compare_s)
            logger.warning("the index of owners had lost %d agents, and was made anew; nothing else was lost", lost)

    async def _take_listed(self, gone: frozenset[str], beats: Mapping[str, Beat], source: Source | None) -> Taken:
        """As the table of the members says now: a node may have gone, or come, since the last list."""
        table = self._members.table
        nodes = [
            replace(info, agents=beats[info.name].agents)
            for info in table.infos()
            if info.name in beats and beats[info.name].ago_s < self.watch.limit_s / 2 and info.name not in gone
        ]
        copies = [node.name for node in nodes if beats[node.name].has_copies]
        taken = await self._takeover.take(gone, dict(table.members), nodes, copies=copies, source=source)
        self.taken += taken.claimed
        return taken

    async def _forget(self, now: float, member: Member) -> None:
        """Gives up a node that fell silent, so that it stops if it lives; forgets one that has left.

        Not a cordoned one: a cordon outlives the node's processes.
        """
        has_left = member.status is Status.LEFT
        since_s, term = now - self.vacant.since(member), self._members.table.term
        if member.is_cordoned or since_s <= (FORGET_STOPPED_S if has_left else FORGET_SILENT_S):
            return
        self.vacant.touch(member, now)  # whatever comes of this, it is not tried again at once
        record: AnyRecord = (
            Forgotten(member.name, member.incarnation, term)
            if has_left
            else Left(member.name, member.incarnation, term)
        )
        if not await self._members.try_append(record):
            return
        if has_left:
            logger.info("node %s has left and owns nothing: it is forgotten", member.name)
        else:
            logger.warning(
                "node %s was silent for %g s, and owns nothing: it is noted as stopped", member.name, since_s
            )
