"""What a turn that failed means: an error of the store, an answer, or a reason to run the message again."""

from __future__ import annotations

import asyncio
from typing import TypeGuard

from mielin_cells.core.message import Answer, encode_answer
from mielin_cells.core.settings import MESSAGE_BYTES_MAX
from mielin_cells.errors import (
    CellError,
    Fenced,
    HandlerFailed,
    JetStreamDisabled,
    NodeStopping,
    RetryError,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
    StoreUnreachable,
    StreamMissing,
    TurnDeadlineExceeded,
    UsageError,
    described,
    leaves,
    storable,
)

CAUSES_MAX = 20
"""Of a group's exceptions, so many are told one by one."""

PASSING = (
    Fenced, JetStreamDisabled, NodeStopping, StoreBusy, StoreCorrupt, StoreFull, StoreReadOnly, StoreUnreachable, StreamMissing,
)  # fmt: skip
"""What the store, or the loss of an agent, raises inside a turn.  It says nothing about the message, and is never its answer."""


def passes(error: BaseException) -> bool:
    """True if the turn failed by the store's fault or an owner's, also inside a group."""
    return any(isinstance(leaf, PASSING) for leaf in leaves(error))


def ends_task(error: BaseException) -> bool:
    """True if the error ends the task that runs the turn, and is not the handler's own."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return False


def is_final(error: BaseException) -> bool:
    """True for an error that more runs would meet again: a wrong call, or a recorded outcome."""
    return isinstance(error, UsageError) and not isinstance(error, HandlerFailed)


def told(agent: str, path: str, handler: str, error: BaseException, ran: int) -> bytes:
    """The answer of a turn that has failed: our own errors as they are, others as `HandlerFailed`."""
    if _is_ours(error):
        answer = encode_answer(Answer(None, error.to_wire()))
        if len(answer) <= MESSAGE_BYTES_MAX:
            return answer
    cause = described(error)
    failed = HandlerFailed(
        f"{path} of agent {agent!r} raised {cause}" + (f" (run {ran} times)" if ran > 1 else "") + "; "
        "its state is as before the turn, and it goes on.",
        agent=agent, handler=handler, kind=storable(type(error).__name__), cause=cause, tries=ran,
        causes=[described(leaf) for leaf in leaves(error)[:CAUSES_MAX]] if isinstance(error, BaseExceptionGroup) else [],
    )  # fmt: skip
    return encode_answer(Answer(None, failed.to_wire()))


def _is_ours(error: BaseException) -> TypeGuard[CellError]:
    """True for an error of this package that speaks of the call itself.

    One that means "try again" speaks of another call, that the handler made; so does the failure of another's handler.
    """
    return (
        isinstance(error, CellError)
        and type(error).__module__ == CellError.__module__
        and (isinstance(error, TurnDeadlineExceeded) or not isinstance(error, (RetryError, HandlerFailed)))
    )
