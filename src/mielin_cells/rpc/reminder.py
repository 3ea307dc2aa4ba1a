"""Reminds an agent's owner of asks without an answer.

A stored ask is not stored again merely because it has no answer yet: where many asks wait, more appends would make all of them wait
longer.  The owner sends again the answers that it has.  An ask that the owner has never seen, although it is idle, has passed it by
and is stored once more.  While no owner can be asked, an ask is stored once more too, for the next owner.
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
from mielin_cells.log.inboxes.lines import NORMAL
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.message import Answer, encode_answer
from mielin_cells.log.records import Terminated, decode_record, named_owner
from mielin_cells.rpc import requests
from mielin_cells.rpc.answers import AskStatus, InboxRoom
from mielin_cells.rpc.call import call
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Log, Wire
from mielin_cells.substrate.retry import whole

REMIND_S = 1.0


async def remind(log: Log, wire: Wire, reminder: requests.Remind, left_s: float = math.inf) -> AskStatus:
    """Has the owner answer again, and asks it why it has not answered; within half of `left_s`, the time that is left to the ask.

    Raises `AgentTerminated` if the agent has ended, what keeps the agent from answering until somebody acts, and a `RetryError`
    while the store does not answer.
    """
    agent, subject = reminder.agent, log_subject(reminder.agent)
    last = (await log.lasts([subject])).get(subject)  # may be stale: a former owner says that it is none
    if last is None:
        return AskStatus(None, "")
    record = await whole(log, subject, last, lambda data: decode_record(data, f"The log of agent {agent!r}"))
    if isinstance(record, Terminated):
        raise AgentTerminated.of(agent)
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


async def count_waiting(log: Log, wire: Wire, agent: str, priority: str = NORMAL) -> InboxRoom | None:
    """What is in the agent's inbox of this priority, as its owner counts it; None if the owner does not answer."""
    try:
        last = await log.last(log_subject(agent))
        owner = named_owner(decode_record(last.data, f"The log of agent {agent!r}")) if last is not None else ""
        if not owner:
            return None
        return await call(wire, owner, requests.CountWaiting(agent, priority), REMIND_S)
    except CellError:
        return None


async def read_last_answer(log: Log, agent: str, sender: str, n: int) -> bytes:
    """The answer to message `n` of `sender` that an ended agent has stored, or else `AgentTerminated` as the answer.

    The log of an ended agent never changes, so what is read here is final (rule 20).
    """
    fold = await load(log, agent)
    if fold.phase is not Phase.TERMINATED:
        raise never("only an ended agent is read for its last answer")
    stored = fold.ledger.answer(sender, n)
    return stored if stored is not None else encode_answer(Answer(None, AgentTerminated.of(agent).to_wire()))
