"""Turns that do not end when they are cancelled: they have the time of a pause to put things in order, and are left then."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Host
    from mielin_cells.node.activation.turn import Turn
    from mielin_cells.node.activation.waiting import Waiting

logger = logging.getLogger("mielin_cells.intake")


def watch(host: Host, turn: Turn, waiting: Waiting) -> None:
    """From now on a cancellation that the handler catches is noticed."""
    waiting.went_on = partial(_went_on, host, turn, waiting)


def _went_on(host: Host, turn: Turn, waiting: Waiting) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    loop.call_later(host.home.settings.pause_s, _leave, host, turn, waiting, task)


def _leave(host: Host, turn: Turn, waiting: Waiting, task: asyncio.Task[Any] | None) -> None:
    """Runs the handler no further, unless it was a time limit of its own that has cancelled it."""
    if turn.closed or waiting.is_left or host.intake.turn is not turn or task is None or not task.cancelling():
        return
    is_hook, is_late = not turn.sender, turn.deadline is not None and turn.deadline.expired()
    if is_hook or is_late or host.writer.is_closed or host.intake.cancels:
        logger.error(
            "agent %s: %s.%s was cancelled %g s ago and goes on, for it catches that. It is run no further, and nothing of the "
            "turn takes effect.", turn.id, host.spec.name, turn.message, host.home.settings.pause_s,
        )  # fmt: skip
        waiting.is_left = True
        task.cancel()


def tell(host: Host) -> None:
    """Says, once, which turn goes on beyond its deadline."""
    turn = host.intake.turn
    if turn is not None and turn.deadline is not None and turn.deadline.expired() and not turn.is_told_late:
        turn.is_told_late = True
        logger.error(
            "agent %s: %s.%s goes on beyond the turn's deadline of %g s, although it was cancelled; the agent takes nothing else",
            turn.id, host.spec.name, turn.message, host.home.settings.turn_deadline_s,
        )  # fmt: skip
