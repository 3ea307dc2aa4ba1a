"""Runs handlers and hooks.  Their first step is taken by hand, because most of them never wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

from mielin_cells import tracing
from mielin_cells.agents.agent import Agent
from mielin_cells.agents.context import turn as current_turn
from mielin_cells.agents.live import Cell
from mielin_cells.agents.shared.frozen import Frozen
from mielin_cells.agents.signature import HandlerSpec
from mielin_cells.errors import CellError, Fenced, HandlerFailed, StoreBusy, TurnDeadlineExceeded, described
from mielin_cells.log.message import Mail, Message
from mielin_cells.node.activation.calls.tasks import TurnStopped, resumes
from mielin_cells.node.activation.core import Core
from mielin_cells.node.activation.effects import Effects, is_declared, is_of_store
from mielin_cells.node.activation.run import Started, is_failure
from mielin_cells.node.activation.turn import Turn
from mielin_cells.policy.deploys.health import Turns

logger = logging.getLogger("mielin_cells.intake")


class Unfinished(NamedTuple):
    """A turn after its first step: it failed, or it waits."""

    turn: Turn
    handler: HandlerSpec
    error: BaseException | None
    started: Started | None = None


RESOLVING = Unfinished(cast(Any, None), cast(Any, None), None)
"""Stands for a message that runs no turn: it resolves a wait."""


class Runner:
    """Runs the turns of one agent.  Never two at a time."""

    __slots__ = ("_cell", "_core", "_effects", "_is_cancellable", "_turns", "cancels", "spent", "turn")

    def __init__(self, core: Core, cell: Cell, effects: Effects) -> None:
        self._core = core
        self._cell = cell
        self._effects = effects
        self._turns = core.home.turns.setdefault(core.spec.name, Turns())
        self.turn: Turn | None = None
        """The turn that waits.  A turn that runs without waiting is never seen here."""
        self._is_cancellable = False
        self.cancels = 0
        """How often the turn that waits was cancelled to be run again."""
        self.spent: asyncio.Task[Any] | None = None
        """The last task in which a handler was abandoned.  What that one leaves, such as a time limit, may still cancel it."""

    @property
    def running(self) -> tuple[str, float]:
        """The handler or hook that waits for something, and for how many seconds it has; "" if none does."""
        turn = self.turn
        return (turn.message, self._core.loop.time() - turn.since) if turn is not None else ("", 0.0)

    def begin(self, mail: Mail, message: Message, handler: HandlerSpec) -> Unfinished | None:
        """Runs a message's turn up to its first wait or error.  None if that was all of it: the turn has taken effect.

        Most handlers never wait, and then a turn costs no coroutine but their own.
        """
        cell, turn = self._cell, Turn(self._core, mail.sender, message.n, message.handler)
        if message.corrects:
            turn.corrects = message.corrects
        if message.chain:
            turn.chain = message.chain
        if message.terms is not None or tracing.is_on:
            turn.begin_trace(message)
        if handler.parts is not None and self._core.ends is not None:
            turn.streams(self._core.ends, message.ask)
        clock = self._core.loop.time
        began = clock()
        try:
            cell.begin(turn)
            fn = self._reading(turn, handler) if handler.shared else handler.fn
            result = self._first(turn, fn, handler.decode_args(message.args))
            if type(result) is Started:
                return Unfinished(turn, handler, None, result)
            self._effects.end(mail, message, turn, handler, result)
        except BaseException as error:
            cell.undo()
            if turn.span is not None:
                turn.end_trace(error)
            turn.close()
            if ends_task(error):
                raise
            return Unfinished(turn, handler, error)
        turn.close()
        self._turns.count(clock() - began)
        return None

    async def finish(self, mail: Mail, message: Message, unfinished: Unfinished) -> BaseException | None:
        """Runs the rest of a turn.  Returns what the turn failed with; raises `TurnStopped` if it is to be run again."""
        turn, handler, error, started = unfinished
        if started is None:
            self._failed(turn, handler, error)
            return error
        try:
            turn.start = mail.start
            result = await self._rest(turn, started, handler.cancellable)
            if turn.cancels is not None:  # whatever it returns is ignored
                self._cell.undo()
                return asyncio.CancelledError()
            self._effects.end(mail, message, turn, handler, result)
            self._turns.count(self._core.loop.time() - turn.since)
            return None
        except TurnStopped:
            self._cell.undo()
            raise
        except BaseException as raised:
            self._cell.undo()
            turn.end_trace(raised)
            if ends_task(raised) or started.is_closed:
                raise
            self._failed(turn, handler, raised)
            return raised
        finally:
            turn.close()

    def _failed(self, turn: Turn, handler: HandlerSpec, error: BaseException | None) -> None:
        """Counts a turn that failed, unless its class declares the error, or it is none of its own."""
        if error is not None and turn.cancels is None and not is_of_store(error) and self._core.lost is None:
            self._turns.count(self._core.loop.time() - turn.since if turn.since else 0.0)
            self._turns.failed += not is_declared(handler, error)

    async def hook(self, name: str) -> None:
        """Runs a hook of the class, if the class has it, as a turn without a message.  Its changes join the next commit."""
        core, spec = self._core, self._core.spec
        if not spec.overrides(name):
            return
        turn, started = Turn(core, "", 0, name), None
        try:
            self._cell.begin(turn)
            result = self._first(turn, getattr(spec.cls, name), {})
            if type(result) is Started:
                started = result
                await self._rest(turn, started, False)
            core.batch.change(self._cell.end())
            if turn.attributes is not None:
                turn.apply_attributes(core.batch)
        except BaseException as error:
            self._cell.undo()
            if isinstance(error, TurnStopped):
                raise Fenced(f"Agent {turn.id!r} is not run by this process any more.", agent=turn.id) from core.lost
            if isinstance(error, Exception) or ends_task(error) or (started is not None and started.is_closed):
                raise
            raise HandlerFailed(f"{name} of agent {turn.id!r} raised {described(error)}.", agent=turn.id) from error
        finally:
            turn.close()
        if turn.tells:
            core.touch()
        self._effects.send(turn)

    def interrupt(self) -> None:
        """Ends the waits of the turn that waits, and cancels it if its handler is declared cancellable."""
        turn = self.turn
        if turn is not None:
            turn.wake()
            if self._is_cancellable and not turn.in_step and turn.task is not None:
                self.cancels += 1
                turn.task.cancel()

    def cancel(self, sender: str, n: int) -> None:
        """Message `n` of the sender is cancelled: if its turn waits, its handler is, once no call of a step runs.

        What an undo has taken again is not: its answer was given (rule 17).
        """
        turn = self.turn
        if turn is None or (turn.sender, turn.n) != (sender, n) or turn.cancels is not None:
            return
        if turn.replay is None or not turn.replay.again.taken:
            turn.cancels = partial(self._deliver, turn)
            turn.wake()
            self._deliver(turn)

    def _deliver(self, turn: Turn) -> None:
        if self.turn is turn and not turn.in_step and not turn.stopped and turn.task is not None:
            self.cancels += 1
            turn.task.cancel()

    def _reading(self, turn: Turn, handler: HandlerSpec) -> Callable[..., Any]:
        """A message to a shared handler, such as a command line sends, is a turn that writes nothing."""
        turn.is_read_only = True
        frozen = Frozen(self._core.spec, self._core.fold.state.frozen(), turn.id, handler.path)

        async def run(_: Agent, /, **args: Any) -> Any:
            result = await handler.fn(frozen.agent, **args)
            frozen.check()
            return result

        return run

    @resumes
    def _first(self, turn: Turn, fn: Callable[..., Any], args: dict[str, Any]) -> Any:
        """Takes the first step of `fn`.  Returns its result, or `Started` if it waits."""
        token = current_turn.set(turn)
        try:
            coroutine = fn(self._cell.agent, **args)
            waits_for = coroutine.send(None)
        except StopIteration as stop:
            if turn.broken is not None:
                raise turn.broken from None
            return stop.value
        finally:
            current_turn.reset(token)
        return Started(coroutine, waits_for)

    async def _rest(self, turn: Turn, started: Started, is_cancellable: bool) -> Any:
        """Awaits the rest of a function.  Raises `TurnStopped` if the turn is to be run again elsewhere."""
        core, turn.task = self._core, asyncio.current_task()
        self.turn, self._is_cancellable, turn.since, core.asks = turn, is_cancellable, core.loop.time(), turn.calls
        token = current_turn.set(turn)
        core.commit_soon()
        started.went_on, started.turn = partial(self._caught_cancellation, turn, started), turn
        try:
            limit = None if turn.in_step else core.home.settings.turn_deadline_s
            was, turn._is_calling = turn._is_calling, True  # the deadline is no timer of the handler's
            async with asyncio.timeout(limit) as turn.deadline:
                turn._is_calling = was
                result = await started
        except asyncio.CancelledError as error:
            if (turn.stopped and is_failure(error)) or (self.cancels and core.is_open and turn.cancels is None):
                raise TurnStopped from None
            raise
        except BaseException as error:
            if turn.stopped and is_failure(error):  # in whatever shape: a task group wraps it
                raise TurnStopped from None
            if turn.deadline is not None and turn.deadline.expired() and not started.is_closed:
                raise self._too_long(turn) from (error.__cause__ or error)
            raise
        finally:
            turn._is_calling = False
            if turn.branches is not None:
                turn.branches.close()
            current_turn.reset(token)
            self.turn, self._is_cancellable, turn.deadline, core.asks = None, False, None, ()
            self._uncancel()
        if turn.stopped or (turn.broken is None and core.lost is not None):
            raise TurnStopped
        if turn.broken is not None:
            raise turn.broken
        return result

    def _uncancel(self) -> None:
        """Takes back the cancellations of `interrupt`, since their turn has ended: the task goes on with others."""
        task = asyncio.current_task()
        while self.cancels and task is not None:
            self.cancels -= 1
            task.uncancel()

    # ---- turns that last too long ----------------------------------------------------------------------------

    def _too_long(self, turn: Turn) -> CellError:
        """The error of a turn that was cancelled at its deadline.  The store may be at fault, if it has not taken a record."""
        if turn.waits_for_store:
            return StoreBusy(
                f"Agent {turn.id!r}: the store has not taken a record of its turn within the turn's deadline."
            )
        seconds, asked = self._core.home.settings.turn_deadline_s, [call for call in turn.calls if call.answer is None]
        return TurnDeadlineExceeded(
            f"{self._core.spec.name}.{turn.message} of agent {turn.id!r} did not end within the turn's deadline of {seconds:g} s"
            + (f", waiting for {asked[-1].label}{turn.why(asked[-1])}" if asked else "")
            + "; it was cancelled, and its state is as before the turn"
            + (", and the agent goes on." if turn.sender else "."),
            agent=turn.id, handler=turn.message, deadline_s=seconds,
        )  # fmt: skip

    def _caught_cancellation(self, turn: Turn, started: Started) -> None:
        """The handler was cancelled and waits again.  It has the time of a pause to put things in order.

        A time limit of its own, or of this package, cancels it too; then it just goes on.
        """
        core, task = self._core, asyncio.current_task()
        if task is not None and task.cancelling() and self._is_to_end(turn):
            was, turn._is_calling = turn._is_calling, True
            core.loop.call_later(core.home.settings.pause_s, self._abandon, turn, started, task)
            turn._is_calling = was

    def _is_to_end(self, turn: Turn) -> bool:
        """True if the turn was cancelled from outside of its handler."""
        is_late = turn.deadline is not None and turn.deadline.expired()
        return not turn.sender or is_late or self._core.writer.is_closed or self.cancels > 0

    def _abandon(self, turn: Turn, started: Started, task: asyncio.Task[Any]) -> None:
        """Runs the handler no further, unless it has ended, or what still cancels it is a time limit of its own."""
        if turn.closed or started.is_abandoned or self.turn is not turn or not task.cancelling():
            return
        if self._is_to_end(turn):
            logger.error(
                "agent %s: %s.%s was cancelled %g s ago, caught the cancellation, and did not end. It is abandoned, and the turn "
                "has no effect.", turn.id, self._core.spec.name, turn.message, self._core.home.settings.pause_s,
            )  # fmt: skip
            started.is_abandoned, self.spent = True, task
            task.cancel()

    def log_overdue(self) -> None:
        """Logs, once, that a turn goes on beyond its deadline."""
        turn = self.turn
        if turn is not None and turn.deadline is not None and turn.deadline.expired() and not turn.is_reported_late:
            turn.is_reported_late = True
            logger.error(
                "agent %s: %s.%s is past the turn's deadline of %g s and ignores its cancellation; the agent takes no other message",
                turn.id, self._core.spec.name, turn.message, self._core.home.settings.turn_deadline_s,
            )  # fmt: skip


def ends_task(error: BaseException) -> bool:
    """True if the error ends the task that runs the turn, and is not the handler's own."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return False
