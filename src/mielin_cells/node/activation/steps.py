"""The durable steps of a turn: the calls, their tries and time limits, and the records that keep their outcomes (rule 12)."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from blake3 import blake3

from mielin_cells import tracing
from mielin_cells.agents.context import turn as current_turn
from mielin_cells.agents.retry import Retry
from mielin_cells.agents.step import NAME_CHARS_MAX, Results, Within, results_of
from mielin_cells.agents.values.changes import LOAD_ERRORS
from mielin_cells.agents.values.wire import encode
from mielin_cells.errors import (
    CellError,
    MessageTooLarge,
    StepFailed,
    UsageError,
    described,
    from_wire,
)
from mielin_cells.log.commit import StepCall, TurnCall
from mielin_cells.log.message import Answer, decode_answer, encode_answer
from mielin_cells.log.records import Stepped
from mielin_cells.node.activation.calls.pending import PendingStep
from mielin_cells.node.activation.calls.tasks import TurnStopped, branch_of
from mielin_cells.node.activation.run import Run, Started, is_failure, within
from mielin_cells.settings import STEPS_BYTES_MAX

logger = logging.getLogger("mielin_cells.steps")


class Steps(Run):
    """The part of a turn that makes steps."""

    _resting: asyncio.Future[None] | None = None
    """Done when a wait between two calls is to end."""
    _restings: tuple[asyncio.Future[None], ...] = ()
    """The same, of branches."""

    async def run_step(self, name: str, call: Any, args: tuple[Any, ...], retry: Retry, timeout: float | None) -> Any:
        """What `cells.step` says."""
        self._open()
        if not self.sender:
            raise UsageError(f"A hook of agent {self.id!r} cannot make step {name!r}; make it in a handler.")
        if type(name) is not str or not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
            raise UsageError(f"A step of agent {self.id!r} has no name of 1 to {NAME_CHARS_MAX} printable characters.")
        if not callable(call):
            if inspect.iscoroutine(call):
                call.close()
            raise UsageError(
                f"Step {name!r} of agent {self.id!r} was given a {type(call).__name__}; give the function and its arguments, "
                "as step(name, function, argument)."
            )
        return await self.make_step(name, call, args, retry, timeout)

    async def make_step(self, name: str, call: Any, args: tuple[Any, ...], retry: Retry, timeout: float | None) -> Any:
        """As `run_step`, for what was checked."""
        results = results_of(call)
        branches, error = self._branches(), None
        if branches is not None:
            self._may_go_on()
            seconds = self._core.home.settings.step_timeout_s if timeout is None else timeout
            step = PendingStep(branch_of(self), name, body_of_args(args), results, call, args, retry, seconds)
            answer = await branches.outcome(step)
            error = step.error
        else:
            async with self._in_order():
                self._may_go_on()
                self._is_calling = True
                try:
                    answer, error = await self._outcome(name, results, call, args, retry, timeout)
                finally:
                    self._is_calling = False
        outcome = decode_answer(answer)
        if outcome.error is not None:
            raise from_wire(*outcome.error) from error
        return results.load(outcome.result or b"")

    async def _outcome(
        self, name: str, results: Results, call: Callable[..., Any], args: tuple[Any, ...], retry: Retry, timeout: float | None
    ) -> tuple[bytes, BaseException | None]:  # fmt: skip
        """The step's outcome, once it is in the log, and the exception of its last call if this run made it."""
        k = len(self.calls)
        if k < len(self.recorded):
            made = await self._again(k)
            if not isinstance(made, StepCall) or made.name != name or made.branch is not None:
                raise self.otherwise(made, f"step {name!r}")
            self.calls.append(made)
            self._step_recorded(made)
            if self._in_log == k:
                self._in_log += 1
            return made.answer, None
        index = sum(isinstance(made, StepCall) and made.name == name for made in self.calls)
        finished = self.finished_step((), name, index)
        if finished is not None:
            await asyncio.sleep(0)
            self.calls.append(finished)
            self._step_recorded(finished)
            return finished.answer, None
        await self._pause()
        if self.has_news:
            self._recording = self._core.home.start(self._record_given())
            await asyncio.shield(self._recording)
            await self._pause()
        step = Within(self, name, self.step_key(name, index, ()))
        seconds = self._core.home.settings.step_timeout_s if timeout is None else timeout
        self.rest_deadline(True)
        error: BaseException | None = None
        try:
            try:
                value = await result_of(step, call, args, retry, seconds, self._rest)
                answer = Answer(results.encode(value))
            except StepFailed as failed:
                error, answer = failed.__cause__, Answer(None, failed.to_wire())
            parts = await self.parts.step_ended(step.key) if self.parts is not None else 0
            made = StepCall(name, encode_answer(answer), parts)
            fits_turn(self.id, self.calls, made)
            self._recording = self._core.home.start(self._record_step(made))
            await asyncio.shield(self._recording)
        except asyncio.CancelledError:
            if len(self.calls) == k:
                self._abandoned = name
            raise
        except CellError as refused:
            self.broken = refused
            raise
        finally:
            self.rest_deadline(False)
        await self._pause()
        return made.answer, error

    def _step_recorded(self, made: StepCall) -> None:
        if self.parts is not None:
            self.parts.step_recorded(made.parts)

    def step_key(self, name: str, n: int, path: tuple[int, ...]) -> str:
        branch = "".join(f"\0{part}" for part in path)
        return blake3(f"{self.id}\0{self.sender}\0{self.n}\0{name}\0{n}{branch}".encode()).hexdigest(16)

    def finished_step(self, path: tuple[int, ...], name: str, n: int) -> StepCall | None:
        """After an undo: the outcome that this step had."""
        return self.replay.steps.get((path, name, n)) if self.replay is not None else None

    async def step_result(self, step: Within, pending: PendingStep) -> Any:
        """What the step of a branch comes to."""
        return await result_of(step, pending.call, pending.args, pending.retry, pending.seconds, self._rest_in_branch)

    def check_size(self, made: StepCall) -> None:
        fits_turn(self.id, self.calls, made)

    def stop_error(self) -> BaseException:
        return TurnStopped()

    def rest_deadline(self, begins: bool) -> None:
        """Stops the turn's deadline when a step begins, and sets it anew when the step ends: it is for the handler alone."""
        self.in_step = begins
        if not begins and self.cancels is not None:
            _ = self._core.loop.call_soon(self.cancels)
        self.rest_while_waiting(begins)

    def rest_while_waiting(self, begins: bool) -> None:
        """The same for an external wait.  No step runs meanwhile, so the turn may be cancelled."""
        if self.deadline is not None and not self.deadline.expired() and self.is_here():
            now, seconds = self._core.loop.time(), self._core.home.settings.turn_deadline_s
            self.deadline.reschedule(None if begins else now + seconds)

    @property
    def has_news(self) -> bool:
        """The handler has had an outcome that is not in the log: what a step does may depend on it (rule 13)."""
        return any(made.answer is not None for made in self.calls[self._in_log :])

    async def _record_given(self) -> None:
        core = self._core
        await core.flush()

        def compose(head: dict[str, Any]) -> Stepped:
            self._may_record()
            at, news = self.news()
            return Stepped(**head, sender=self.sender, input=self.n, at=at, calls=news)

        await core.append(compose)

    async def _record_step(self, made: StepCall) -> None:
        """Records the outcome before the handler gets it, after all earlier turns are committed."""
        core = self._core
        await core.flush()

        def compose(head: dict[str, Any]) -> Stepped:
            self._may_record()
            self.calls.append(made)
            at, news = self.news()
            return Stepped(**head, sender=self.sender, input=self.n, at=at, calls=news)

        await core.append(compose)

    async def _pause(self) -> None:
        """Between steps: ends this run if the intake is being stopped, and the turn runs again, and has its finished steps; or if its
        message is cancelled."""
        if self._core.is_stopping:
            self.stopped = True
            await asyncio.sleep(0)  # the turn must wait here: its runner learns of the end by awaiting it
            raise TurnStopped
        if self.cancels is not None:
            raise asyncio.CancelledError

    async def _rest(self, seconds: float) -> None:
        """Waits between two calls of a step."""
        self._resting = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait((self._resting,), timeout=seconds)
        finally:
            self._resting = None
        await self._pause()

    async def _rest_in_branch(self, seconds: float) -> None:
        resting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._restings = (*self._restings, resting)
        try:
            await asyncio.wait((resting,), timeout=seconds)
        finally:
            self._restings = tuple(one for one in self._restings if one is not resting)
        if self._core.is_stopping or self.cancels is not None:
            raise TurnStopped

    def wake(self) -> None:
        """The turn is stopped or cancelled: a wait between two calls ends."""
        for resting in (self._resting, *self._restings):
            if resting is not None and not resting.done():
                resting.set_result(None)
        if self.branches is not None:
            self.branches.wake()


async def result_of(
    step: Within,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    retry: Retry,
    seconds: float,
    rest: Callable[[float], Awaitable[None]],
) -> Any:
    """Returns what the call returns, and repeats it as `retry` says.  `rest` waits in between, and may end the turn by raising.

    Raises `StepFailed` after the last try.
    """
    if not tracing.is_on:
        return await _tried(step, call, args, retry, seconds, rest)
    span, failed = step.turn.begin_span("step", step.name.strip()), ""
    try:
        return await _tried(step, call, args, retry, seconds, rest)
    except BaseException as error:
        failed = described(error)
        raise
    finally:
        if span is not None:
            span.end(failed)


async def _tried(
    step: Within,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    retry: Retry,
    seconds: float,
    rest: Callable[[float], Awaitable[None]],
) -> Any:
    tried = 0
    while True:
        tried += 1
        try:
            async with asyncio.timeout(seconds):
                value = await _called(step._replace(attempt=tried), call, args)
            if step.turn.broken is not None:
                raise step.turn.broken
            return value
        except BaseException as error:
            if not is_failure(error):
                raise
            if step.turn.broken is not None:
                raise step.turn.broken from None
            if tried >= retry.tries or not isinstance(error, retry.on):
                agent, cause = step.turn.id, described(error)
                raise StepFailed(
                    f"Step {step.name.strip()!r} of agent {agent!r} raised {cause} (call {tried}); this is its outcome, also if "
                    "the turn runs again.",
                    agent=agent, step=step.name.strip(), cause=cause, tries=tried,
                ) from error  # fmt: skip
            logger.info("agent %s: step %s failed, call %d: %r", step.turn.id, step.name, tried, error)
        await rest(retry.wait_s(tried))


async def _called(step: Within, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Makes one call in a context of its own, so that the tasks that it starts are known from the handler's others."""
    if step.turn.parts is not None:
        step.turn.parts.step_tries(step.key, step.attempt)
    context = contextvars.copy_context()
    context.run(within.set, step)
    if step.turn.trace is not None:  # what it calls outside of this deployment is part of the trace
        context.run(tracing.set_current, step.turn.trace)
    context.run(current_turn.set, _InStep(step.turn))
    value = context.run(call, *args)
    if inspect.isawaitable(value):
        run = _Call(value)
        return await run.ended(asyncio.get_running_loop().create_task(run.awaited(), context=context), step)
    return value


class _InStep:
    """The turn as the call of a step sees it.

    It is another object, so the call cannot change the agent's state: a turn that runs again does not make the call.
    """

    __slots__ = ("_turn",)

    def __init__(self, turn: Any) -> None:
        self._turn = turn

    @property  # type: ignore[misc] # read only, as for any proxy
    def __class__(self) -> Any:
        return type(self._turn)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._turn, name)


class _Call:
    """One call in a task of its own, which is abandoned if it catches its cancellation and goes on."""

    def __init__(self, value: Awaitable[Any]) -> None:
        self._value = value
        self._started: Started | None = None

    async def awaited(self) -> Any:
        if not inspect.iscoroutine(self._value):
            return await self._value
        try:
            first = self._value.send(None)
        except StopIteration as stop:
            return stop.value
        self._started = Started(self._value, first)
        return await self._started

    async def ended(self, task: asyncio.Task[Any], step: Within) -> Any:
        """Returns the call's result.  If the waiting turn is cancelled, so is the call, which then has the time of a pause to end."""
        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            left: asyncio.Future[None] = loop.create_future()
            task.cancel()
            timer = loop.call_later(step.turn.pause_s, self._abandon, task, step, left)
            await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
            timer.cancel()
            if not task.done() or task.cancelled():
                raise
        return task.result()

    def _abandon(self, task: asyncio.Task[Any], step: Within, left: asyncio.Future[None]) -> None:
        if not task.done():
            logger.error(
                "agent %s: the call of step %s was cancelled %g s ago, caught the cancellation, and did not end. It is abandoned.",
                step.turn.id, step.name, step.turn.pause_s,
            )  # fmt: skip
            if self._started is not None:
                self._started.is_abandoned = True
            task.cancel()
        if not left.done():
            left.set_result(None)


def body_of_args(args: tuple[Any, ...]) -> bytes:
    """A digest of a step's arguments, by which branches are told apart; empty for what cannot be stored."""
    try:
        return blake3(encode(args)).digest(8)
    except LOAD_ERRORS:
        return b""


def fits_turn(agent: str, before: Sequence[TurnCall], made: StepCall) -> None:
    """Raises `MessageTooLarge` if the turn's outcomes, with this one, are too large."""
    size = sum(len(one.answer or b"") for one in before) + len(made.answer)
    if size > STEPS_BYTES_MAX:
        raise MessageTooLarge(
            f"The outcomes of a turn of agent {agent!r} have {size} bytes with {made.label}; the limit is "
            f"{STEPS_BYTES_MAX}. The turn is undone; make fewer steps in a turn, or return less from them.",
            limit=STEPS_BYTES_MAX, size=size,
        )  # fmt: skip
