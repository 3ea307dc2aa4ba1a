"""The calls of a turn's branches are made: asks are checked and waited for, and steps run, each in a task of its own."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from mielin_cells.agents.step import Within
from mielin_cells.errors import AskTimeout, CellError, StepFailed
from mielin_cells.log.commit import AskCall
from mielin_cells.log.inboxes.lines import end_of
from mielin_cells.log.message import Answer, encode_answer
from mielin_cells.node.activation.calls.pending import (
    CallingTurn,
    Key,
    Pending,
    PendingAsk,
    PendingStep,
    PendingTimer,
    PendingWait,
)
from mielin_cells.node.activation.calls.tasks import TurnStopped


class Making:
    """The calls of one turn, as they are made.  When their outcomes are given is decided elsewhere (`order`)."""

    def __init__(self, turn: CallingTurn) -> None:
        self._turn = turn
        self._core = turn._core
        self._open: dict[Key, Pending] = {}
        """Calls whose outcome is not given."""
        self._arrived: deque[Pending] = deque()
        """Outcomes that may be given before they are recorded."""
        self._given = 0
        self._is_over = False
        self._running = 0
        """Steps whose call runs, or whose outcome is not recorded yet."""
        self._error: BaseException | None = None
        self._waker: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    def _arrive(self, pending: Pending) -> None:
        self._arrived.append(pending)
        self.wake()

    def _fail(self, error: BaseException) -> BaseException:
        """Ends all calls of the turn with the error."""
        if self._error is None:
            self._error = error
        for pending in list(self._open.values()):
            if isinstance(pending, PendingTimer):
                pending.timer.fired = (
                    None  # nobody gives it any more: it fires when its time comes, and what it leads to fails
                )
            elif not pending.future.done():
                pending.future.set_exception(error)
        due = [pending for pending in self._arrived if isinstance(pending, PendingTimer)]
        self._open.clear()
        self._arrived.clear()
        for pending in due:
            _ = asyncio.get_running_loop().call_soon(pending.timer.fire)
        return error

    def _begin(self, pending: Pending) -> None:
        if isinstance(pending, PendingAsk):
            pending.task = self._core.home.start(self._check(pending))
        elif isinstance(pending, PendingStep):
            finished = self._turn.finished_step(pending.key[0], pending.key[2], pending.key[3])
            if finished is not None:
                pending.answer = finished.answer
                self._arrive(pending)
                return
            pending.is_running = True
            self._running += 1
            if self._running == 1:
                self._turn.rest_deadline(True)
            pending.task = self._core.home.start(self._call(pending))
        elif isinstance(pending, PendingWait):
            self._turn.rest_while_waiting(True)
            pending.wait.hear(lambda outcome: self._heard(pending, outcome))

    def _heard(self, pending: PendingWait, outcome: bytes) -> None:
        """The outcome is recorded."""
        if self._open.get(pending.key) is pending:
            pending.answer = outcome
            self._arrive(pending)

    def _waited(self) -> None:
        """A branch waits no longer."""
        if not self._is_over and not any(isinstance(one, PendingWait) for one in self._open.values()):
            self._turn.rest_while_waiting(False)

    async def _check(self, pending: PendingAsk) -> None:
        """Finds out whether the ask may be sent; after an undo, whether it was sent before."""
        try:
            stands = self._turn.standing_ask(pending.out, pending.body)
            if stands is not None:
                call = AskCall(
                    pending.out.to, stands.n, pending.out.handler, pending.body, pending.label, None,
                    pending.place(self._given, stands.k),
                )  # fmt: skip
                pending.call = call
                self._turn.calls.append(call)
                if stands.answer is None:
                    self._await_answer(pending, call, is_sent=False)
                    return
                pending.answer = stands.answer
            else:
                refusal = await self._turn.refusal_of(end_of(pending.out.to))
                if refusal is None:
                    pending.is_ready = True
                    self.wake()
                    return
                pending.answer = refusal
            self._arrive(pending)
        except CellError as error:
            self._fail(error)

    def _await_answer(self, pending: PendingAsk, call: AskCall, *, is_sent: bool) -> None:
        pending.is_begun = True
        replay = self._turn.replay
        if replay is not None and replay.gave_up(call):
            pending.task = self._core.home.start(self._time_out(pending))
        else:
            pending.task = self._core.home.start(self._answer(pending, call, is_sent))

    async def _time_out(self, pending: PendingAsk) -> None:
        """For an ask that the run before an undo gave up: so does this one, and it must not hear that the ask was cancelled."""
        default = self._core.home.settings.ask_timeout_s
        await asyncio.sleep(default if pending.timeout is None else pending.timeout)
        error = AskTimeout(f"{pending.label} was given up before the undo; the ask may have taken effect.")
        pending.answer = encode_answer(Answer(None, error.to_wire()))
        self._arrive(pending)

    async def _answer(self, pending: PendingAsk, call: AskCall, is_sent: bool) -> None:
        known = self._core.fold.ledger.pending.get(call.to, {}).get(call.n)
        out = known or msgspec.structs.replace(pending.out, n=call.n)
        try:
            pending.answer = await self._turn.await_answer(out, pending.timeout, is_sent)
        except CellError as error:
            self._fail(error)
        else:
            self._arrive(pending)

    async def _call(self, pending: PendingStep) -> None:
        """Makes the calls of a step until one of them is its outcome."""
        turn, name = self._turn, pending.key[2]
        step = Within(turn, name, turn.step_key(name, pending.key[3], pending.key[0]))
        try:
            value = await turn.step_result(step, pending)
            pending.answer = encode_answer(Answer(pending.results.encode(value)))
        except StepFailed as failed:
            pending.error, pending.answer = failed.__cause__, encode_answer(Answer(None, failed.to_wire()))
        except CellError as error:
            turn.broken = error
            self._fail(error)
            return
        except TurnStopped:  # between two calls of it
            return
        finally:
            if not pending.answer or self._open.get(pending.key) is not pending:
                self._step_ended(pending)
            self.wake()
        pending.is_ready = True

    def _step_ended(self, pending: PendingStep) -> None:
        if pending.is_running:
            pending.is_running = False
            self._running -= 1
            if not self._running and not self._is_over:
                self._turn.rest_deadline(False)
                if any(isinstance(one, PendingWait) for one in self._open.values()):
                    self._turn.rest_while_waiting(True)
