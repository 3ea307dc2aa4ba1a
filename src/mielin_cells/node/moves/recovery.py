"""One migration from its plan to its end, on its source: attempts, failures, decisions, and the journal of all that.

The node's manager decides and keeps the time (`migration.manager`), `Move` performs.  A decision is written before it is acted on; the
agent's log says what became of an attempt.  A client that dies changes nothing here.  If this process dies, or loses the agent, the
agent's next owner goes on from the journal (`Settling`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from mielin_cells.agents.reports import MigrationReport
from mielin_cells.errors import Fenced, RecordInvalid, TooLateToCancel, never
from mielin_cells.migration.case import Case, RecoveryOutcome, Ticket
from mielin_cells.migration.failure import Coded, Happened, MigrationError, classify, is_settled
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
from mielin_cells.migration.outcome import Verdict
from mielin_cells.migration.recovery import RecoveryConfig, RecoveryStrategy
from mielin_cells.node.moves import evidence
from mielin_cells.node.moves.journal import JournalTaken, JournalWriter
from mielin_cells.node.moves.suspending import suspend_agent
from mielin_cells.node.moves.targets import choose_next
from mielin_cells.rpc import answers, requests

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation
    from mielin_cells.node.moves.agenda import Agenda
    from mielin_cells.node.moves.attempts import Attempts
    from mielin_cells.node.moves.observe import Observer
    from mielin_cells.node.moves.source import Move

logger = logging.getLogger("mielin_cells.migration")

LOOK_S = 0.05
"""How often this node looks whether it runs the agent again, after an attempt that had to read the log."""

OUTCOMES = {
    "completed": RecoveryOutcome.RECOVERED,
    "rolled_back": RecoveryOutcome.ROLLED_BACK,
    "gave_up": RecoveryOutcome.GAVE_UP,
}


class Recovery:
    """One open migration.  `done` gives its report once the end is in the journal; None if another process writes the end."""

    def __init__(
        self, agenda: Agenda, attempts: Attempts, request: requests.Migrate, case: Case, target: str,
        journal: Journal | None = None,
    ) -> None:  # fmt: skip
        self._agenda = agenda
        self._attempts = attempts
        self._manager = agenda.manager
        self._activations = agenda.activations
        self._log = agenda.activations.home.log
        self.agent = request.agent
        self.migration = request.migration
        self.case = case
        """The fold of the migration's journal, which the manager holds too."""
        self._request = request
        self.journal = JournalWriter(self._activations.home, request.agent, request.migration, journal)
        self.done: asyncio.Future[MigrationReport | None] = asyncio.get_running_loop().create_future()
        self.observer: Observer | None = None
        self.move: Move | None = None
        self._ticket: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        """The ticket of the attempt that is due, once the agenda has begun it."""
        self.report = MigrationReport(
            migration=request.migration, agent=request.agent, source=self._activations.name, target=target,
            outcome="rolled_back", attempts=0,
        )  # fmt: skip
        self.restored: dict[str, str] = {}
        self._copy: Move | None = None
        """The last attempt, while its target may hold a copy that a retry there can go on from."""
        self._cancelled = asyncio.Event()
        self._has_run_out = False
        self._why = "Cancelled", "cancelled"
        """Code and reason for the report if the migration is cancelled."""

    # ---- steering --------------------------------------------------------------------------------------------

    async def abort(self, code: str = "Cancelled", why: str = "cancelled") -> None:
        """Cancels the running attempt before its handover, or the next one; the agent's next owner reads this in the journal.

        Raises `TooLateToCancel`, and `JournalTaken` if another process goes on with the migration.
        """
        if self.move is not None:
            self.move.abort()
        self._why = code, why
        self._cancelled.set()
        try:
            await self.journal.write(lambda head: Cancelled(**head))
        except RecordInvalid as error:
            if self.journal.fold.end is None:
                raise
            if self.journal.fold.end.code != code:
                raise TooLateToCancel(
                    f"Migration {self.migration} of agent {self.agent!r} has ended.", agent=self.agent,
                    migration=self.migration,
                ) from error  # fmt: skip

    def progress(self) -> answers.Progress:
        case, failures = self.case, self._failures
        if self.move is not None:
            return self.move.progress(case.attempts, failures)
        due = self._manager.next_retry_time(self.agent) or 0.0
        return answers.Progress(
            "PLANNED", attempts=case.attempts, target=self.target, failures=failures,
            next_s=max(0.0, due - self._activations.clock()),
        )  # fmt: skip

    @property
    def target(self) -> str:
        """The target of the running or last attempt; before the first attempt, the requested one."""
        return self.move.target if self.move is not None else self.report.target

    @property
    def is_ending(self) -> bool:
        """The agent has moved, and the journal does not say so yet."""
        return self.report.ok

    @property
    def _failures(self) -> list[str]:
        return [f"{error.error_type.value}: {error.message}" for error in self.case.failures]

    def begin(self, ticket: Ticket) -> None:
        """The attempt that was waited for is due."""
        if not self._ticket.done():
            self._ticket.set_result(ticket)

    def run_out(self) -> None:
        """The time of the attempt is over: it is cancelled, unless it has handed over and ends by the deadlines of its phases."""
        self._has_run_out = True
        if self.move is not None:
            with contextlib.suppress(TooLateToCancel):
                self.move.abort()

    # ---- the way ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs the migration to its end.  Every failure is classified, decided on, and written to the journal.

        Leaves the migration open, without a report, for the agent's next owner, and for this node's own settling if this raises: the
        agent's log then says what became of it.
        """
        try:
            if self.journal.fold.planned is None and not await self._is_planned():
                return
            await self._until_its_end()
        except JournalTaken:  # another process was given the agent, and has gone on with the migration, or ended it
            journal = await evidence.journal_of(self._log, self.agent, self.migration)
            if journal is not None and journal.end is not None:
                end, self.report = journal.end, evidence.report_of(journal, self.report)
                self.close(Verdict(end.outcome, end.code, end.reason), len(journal.attempts))
        except Fenced:
            logger.warning(
                "agent %s has another owner now, and its migration %s is left to that one", self.agent, self.migration
            )
        finally:
            self.close(None)

    async def _is_planned(self) -> bool:
        """Writes the plan; False if the agent had another owner by then: the migration has ended, and nothing was begun.

        The agent's log is read after the plan is there: so a client that finds no journal, and the agent in a later epoch, may be
        sure that nothing will move it.
        """
        request, config = self._request, asdict(self.case.config or RecoveryConfig())
        await self.journal.write(
            lambda head: Planned(
                **head, source=self._activations.name, target=request.to, epoch=request.epoch,
                config={name: float(value) for name, value in config.items()}, parent=request.parent,
            )
        )  # fmt: skip
        if await evidence.owns(self._log, self.agent, self._activations.name, request.epoch):
            return True
        await self.end(Verdict("rolled_back", "Fenced", "another node owned the agent when it was to begin"))
        return False

    async def _until_its_end(self) -> None:
        while True:
            ticket = await (self._first() if self.case.error is None else self._due())
            if self._cancelled.is_set():
                return await self.end(Verdict("rolled_back", *self._why))
            if ticket is None:
                return await self._without_agent()
            if ticket.strategy is not None and not ticket.strategy.is_retry:
                return await self._last_resort(ticket.strategy)
            target = ticket.target_node or await choose_next(self._activations, self._manager, ticket)
            activation = await self._hosted()
            if activation is None:
                return await self._without_agent()
            if self._cancelled.is_set():
                return await self.end(Verdict("rolled_back", *self._why))
            if not target:
                code = "TargetUnreachable"
                await self.fail("", Coded(code), code, f"no node can take agent {self.agent!r} now")
            elif await self._is_over(ticket, activation, target):
                return None

    async def _is_over(self, ticket: Ticket, activation: Activation, target: str) -> bool:
        """Makes an attempt; True if the migration has ended with it, False if it failed and a decision follows."""
        move = await self._attempt(ticket, activation, target)
        report = self.report
        if move is None:
            await self.end(Verdict("rolled_back", *self._why))
        elif report.ok:
            self._manager.finish(ticket.token, self._activations.clock())
            await self.end(Verdict("completed"))
        elif report.code == "Fenced":
            await self._without_agent()
        elif is_settled(report.code) or self._is_refused_outright(report):
            await self.end(Verdict("rolled_back", report.code, report.reason))
        else:
            await self.fail(target, move.happened, report.code, report.reason)
            return False
        return True

    def _is_refused_outright(self, report: MigrationReport) -> bool:
        """True if the node that the caller named refused at the first attempt: then the caller decides what to do."""
        return bool(self._request.to) and self.case.attempts == 1 and report.code == "MigrationRefused"

    # ---- what is next ----------------------------------------------------------------------------------------

    async def _first(self) -> Ticket | None:
        if await self._hosted() is None:
            return None
        return self._manager.begin(self.agent, self._activations.clock(), self.report.target)

    async def _due(self) -> Ticket | None:
        """Waits in the manager until something is to be done, or the migration is cancelled; None once the agent is another node's."""
        cancelled = asyncio.get_running_loop().create_task(self._cancelled.wait())
        try:
            while not (self._ticket.done() or self._cancelled.is_set()):
                await asyncio.wait(
                    (self._ticket, cancelled), timeout=self._activations.settings.reconcile_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )  # fmt: skip
                if await self._hosted() is None:
                    return None
        finally:
            cancelled.cancel()
        ticket = self._ticket.result() if self._ticket.done() else None
        self._ticket = asyncio.get_running_loop().create_future()
        return ticket

    async def _hosted(self) -> Activation | None:
        """The agent's activation, also after an attempt that had to read the log; None once another node owns the agent."""
        settings, clock = self._activations.settings, self._activations.clock
        deadline = clock() + settings.reconcile_s + settings.probation_s
        while (activation := self._activations.live.get(self.agent)) is None and clock() < deadline:
            if await evidence.owner_of(self._log, self.agent) != self._activations.name:
                return None
            self._activations.look(self.agent)
            await asyncio.sleep(LOOK_S)
        return activation

    async def _last_resort(self, strategy: RecoveryStrategy) -> None:
        """Ends the migration as rolled back, as the agent's log says already, or as given up."""
        case = self.case
        code, reason = case.code, case.error.message if case.error is not None else ""
        if case.decisions[-1].is_retry:
            code, reason = "Timeout", f"no time is left; last: {reason}"
        if strategy is RecoveryStrategy.ROLLBACK:
            await self.end(Verdict("rolled_back", code, reason))
        elif await self._hosted() is None:
            await self._without_agent()  # its owner suspends it
        else:
            await self.end(Verdict("gave_up", code, reason))

    async def _without_agent(self) -> None:
        """This node no longer runs the agent: leaves the migration to the new owner, or ends it if there is no other owner."""
        owner = await evidence.owner_of(self._log, self.agent)
        if not owner:
            await self.end(Verdict("rolled_back", "AgentTerminated", "the agent has ended"))
        elif owner == self._activations.name and not self._activations.owns(self.agent):
            await self.end(Verdict("rolled_back", "Fenced", f"{owner} cannot run the agent any more"))
        else:
            logger.warning(
                "agent %s has another owner now, and its migration %s is left to %s", self.agent, self.migration, owner
            )

    # ---- one attempt -----------------------------------------------------------------------------------------

    async def _attempt(self, ticket: Ticket, activation: Activation, target: str) -> Move | None:
        """Makes a move; the journal gets its beginning first, and its phases after it.  None if it was cancelled before it began."""
        number, strategy = self.case.attempts, ticket.strategy.value if ticket.strategy is not None else ""
        name = attempt_id(self.migration, number)
        self._has_run_out = False
        self._agenda.keep_time()
        try:
            await self.journal.write(
                lambda head: Attempted(
                    **head, number=number, id=name, target=target, strategy=strategy, epoch=activation.fold.epoch
                )
            )
        except RecordInvalid:
            if self.journal.fold.is_cancelled:
                return None
            raise
        if self._copy is not None and self._copy.target != target:
            await self._copy.release()
        move = self.move = self._attempts.begin(activation, name, target)
        move.observer = self.observer
        if self._cancelled.is_set() or self._has_run_out:
            self.run_out()
        try:
            report = await self._attempts.run(move)
        finally:
            self.move = None
        if report.code == "Cancelled" and not self._cancelled.is_set():
            report = replace(report, code="Timeout", reason="the time for all attempts has run out")
            move.happened = Coded(report.code)
        elif report.code == "Cancelled":
            report = replace(report, code=self._why[0], reason=self._why[1])
        self._copy = move if move.target_has_copy else None
        self.restored = move.restored
        self.report = report
        self.journal.later(
            lambda head: Reached(
                **head, number=number, phases=list(report.phases), rounds=report.rounds, bytes=report.bytes,
                pause_ms=report.pause_ms,
            )
        )  # fmt: skip
        return move

    # ---- decisions -------------------------------------------------------------------------------------------

    async def fail(self, target: str, happened: Happened, code: str, message: str) -> None:
        """Classifies the failure and decides; both are in the journal before anything is done about them."""
        kind, number = classify(happened), self.case.attempts
        await self.journal.write(
            lambda head: Failed(**head, number=number, target=target, kind=kind.value, code=code, message=message)
        )
        now = self._activations.clock()
        error = MigrationError.new(kind, message, self.agent, target or None, now=now)
        self._manager.record_failure(error, now, self._activations.home.rng.random, code=code)
        self.report = replace(self.report, error_type=kind.value)
        await self.write_decision(now)

    async def write_decision(self, now: float) -> None:
        """Writes what the manager has decided."""
        rule, due, number = self.case.decided, self.case.due, self.case.attempts
        if rule is None:
            raise never("nothing was decided")
        delay = max(0.0, due - now) if due is not None else 0.0
        await self.journal.write(
            lambda head: Decided(**head, number=number, strategy=rule.strategy.value, rule=rule.why, delay_s=delay)
        )
        self._agenda.keep_time()

    # ---- the end ---------------------------------------------------------------------------------------------

    async def end(self, end: Verdict) -> None:
        """Writes the end to the journal, then completes `done`."""
        if end.outcome == "gave_up":
            reason = f"migration {self.migration} gave up: {end.reason}; `mielin recover {self.migration}`"
            await suspend_agent(self._activations, self.agent, reason)
        if self._copy is not None:
            self._activations.home.begin(self._copy.release())
        last = self.report
        back_at = self.restored if end.outcome == "rolled_back" else {}
        await self.journal.write(
            lambda head: Ended(
                **head, outcome=end.outcome, target=last.target, code=end.code, reason=end.reason, restored=back_at
            )
        )
        self.close(end)

    def close(self, end: Verdict | None, attempts: int | None = None) -> None:
        if self.done.done():
            return
        outcome = RecoveryOutcome.SETTLED if end is None or is_settled(end.code) else OUTCOMES[end.outcome]
        self._agenda.settle(self, outcome)
        if end is None:
            self.done.set_result(None)
            return
        self.done.set_result(
            replace(
                self.report, migration=self.migration, outcome=end.outcome, code=end.code, reason=end.reason,
                failures=tuple(self._failures), decisions=tuple(one.value for one in self.case.decisions),
                attempts=self.case.attempts if attempts is None else attempts,
                restored=self.restored if end.outcome == "rolled_back" else {},
            )
        )  # fmt: skip
