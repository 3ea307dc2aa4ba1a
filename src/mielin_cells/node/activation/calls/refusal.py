"""Asks that are not sent, because their receiver does not exist."""

from __future__ import annotations

from mielin_cells.errors import NoSuchAgent
from mielin_cells.log.ids import log_subject
from mielin_cells.log.message import Answer, encode_answer
from mielin_cells.substrate.ports import Log


async def refusal_of(log: Log, asker: str, agent: str) -> bytes | None:
    """The outcome of an ask to an agent that does not exist; None if the agent exists.  Nothing is sent to it."""
    subject = log_subject(agent)
    if await log.last(subject) is not None or await log.settled(subject) is not None:
        return None
    error = NoSuchAgent(f"Agent {asker!r} asked {agent!r}, which does not exist; spawn it first.", agent=agent)
    return encode_answer(Answer(None, error.to_wire()))
