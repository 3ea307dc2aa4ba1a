"""The calls of one durable step: tries, waits and time limits.  What is kept of them is the turn's affair (`turn`)."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any

from mielin_cells.agents.context import turn as current_turn
from mielin_cells.agents.retry import Retry
from mielin_cells.agents.step import Within
from mielin_cells.errors import MessageTooLarge, StepFailed, described
from mielin_cells.log.records import Made, StepMade
from mielin_cells.node.activation.waiting import Waiting
from mielin_cells.settings import STEPS_BYTES_MAX

logger = logging.getLogger("mielin_cells.steps")

within: ContextVar[Within | None] = ContextVar("mielin_cells_step", default=None)
"""Set for the call of a step and the tasks that it starts, and for nobody else."""


def is_failure(error: BaseException) -> bool:
    """True if it is the failure of the user's code that raised it, and not the end of the task or process that runs it.

    Such code may raise what is no `Exception`: it calls `sys.exit`, or it waited for a task of its own that was cancelled.
    """
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError):
        return task is None or not task.cancelling()
    if isinstance(error, GeneratorExit):
        return task is not None  # else its coroutine is closed because the event loop has ended
    return not isinstance(error, KeyboardInterrupt)


async def result_of(
    step: Within,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    retry: Retry,
    seconds: float,
    rest: Callable[[float], Awaitable[None]],
) -> Any:
    """What the call returns, made again as `retry` says; `rest` waits in between, and may end the turn by raising.

    Raises `StepFailed` after the last try.
    """
    tried = 0
    while True:
        tried += 1
        try:
            async with asyncio.timeout(seconds):
                return await _called(step, call, args)
        except BaseException as error:
            if not is_failure(error):
                raise
            if tried >= retry.tries or not isinstance(error, retry.on):
                agent, cause = step.turn.id, described(error)
                raise StepFailed(
                    f"Step {step.name!r} of agent {agent!r} raised {cause} (call {tried}); this is its outcome, also if "
                    "the turn runs again.",
                    agent=agent, step=step.name, cause=cause, tries=tried,
                ) from error  # fmt: skip
            logger.info("agent %s: step %s failed, call %d: %r", step.turn.id, step.name, tried, error)
        await rest(retry.wait_s(tried))


async def _called(step: Within, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """One call, in a context of its own: what it starts is told from what else the handler runs."""
    context = contextvars.copy_context()
    context.run(within.set, step)
    context.run(current_turn.set, _InStep(step.turn))
    value = context.run(call, *args)
    if inspect.isawaitable(value):
        run = _Run(value)
        return await run.ended(asyncio.get_running_loop().create_task(run.awaited(), context=context), step)
    return value


class _InStep:
    """The turn, as the call of a step sees it.  It is another object, so the agent's state cannot be changed from there: a turn that
    runs again does not make the call."""

    __slots__ = ("_turn",)

    def __init__(self, turn: Any) -> None:
        self._turn = turn

    @property  # type: ignore[misc] # read alone, as of any object that stands for another
    def __class__(self) -> Any:
        return type(self._turn)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._turn, name)


class _Run:
    """One call in a task of its own, which is left if it catches its cancellation and goes on."""

    def __init__(self, value: Awaitable[Any]) -> None:
        self._value = value
        self._waiting: Waiting | None = None

    async def awaited(self) -> Any:
        if not inspect.iscoroutine(self._value):
            return await self._value
        try:
            first = self._value.send(None)
        except StopIteration as stop:
            return stop.value
        self._waiting = Waiting(self._value, first)
        return await self._waiting

    async def ended(self, task: asyncio.Task[Any], step: Within) -> Any:
        """What the call gives.  If whoever waits is cancelled, so is the call, which has the time of a pause to end."""
        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            left: asyncio.Future[None] = loop.create_future()
            task.cancel()
            timer = loop.call_later(step.turn.pause_s, self._leave, task, step, left)
            await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
            timer.cancel()
            if not task.done() or task.cancelled():
                raise
        return task.result()

    def _leave(self, task: asyncio.Task[Any], step: Within, left: asyncio.Future[None]) -> None:
        if not task.done():
            logger.error(
                "agent %s: the call of step %s was cancelled %g s ago and goes on, for it catches that. It is run no further.",
                step.turn.id, step.name, step.turn.pause_s,
            )  # fmt: skip
            if self._waiting is not None:
                self._waiting.is_left = True
            task.cancel()
        if not left.done():
            left.set_result(None)


def fits_turn(agent: str, before: Sequence[Made], made: StepMade) -> None:
    """Raises `MessageTooLarge` if a turn's outcomes are too many with this one."""
    size = sum(len(one.answer or b"") for one in before) + len(made.answer)
    if size > STEPS_BYTES_MAX:
        raise MessageTooLarge(
            f"The outcomes of a turn of agent {agent!r} have {size} bytes with {made.label}; the limit is "
            f"{STEPS_BYTES_MAX}. The turn is undone; make fewer steps in a turn, or smaller ones.",
            limit=STEPS_BYTES_MAX, size=size,
        )  # fmt: skip
