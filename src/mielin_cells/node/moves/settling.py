"""Migrations that are open although no process runs them: the agent's owner settles them.

After an agent came to this node by a move or a claim, the node reads the agent's journals.  A migration that is open there, and that
this process does not run, is ended as the agent's log says, or continued from here (`migration.outcome`).  Settling twice does no
harm: journals are appended conditionally, so of two nodes that settle one migration only one succeeds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from mielin_cells.errors import (
    CellError,
    ConfigError,
    NoSuchAgent,
    NoSuchMigration,
    RecordInvalid,
    RetryError,
    UnknownRecord,
    described,
    never,
)
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import journal_subject
from mielin_cells.log.lifecycle import Phase
from mielin_cells.migration.case import SOURCE_LOST, Case
from mielin_cells.migration.failure import Coded
from mielin_cells.migration.journal import Journal
from mielin_cells.migration.outcome import Verdict, journal_outcome, restored, verdict
from mielin_cells.node.moves import evidence
from mielin_cells.node.moves.journal import JournalTaken
from mielin_cells.node.moves.recovery import Recovery
from mielin_cells.rpc import requests
from mielin_cells.store import journal as journal_store
from mielin_cells.store.reader import load

if TYPE_CHECKING:
    from mielin_cells.node.moves.agenda import Agenda
    from mielin_cells.node.moves.attempts import Attempts

logger = logging.getLogger("mielin_cells.migration")

SETTLE_S = 30.0
"""The source of a move writes its end within milliseconds; the new owner checks after this time that it did.  After a claim the
journals are listed a second time after this time, because the first list may have been out of date."""


GATHER_S = 0.1
"""Wait before the journals of claimed agents are read, so that agents claimed at about the same time share one list."""

JOURNALS_KEPT = 20
"""Ended migrations whose journals are kept for each agent."""

MANY = 16
"""From this number of agents on, as after a failover, one list of all journals costs less than a list for each agent."""


class Settling:
    """Of one node."""

    def __init__(
        self,
        agenda: Agenda,
        attempts: Attempts,
        open_: dict[str, Recovery],
        taken_over: Callable[[Recovery, bool], None],
    ) -> None:
        """`open_`: the node's open migrations by agent.  `taken_over` is called with one that another process began, once it has been
        ended, or is to go on here (True).
        """
        self._agenda = agenda
        self._attempts = attempts
        self._activations = agenda.activations
        self._open = open_
        self._taken_over = taken_over
        self._due: dict[str, tuple[float, bool]] = {}
        """Agents whose journals are to be read: when, and whether to read them once more after `SETTLE_S`."""
        self._is_looking = False
        self._settling: set[str] = set()
        """Agents whose journals are being read and acted upon."""
        self.unfinished: dict[str, set[str]] = {}
        """By agent, migrations that this process began and did not end: a replica that is behind may not list them yet."""
        self.broken: dict[str, str] = {}
        """Migrations that a bug stopped in this process, and the error."""

    def soon(self, agent: str, within_s: float) -> None:
        """Reads the journals of an agent that came here within `within_s`; 0 after a claim: the node that moved it may be gone."""
        self._due[agent] = (self._activations.clock() + within_s, within_s < SETTLE_S)
        if within_s <= 0 and not self._is_looking:
            self._is_looking = True
            self._activations.home.begin(self._look())

    async def _look(self) -> None:
        """Reads the journals of one agent after the other, so that a node that starts with many agents is not kept from serving."""
        try:
            await asyncio.sleep(GATHER_S)
            await self.all_due()
        except Exception as error:  # whatever the store raises: what is due is looked after in the next round
            logger.info("settling migrations failed; trying again later: %s", described(error))
        finally:
            self._is_looking = False

    def may_have_open(self, agent: str) -> bool:
        """True if an open migration of the agent is known, or its journals are still to be read since it came here."""
        return agent in self._due or bool(self.unfinished.get(agent))

    def is_due(self, agent: str) -> bool:
        return agent in self._due and self._due[agent][0] <= self._activations.clock()

    async def all_due(self) -> None:
        """Settles all agents that are due, in every round of reconciling.  Raises a `RetryError` while the store does not answer."""
        due = [agent for agent in self._due if self.is_due(agent)]
        moved: set[str] | None = None
        if len(due) >= MANY:
            moved = {agent for agent, _ in await journal_store.listed(self._activations.home.log)}
        for agent in due:
            if self._activations.is_stopping:
                return
            try:
                await self.one_due(agent, moved)
            except Exception as error:  # of one agent: the others are settled all the same
                say = logger.info if isinstance(error, RetryError) else logger.error
                say("settling migrations of agent %s failed; trying again later: %s", agent, described(error))

    async def one_due(self, agent: str, moved: Collection[str] | None = None) -> None:
        """Settles the agent if it is due.  Raises a `RetryError` while the store does not answer; then it stays due.

        `moved`: agents that have journals, if that is known already.
        """
        if not self.is_due(agent):
            return
        due = self._due[agent]
        is_done = (moved is not None and agent not in moved) or await self.settle(agent)
        if self._due.get(agent) is not due or not is_done:
            return  # it came here again meanwhile; or another process is at it, whose end is waited for
        del self._due[agent]
        if due[1]:
            self.soon(agent, SETTLE_S)

    async def settle(self, agent: str) -> bool:
        """True once no migration of an agent of this node is open, except one that this node itself runs.

        False while another call settles the agent: what this one would read may be old before it acts.
        """
        if agent in self._settling:
            return False
        self._settling.add(agent)
        try:
            return await self._settle_all(agent)
        finally:
            self._settling.discard(agent)

    async def _settle_all(self, agent: str) -> bool:
        fold = await self._fold(agent)
        if fold is None:
            self.unfinished.pop(agent, None)
            return True
        before = self._open.get(agent)
        journals = await self._journals(agent)
        if journals is None:
            return False
        is_done = True
        for journal in journals:
            running = self._open.get(agent)
            if journal.end is not None:
                continue
            # One that ran here when its journal was read may have ended since: then what was read is old.
            if any(one is not None and one.migration == journal.migration for one in (before, running)):
                continue
            try:
                is_settled = await self._settle(journal, fold, journal is journals[-1] and running is None)
                is_done &= is_settled
                if is_settled and agent in self.unfinished:
                    self.unfinished[agent].discard(journal.migration)
            except JournalTaken:
                is_done = False
            except (UnknownRecord, ConfigError) as error:
                logger.error("the journal of migration %s of agent %s is unusable: %s", journal.migration, agent, error)
        return is_done

    async def _fold(self, agent: str) -> Fold | None:
        """The agent, if this node owns it for certain, or if it has ended."""
        activations = self._activations
        activation = await activations.awake(agent) if activations.owns(agent) else None
        if activation is not None:
            return (
                activation.fold
                if await evidence.owns(activations.home.log, agent, activations.name, activation.fold.epoch)
                else None
            )
        if await evidence.owner_of(activations.home.log, agent):
            return None
        try:
            fold = await load(self._activations.home.log, agent)
        except (RecordInvalid, NoSuchAgent):
            return None
        return fold if fold.phase is Phase.TERMINATED else None

    async def _journals(self, agent: str) -> list[Journal] | None:
        """The readable journals, the newest migration last; None if the replica that answers lacks the end of one."""
        log, journals, unfinished = self._activations.home.log, list[Journal](), self.unfinished.get(agent, set())
        for migration in sorted(unfinished.union(name for _, name in await journal_store.listed(log, agent))):
            try:
                one = await journal_store.read(log, agent, migration)
            except (RecordInvalid, NoSuchMigration) as error:
                if migration not in unfinished:  # else it was never planned
                    logger.error("the journal of migration %s of agent %s is unusable: %s", migration, agent, error)
                unfinished.discard(migration)
                continue
            if one.end is not None:
                unfinished.discard(migration)
            if one.is_open:
                last = await log.last(journal_subject(agent, migration))
                if last is None or last.seq != one.seq:
                    return None
            journals.append(one)
        journals.sort(key=_planned)
        await self._let_go(agent, [one for one in journals if not one.is_open])
        return journals

    async def _let_go(self, agent: str, ended: list[Journal]) -> None:
        """Trims the journals of the agent's oldest migrations: the history is for people, and must not grow without limit."""
        for one in ended[:-JOURNALS_KEPT]:
            try:
                await self._activations.home.log.trim(journal_subject(agent, one.migration), one.seq + 1)
            except CellError as error:
                logger.info(
                    "trimming the journal of migration %s of agent %s failed; trying again later: %s",
                    one.migration,
                    agent,
                    error,
                )

    async def _settle(self, journal: Journal, fold: Fold, is_newest: bool) -> bool:
        """Ends or continues the migration; False while the logs do not say yet what became of it."""
        activations, agent = self._activations, fold.agent
        outcome, _ = journal_outcome(journal, fold)
        if outcome is None:
            return False
        recovery = self._recovery_of(journal)
        end = verdict(journal, recovery.case, fold, activations.name, is_newest=is_newest)
        broken = self.broken.pop(journal.migration, "")
        if end is None and broken:
            end = Verdict("rolled_back", "InternalError", broken)
        if is_newest:
            if agent in self._open:
                return False
            self._open[agent] = recovery
        goes_on = False
        try:
            goes_on = await self._take_over(recovery, fold, end)
        finally:
            if not goes_on and self._open.get(agent) is recovery:
                del self._open[agent]
        self._taken_over(recovery, goes_on)
        return True

    def _recovery_of(self, journal: Journal) -> Recovery:
        """An open migration that another process began, restored from its journal.  Raises `UnknownRecord`, `ConfigError`."""
        planned, activations = journal.planned, self._activations
        if planned is None:
            raise never("the journal has no plan")
        case = Case.of(journal, source=activations.name, now=activations.clock(), wall=activations.home.wall())
        request = requests.Migrate(
            planned.agent, journal.migration, planned.epoch, planned.target, 0.0, parent=planned.parent
        )
        target = journal.attempts[-1].target if journal.attempts else planned.target
        recovery = Recovery(self._agenda, self._attempts, request, case, target, journal)
        reason = f"{journal.coordinator} was lost"
        recovery.report = replace(recovery.report, code=SOURCE_LOST, reason=reason)
        return recovery

    async def _take_over(self, recovery: Recovery, fold: Fold, end: Verdict | None) -> bool:
        """Ends a migration of another process, or decides how it continues; True: `Recovery.run` then carries that out.

        The first record stops every other process that settles the migration.  Raises `JournalTaken` if one was first.
        """
        try:
            return await self._decide(recovery, fold, end)
        except BaseException:
            recovery.close(None)
            raise

    async def _decide(self, recovery: Recovery, fold: Fold, end: Verdict | None) -> bool:
        case, journal, activations = recovery.case, recovery.journal.fold, self._activations
        coordinator, now = journal.coordinator, activations.clock()
        last = journal.attempts[-1] if journal.attempts else None
        if last is not None and last.id in fold.handed:
            recovery.restored = restored(fold)
        if end is not None:
            await recovery.end(end)
            return False
        was_undecided = case.is_undecided
        self._agenda.manager.open(case, now, activations.home.rng.random)
        if case.is_running and last is not None:
            code, reason, happened = await evidence.loss_of(activations.home.log, fold, last, coordinator)
            recovery.report = replace(recovery.report, target=last.target, code=code, reason=reason)
            await recovery.fail(last.target, happened, code, reason)
        elif was_undecided:
            await recovery.write_decision(now)
        elif case.due is not None:
            reason = f"{coordinator} was lost before attempt {case.attempts + 1}"
            await recovery.fail("", Coded(SOURCE_LOST), SOURCE_LOST, reason)
        self._agenda.keep_time()
        return True


def _planned(journal: Journal) -> tuple[int, float, str]:
    planned = journal.planned
    return (planned.epoch, planned.at, journal.migration) if planned is not None else (0, 0.0, journal.migration)
