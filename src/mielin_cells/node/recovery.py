"""One migration from its plan to its end, on its source: attempts, failures, decisions, and the journal of all that.

The manager decides (`migration.manager`), `Move` performs.  What is decided is written before it is acted on; what became of an
attempt is what the agent's log says.  A client that dies changes nothing here; if this process dies, whoever owns the agent
next ends the migration (`Migrations.settle`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from mielin_cells.core.cluster import MigrationReport
from mielin_cells.core.records import Suspended
from mielin_cells.errors import CellError, InternalError, TooLateToCancel, described
from mielin_cells.migration.failure import Coded, MigrationError, MigrationErrorType, classify, is_settled
from mielin_cells.migration.journal import Attempted, Decided, Ended, Failed, Planned, Reached
from mielin_cells.migration.manager import MigrationRecoveryManager
from mielin_cells.migration.recovery import RecoveryConfig, RecoveryStrategy
from mielin_cells.node import control, selector
from mielin_cells.node.journal import JournalTaken, Scribe

if TYPE_CHECKING:
    from mielin_cells.node.host import Host
    from mielin_cells.node.migrations import Migrations
    from mielin_cells.node.observe import Observer
    from mielin_cells.node.source import Move

logger = logging.getLogger("mielin_cells.migration")

ATTEMPTS_PER_TARGET = 3
"""Of one migration: a target that has failed so often gets no more of it."""

FOREVER_S = 1e6

LOOK_S = 0.05
"""How often this node looks whether it hosts the agent again, after an attempt that had to read the log."""


def attempt_id(migration: str, number: int) -> str:
    """What the agent's log calls an attempt (rule 7: each has an id of its own)."""
    return f"{migration}.{number}"


class Recovery:
    """One open migration.  `done` gives its report, once the journal has its end."""

    def __init__(self, of: Migrations, request: control.Migrate, target: str, config: RecoveryConfig) -> None:
        self._of = of
        self._node = of.node
        self.agent = request.agent
        self.migration = request.migration
        self._request = request
        self._manager = MigrationRecoveryManager(config)
        self._scribe = Scribe(of.node.home, request.agent, request.migration)
        self.done: asyncio.Future[MigrationReport] = asyncio.get_running_loop().create_future()
        self.observer: Observer | None = None
        self.move: Move | None = None
        self._target = target
        """The node of the next attempt; "": to be chosen."""
        self._avoided: set[str] = set()
        """Nodes that have failed this migration in a way that calls for another."""
        self._tried: Counter[str] = Counter()
        """Attempts by target."""
        self._attempts = 0
        self._failures: list[MigrationError] = []
        self._decisions: list[str] = []
        self._last = MigrationReport(
            migration=request.migration, agent=request.agent, source=of.node.name, target=target,
            outcome="rolled_back", attempts=0,
        )  # fmt: skip
        self._has_place = False
        """The attempt counts towards those that its target has at a time."""
        self._restored: dict[str, str] = {}
        self._copy: Move | None = None
        """The last attempt, while its target may hold a copy that a retry there can go on from."""
        self._cancelled = asyncio.Event()
        self._due = 0.0

    # ---- steering --------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Cancels an attempt before its handover, or what was to follow.  Raises `TooLateToCancel`."""
        if self.move is not None:
            self.move.abort()
        elif self._scribe.journal.end is not None:
            raise TooLateToCancel(
                f"Migration {self.migration} of agent {self.agent!r} has ended.", agent=self.agent,
                migration=self.migration,
            )  # fmt: skip
        self._cancelled.set()

    def progress(self) -> control.Progress:
        if self.done.done():
            return control.ended(self.done.result())
        failures = [f"{error.error_type.value}: {error.message}" for error in self._failures]
        if self.move is not None:
            return self.move.progress(self._attempts, failures)
        return control.Progress(
            "PLANNED", attempts=self._attempts, target=self._target, failures=failures,
            next_s=max(0.0, self._due - self._node.clock()),
        )  # fmt: skip

    # ---- the way ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """To the end.  Whatever fails is classified, decided on, and written down."""
        request = self._request
        config = {name: float(value) for name, value in asdict(self._manager.config).items()}
        try:
            await self._scribe.write(
                lambda head: Planned(
                    **head, source=self._node.name, target=request.to, epoch=request.epoch, config=config,
                    parent=request.parent,
                )
            )  # fmt: skip
            await self._until_its_end()
        except JournalTaken:
            await self._ended_elsewhere()
        except Exception as error:
            logger.exception("migration %s of agent %s stopped", self.migration, self.agent)
            self._close("rolled_back", InternalError.__name__, described(error))

    async def _until_its_end(self) -> None:
        strategy = ""
        while True:
            if self._host is None and not await self._is_back():
                return await self._end("rolled_back", "Fenced", "another node owns the agent")
            target = self._target if self._may_try(self._target) else await self._chosen()
            host = self._host
            if host is None:
                continue  # lost while the others were asked
            if self._failures:
                now = max(self._due, self._node.clock())
                if not self._manager.execute_recovery(self.agent, now=now, target_node=target or None).is_retry:
                    return await self._end("rolled_back", "Timeout", f"no time is left; last: {self._last.reason}")
            failure = ("TargetUnreachable", f"no node can take agent {self.agent!r} now")
            if target:
                report = await self._attempt(host, target, strategy)
                if report.ok:
                    self._result(target, None)
                    return await self._end("completed")
                if is_settled(report.code) or self._is_refused_outright(report):
                    if self._has_place:
                        self._of.targets.release(target)
                    return await self._end("rolled_back")
                failure = (report.code, report.reason)
            decision = await self._decided(target, *failure)
            if decision is RecoveryStrategy.ROLLBACK:
                return await self._end("rolled_back")
            if decision is RecoveryStrategy.GIVE_UP:
                await self._park()
                return await self._end("gave_up")
            if await self._is_cancelled_before_due():
                return await self._end("rolled_back", "Cancelled", "cancelled")
            strategy = decision.value

    @property
    def _host(self) -> Host | None:
        return self._node.hosts.get(self.agent)

    def _is_refused_outright(self, report: MigrationReport) -> bool:
        """The node that was named said no before anything began: who named it decides what to do."""
        return bool(self._request.to) and self._attempts == 1 and report.code == "MigrationRefused"

    async def _is_back(self) -> bool:
        """After an attempt that had to read the log: True once this node hosts the agent again, False if another owns it."""
        settings = self._node.settings
        deadline = self._node.clock() + settings.reconcile_s + settings.probation_s
        while self._host is None and self._node.clock() < deadline:
            if await self._of.owner(self.agent) != self._node.name:
                return False
            self._node.look(self.agent)
            await asyncio.sleep(LOOK_S)
        return self._host is not None

    def _may_try(self, target: str) -> bool:
        """False for a target that rests after failures of any migration, or has had its share of this one's attempts."""
        if not target or self._tried[target] >= ATTEMPTS_PER_TARGET:
            return False
        return self._attempts == 0 or self._of.targets.admits(target, self._node.clock())

    async def _chosen(self) -> str:
        """A node that is neither the source, nor has failed this migration, nor rests; "" if there is none now."""
        host, now = self._host, self._node.clock()
        if host is None:
            return ""
        try:
            nodes = await selector.alive(self._node.home.log, self._node.home.wire)
        except CellError as error:
            logger.warning("migration %s: who is alive is not known: %s", self.migration, error)
            return ""
        spent = {name for name, count in self._tried.items() if count >= ATTEMPTS_PER_TARGET}
        but = {self._node.name, *self._avoided, *spent, *self._of.targets.unfit(now)}
        return selector.choose(nodes, host.fold.cls, but) or ""

    def _left(self) -> float:
        """Seconds that recovery still has: without end before the first failure."""
        if not self._failures:
            return FOREVER_S
        return max(0.0, self._failures[0].timestamp + self._manager.config.recovery_timeout_secs - self._node.clock())

    def _run_out(self, move: Move) -> None:
        with contextlib.suppress(TooLateToCancel):  # then its own deadlines end it
            move.abort()

    # ---- one attempt -----------------------------------------------------------------------------------------

    async def _attempt(self, host: Host, target: str, strategy: str) -> MigrationReport:
        """A move, told to the journal: its beginning before it, its phases behind it."""
        self._attempts += 1
        self._tried[target] += 1
        number, name = self._attempts, attempt_id(self.migration, self._attempts)
        await self._scribe.write(
            lambda head: Attempted(
                **head, number=number, id=name, target=target, strategy=strategy, epoch=host.fold.epoch
            )
        )
        if self._copy is not None and self._copy.target != target:
            await self._copy.release()
        self._has_place = self._of.targets.begin(target, self._node.clock())
        move = self.move = self._of.begin_move(host, name, target)
        move.observer = self.observer
        timer = asyncio.get_running_loop().call_later(self._left(), self._run_out, move)
        try:
            report = await self._of.run_move(move)
        finally:
            timer.cancel()
            self.move = None
        if report.code == "Cancelled" and not self._cancelled.is_set():
            report = replace(report, code="Timeout", reason="the time for all attempts has run out")
        self._copy = move if move.target_has_copy else None
        self._restored = move.restored
        self._last = report
        self._scribe.later(
            lambda head: Reached(
                **head, number=number, phases=list(report.phases), rounds=report.rounds, bytes=report.bytes,
                pause_ms=report.pause_ms,
            )
        )  # fmt: skip
        return report

    def _result(self, target: str, kind: MigrationErrorType | None) -> None:
        """What an attempt says of its target; None: it is fine."""
        now = self._node.clock()
        if self._has_place:
            self._of.targets.end(target, now, kind)
        elif kind is None:
            self._of.targets.succeeded(target)
        else:
            self._of.targets.failed(target, now, kind)

    # ---- decisions -------------------------------------------------------------------------------------------

    async def _decided(self, target: str, code: str, message: str) -> RecoveryStrategy:
        """Classifies the failure and decides; both are written before anything is done about it."""
        now, rng, kind = self._node.clock(), self._node.home.rng, classify(Coded(code, message))
        error = MigrationError.new(kind, message, self.agent, target or None, now=now)
        first = not self._failures
        self._failures.append(error)
        await self._scribe.write(
            lambda head: Failed(
                **head, number=self._attempts, target=target, kind=kind.value, code=code, message=message
            )
        )
        if first or not self._manager.is_running(self.agent):
            self._manager.record_failure(error, now=now, jitter=rng.random)
        else:
            self._manager.mark_recovery_failure(self.agent, error, now=now, jitter=rng.random)
        if target:
            self._result(target, kind)
        rule = self._manager.decide(self.agent, now=now)
        self._due = self._manager.next_retry_time(self.agent) or now
        delay = max(0.0, self._due - now) if rule.strategy.is_retry else 0.0
        await self._scribe.write(
            lambda head: Decided(
                **head, number=self._attempts, strategy=rule.strategy.value, rule=rule.why, delay_s=delay
            )
        )
        self._decisions.append(rule.strategy.value)
        self._of.decided(kind, rule.strategy)
        if rule.strategy is RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET:
            if target:
                self._avoided.add(target)
            self._target = ""
        elif rule.strategy is RecoveryStrategy.RETRY_ON_SAME_TARGET:
            self._target = target
        return rule.strategy

    async def _is_cancelled_before_due(self) -> bool:
        try:
            async with asyncio.timeout(max(0.0, self._due - self._node.clock())):
                await self._cancelled.wait()
        except TimeoutError:
            pass
        return self._cancelled.is_set()

    async def _park(self) -> None:
        """Nobody runs the agent until an operator says how to go on; it stays claimable, and its messages wait."""
        host = self._host
        if host is None or not host.fold.may_run:
            return
        reason = f"migration {self.migration} gave up: {self._last.reason}; `mielin recover {self.migration}`"
        await host.intake.stop(self._node.settings.turn_deadline_s)
        try:
            await host.flush()
            await host.append(lambda head: Suspended(**head, reason=reason))
        finally:
            host.resume_intake()

    # ---- the end ---------------------------------------------------------------------------------------------

    async def _end(self, outcome: str, code: str = "", reason: str = "") -> None:
        """Writes the end, then tells it."""
        if self._copy is not None:
            self._node.home.begin(self._copy.release())
        last = self._last
        code, reason = code or last.code, reason or last.reason
        await self._scribe.write(
            lambda head: Ended(
                **head, outcome=outcome, target=last.target, code=code, reason=reason,
                restored=self._restored if outcome == "rolled_back" else {},
            )
        )  # fmt: skip
        self._close(outcome, code, reason)

    async def _ended_elsewhere(self) -> None:
        """Another process was given the agent, and has ended the migration by the agent's log."""
        outcome, reason = await self._of.told_by_journal(self.agent, self.migration)
        self._close(outcome, "" if outcome == "completed" else "Fenced", reason)

    def _close(self, outcome: str, code: str, reason: str) -> None:
        if self.done.done():
            return
        failures = tuple(f"{error.error_type.value}: {error.message}" for error in self._failures)
        self.done.set_result(
            replace(
                self._last, migration=self.migration, outcome=outcome, code=code, reason=reason, failures=failures,
                decisions=tuple(self._decisions),
                attempts=self._attempts, restored=self._restored if outcome == "rolled_back" else {},
            )
        )  # fmt: skip
