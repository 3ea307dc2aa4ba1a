"""What a turn that failed means: an error of the store, an answer, or a reason to run the message again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeGuard

from mielin_cells.agents.signature import HandlerSpec
from mielin_cells.agents.values.raises import Unsendable
from mielin_cells.errors import (
    PASSING,
    CellError,
    EpochRegression,
    HandlerFailed,
    NoSuchHandler,
    RetryError,
    StoreBusy,
    TurnDeadlineExceeded,
    UsageError,
    WrongClass,
    described,
    is_ours,
    leaves,
    storable,
)
from mielin_cells.log.message import Answer, Mail, Message, encode_answer
from mielin_cells.settings import MESSAGE_BYTES_MAX

if TYPE_CHECKING:
    from mielin_cells.node.activation.turn import Turn

FAILED_BYTES_MAX = 64 * 1024
"""What the sentence and the facts of a `HandlerFailed` take at most, so that a declared error beside it fits a message."""

CAUSE_CHARS_MAX = 2000
"""Of a cause in the sentence that names it; all that is kept of it is in the facts."""

CAUSES_MAX = 10
"""Of a group's exceptions, so many are told one by one."""


def passes(error: BaseException) -> bool:
    """True if the turn failed by the store's fault or an owner's, also inside a group.  That another agent is parked is its answer."""
    return any(isinstance(leaf, PASSING) and not isinstance(leaf, EpochRegression) for leaf in leaves(error))


def ends_task(error: BaseException) -> bool:
    """True if the error ends the task that runs the turn, and is not the handler's own."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return False


def is_declared(handler: HandlerSpec | None, error: BaseException) -> bool:
    return handler is not None and handler.raises is not None and handler.raises.has(error)


def is_final(handler: HandlerSpec, error: BaseException) -> bool:
    """True for an error that more runs would meet again: a declared one, a wrong call, or a recorded outcome."""
    wrong = isinstance(error, UsageError) and not isinstance(error, HandlerFailed)
    return wrong or is_declared(handler, error)


def told(agent: str, path: str, handler: str, spec: HandlerSpec | None, error: BaseException, ran: int) -> bytes:
    """The answer of a turn that has failed: declared errors and our own as they are, others as `HandlerFailed`."""
    raised, unsent = None, ""
    if spec is not None and spec.raises is not None and spec.raises.has(error):
        try:
            data = spec.raises.encode(error)
            raised = data if len(data) <= MESSAGE_BYTES_MAX - FAILED_BYTES_MAX else None
            unsent = f" (declared, but {len(data)} bytes cannot be sent)" if raised is None else ""
        except Unsendable as why:
            unsent = storable(f" (declared, but {why})")
    elif _is_ours(error):
        answer = encode_answer(Answer(None, error.to_wire()))
        if len(answer) <= MESSAGE_BYTES_MAX:
            return answer
    cause = described(error)
    said = cause if len(cause) <= CAUSE_CHARS_MAX else cause[:CAUSE_CHARS_MAX] + "..."
    failed = HandlerFailed(
        f"{path} of agent {agent!r} raised {said}" + unsent + (f" (run {ran} times)" if ran > 1 else "") + "; "
        "its state is as before the turn, and it goes on.",
        agent=agent, handler=handler, kind=storable(type(error).__name__), cause=cause, tries=ran,
        causes=[described(leaf) for leaf in leaves(error)[:CAUSES_MAX]] if isinstance(error, BaseExceptionGroup) else [],
    )  # fmt: skip
    return encode_answer(Answer(None, failed.to_wire(), raised))


def _is_ours(error: BaseException) -> TypeGuard[CellError]:
    """True for an error of this package that speaks of the call itself.

    One that means "try again" speaks of another call, that the handler made; so does the failure of another's handler.
    """
    return (
        isinstance(error, CellError)
        and is_ours(type(error))
        and (isinstance(error, TurnDeadlineExceeded) or not isinstance(error, (RetryError, HandlerFailed)))
    )


def too_long(turn: Turn, cls: str, seconds: float) -> CellError:
    """Of a turn that was cancelled at its deadline: by its own fault, or because the store has not taken its record."""
    if turn.waits_for_store:
        return StoreBusy(f"Agent {turn.id!r}: the store has not taken a record of its turn within the turn's deadline.")
    asked = [made.label for made in turn.made if made.answer is None]
    return TurnDeadlineExceeded(
        f"{cls}.{turn.message} of agent {turn.id!r} did not end within the turn's deadline of {seconds:g} s"
        + (f", waiting for {asked[-1]}{turn.why}" if asked else "")
        + "; it was cancelled, and its state is as before the turn"
        + (", and the agent goes on." if turn.sender else "."),
        agent=turn.id, handler=turn.message, deadline_s=seconds,
    )  # fmt: skip


def misfit(agent: str, have: str, mail: Mail, message: Message) -> CellError:
    """What is wrong with a message that fits no handler."""
    if mail.cls != have and mail.cls:
        return WrongClass(f"Agent {agent!r} is a {have}, not a {mail.cls}.", agent=agent, have=have, need=mail.cls)
    return NoSuchHandler(
        f"{have} (agent {agent!r}) has no handler {message.handler!r}.", agent=agent, handler=message.handler
    )
