"""The migrations of one node: those that leave it, those that it continues for lost sources, and reports of ended ones."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from mielin_cells import tracing
from mielin_cells.agents.agent import Agent
from mielin_cells.agents.reports import MigrationReport
from mielin_cells.errors import (
    AlreadyThere,
    CellError,
    Fenced,
    MigrationInProgress,
    NoSuchMigration,
    RetryError,
    described,
)
from mielin_cells.log.lifecycle import Phase
from mielin_cells.migration.breaker import BreakerConfig, Targets
from mielin_cells.migration.case import Case
from mielin_cells.migration.manager import MigrationRecoveryManager
from mielin_cells.migration.recovery import RecoveryConfig, of_class
from mielin_cells.node.moves.agenda import Agenda
from mielin_cells.node.moves.attempts import Attempts
from mielin_cells.node.moves.bounds.lent import LentPlaces
from mielin_cells.node.moves.bounds.pauses import Pauses
from mielin_cells.node.moves.observe import Observer, Watchers
from mielin_cells.node.moves.recovery import Recovery
from mielin_cells.node.moves.settling import Settling
from mielin_cells.node.moves.targets import check_named, choose_first
from mielin_cells.rpc import answers, requests

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation, Activations

logger = logging.getLogger("mielin_cells.migration")

GIVE_UP_S = 2.0
"""How long a migration may take to stop before its agent is ended."""

SHOWN_MAX = 8
"""Open moves that a node names when it is asked how it is."""

REPORTS_MAX = 256
"""Reports of ended migrations that a node still answers with, when a client asks again."""


class Migrations:
    def __init__(
        self, activations: Activations, config: RecoveryConfig, classes: dict[str, dict[str, Any]], has_leader: bool = False
    ) -> None:  # fmt: skip
        """`has_leader`: some node of the deployment leads."""
        config.validate()
        self.activations = activations
        self.config = config
        self.classes = classes
        """Changes to the recovery configuration, by agent class."""
        self.manager = MigrationRecoveryManager(
            config, targets=Targets(BreakerConfig.of(config)), attempt_timeout_secs=math.inf
        )
        """Decides about failures and keeps the times of recoveries; a move has deadlines for its phases."""
        self.watchers = Watchers(activations, self.manager.validator)
        self.attempts = Attempts(activations, self.manager.validator, LentPlaces(activations, has_leader))
        self.open: dict[str, Recovery] = {}
        self.reports: dict[str, MigrationReport] = {}
        self.pauses = Pauses(activations)
        self.ended = Counter[str]()
        """By outcome, since the process began."""
        self._agenda = Agenda(activations, self.manager, self.open)
        self.settling = Settling(self._agenda, self.attempts, self.open, self._taken_over)

    def close(self) -> None:
        self._agenda.close()
        self.attempts.close()

    def in_words(self) -> list[str]:
        """Some of the open ones, for people."""
        return [
            f"{agent} to {recovery.target or 'any node'}, {recovery.progress().phase.lower()}"
            for agent, recovery in list(self.open.items())[:SHOWN_MAX]
        ]

    # ---- asked for -------------------------------------------------------------------------------------------

    async def start(self, request: requests.Migrate) -> answers.Progress:
        """Begins the migration, or returns its progress if it is open.  Raises if it cannot begin; then nothing has begun."""
        report = self.reports.get(request.migration)
        if report is None:
            recovery = self._running(request) or await self._begun(request)
            if recovery is None:
                return answers.Progress.of(self.reports[request.migration])
            await asyncio.wait((recovery.done,), timeout=request.wait)
            if not recovery.done.done():
                return recovery.progress()
            report = recovery.done.result()
        if report is None:
            raise Fenced(
                f"Node {self.activations.name} does not run migration {request.migration} of agent {request.agent!r} any more; its "
                "owner continues it.", agent=request.agent, migration=request.migration,
            )  # fmt: skip
        return answers.Progress.of(report)

    async def to_its_end(self, request: requests.Migrate, *, heeds_pause: bool = True) -> MigrationReport | None:
        """As `start`, but waits for the end; None if another process continues the migration.

        `heeds_pause` False: it is begun although it may pause the agent for longer than its policy allows.
        """
        recovery = self._running(request) or await self._begun(request, heeds_pause)
        if recovery is None:
            return self.reports[request.migration]
        await asyncio.wait((recovery.done,))
        return recovery.done.result()

    def _running(self, request: requests.Migrate) -> Recovery | None:
        """The agent's open migration.  Raises `MigrationInProgress` if that is another."""
        recovery = self.open.get(request.agent)
        if recovery is not None and recovery.migration != request.migration:
            raise MigrationInProgress(
                f"Agent {request.agent!r} is being moved by {recovery.migration}.", agent=request.agent,
                migration=recovery.migration,
            )  # fmt: skip
        return recovery

    async def _begun(self, request: requests.Migrate, heeds_pause: bool = True) -> Recovery | None:
        """Begins the migration.  None if it was open, had lost its source, and has just been ended here."""
        agent, activations = request.agent, self.activations
        if activations.owns(agent):
            with (await activations.awake(agent)).kept():
                return await self._begun_awake(request, heeds_pause)
        return await self._begun_awake(request, heeds_pause)

    async def _begun_awake(self, request: requests.Migrate, heeds_pause: bool) -> Recovery | None:
        agent, activations = request.agent, self.activations
        await self.settling.one_due(agent)  # one that was claimed may have an open migration, which goes on first
        if request.migration in self.reports:
            return None
        recovery = self._running(request)
        if recovery is not None:
            return recovery
        activation, target = self._planned_for(request), request.to
        if heeds_pause and (limit_ms := activation.fold.policy.pause_ms) is not None:
            await self.pauses.check(agent, limit_ms)
            recovery, activation = self._running(request), self._planned_for(request)
            if recovery is not None:
                return recovery
        if target == activations.name:
            raise AlreadyThere(f"Agent {agent!r} is on {activations.name} already.", agent=agent, node=activations.name)
        if not target:
            target = await choose_first(activations, activation, self.unfit())
        else:
            await check_named(activations, activation, target)
        recovery, activation = (
            self._running(request),
            self._planned_for(request),
        )  # things change while the store is asked
        if recovery is not None:
            return recovery
        unfinished = self.settling.unfinished.get(agent)
        if unfinished:
            if request.migration in unfinished:
                raise Fenced(
                    f"Migration {request.migration} of agent {agent!r} stopped on this node without an end; its end is written "
                    "first. Try again.",
                    agent=agent, migration=request.migration,
                )  # fmt: skip
            raise MigrationInProgress(
                f"Agent {agent!r} was moved by {', '.join(unfinished)}, which stopped without an end and gets one first. Try again.",
                agent=agent, migration=", ".join(unfinished),
            )  # fmt: skip
        case = Case(agent, request.migration, activations.name, self.config_of(activation.spec.cls, request.recovery))
        recovery = self.open[agent] = Recovery(self._agenda, self.attempts, request, case, target)
        self.manager.open(recovery.case, self.activations.clock())
        activations.home.begin(self._run(recovery, is_new=True))
        if tracing.is_on:
            self._begin_span(request, recovery)
        return recovery

    def _begin_span(self, request: requests.Migrate, recovery: Recovery) -> None:
        """Of a move, with all its attempts, as long as this node goes on with it."""
        home, agent = self.activations.home, request.agent
        span = tracing.begin("move", agent, tracing.read(request.trace), home.rng, agent=agent, node=home.name)
        if span is not None:
            span.attributes["migration"], ended = request.migration, span.end

            def end(done: asyncio.Future[MigrationReport | None]) -> None:
                report = done.result() if not done.cancelled() and done.exception() is None else None
                ended("" if report is not None and report.outcome == "completed" else "did not complete")

            recovery.done.add_done_callback(end)

    def _planned_for(self, request: requests.Migrate) -> Activation:
        """The agent's activation, in the epoch that the migration was planned in.  Raises `NoSuchAgent`, `Fenced`."""
        activation = self.activations.running(request.agent)
        if activation.fold.epoch != request.epoch or activation.fold.phase is not Phase.RUN:
            raise Fenced(
                f"Agent {request.agent!r} has changed its owner since {request.migration} was planned; plan it again.",
                agent=request.agent, epoch=activation.fold.epoch,
            )  # fmt: skip
        return activation

    def unfit(self) -> frozenset[str]:
        """Nodes to which no agent is moved now."""
        targets = self.manager.targets
        return targets.unfit(self.activations.clock()) if targets is not None else frozenset()

    def config_of(self, cls: type[Agent], changes: dict[str, Any] | None = None) -> RecoveryConfig:
        """The recovery configuration for moves of the class's agents.  Raises `ConfigError` naming the invalid setting."""
        return of_class(cls, self.config, self.classes.get(cls.__mielin_name__), changes)

    async def _run(self, recovery: Recovery, is_new: bool) -> None:
        """Runs the recovery to its end, or until another process has to continue it from the journal."""
        self._observe(recovery, is_new)
        try:
            await recovery.run()
        except RetryError as error:
            logger.warning("migration %s stopped, and is continued later: %s", recovery.migration, error)
        except Exception as error:
            # A bug.  The agent's log says what became of the attempt, and settling, which reads it, writes the end.
            logger.exception("migration %s of agent %s stopped because of a bug", recovery.migration, recovery.agent)
            self.settling.broken[recovery.migration] = described(error)
        finally:
            if self.open.get(recovery.agent) is recovery:
                del self.open[recovery.agent]
        self._ended(recovery)

    def _taken_over(self, recovery: Recovery, goes_on: bool) -> None:
        """Notes that a migration of another process was ended here, or continues here."""
        logger.warning(
            "migration %s of agent %s, whose source was lost, %s", recovery.migration, recovery.agent,
            "continues on this node" if goes_on else "was settled",
        )  # fmt: skip
        if goes_on:
            self.activations.home.begin(self._run(recovery, is_new=False))
        else:
            self._observe(recovery, is_new=False)
            self._ended(recovery)

    def _observe(self, recovery: Recovery, is_new: bool) -> None:
        activation = self.activations.live.get(recovery.agent)
        size = activation.fold.size_bytes if activation is not None else 0
        recovery.observer = Observer(self.watchers, recovery.migration, recovery.agent, size, is_new=is_new)

    def _ended(self, recovery: Recovery) -> None:
        report, validator = recovery.done.result(), self.manager.validator
        validator.cleanup_expired(now=self.activations.clock())
        if report is None:
            if validator.rollback_info(recovery.migration) is not None:
                why = "the agent's owner goes on with the migration"
                validator.fail_rollback(recovery.migration, why, now=self.activations.clock(), is_final=True)
            self.settling.unfinished.setdefault(recovery.agent, set()).add(recovery.migration)
            self.settling.soon(recovery.agent, 0.0)  # a look, in case it is still, or again, this node's
            return
        if recovery.observer is not None:
            recovery.observer.ended(report)
        self.reports[report.migration] = report
        self.ended[report.outcome] += 1
        if report.ok:
            self.pauses.note(report.agent, report.pause_ms)
        while len(self.reports) > REPORTS_MAX:
            del self.reports[next(iter(self.reports))]
        if not report.ok:
            logger.warning(
                "migration %s of agent %s %s: %s", report.migration, report.agent, report.outcome, report.reason
            )

    async def abort(self, agent: str, migration: str = "") -> str:
        """Cancels the agent's migration, or only this one, and returns its id.  Raises `NoSuchMigration`, `TooLateToCancel`."""
        await self.settling.one_due(agent)
        recovery = self.open.get(agent)
        if recovery is None or (migration and recovery.migration != migration):
            raise NoSuchMigration(f"No migration of agent {agent!r} is open on {self.activations.name}.", agent=agent)
        await recovery.abort()
        return recovery.migration

    async def give_up(self, agent: str) -> None:
        """Ends the agent's open migrations before the agent itself ends, since no later owner will.

        Best effort: a migration that does not stop in time learns from the log that the agent has ended.
        """
        recovery = self.open.get(agent)
        with contextlib.suppress(CellError):
            if recovery is not None:
                await recovery.abort("AgentTerminated", f"agent {agent!r} was terminated while it was moved")
                await asyncio.wait((recovery.done,), timeout=GIVE_UP_S)
            if self.settling.may_have_open(agent):
                await self.settling.settle(agent)

    # ---- settling --------------------------------------------------------------------------------------------

    def settle_soon(self, agent: str, within_s: float) -> None:
        """Notes that the agent came here: if the node that moved it is gone, this node ends its migration or continues it."""
        self.settling.soon(agent, within_s)

    async def settle_due(self) -> None:
        """Called in every round of reconciling."""
        await self.settling.all_due()
