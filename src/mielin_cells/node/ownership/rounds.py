"""Finds the agents that the log gives to this node: by hints, by lists of the index, and now and then by the logs themselves.

What is found by a hint or a list is only read; the log decides (`adoption`).  All but the comparison of all logs, which one node of
the deployment makes, costs by this node's agents.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from mielin_cells.errors import CellError, RetryError
from mielin_cells.log.ids import agent_of, inbox_subject, log_subject
from mielin_cells.node.ownership.adoption import LOOK_SUBJECTS
from mielin_cells.store.reader import list_agents, list_owned
from mielin_cells.tasks.supervision import persist

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations
    from mielin_cells.node.moves.admission import Copies
    from mielin_cells.node.moves.manager import Migrations
    from mielin_cells.node.ownership.adoption import Adoption
    from mielin_cells.node.ownership.quarantine import Quarantine

logger = logging.getLogger("mielin_cells.node")

CALM_ROUNDS = 3
"""Rounds that must have found nothing to do at one position of the logs, before the next ones are left out: a replica that is
behind may have answered one of them."""

ROUNDS_FOR_ALL = 12
"""Within so many rounds the log of each agent of this node is looked at."""

LOOKS_MIN = 16
"""Logs of running agents that a round looks at, if there are as many: a store that is written to all the time pays for these in each
round of each node."""


COMPARISONS = 2
"""At one position of the logs.  The second one takes logs that have not moved since the first."""


class Compared(NamedTuple):
    """How often this node has gone by the logs themselves, and found nothing to do, while they stood at one position."""

    position: tuple[int, ...] = ()
    times: int = 0

    def at(self, position: tuple[int, ...]) -> Compared:
        return Compared(position, self.times + 1 if position == self.position else 1)


class Rounds:
    """`begin` once; then `hear` hints, `relist` for ever, and `round` now and then."""

    def __init__(
        self, activations: Activations, copies: Copies, migrations: Migrations, quarantine: Quarantine, adoption: Adoption,
        compares_all: Callable[[], bool], note_trip: Callable[[float], None] = lambda seconds: None,
    ) -> None:  # fmt: skip
        """`compares_all`: this node compares the logs of all nodes' agents, and not of its own alone.  `note_trip` is told how long a
        short request to the store takes.
        """
        self._activations = activations
        self._home = activations.home
        self._copies = copies
        self._migrations = migrations
        self._quarantine = quarantine
        self._adoption = adoption
        self._compares_all = compares_all
        self._note_trip = note_trip
        self._missed = asyncio.Event()
        """Hints may have been lost since the last list."""
        self._looks_at_all = False
        """The next round looks at all agents of this node: the store may have gone back."""
        self._unlooked: list[str] = []
        """Agents of this node whose logs are looked at in the next rounds."""
        self._calm = 0
        """Rounds in a row that found nothing to do, with the logs at `_position` and the agents of `_here` on this node."""
        self._position: tuple[int, ...] = ()
        self._here: set[str] = set()
        self._compared_at = -1e9
        self._compared = Compared()
        self._former: set[str] = set()
        """Agents whose entries in the index are being removed."""

    async def begin(self) -> None:
        """Takes the agents that the index gives to this node; a list behind a marker finds those that it did not have yet."""
        await self._take(await self._newest_first(await list_owned(self._home.log, self._home.name)))
        self._missed.set()

    async def _newest_first(self, agents: list[str]) -> list[str]:
        """Those that got a message last come first: their callers may still wait."""
        ends = dict[str, int]()
        for start in range(0, len(agents), LOOK_SUBJECTS):
            inboxes = {inbox_subject(agent): agent for agent in agents[start : start + LOOK_SUBJECTS]}
            ends |= {inboxes[name]: last.seq for name, last in (await self._home.log.lasts(list(inboxes))).items()}
        return sorted(agents, key=lambda agent: -ends.get(agent, 0))

    def hear(self, subject: str | None) -> None:
        """A hint (`Log.hear_owned`)."""
        if subject is None:
            self._looks_at_all = True
            self._missed.set()
            return
        with contextlib.suppress(UnicodeDecodeError):  # else nobody's log
            self._adoption.take_hinted(agent_of(subject))

    async def relist(self) -> None:
        """After the start, and after each gap in the hints, lists this node's agents as of then."""
        while not self._activations.is_stopping:
            await self._missed.wait()
            self._missed.clear()
            await self._take(await persist(self._list_settled, RetryError, self._note_behind))

    async def _list_settled(self) -> list[str]:
        return await list_owned(self._home.log, self._home.name, "settled index")

    def _note_behind(self, error: Exception) -> None:
        logger.info("node %s waits for the index of owners: %s", self._home.name, error)

    async def _take(self, listed: Iterable[str]) -> None:
        adoption = self._adoption
        await adoption.take_all([agent for agent in listed if not adoption.is_here(agent)])
        self._forget(listed)

    def _forget(self, listed: Iterable[str]) -> None:
        former = {agent for agent in listed if agent in self._adoption.quiet} - self._former
        if former:
            self._former |= former
            self._home.begin(self._forget_former(former))

    async def _forget_former(self, agents: set[str]) -> None:
        """Removes agents from the index whose logs have named another node in a later record than the one that put them there."""
        try:
            for agent in sorted(agents):
                if (seq := self._adoption.quiet.get(agent)) is not None and not self._activations.is_stopping:
                    await self._home.log.forget_owned(self._home.name, log_subject(agent), seq)
        except CellError as error:
            logger.info("node %s leaves old entries in the index: %s", self._home.name, error)
        finally:
            self._former -= agents

    # ---- rounds ----------------------------------------------------------------------------------------------

    async def round(self, every: bool = False) -> None:
        """Takes the agents that their logs give to this node, and drops those that they give to others.

        It lists this node's agents by the index, and looks at the logs of those that do not run here, and of some that do.  While
        nothing is written anywhere it does nothing.  Every `compare_s` it goes by the logs themselves and looks at all, unless they
        stand where it has done that twice; one node looks at the agents of all nodes then, but not at logs that have moved since it
        last did, since these have an owner.
        `every`: also at those, and by the logs themselves, as in the first round.
        """
        if await self._is_calm() and not every:
            return
        is_due = every or self._is_due()
        looks_at_all, self._looks_at_all = is_due or self._looks_at_all, False
        position = self._position
        try:
            await self._look(every=every, is_due=is_due, looks_at_all=looks_at_all)
        except BaseException:
            self._looks_at_all = looks_at_all
            raise
        if is_due:
            self._compared_at = self._activations.clock()
            self._compared = self._compared.at(position) if self._calm else Compared()

    async def _look(self, *, every: bool, is_due: bool, looks_at_all: bool) -> None:
        still, quarantine = list[str](), self._quarantine
        acknowledged = quarantine.acknowledged()
        known = {**quarantine.seen, **acknowledged}
        mine = set(await list_owned(self._home.log, self._home.name, "logs" if is_due else "index"))
        if is_due and self._compares_all():
            asked, ends = set(known), dict(await list_agents(self._home.log))
        else:
            asked = mine | known.keys() if looks_at_all else mine - acknowledged.keys() | self._next_of(acknowledged)
            ends = await self._read_ends(asked)
        await quarantine.check_all({agent: known[agent] for agent in asked if agent in known and agent not in ends})
        for count, (agent, seq) in enumerate(ends.items(), 1):
            if quarantine.is_behind(agent, seq, acknowledged.get(agent, 0)):
                self._position = ()
                continue
            has_moved, quarantine.seen[agent] = quarantine.seen.get(agent) != seq, seq
            activation, sleeper = self._activations.live.get(agent), self._activations.asleep.get(agent)
            if sleeper is not None:
                if seq > sleeper.seq:
                    sleeper.stir()
            elif activation is not None:
                if agent not in self._migrations.attempts.moves and seq > activation.fold.seq:
                    await self._adoption.drop_if_lost(activation)
            elif self._adoption.may_be_here(agent, seq) and (every or agent in mine or not has_moved):
                still.append(agent)
            if count % LOOK_SUBJECTS == 0:
                await asyncio.sleep(0)
        await self._adoption.take_all(still)
        self._forget(agent for agent in mine if not self._activations.owns(agent))
        self._calm = 0 if still else self._calm + 1

    def _next_of(self, agents: Iterable[str]) -> set[str]:
        """Some of this node's agents, each round others."""
        there = set(agents)
        if not self._unlooked:
            self._unlooked = sorted(there)
        count = max(LOOKS_MIN, len(there) // ROUNDS_FOR_ALL + 1)
        some, self._unlooked = self._unlooked[:count], self._unlooked[count:]
        return there.intersection(some)

    async def _read_ends(self, agents: Iterable[str]) -> dict[str, int]:
        """By agent the last sequence of its log, without those that have none."""
        by_subject, ends = {log_subject(agent): agent for agent in sorted(agents)}, dict[str, int]()
        subjects = list(by_subject)
        for start in range(0, len(subjects), LOOK_SUBJECTS):
            lasts = await self._home.log.lasts(subjects[start : start + LOOK_SUBJECTS])
            ends |= {by_subject[subject]: last.seq for subject, last in lasts.items()}
        return ends

    async def _is_calm(self) -> bool:
        """True if the last rounds found nothing to do, and neither the logs nor the agents here have changed since."""
        clock = self._activations.clock
        asked = clock()
        position = await self._home.log.position()
        self._note_trip(clock() - asked)
        count = self._activations.count + len(self._copies.by_agent)
        if position == self._position and self._calm >= CALM_ROUNDS and count == len(self._here):
            return not self._is_due()  # an agent can only have come by a record, so these are the same agents
        here = {*self._activations.live, *self._activations.asleep, *self._copies.by_agent}
        if position != self._position or here != self._here:
            if any(now < before for now, before in zip(position, self._position, strict=False)):
                self._looks_at_all = True
            self._position, self._here, self._calm, self._compared = position, here, 0, Compared()
        return self._calm >= CALM_ROUNDS and not self._is_due()

    def _is_due(self) -> bool:
        """Not while the logs stand where they have been compared already."""
        if self._compared.times >= COMPARISONS and self._compared.position == self._position:
            return False
        return self._activations.clock() - self._compared_at >= self._activations.settings.compare_s
