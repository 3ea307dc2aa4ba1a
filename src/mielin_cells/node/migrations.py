"""The migrations of one node: those that leave it, what it knows of those that ended, and those that it settles for others."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from mielin_cells.core.cluster import MigrationReport
from mielin_cells.core.fold import Fold, Phase
from mielin_cells.core.ids import log_subject
from mielin_cells.core.records import named_owner
from mielin_cells.core.settings import RETRY_S_MAX, RETRY_S_MIN
from mielin_cells.errors import (
    AlreadyThere,
    CellError,
    Fenced,
    LogGap,
    MigrationInProgress,
    NoSuchMigration,
    RecordInvalid,
    RetryError,
    UnknownNode,
)
from mielin_cells.migration.breaker import BreakerConfig, Targets
from mielin_cells.migration.failure import MigrationErrorType
from mielin_cells.migration.journal import Ended, Journal
from mielin_cells.migration.recovery import RecoveryConfig, RecoveryStrategy
from mielin_cells.node import control, journal, selector
from mielin_cells.node.config import changed
from mielin_cells.node.journal import JournalTaken, Scribe
from mielin_cells.node.observe import Observer, Watchers
from mielin_cells.node.reader import load, record_of
from mielin_cells.node.recovery import Recovery
from mielin_cells.node.source import Move

if TYPE_CHECKING:
    from mielin_cells.node.host import Host
    from mielin_cells.node.node import Node

logger = logging.getLogger("mielin_cells.migration")

REPORTS_MAX = 256
"""Reports of ended migrations that a node still answers with, when a client asks again."""


class Migrations:
    def __init__(self, node: Node, config: RecoveryConfig, classes: dict[str, dict[str, Any]]) -> None:
        config.validate()
        self.node = node
        self.config = config
        self.classes = classes
        """By agent class, what its recovery has otherwise."""
        self.targets = Targets(BreakerConfig.of(config))
        self.watchers = Watchers(node)
        self.moves: dict[str, Move] = {}
        """The attempts that run, by agent."""
        self.open: dict[str, Recovery] = {}
        self.reports: dict[str, MigrationReport] = {}
        self.failures: Counter[str] = Counter()
        """By class of failure, since this process began."""
        self.decisions: Counter[str] = Counter()
        self._unsettled: dict[str, float] = {}
        """Agents that came here by a move or a claim, and when to look whether their migration has its end."""

    def close(self) -> None:
        for move in list(self.moves.values()):
            move.close()

    # ---- asked for -------------------------------------------------------------------------------------------

    async def start(self, request: control.Migrate) -> control.Progress:
        """Begins the migration, or asks after it.  Raises what keeps it from beginning: then nothing has."""
        report = self.reports.get(request.migration)
        if report is None:
            found = self.open.get(request.agent)
            if found is not None and found.migration != request.migration:
                raise MigrationInProgress(
                    f"Agent {request.agent!r} is being moved by {found.migration}.", agent=request.agent,
                    migration=found.migration,
                )  # fmt: skip
            found = found or await self._begun(request)
            await asyncio.wait((found.done,), timeout=request.wait)
            if not found.done.done():
                return found.progress()
            report = found.done.result()
        return control.ended(report)

    async def _begun(self, request: control.Migrate) -> Recovery:
        agent, node = request.agent, self.node
        target = request.to or await self.chosen(node.host(agent))
        if agent in self.open:  # begun while the others were asked
            return self.open[agent]
        host = node.host(agent)
        if request.to == node.name:
            raise AlreadyThere(f"Agent {agent!r} is on {node.name} already.", agent=agent, node=node.name)
        if host.fold.epoch != request.epoch or host.fold.phase is not Phase.RUN:
            raise Fenced(
                f"Agent {agent!r} has changed its owner since {request.migration} was planned; plan it again.",
                agent=agent, epoch=host.fold.epoch,
            )  # fmt: skip
        found = self.open[agent] = Recovery(self, request, target, self._config_of(host, request.recovery))
        node.home.begin(self._run(found))
        return found

    async def chosen(self, host: Host) -> str:
        """The first target of a migration that names none.  Raises `UnknownNode` if there is nobody to ask."""
        node = self.node
        nodes = await selector.alive(node.home.log, node.home.wire)
        others = [other for other in nodes if other.name != node.name]
        if not others:
            raise UnknownNode("No other node answers; start one.", node="", nodes=[other.name for other in nodes])
        resting = self.targets.unfit(node.clock())
        # If none fits, the emptiest says why not.
        return selector.choose(others, host.fold.cls, resting) or selector.choose(others, "", ()) or ""

    def _config_of(self, host: Host, changes: dict[str, Any] | None) -> RecoveryConfig:
        """The node's, with what the agent's class and then this migration are to have otherwise.  Raises `ConfigError`."""
        cls = host.spec.cls._recovery
        return changed(self.config, cls, self.classes.get(host.spec.name), changes)

    async def _run(self, recovery: Recovery) -> None:
        host = self.node.hosts.get(recovery.agent)
        size = host.fold.state.size_bytes if host is not None else 0
        recovery.observer = Observer(self.watchers, recovery.migration, recovery.agent, size)
        try:
            await recovery.run()
        finally:
            if self.open.get(recovery.agent) is recovery:
                del self.open[recovery.agent]
        report = recovery.done.result()
        recovery.observer.ended(report)
        self.reports[report.migration] = report
        while len(self.reports) > REPORTS_MAX:
            del self.reports[next(iter(self.reports))]
        if not report.ok:
            logger.warning(
                "migration %s of agent %s %s: %s", report.migration, report.agent, report.outcome, report.reason
            )

    def abort(self, agent: str) -> str:
        """Cancels; the migration's id.  Raises `NoSuchMigration`, `TooLateToCancel`."""
        found = self.open.get(agent)
        if found is None:
            raise NoSuchMigration(f"No migration of agent {agent!r} is open on {self.node.name}.", agent=agent)
        found.abort()
        return found.migration

    def told(self, migration: str) -> control.Progress | None:
        """What this node knows of a migration as its source."""
        report = self.reports.get(migration)
        if report is not None:
            return control.ended(report)
        return next((found.progress() for found in self.open.values() if found.migration == migration), None)

    def decided(self, kind: MigrationErrorType, strategy: RecoveryStrategy) -> None:
        self.failures[kind.value] += 1
        self.decisions[strategy.value] += 1

    # ---- an attempt ------------------------------------------------------------------------------------------

    def begin_move(self, host: Host, attempt: str, target: str) -> Move:
        move = self.moves[host.fold.agent] = Move(self.node, host, attempt, target)
        return move

    async def run_move(self, move: Move) -> MigrationReport:
        """Runs an attempt to its end; what became of it is always what the agent's log says."""
        agent, node = move.host.fold.agent, self.node
        try:
            await move.run()
        except Exception as error:
            # A log that cannot be read on, or a bug: this copy may not go on, and the log says who does.
            if isinstance(error, (RetryError, LogGap)):
                logger.warning("migration %s of agent %s left %s: %s", move.migration, agent, node.name, error)
            else:
                logger.exception("migration %s of agent %s failed on %s", move.migration, agent, node.name)
            node.drop(move.host)
            node.look(agent)
            move.fail(error, await self._outcome(agent, move))
        finally:
            move.close()
            if self.moves.get(agent) is move:
                del self.moves[agent]
        return move.done.result()

    async def _outcome(self, agent: str, move: Move) -> str:
        """What became of an attempt, from the agent's log; waits until it is decided (rule 7)."""
        delay = RETRY_S_MIN
        while True:
            try:
                fold = await load(self.node.home.log, agent)
                outcome = outcome_of(fold, move.migration, move.epoch)
                if outcome is not None:
                    return outcome
                self.node.look(agent)
            except (RetryError, LogGap) as error:
                logger.info("migration %s: its outcome is read again: %s", move.migration, error)
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_S_MAX)

    async def owner(self, agent: str) -> str:
        """The node that the log names now; waits for the store.  "" if there is none any more."""
        delay = RETRY_S_MIN
        while True:
            try:
                last = await self.node.home.log.last(log_subject(agent))
                return named_owner(await record_of(self.node.home.log, agent, last)) if last is not None else ""
            except RetryError:
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_S_MAX)

    # ---- settling --------------------------------------------------------------------------------------------

    def settle_soon(self, agent: str, within_s: float) -> None:
        """The agent came here: whoever moved it writes the end of its migration, and if that one is gone, this node does."""
        self._unsettled[agent] = self.node.clock() + within_s

    async def settle_due(self) -> None:
        """Called in every round of reconciling."""
        now = self.node.clock()
        for agent in [agent for agent, due in self._unsettled.items() if due <= now]:
            try:
                await self.settle(agent)
            except RetryError as error:
                logger.info("migrations of agent %s are settled later: %s", agent, error)
            else:
                self._unsettled.pop(agent, None)

    async def settle(self, agent: str) -> None:
        """Ends what is open in the journals of an agent that this node owns, as its log tells.  Twice is as once."""
        host = self.node.hosts.get(agent)
        if host is None:
            return
        log = self.node.home.log
        for _, migration in await journal.listed(log, agent):
            mine = self.open.get(agent)
            if mine is not None and mine.migration == migration:
                continue
            try:
                found = await journal.read(log, agent, migration)
                if found.is_open:
                    await self._settle_one(found, host.fold)
            except JournalTaken:
                continue
            except (RecordInvalid, NoSuchMigration) as error:
                logger.error("migration %s of agent %s is parked as it is: %s", migration, agent, error)

    async def _settle_one(self, found: Journal, fold: Fold) -> None:
        outcome, target = journal_outcome(found, fold)
        if outcome is None:
            return
        planned = found.planned
        assert planned is not None
        reason = "" if outcome == "completed" else f"{planned.node} was lost before it ended; the agent's log says so"
        code = "" if outcome == "completed" else "SourceLost"
        scribe = Scribe(self.node.home, planned.agent, found.migration, found)
        await scribe.write(lambda head: Ended(**head, outcome=outcome, target=target, code=code, reason=reason))
        logger.warning("migration %s of agent %s was settled: %s", found.migration, planned.agent, outcome)

    async def told_by_journal(self, agent: str, migration: str) -> tuple[str, str]:
        """Outcome and reason of a migration that another process has ended; rolled back if it is only gone on with."""
        delay = RETRY_S_MIN
        while True:
            try:
                found = await journal.read(self.node.home.log, agent, migration)
                if found.end is not None:
                    return found.end.outcome, found.end.reason
                return "rolled_back", "another process goes on with it"
            except RetryError:
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_S_MAX)
            except CellError as error:
                return "rolled_back", str(error)


def outcome_of(fold: Fold, attempt: str, epoch: int) -> str | None:
    """What the agent's log says of an attempt that was begun in `epoch`; None while it is open (rule 7)."""
    outcome = fold.outcomes.get(attempt)
    if outcome is not None:
        return outcome
    if fold.migration != attempt and (fold.epoch > epoch or fold.phase is Phase.TERMINATED):
        return "rolled_back"
    return None


def journal_outcome(found: Journal, fold: Fold) -> tuple[str | None, str]:
    """What became of an open journal's migration, now that `fold`'s owner is another than its coordinator; and the target."""
    assert found.planned is not None
    target = found.planned.target
    for attempt in found.attempts:
        if fold.outcomes.get(attempt.id) == "completed":
            return "completed", attempt.target
        target = attempt.target
        if fold.migration == attempt.id:
            return None, target
    return "rolled_back", target
