"""One migration from its plan to its end, on its source: attempts, failures, decisions, and the journal of all that.

The manager decides (`migration.manager`), `Move` performs.  What is decided is written before it is acted on; what became of an
attempt is what the agent's log says.  A client that dies changes nothing here.  If this process dies, or loses the agent, whoever
owns it next goes on from the journal (`take_over`, asked by `settling`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from mielin_cells.agents.reports import MigrationReport
from mielin_cells.errors import AskTimeout, CellError, Fenced, RecordInvalid, TooLateToCancel, never
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import Returned, Suspended
from mielin_cells.membership import selection
from mielin_cells.migration.case import Rule
from mielin_cells.migration.failure import (
    Coded,
    Happened,
    MigrationError,
    MigrationErrorType,
    SentBack,
    classify,
    is_settled,
)
from mielin_cells.migration.journal import (
    Attempted,
    Cancelled,
    Decided,
    Ended,
    Failed,
    Journal,
    Planned,
    Reached,
    attempt_id,
)
from mielin_cells.migration.manager import MigrationRecoveryManager
from mielin_cells.migration.recovery import RecoveryConfig, RecoveryStrategy, last_resort
from mielin_cells.migration.standing import LOSSES_MAX, SOURCE_LOST, Standing, Verdict, restored
from mielin_cells.node.activation.writer import Declined
from mielin_cells.node.moves.journal import JournalTaken, Scribe
from mielin_cells.rpc import answers, requests
from mielin_cells.store.reader import record_of

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Host
    from mielin_cells.node.moves.manager import Migrations
    from mielin_cells.node.moves.observe import Observer
    from mielin_cells.node.moves.source import Move

logger = logging.getLogger("mielin_cells.migration")

ATTEMPTS_PER_TARGET = 3
"""Of one migration: a target that has failed so often gets no more of it."""

FOREVER_S = 1e6

LOOK_S = 0.05
"""How often this node looks whether it hosts the agent again, after an attempt that had to read the log."""


class _Stands(Declined):
    """The agent does not run already."""


class Recovery:
    """One open migration.  `done` gives its report, once the journal has its end; None if that is for another to write."""

    def __init__(self, of: Migrations, request: requests.Migrate, target: str, config: RecoveryConfig) -> None:
        self._of = of
        self._activations = of.activations
        self.agent = request.agent
        self.migration = request.migration
        self._request = request
        self._manager = MigrationRecoveryManager(config)
        self._scribe = Scribe(of.activations.home, request.agent, request.migration)
        self.done: asyncio.Future[MigrationReport | None] = asyncio.get_running_loop().create_future()
        self.observer: Observer | None = None
        self.move: Move | None = None
        self._target = target
        """The node of the next attempt; "": to be chosen."""
        self._happened: Happened = Coded("")
        """How the last attempt ended."""
        self._tried: Counter[str] = Counter()
        """Attempts by target."""
        self._attempts = 0
        self._failures: list[MigrationError] = []
        self._decisions: list[str] = []
        self._last = MigrationReport(
            migration=request.migration, agent=request.agent, source=of.activations.name, target=target,
            outcome="rolled_back", attempts=0,
        )  # fmt: skip
        self._has_place = False
        """The attempt counts towards those that its target has at a time."""
        self._restored: dict[str, str] = {}
        self._copy: Move | None = None
        """The last attempt, while its target may hold a copy that a retry there can go on from."""
        self._cancelled = asyncio.Event()
        self._why = "Cancelled", "cancelled"
        """Code and reason of a cancelled one's report."""
        self._due = 0.0
        self._decision: RecoveryStrategy | None = None
        """What was decided last, and is not done yet."""
        self._losses = 0

    @classmethod
    def taken(cls, of: Migrations, found: Journal, stands: Standing, config: RecoveryConfig) -> Recovery:
        """An open migration that another process began, as its journal tells.  `take_over`, then `run`."""
        planned = found.planned
        if planned is None:
            raise never("planned is not None does not hold")
        request = requests.Migrate(
            planned.agent, found.migration, planned.epoch, planned.target, 0.0, parent=planned.parent
        )
        recovery = cls(of, request, stands.last.target if stands.last is not None else planned.target, config)
        recovery._scribe = Scribe(of.activations.home, planned.agent, found.migration, found)
        recovery._attempts, recovery._losses = stands.attempts, stands.losses
        recovery._tried.update(stands.tried)
        recovery._failures = stands.errors(of.activations.home.wall(), of.activations.clock())
        recovery._decisions = [strategy.value for strategy in stands.decisions]
        recovery._last = replace(recovery._last, code=SOURCE_LOST, reason=f"{stands.coordinator} was lost")
        return recovery

    # ---- steering --------------------------------------------------------------------------------------------

    async def abort(self, code: str = "Cancelled", why: str = "cancelled") -> None:
        """Cancels an attempt before its handover, or what was to follow; whoever owns the agent next knows of it, too.

        Raises `TooLateToCancel`, and `JournalTaken` if another process goes on with the migration.
        """
        if self.move is not None:
            self.move.abort()
        self._why = code, why
        self._cancelled.set()
        try:
            await self._scribe.write(lambda head: Cancelled(**head))
        except RecordInvalid as error:
            if self._scribe.journal.end is None:
                raise
            if self._scribe.journal.end.code != code:
                raise TooLateToCancel(
                    f"Migration {self.migration} of agent {self.agent!r} has ended.", agent=self.agent,
                    migration=self.migration,
                ) from error  # fmt: skip

    def progress(self) -> answers.Progress:
        failures = [f"{error.error_type.value}: {error.message}" for error in self._failures]
        if self.move is not None:
            return self.move.progress(self._attempts, failures)
        return answers.Progress(
            "PLANNED", attempts=self._attempts, target=self._target, failures=failures,
            next_s=max(0.0, self._due - self._activations.clock()),
        )  # fmt: skip

    # ---- the way ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """To the end.  Whatever fails is classified, decided on, and written down.

        Leaves the migration open, without a report, for whoever owns the agent next, and for this node's own settling if this
        raises: what became of it is then told by the agent's log.
        """
        try:
            if self._scribe.journal.planned is None and not await self._is_planned():
                return
            await self._until_its_end()
        except JournalTaken:
            await self._ended_elsewhere()
        except Fenced:
            logger.warning(
                "agent %s has another owner now, and its migration %s is left to that one", self.agent, self.migration
            )
        finally:
            self._close(None)

    async def _is_planned(self) -> bool:
        """Writes the plan; False if the agent had another owner by then: it has ended, and nothing was begun.

        Asked after the plan is there: whoever finds no journal, and the agent in a later epoch, may be sure that nothing will move it.
        """
        request = self._request
        config = {name: float(value) for name, value in asdict(self._manager.config).items()}
        await self._scribe.write(
            lambda head: Planned(
                **head, source=self._activations.name, target=request.to, epoch=request.epoch, config=config,
                parent=request.parent,
            )
        )  # fmt: skip
        if await self._of.owns(self.agent, request.epoch):
            return True
        await self._end(Verdict("rolled_back", "Fenced", "another node owned the agent when it was to begin"))
        return False

    async def _until_its_end(self) -> None:
        strategy = ""
        while True:
            if self._decision is not None:
                strategy = self._decision.value
                if not await self._goes_on(self._decision):
                    return None
            if self._host is None and not await self._is_back():
                return await self._without_agent()
            target = self._target if self._may_try(self._target) else await self._chosen()
            host = self._host
            if host is None:
                continue  # lost while the others were asked
            if self._cancelled.is_set():
                return await self._end(Verdict("rolled_back", *self._why))
            if self._failures:
                now = max(self._due, self._activations.clock())
                if not self._manager.execute_recovery(self.agent, now=now, target_node=target or None).is_retry:
                    why = f"no time is left; last: {self._last.reason}"
                    return await self._end(Verdict("rolled_back", "Timeout", why))
            happened: Happened = Coded("TargetUnreachable")
            failure = ("TargetUnreachable", f"no node can take agent {self.agent!r} now")
            if target:
                report = await self._attempt(host, target, strategy)
                if report is None:
                    return await self._end(Verdict("rolled_back", *self._why))
                if report.ok:
                    self._result(target, None)
                    return await self._end(Verdict("completed"))
                if is_settled(report.code) or self._is_refused_outright(report):
                    if self._has_place:
                        self._of.targets.release(target)
                    if report.code == "Fenced":
                        return await self._without_agent()
                    return await self._end(Verdict("rolled_back", report.code, report.reason))
                failure, happened = (report.code, report.reason), self._happened
            await self._failed(target, happened, *failure)

    async def _goes_on(self, decision: RecoveryStrategy) -> bool:
        """Does what was decided, as far as it is no attempt; False: that was the end."""
        if decision is RecoveryStrategy.ROLLBACK:
            await self._end(Verdict("rolled_back", self._last.code, self._last.reason))
        elif decision is RecoveryStrategy.GIVE_UP:
            if self._host is None and not await self._is_back():
                await self._without_agent()  # it is the owner's to park
            else:
                await self._end(Verdict("gave_up", self._last.code, self._last.reason))
        elif await self._is_cancelled_before_due():
            await self._end(Verdict("rolled_back", *self._why))
        else:
            self._decision = None
            return True
        return False

    async def _without_agent(self) -> None:
        """This node does not run the agent any more.  Its new owner goes on, unless there is none, or it is still this node."""
        owner = await self._of.owner(self.agent)
        if not owner:
            await self._end(Verdict("rolled_back", "AgentTerminated", "the agent has ended"))
        elif owner == self._activations.name and self._host is None:
            await self._end(Verdict("rolled_back", "Fenced", f"{owner} cannot run the agent any more"))
        else:
            logger.warning(
                "agent %s has another owner now, and its migration %s is left to %s", self.agent, self.migration, owner
            )

    @property
    def _host(self) -> Host | None:
        return self._activations.live.get(self.agent)

    def _is_refused_outright(self, report: MigrationReport) -> bool:
        """The node that was named said no before anything began: who named it decides what to do."""
        return bool(self._request.to) and self._attempts == 1 and report.code == "MigrationRefused"

    async def _is_back(self) -> bool:
        """After an attempt that had to read the log: True once this node hosts the agent again, False if another owns it."""
        settings = self._activations.settings
        deadline = self._activations.clock() + settings.reconcile_s + settings.probation_s
        while self._host is None and self._activations.clock() < deadline:
            if await self._of.owner(self.agent) != self._activations.name:
                return False
            self._activations.look(self.agent)
            await asyncio.sleep(LOOK_S)
        return self._host is not None

    def _may_try(self, target: str) -> bool:
        """False for a target that rests after failures of any migration, or has had its share of this one's attempts."""
        if not target or self._tried[target] >= ATTEMPTS_PER_TARGET:
            return False
        return self._attempts == 0 or self._of.targets.admits(target, self._activations.clock())

    async def _chosen(self) -> str:
        """A node that is neither the source, nor has failed this migration, nor rests; "" if there is none now."""
        host, now = self._host, self._activations.clock()
        if host is None:
            return ""
        try:
            nodes = await selection.alive(self._activations.home.log, self._activations.home.wire)
        except CellError as error:
            logger.warning("migration %s: who is alive is not known: %s", self.migration, error)
            return ""
        spent = {name for name, count in self._tried.items() if count >= ATTEMPTS_PER_TARGET}
        but = {self._activations.name, *self._manager.forbidden(self.agent, now), *spent, *self._of.targets.unfit(now)}
        return selection.choose(nodes, host.fold.cls, but, host.fold.policy.preferred_architectures) or ""

    def _left(self) -> float:
        """Seconds that recovery still has: without end before the first failure."""
        deadline = self._manager.deadline(self.agent)
        return FOREVER_S if deadline is None else max(0.0, deadline - self._activations.clock())

    def _run_out(self, move: Move) -> None:
        with contextlib.suppress(TooLateToCancel):  # then its own deadlines end it
            move.abort()

    # ---- one attempt -----------------------------------------------------------------------------------------

    async def _attempt(self, host: Host, target: str, strategy: str) -> MigrationReport | None:
        """A move, told to the journal: its beginning before it, its phases behind it.  None if it was cancelled before it began."""
        number = self._attempts + 1
        name = attempt_id(self.migration, number)
        try:
            await self._scribe.write(
                lambda head: Attempted(
                    **head, number=number, id=name, target=target, strategy=strategy, epoch=host.fold.epoch
                )
            )
        except RecordInvalid:
            if self._scribe.journal.is_cancelled:
                return None
            raise
        self._attempts = number
        self._tried[target] += 1
        if self._copy is not None and self._copy.target != target:
            await self._copy.release()
        self._has_place = self._of.targets.begin(target, self._activations.clock())
        move = self.move = self._of.begin_move(host, name, target)
        move.observer = self.observer
        if self._cancelled.is_set():
            self._run_out(move)
        timer = asyncio.get_running_loop().call_later(self._left(), self._run_out, move)
        try:
            report = await self._of.run_move(move)
        finally:
            timer.cancel()
            self.move = None
        if report.code == "Cancelled" and not self._cancelled.is_set():
            report = replace(report, code="Timeout", reason="the time for all attempts has run out")
            move.happened = Coded(report.code)
        elif report.code == "Cancelled":
            report = replace(report, code=self._why[0], reason=self._why[1])
        self._happened = move.happened
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
        now = self._activations.clock()
        if self._has_place:
            self._of.targets.end(target, now, kind)
        elif kind is None:
            self._of.targets.succeeded(target)
        else:
            self._of.targets.failed(target, now, kind)

    # ---- decisions -------------------------------------------------------------------------------------------

    async def _failed(self, target: str, happened: Happened, code: str, message: str) -> None:
        """Classifies the failure and decides; both are written before anything is done about it."""
        first = not self._failures
        error = await self._noted(target, happened, code, message)
        now, jitter = self._activations.clock(), self._activations.home.rng.random
        if first or not self._manager.is_running(self.agent):
            self._manager.record_failure(error, now=now, jitter=jitter)
        else:
            self._manager.mark_recovery_failure(self.agent, error, now=now, jitter=jitter)
        if target:
            self._result(target, error.error_type)
        await self._decided(target)

    async def _noted(self, target: str, happened: Happened, code: str, message: str) -> MigrationError:
        kind = classify(happened)
        error = MigrationError.new(kind, message, self.agent, target or None, now=self._activations.clock())
        self._failures.append(error)
        await self._scribe.write(
            lambda head: Failed(
                **head, number=self._attempts, target=target, kind=kind.value, code=code, message=message
            )
        )
        return error

    async def _decided(self, target: str) -> None:
        now = self._activations.clock()
        rule = self._manager.decide(self.agent, now=now)
        if rule.strategy.is_retry and self._losses > LOSSES_MAX:
            rule = Rule(last_resort(self._manager.config), f"its source was lost {self._losses} times")
        self._due = self._manager.next_retry_time(self.agent) or now
        delay = max(0.0, self._due - now) if rule.strategy.is_retry else 0.0
        await self._scribe.write(
            lambda head: Decided(
                **head, number=self._attempts, strategy=rule.strategy.value, rule=rule.why, delay_s=delay
            )
        )
        self._decision = rule.strategy
        self._decisions.append(rule.strategy.value)
        if rule.strategy is RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET:
            self._target = ""
        elif rule.strategy is RecoveryStrategy.RETRY_ON_SAME_TARGET:
            self._target = target

    async def _is_cancelled_before_due(self) -> bool:
        """Also returns, with False, once the agent is another node's."""
        while (left := self._due - self._activations.clock()) > 0 and not self._cancelled.is_set():
            if self._host is None and not await self._is_back():
                return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, self._activations.settings.reconcile_s)):
                    await self._cancelled.wait()
        return self._cancelled.is_set()

    async def _park(self) -> None:
        """Nobody runs the agent until an operator says how to go on; it stays claimable, and its messages wait."""
        host = self._host
        if host is None or not host.fold.may_run:
            return
        reason = f"migration {self.migration} gave up: {self._last.reason}; `mielin recover {self.migration}`"
        try:
            await host.intake.stop(self._activations.settings.turn_deadline_s)
        except TimeoutError as error:
            raise AskTimeout(
                f"Agent {self.agent!r} is in a turn that does not end; it is parked for migration {self.migration} later.",
                agent=self.agent,
            ) from error

        def suspended(head: dict[str, Any]) -> Suspended:
            if not host.fold.may_run:  # an operator has stopped it first
                raise _Stands
            return Suspended(**head, reason=reason)

        try:
            await host.flush()
            await host.append(suspended)
        except _Stands:
            return
        finally:
            host.resume_intake()

    # ---- taken over ------------------------------------------------------------------------------------------

    async def take_over(self, stands: Standing, fold: Fold, end: Verdict | None) -> bool:
        """Ends what another process began, or decides how it goes on; True: `run` then does what was decided.

        The first record tells every other process that is at it to stop.  Raises `JournalTaken` if one was first.
        """
        try:
            return await self._taken_over(stands, fold, end)
        except BaseException:
            self._close(None)
            raise

    async def _taken_over(self, stands: Standing, fold: Fold, end: Verdict | None) -> bool:
        last = stands.last
        if last is not None and last.id in fold.handed:
            self._restored = restored(fold)
        if end is not None:
            await self._end(end)
            return False
        if stands.is_running:
            if last is None:
                raise never("last is not None does not hold")
            error = await self._lost(last, fold, stands.coordinator)
        else:  # between attempts: what was decided about the last failure stands, or is decided now
            cause = stands.cause
            if cause is None:
                raise never("cause is not None does not hold")
            error = stands.error(cause, self._activations.home.wall(), self._activations.clock())
            self._last = replace(self._last, code=cause.code, reason=cause.message)
            if stands.decided is not None and not stands.decided.is_retry:
                self._decision = stands.decided
                return True
            if not stands.is_undecided:
                await self._noted(
                    "",
                    Coded(SOURCE_LOST),
                    SOURCE_LOST,
                    f"{stands.coordinator} was lost before attempt {stands.attempts + 1}",
                )
                self._losses += 1
        self._restore_manager(stands, error)
        await self._decided(error.target_node or "")
        return True

    async def _lost(self, attempt: Attempted, fold: Fold, coordinator: str) -> MigrationError:
        """Why an attempt failed whose source did not see its end: the agent's log may tell more than that."""
        code, reason = SOURCE_LOST, f"{coordinator} was lost in attempt {attempt.number}"
        happened: Happened = Coded(code)
        handed = fold.handed.get(attempt.id)
        if handed is not None:
            log = self._activations.home.log
            entries = await log.read(log_subject(self.agent), handed, 1)
            try:
                record = await record_of(log, self.agent, entries[0]) if entries else None
            except RecordInvalid:
                record = None  # trimmed, or damaged on its way: it would only have told more
            if isinstance(record, Returned) and record.prev == handed:
                code, reason = "Returned", f"the target returned it: {record.cause}"
                happened = SentBack(record.code)
        self._losses += code == SOURCE_LOST
        error = await self._noted(attempt.target, happened, code, reason)
        self._last = replace(self._last, target=attempt.target, code=code, reason=reason)
        if code != SOURCE_LOST:
            self._of.targets.failed(attempt.target, self._activations.clock(), error.error_type)
        return error

    def _restore_manager(self, stands: Standing, error: MigrationError) -> None:
        """The manager as the lost one was: retries and time that are used up stay used up."""
        home, now = self._activations.home, self._activations.clock()
        wall, config = home.wall(), self._manager.config
        wait = stands.wait(wall)
        if wait is None:
            wait = config.jittered_delay(stands.retries + 1, home.rng.random)
        self._manager.restore(
            replace(error, retry_count=stands.retries), now, migration=self.migration, source=self._activations.name,
            elapsed_secs=stands.elapsed(wall), wait_secs=wait, excluded=stands.avoided,
        )  # fmt: skip

    # ---- the end ---------------------------------------------------------------------------------------------

    async def _end(self, end: Verdict) -> None:
        """Writes the end, then tells it."""
        if end.outcome == "gave_up":
            await self._park()
        if self._copy is not None:
            self._activations.home.begin(self._copy.release())
        last = self._last
        found = self._restored if end.outcome == "rolled_back" else {}
        await self._scribe.write(
            lambda head: Ended(
                **head, outcome=end.outcome, target=last.target, code=end.code, reason=end.reason, restored=found
            )
        )
        self._close(end)

    async def _ended_elsewhere(self) -> None:
        """Another process was given the agent, and has gone on with the migration, or ended it."""
        found = await self._of.ended(self.agent, self.migration)
        if found is None or found.end is None:
            return
        end, self._attempts = found.end, len(found.attempts)
        told = [record for record in found.records if isinstance(record, Reached) and record.number == self._attempts]
        last = replace(self._last, target=end.target, phases=(), rounds=0, bytes=0, pause_ms=0.0)
        if told:  # what this process saw of its own last attempt is not how the migration ended
            of = told[-1]
            last = replace(last, phases=tuple(of.phases), rounds=of.rounds, bytes=of.bytes, pause_ms=of.pause_ms)
        self._last = last
        self._close(Verdict(end.outcome, end.code, end.reason))

    def _close(self, end: Verdict | None) -> None:
        if self.done.done():
            return
        if end is None:
            self.done.set_result(None)
            return
        failures = tuple(f"{error.error_type.value}: {error.message}" for error in self._failures)
        self.done.set_result(
            replace(
                self._last, migration=self.migration, outcome=end.outcome, code=end.code, reason=end.reason,
                failures=failures, decisions=tuple(self._decisions), attempts=self._attempts,
                restored=self._restored if end.outcome == "rolled_back" else {},
            )
        )  # fmt: skip
