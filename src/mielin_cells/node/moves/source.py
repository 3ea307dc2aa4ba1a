"""Driving the source's machine of one migration: effects in order, events back (`migration.source` decides)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from mielin_cells.agents.reports import MigrationReport
from mielin_cells.errors import (
    CellError,
    Fenced,
    NoResponder,
    RetryError,
    TooLateToCancel,
    WireTimeout,
    described,
    never,
)
from mielin_cells.log.ledger import HASH_SLICE
from mielin_cells.log.lifecycle import Phase
from mielin_cells.migration import source as m
from mielin_cells.migration.failure import Coded, Happened, classify, is_settled
from mielin_cells.migration.journal import migration_of
from mielin_cells.migration.progress import MigrationPhase
from mielin_cells.migration.refusal import PASSING, Refusal, kinds
from mielin_cells.migration.validation import MigrationValidator
from mielin_cells.node.moves.handover import Handover
from mielin_cells.rpc import answers, requests
from mielin_cells.rpc.call import call
from mielin_cells.rpc.planned import prepare

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation, Activations
    from mielin_cells.node.moves.observe import Observer

logger = logging.getLogger("mielin_cells.migration")

R = TypeVar("R")

AGAIN_S = 0.25
"""Before a target that has no place for the agent just now is asked again."""

WAITS_SHARE = 0.8
"""The share of `prepare_s` in which it is asked again."""

SLOWED_S = 0.02
"""How long the intake of a source rests in each round of a copy that does not converge."""


class Move:
    """One migration on its source."""

    def __init__(
        self,
        activations: Activations,
        activation: Activation,
        migration: str,
        target: str,
        validator: MigrationValidator,
    ) -> None:
        settings = activations.settings
        self.activations = activations
        self.activation = activation
        self.target = target
        self._validator = validator
        self._handover = Handover(activations, activation, migration, target, validator)
        self.epoch = activation.fold.epoch
        """The epoch that the migration was planned in."""
        limits = m.Limits(settings.copy_rounds, settings.copy_lag_records, settings.copy_lag_bytes)
        self.machine = m.Source(migration, limits)
        self.done: asyncio.Future[MigrationReport] = asyncio.get_running_loop().create_future()
        self._cancel: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._phases: list[tuple[str, float]] = []
        self._at = self._begun = self._now()
        self._paused_at = self._pause_s = 0.0
        self._arrived_at = self._held_at = activation.inbox.arrived_in_all
        self._copied = answers.CopyReport(0, 0, 0)
        self._departed = self._stopped = False
        self._refusals: tuple[Refusal, ...] = ()
        self.happened: Happened = Coded("")
        """The value that is classified if the move failed."""
        self.observer: Observer | None = None
        self.target_has_copy = False
        """The target may still hold its copy: a retry there continues from it; otherwise the copy must be released."""

    @property
    def migration(self) -> str:
        return self.machine.migration

    @property
    def restored(self) -> dict[str, str]:
        """After a rollback that follows the seal: the verified state in which the agent continues."""
        return self._handover.restored

    def progress(self, attempts: int, failures: list[str]) -> answers.Progress:
        return answers.Progress(
            self.machine.phase.value, None, list(self._phases), self.machine.rounds, self._copied.bytes, attempts,
            self.target, failures,
        )  # fmt: skip

    @property
    def cancelled(self) -> asyncio.Future[None]:
        """Done once the move is cancelled."""
        return self._cancel

    def begins(self) -> None:
        """It has its place among the moves of this node: its times count from now."""
        self._at = self._begun = self._now()

    def _now(self) -> float:
        return self.activations.clock()

    def abort(self) -> None:
        """Cancels before the handover.  Raises `TooLateToCancel` after it: the outcome is the log's."""
        _, effects = self.machine.on(m.Cancel())
        if self.machine.phase.is_end or m.RefuseCancel() in effects:
            raise TooLateToCancel(
                f"Migration {self.migration} of agent {self.activation.fold.agent!r} is {self.machine.phase.value}; it can no "
                "longer be cancelled.",
                agent=self.activation.fold.agent, migration=self.migration,
            )  # fmt: skip
        if not self._cancel.done():
            self._cancel.set_result(None)

    # ---- the driver ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs the machine to its end.  Every event is answered by effects; the last effect tells the next event."""
        event: m.Event | None = m.Begin()
        end: m.End | None = None
        while event is not None:
            before = self.machine.phase
            self.machine, effects = self.machine.on(event)
            if self.machine.phase is not before:
                now = self._now()
                self._phases.append((before.value, now - self._at))
                self._at = now
                if self.observer is not None:
                    self.observer.entered(self.target, self.machine.phase, self._copied.bytes)
                    for effect in effects:
                        if isinstance(effect, m.End) and effect.outcome != "completed":
                            self.observer.failed(self.target, before, effect.reason)
                logger.debug("%s: %s -> %s by %r", self.migration, before.value, self.machine.phase.value, event)
            event = None
            for effect in effects:
                if isinstance(effect, m.End):
                    end = effect
                else:
                    event = await self._perform(effect) or event
            if not effects and not self.machine.phase.is_end:
                raise AssertionError(f"{self.migration} has nothing to do in {self.machine.phase.value}")
        self.close()
        if end is None:
            raise never("end is not None does not hold")
        self.done.set_result(self._report(end))

    def close(self) -> None:
        self._handover.close()

    def fail(self, error: Exception, outcome: str) -> None:
        """Ends the report of a move whose driver failed; the outcome is the log's."""
        self._phases.append((self.machine.phase.value, self._now() - self._at))
        if outcome == "completed" and self.machine.phase is not MigrationPhase.VERIFYING:
            self._phases.append((MigrationPhase.VERIFYING.value, 0.0))  # it was the target's, unseen from here
        code, reason = ("", "") if outcome == "completed" else (type(error).__name__, str(error))
        if outcome != "completed" and self._handover.is_sent:
            self._validator.fail_rollback(migration_of(self.migration), reason, now=self._now(), is_final=True)
        self.done.set_result(self._report(m.End(outcome, code, reason)))

    async def _perform(self, effect: m.Effect) -> m.Event | None:
        match effect:
            case m.AskPrepare():
                return await self._unless_cancelled(self._prepare(), self.activations.settings.prepare_s)
            case m.AskCopy(slow=slow):
                return await self._unless_cancelled(self._copy(slow), self._left())
            case m.StopIntake():
                try:
                    await self.activations.home.at("pause")
                except CellError as error:
                    return m.Broken(error.code, error.message)
                if await self._stop_at_once():
                    return m.Quiet()
                return await self._unless_cancelled(self._stop(), self.activations.settings.pause_s + 1.0)
            case m.HandOver():
                return await self._handover.hand_over()
            case m.ClaimBack():
                return await self._handover.claim_back(is_in_doubt=self.machine.phase is MigrationPhase.IN_DOUBT)
            case m.WatchLog():
                return await self._handover.watch()
            case m.ResumeIntake():
                await self._resume()
            case m.ReleaseTarget():
                self.target_has_copy = True
            case m.FreeCopy():
                self._pause_s = self._now() - self._paused_at
                self.activations.drop(self.activation)
            case m.Refold():
                self.activations.drop(self.activation)
                self.activations.look(self.activation.fold.agent)
            case _:
                pass
        return None

    def _left(self) -> float:
        return max(0.001, self.activations.settings.migration_s - (self._now() - self._begun))

    async def _unless_cancelled(self, work: Any, timeout: float) -> m.Event:
        """The event with which `work` ends, unless an operator's cancel or the deadline comes first."""
        task = asyncio.get_running_loop().create_task(work)  # its error is an event, and no bug to be logged
        self.activations.home.tasks.add(task)
        task.add_done_callback(self.activations.home.tasks.discard)
        try:
            await asyncio.wait((task, self._cancel), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done() and not task.cancelled():
                try:
                    event: m.Event = task.result()
                    return event
                except CellError as error:
                    return self._broken(error)
            return m.Cancel() if self._cancel.done() else m.Deadline()
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, CellError, TimeoutError):
                    await task

    def _broken(self, error: CellError) -> m.Event:
        """The event for an error: the phase has failed, or another node owns the agent."""
        fold = self.activation.fold
        if fold.phase is Phase.TERMINATED:
            return m.Broken("AgentTerminated", f"agent {fold.agent!r} was terminated while it was moved")
        if isinstance(error, Fenced) or self.activation.lost is not None:
            return m.Overtaken(False)
        return m.Broken(error.code, error.message)

    async def _prepare(self) -> m.Event:
        until = self._now() + WAITS_SHARE * self.activations.settings.prepare_s
        while True:
            try:
                answer = await self._ask(prepare(self.activation.fold, self.activations.name, self.migration))
            except (NoResponder, WireTimeout) as error:
                return m.Broken("TargetUnreachable", f"{self.target} does not answer ({error.code})")
            self._refusals = tuple(answer.refusals)
            passes = self._refusals and all(one.kind in PASSING for one in self._refusals)
            if not passes or self._now() + AGAIN_S > until:
                break
            await asyncio.sleep(AGAIN_S)
        return m.Refused(self._refusals) if self._refusals else m.Prepared()

    async def _ask(self, request: requests.Request[R]) -> R:
        """A request that is repeated until the phase's deadline: requests on the wire may be lost."""
        timeout = 0.25
        while True:
            try:
                return await call(self.activations.home.wire, self.target, request, timeout)
            except WireTimeout:
                if self._cancel.done():
                    raise
                timeout = min(timeout * 2, 2.0)

    async def _copy(self, slow: bool) -> m.Event:
        activation = self.activation
        if slow:
            await self._slow_down()
        seq, appended = activation.fold.seq, activation.writer.appended_bytes
        records = activation.writer.appended_records
        self._copied = await self._ask(requests.Copy(activation.fold.agent, self.migration, seq))
        while activation.fold.ledger.hash_some(
            HASH_SLICE
        ):  # else the seal, in the pause, hashes what there is of all senders
            await asyncio.sleep(0)
        return m.Copied(activation.writer.appended_records - records, activation.writer.appended_bytes - appended)

    async def _slow_down(self) -> None:
        """Pauses the agent's intake for a moment.  An agent in a long turn appends nothing meanwhile, and is not paused."""
        try:
            await self.activation.intake.stop(self.activations.settings.pause_s)
        except TimeoutError:
            return
        try:
            await asyncio.sleep(SLOWED_S)
        finally:
            self.activation.resume_intake()

    async def _stop_at_once(self) -> bool:
        """True if the agent is quiet now: most of the time no turn runs and no commit is in flight.  Never waits."""
        activation = self.activation
        self._handover.follow()
        self._paused_at, self._held_at = self._now(), activation.inbox.arrived_in_all
        self._stopped = await activation.intake.stop_at_once()
        return self._stopped and not self._departs and activation.seal_at_once()

    @property
    def _departs(self) -> bool:
        return self.activation.spec.overrides("on_depart") and self.activation.fold.may_run

    async def _stop(self) -> m.Event:
        activation = self.activation
        if not self._stopped:
            try:
                await activation.intake.stop(self.activations.settings.pause_s)
            except TimeoutError:
                return m.Broken("Timeout", "the turn did not end within the pause")
            self._stopped = True
        if self._departs:
            self._departed = True
            try:
                async with asyncio.timeout(self.activations.settings.pause_s):
                    await activation.runner.hook("on_depart")
            except TimeoutError:
                return m.Broken("Timeout", "on_depart did not end within the pause")
            except Exception as error:  # whatever a user's hook raises fails this move, and the agent runs on
                return m.Broken("HandlerFailed", f"on_depart raised {described(error)}")
        await activation.seal_ready()
        return m.Quiet()

    async def _resume(self) -> None:
        activation = self.activation
        if self._paused_at:
            self._pause_s = self._now() - self._paused_at
        self._handover.undo()
        if self._departed:
            try:
                await activation.runner.hook("on_arrive")
            except Exception as error:  # a hook may raise anything: the agent is then in ERROR, which `resume` retries
                await activation.failed(error)
        if self._stopped:
            activation.resume_intake()

    async def release(self) -> None:
        """Tells the target to drop its copy."""
        self.target_has_copy = False
        request = requests.Release(self.activation.fold.agent, self.migration)
        with contextlib.suppress(RetryError):  # a hint: the target's reservation expires by itself
            await call(self.activations.home.wire, self.target, request, 1.0)

    def _report(self, end: m.End) -> MigrationReport:
        activation, self.happened = self.activation, end.happened
        return MigrationReport(
            migration=self.migration, agent=activation.fold.agent, source=self.activations.name, target=self.target,
            outcome=end.outcome, reason=end.reason, code=end.code, error_type=_error_type(end), phases=tuple(self._phases),
            pause_ms=self._pause_s * 1000, bytes=self._copied.bytes, rounds=self.machine.rounds,
            held=activation.inbox.arrived_in_all - self._held_at if self._paused_at else 0,
            arrived=activation.inbox.arrived_in_all - self._arrived_at,
            reasons=tuple(map(str, self._refusals)), kinds=tuple(kinds(self._refusals)),
        )  # fmt: skip


def _error_type(end: m.End) -> str:
    return "" if end.outcome == "completed" or is_settled(end.code) else classify(end.happened).value
