"""Asks whose answers do not come: the owner is reminded of them.

An ask that is stored is not stored again because nobody has answered it yet: where many wait, more appends would make all wait
longer.  Its owner sends again what it has answered.  What it does not know, though it waits for work, passed it by, and is stored
once more; so it is, once, while no owner can be asked: the next one will find it behind what the former had answered.
"""

from __future__ import annotations

import math

from mielin_cells.errors import (
    UNLOADABLE,
    UNUSABLE,
    AgentInError,
    AgentTerminated,
    CellError,
    NodeStopping,
    NoResponder,
    StoreFull,
    WireTimeout,
    never,
)
from mielin_cells.log.ids import log_subject
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.message import Answer, encode_answer
from mielin_cells.log.records import Terminated, decode_record, named_owner
from mielin_cells.rpc import requests
from mielin_cells.rpc.answers import AskStatus
from mielin_cells.rpc.call import call
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Log, Wire
from mielin_cells.substrate.retry import whole

REMIND_S = 1.0


async def remind(log: Log, wire: Wire, reminder: requests.Remind, left_s: float = math.inf) -> AskStatus:
    """Has the owner answer again, and asks it why it has not answered.  Who waits does so for `left_s` more, and hears of it before.

    Raises `AgentTerminated` if the agent has ended, why it cannot answer before somebody does something about it (`cause`),
    or a `RetryError` while the store does not answer.
    """
    agent, subject = reminder.agent, log_subject(reminder.agent)
    last = (await log.lasts([subject])).get(subject)  # late is soon enough: a former owner says that it is none
    if last is None:
        return AskStatus(None, "")
    record = await whole(log, subject, last, lambda data: decode_record(data, f"The log of agent {agent!r}"))
    if isinstance(record, Terminated):
        raise _terminated(agent)
    node = named_owner(record)
    seconds = min(REMIND_S, max(left_s, 0.0) / 2)
    try:
        return await call(wire, node, reminder, seconds)
    except CellError as error:
        if error.code in UNUSABLE | UNLOADABLE or isinstance(error, (StoreFull, AgentInError)):
            raise
        away = isinstance(error, (NoResponder, NodeStopping, WireTimeout))
        later = "the message waits for it, or for the node that takes the agent over"
        return AskStatus(None, f"its node {node} does not answer; {later}" if away else "")


async def count_waiting(log: Log, wire: Wire, agent: str) -> int | None:
    """Messages in the agent's inbox as its owner counts them; None if nobody says."""
    try:
        last = await log.last(log_subject(agent))
        owner = named_owner(decode_record(last.data, f"The log of agent {agent!r}")) if last is not None else ""
        if not owner:
            return None
        return await call(wire, owner, requests.CountWaiting(agent), REMIND_S)
    except CellError:
        return None


async def last_word(log: Log, agent: str, sender: str, n: int) -> bytes:
    """Of an agent that has terminated: its stored answer to `n` of `sender`, or else `AgentTerminated`.

    A terminated log never changes, so this reading decides nothing that could still turn out otherwise (rule 20).
    """
    fold = await load(log, agent)
    if fold.phase is not Phase.TERMINATED:
        raise never("fold.phase is Phase.TERMINATED")
    stored = fold.ledger.answer(sender, n)
    return stored if stored is not None else encode_answer(Answer(None, _terminated(agent).to_wire()))


def _terminated(agent: str) -> AgentTerminated:
    return AgentTerminated(f"Agent {agent!r} has ended; its id is not used again.", agent=agent)
