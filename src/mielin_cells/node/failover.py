"""Failover: the agents of a node that is not heard any more are claimed by others.

Every node listens; one of them, the keeper, acts.  Who that is, is in a log of its own, appended conditionally.  Two keepers at
once, or a suspicion that was wrong, cost time and nothing else: a keeper only asks nodes to claim, and the agent's log decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from mielin_cells.errors import CellError, RetryError
from mielin_cells.log.codec import unframed as unframed  # noqa: PLC0414 - see below
from mielin_cells.membership import table, term
from mielin_cells.membership.takeover import Takeover
from mielin_cells.membership.term import SUBJECT as SUBJECT  # noqa: PLC0414 - see below
from mielin_cells.membership.term import _decoder as _decoder  # noqa: PLC0414 - see below
from mielin_cells.rpc.answers import Beat
from mielin_cells.tasks.supervision import supervised

# `term` has the keepers' log; SUBJECT, _decoder and unframed stay here for programs that read it from outside and know them by
# this place.

if TYPE_CHECKING:
    from mielin_cells.node.activation.activations import Activations

logger = logging.getLogger("mielin_cells.keeper")

AGAIN_S_MAX = 300.0
"""Between two looks for what nodes own that left long ago."""

LATE_KEPT_S = 30.0
"""How long a late round of this node's own makes it more patient with others."""


FORGET_STOPPED_S = 600.0
"""A node that stopped cleanly and owns nothing is forgotten after this, so that deployments whose nodes have ever new names do not
pay for those that were."""

FORGET_SILENT_S = 3600.0
"""One that fell silent and owns nothing is given up after this: told to stop, if its process lives after all, and then forgotten."""


# ---- decisions, pure -----------------------------------------------------------------------------------------


def suspected(me: str, nodes: Collection[str], beats: Iterable[Beat], listening_s: float, limit_s: float) -> set[str]:
    """Of the nodes those that have been silent for longer than `limit_s`.

    Nobody, while this node has not listened for as long, or does not hear itself: then it is the one that is cut off.
    """
    ages: dict[str, float] = {}
    for beat in beats:
        ages[beat.node] = min(beat.ago_s, ages.get(beat.node, beat.ago_s))
    if listening_s <= limit_s or ages.get(me, limit_s) >= limit_s:
        return set()
    return {node for node in nodes if node != me and ages.get(node, listening_s) > limit_s}


def patience(limit_s: float, late_s: float) -> float:
    """For how long a node may be silent, if the watcher's own rounds were up to `late_s` late: what starves one starves all."""
    return limit_s + 2 * late_s


class Again:
    """When a keeper looks for what departed nodes own: at once for a new one, then after growing waits.

    It looks again although nothing was found: what a node had sent before it died may land late.
    """

    def __init__(self, first_s: float) -> None:
        self._first_s = self._wait_s = first_s
        self._at = 0.0
        self._tried: frozenset[str] = frozenset()

    def is_due(self, now: float, due: Collection[str]) -> bool:
        return now >= self._at or not self._tried.issuperset(due)

    def began(self, now: float, due: Collection[str]) -> None:
        if not self._tried.issuperset(due):
            self._wait_s = self._first_s
        self._tried, self._at = frozenset(due), now + self._first_s

    def ended(self, now: float, *, is_over: bool) -> None:
        """`is_over`: the departed own nothing any more."""
        self._at = now + self._wait_s
        self._wait_s = min(self._wait_s * 2, AGAIN_S_MAX) if is_over else self._first_s


# ---- the keeper ----------------------------------------------------------------------------------------------


class Failover:
    """Of one node that hears heartbeats.  `run` until the node stops."""

    def __init__(
        self, activations: Activations, heard: Callable[[], list[Beat]], failures: Counter[str] | None = None
    ) -> None:
        self._activations = activations
        self._failures = failures
        """Of its loop, which is started again."""
        self._refused_at: float | None = None
        """Since when the store has refused this node's failover, or has not answered it; None while it answers."""
        self._heard = heard
        self._takeover = Takeover(activations.home.log, activations.home.wire, activations.clock)
        self._limit_s = self._base_s = activations.settings.heartbeat_s * activations.settings.heartbeat_misses
        """A node that is silent for longer is suspected."""
        self._late = deque[tuple[float, float]]()
        """When this node's own rounds were late, and by how much."""
        self._since = self._ticked = 0.0
        """When this node began to listen without a gap."""
        self._known: dict[str, table.Entered] = {}
        self._known_at = -1e9
        self._strange: set[str] = set()
        """Heard, and by then not registered: a name on the wire need not be a node's."""
        self._begun: dict[str, float] = {}
        """Nodes that have begun, and were not heard since, with the time when that was first known: a heart beats a little later."""
        self._silent: set[str] = set()
        """Suspects of the last round: a new one may just have said that it stops."""
        self._told: set[str] = set()
        """Suspects that were told of."""
        self._former: set[str] = set()
        """Nodes that had entered before this one began to listen, and that it has not heard."""
        self._empty: dict[str, int] = {}
        """Suspects that own nothing any more, as of a takeover, with their incarnation then."""
        self._idle_since: dict[str, float] = {}
        """Of those, since when this node knows."""
        self._again = Again(activations.settings.reconcile_s)
        self._taking: asyncio.Task[None] | None = None
        self._keeper = ""
        """Who keeps, as this node last read it."""
        self._term_at = -1e9
        self._waits = False
        """The last look ended because the store did not answer."""
        self.taken = 0
        """Agents that were taken over at this keeper's wish."""

    def refused_s(self) -> float:
        """For how long the store has refused this node, or has not answered.  It may be called from any thread."""
        since = self._refused_at
        return max(0.0, self._activations.clock() - since) if since is not None else 0.0

    async def run(self) -> None:
        activations = self._activations
        self._since = activations.clock()
        await supervised(f"node {activations.name}: failover", self._look_for_ever, failures=self._failures)

    async def _look_for_ever(self) -> None:
        activations = self._activations
        interval = activations.settings.heartbeat_s / 5
        self._ticked = activations.clock()  # after a failure, nobody was late
        while not activations.is_stopping:
            before = activations.clock()
            await asyncio.sleep(interval)
            self._woke(activations.clock() - before - interval)
            try:
                await self.look()
            except CellError as error:
                if self._refused_at is None:  # its beats say so: another node is to keep
                    self._refused_at = activations.clock()
                if not isinstance(error, RetryError):
                    raise
                if not self._waits:  # once: a look is made ten times a second, and a store may be away for hours
                    logger.info("node %s: failover waits for the store: %s", activations.name, error)
                self._waits = True
            else:
                if self._waits:
                    logger.info("node %s: failover goes on", activations.name)
                self._waits = False

    def _woke(self, late_s: float) -> None:
        """This node's own loop was `late_s` late.  Whoever was stopped has not listened, and whoever is starved waits longer."""
        now = self._activations.clock()
        if late_s > self._base_s / 2:
            self._since = now
        while self._late and now - self._late[0][0] > LATE_KEPT_S:
            self._late.popleft()
        if late_s > self._base_s / 50:
            while self._late and self._late[-1][1] <= late_s:  # it counts no more: a later one was later
                self._late.pop()
            self._late.append((now, late_s))
        self._limit_s = patience(self._base_s, min(self._base_s, self._late[0][1] if self._late else 0.0))

    async def look(self) -> None:
        """One round: who is silent, who keeps, and if that is this node: who takes over.  Never waits for a takeover."""
        activations, now = self._activations, self._activations.clock()
        await self._read_registry(now)
        heard, beats = set[str](), self._heard()
        for beat in beats:
            if beat.ago_s < self._limit_s:
                heard.add(beat.node)
                if beat.node in self._known and beat.incarnation >= self._known[beat.node].incarnation:
                    self._begun.pop(beat.node, None)
        suspects = self._silent = self._suspects(beats)
        for name in self._told & heard:
            logger.warning("node %s is heard again", name)
        self._told &= suspects
        self._former -= heard
        self._empty = {
            name: number for name, number in self._empty.items()
            if name in suspects and self._known[name].incarnation == number
        }  # fmt: skip
        self._idle_since = {name: self._idle_since.get(name, now) for name in self._empty}
        due = suspects - self._empty.keys()
        is_due = bool(suspects) and self._again.is_due(now, due)
        acts = is_due and self._keeper in {"", activations.name, *suspects, *self._stuck()}
        if now - self._term_at < self._base_s / 2 and not acts:
            return
        if not await self._keeps(suspects):
            return
        for name in sorted(due - self._told - self._former):
            if not self._known[name].has_stopped:
                logger.warning("node %s is silent: its agents are taken over", name)
        self._told |= suspects
        if is_due and (self._taking is None or self._taking.done()):
            self._again.began(now, due)
            self._taking = activations.home.start(self._take(frozenset(suspects), dict(self._known)))
        await self._forget(now)

    async def _read_registry(self, now: float) -> None:
        """Who has entered: when somebody new is heard, when somebody falls silent, and now and then."""
        activations, beats = self._activations, self._heard()
        silent, names = self._suspects(beats), {beat.node for beat in beats}
        is_new = not names - self._strange <= self._known.keys()
        if not (is_new or now - self._known_at > activations.settings.reconcile_s or not silent <= self._silent):
            return
        before, self._known, self._known_at = self._known, await table.registered(activations.home.log), now
        self._strange = names - self._known.keys()
        self._former = self._former & self._known.keys() if before else set(self._known)
        for name, entered in self._known.items():
            if name not in before or before[name].incarnation != entered.incarnation:
                self._begun.setdefault(name, now)
        self._begun = {name: at for name, at in self._begun.items() if name in self._known}

    async def _take(self, gone: frozenset[str], known: dict[str, table.Entered]) -> None:
        """The agents of all that are gone, also of those that owned none before: what they had sent may have landed since."""
        try:
            self.taken += await self._takeover.take(gone, known, strays=True)
        except RetryError as error:
            logger.info("node %s: failover waits for the store: %s", self._activations.name, error)
            return
        left = set(self._takeover.owners.values())
        self._empty.update({name: known[name].incarnation for name in gone - left})
        self._again.ended(self._activations.clock(), is_over=not left)

    async def _forget(self, now: float) -> None:
        """Removes from the registry who has left for good.  Not one that is cordoned: an operator's word outlives its processes."""
        activations, log = self._activations, self._activations.home.log
        for name, since in list(self._idle_since.items()):
            entered = self._known[name]
            if entered.is_cordoned or now - since <= (FORGET_STOPPED_S if entered.has_stopped else FORGET_SILENT_S):
                continue
            self._idle_since[name] = now  # whatever comes of this: not again at once
            if not entered.has_stopped:
                logger.warning("node %s was silent for %g s, and owns nothing: it is given up", name, now - since)
                await table.leave(log, name, entered.incarnation, activations.home.rng.randbytes(12))
            elif await table.forget(log, name, entered, self._me, lambda: activations.home.rng.randbytes(12)):
                logger.info("node %s has left and owns nothing: it is forgotten", name)

    @property
    def _me(self) -> tuple[str, int]:
        return self._activations.name, self._activations.home.incarnation

    def _suspects(self, beats: list[Beat]) -> set[str]:
        now = self._activations.clock()
        silent = suspected(self._activations.name, self._known.keys(), beats, now - self._since, self._limit_s)
        return {name for name in silent if now - self._begun.get(name, self._since) > self._limit_s}

    def _stuck(self) -> set[str]:
        """Nodes whose processes live and whose main loops do not, or that the store refuses: they keep nothing."""
        return {beat.node for beat in self._heard() if beat.stuck_s > self._limit_s}

    async def _keeps(self, suspects: Collection[str]) -> bool:
        """True if the log names this incarnation, or does so now because it names nobody who is heard and can act."""
        activations, home = self._activations, self._activations.home
        found = await term.standing(home.log, await home.log.last(term.SUBJECT))
        self._term_at, self._refused_at = activations.clock(), None
        last = found.term
        self._keeper = last.node if last is not None else ""
        if last is not None and (last.node, last.incarnation) == self._me:
            return True
        if (
            last is not None
            and last.node not in {activations.name, *suspects, *self._stuck()}
            and last.node in self._known
        ):
            return False
        if activations.clock() - self._since <= self._limit_s:
            return False  # it may only not have been heard yet
        number = last.number + 1 if last is not None else 1
        mine = term.Term(activations.name, home.incarnation, number, home.rng.randbytes(12), found.floor)
        if not await term.append(home.log, mine, found.seq):
            return False  # somebody else was first, or it is not known: the next round reads who
        self._keeper = activations.name
        logger.info("node %s keeps, term %d", activations.name, number)
        return True
