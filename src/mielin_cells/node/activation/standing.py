"""Why an agent does not answer: what its owner knows of that, and those whom it tells without being asked."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mielin_cells.errors import UNUSABLE, AgentInError, CellError, from_wire
from mielin_cells.log.ledger import Verdict
from mielin_cells.log.message import Answer, Mail, encode_answer
from mielin_cells.redaction import scrubbed

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Host


WHY_CHARS_MAX = 500
"""Of a failure, in the timeout of an ask."""

LATER = "Your message waits, and may still take effect"


def in_error(host: Host) -> CellError | None:
    """Of an agent in ERROR: what puts asks to it off until it is resumed."""
    agent, error = host.fold.agent, host.fold.lifecycle.error
    if error is None:
        return None
    said = scrubbed(error.message)
    if error.code in UNUSABLE:
        return from_wire(error.code, said, {"agent": agent})
    return AgentInError(
        f"Agent {agent!r} is in ERROR on {host.home.name} and runs nothing: {said.rstrip('.')}. {LATER}, once it is "
        f"resumed: `mielin resume {agent}`.",
        agent=agent, node=host.home.name, cause=said,
    )  # fmt: skip


def running(host: Host) -> tuple[str, float]:
    """The handler or hook that waits for something, and for how many seconds; "" if none does."""
    turn = host.intake.turn
    return (turn.message, asyncio.get_running_loop().time() - turn.since) if turn is not None else ("", 0.0)


def tell(host: Host) -> None:
    """Of an agent in ERROR: who has asked is told so at once, and once.  The messages wait, so this is no stored answer."""
    error = in_error(host)
    if error is None:
        return
    answer = encode_answer(Answer(None, error.to_wire()))
    put_off = (arrival for sender in host.intake.delays.senders.values() for arrival in sender.arrivals)
    for arrival in (*host.inbox.queue, *put_off):
        mail = arrival.mail
        if arrival.is_told or not isinstance(mail, Mail):
            continue
        arrival.is_told = True
        told = dict[int, bytes]()
        for message in mail.messages[arrival.index :]:
            if message.ask:
                verdict = host.inbox.verdict(mail, message)
                is_open = verdict in (Verdict.APPLY, Verdict.HOLD)
                told[message.n] = (
                    answer if is_open else host.intake.answer_again(mail.sender, message.n, verdict) or answer
                )
        if told:
            host.reply(mail.reply_to, mail.sender, told)
