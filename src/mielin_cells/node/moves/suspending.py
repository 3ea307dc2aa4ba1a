"""Suspends an agent whose migration gave up: it can still be claimed, and its messages wait until an operator decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mielin_cells.errors import AskTimeout
from mielin_cells.log.records import Suspended
from mielin_cells.node.activation.writer import Declined

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations


class _StoppedAlready(Declined):
    """An operator has stopped the agent meanwhile."""


async def suspend_agent(activations: Activations, agent: str, reason: str) -> None:
    """Suspends the agent.  Nothing happens if it does not run here.  Raises `AskTimeout` for a turn that does not end."""
    activation = await activations.awake(agent) if activations.owns(agent) else None
    if activation is None or not activation.fold.may_run:
        return
    try:
        await activation.intake.stop(activations.settings.turn_deadline_s)
    except TimeoutError as error:
        raise AskTimeout(
            f"Agent {agent!r} is in a turn that does not end; it is suspended later.", agent=agent
        ) from error

    def suspended(head: dict[str, Any]) -> Suspended:
        if not activation.fold.may_run:
            raise _StoppedAlready
        return Suspended(**head, reason=reason)

    try:
        await activation.flush()
        await activation.append(suspended)
    except _StoppedAlready:
        return
    finally:
        activation.resume_intake()
