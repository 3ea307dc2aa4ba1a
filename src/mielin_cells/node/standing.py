"""Why an agent does not answer: what its owner knows of that, and those whom it tells without being asked."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mielin_cells.core.ledger import Verdict
from mielin_cells.core.lifecycle import AgentState
from mielin_cells.core.message import Answer, Mail, encode_answer
from mielin_cells.core.secret import scrubbed
from mielin_cells.errors import AgentInError, CellError, StoreFull, from_wire, storable
from mielin_cells.node.parking import UNUSABLE

if TYPE_CHECKING:
    from mielin_cells.node.host import Host
    from mielin_cells.node.node import Node

UNLOADABLE = frozenset({"StateUnloadable", "StateUpgradeFailed", "UnknownClass"})
"""What no node with this code, or with what it has imported, can load."""

WHY_CHARS_MAX = 500
"""Of a failure, in the timeout of an ask."""

LATER = "Your message waits, and may still take effect"


def cause(node: Node, agent: str) -> CellError | None:
    """Why an agent that is this node's cannot answer before somebody does something about it; None if it can."""
    host = node.hosts.get(agent)
    if host is None:
        found = node.troubled.get(agent)
        if found is None or found.code not in UNUSABLE | UNLOADABLE:
            return None
        said = scrubbed(found.error).rstrip(".")
        where = "" if node.name in said else f" on {node.name}"
        later = "" if found.code in UNUSABLE else f"{where}. {LATER}, once it is mended and resumed."
        return from_wire(found.code, f"Agent {agent!r} cannot answer: {said}{later or '.'}", {"agent": agent})
    why = host.writer.waits_for
    if isinstance(why, StoreFull):
        return type(why)(
            f"Agent {agent!r} on {node.name} cannot answer: {why.message} {LATER}.", **{**why.facts, "agent": agent}
        )
    return in_error(host)


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


def doing(node: Node, agent: str, sender: str) -> str:
    """What keeps an agent of this node from answering a sender now, for people; "" if nothing is known."""
    host = node.hosts.get(agent)
    if host is None:
        found = node.troubled.get(agent)
        return (
            f"it cannot run on {node.name} ({scrubbed(found.error).rstrip('.')}), and the message waits"
            if found is not None
            else ""
        )
    state = host.fold.lifecycle.state
    if state in (AgentState.SUSPENDED, AgentState.PAUSED):
        return f"it is {state.value.lower()}, and the message waits until it is resumed"
    if host.writer.waits_for is not None:
        return (
            f"its store does not take its records ({host.writer.waits_for.message.rstrip('.')}), and the message waits"
        )
    handler, age_s = running(host)
    failed = host.intake.delays.why(sender)
    if failed and not handler:
        said = scrubbed(storable(failed))[:WHY_CHARS_MAX].rstrip(".")
        return f"its handler {said}, and is run again; what the same sender has sent since waits for that"
    return f"it is in {host.spec.name}.{handler}, for {age_s:.1f} s when it was asked last" if handler else ""


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
