"""The calls of an agent that have not taken effect, for people."""

from __future__ import annotations

from collections.abc import Iterator

from mielin_cells.agents.reports import CallInfo
from mielin_cells.log.inboxes.cancels import CANCEL
from mielin_cells.log.inboxes.lines import priority_of
from mielin_cells.log.ledger import Verdict
from mielin_cells.log.message import Mail, call_id, sender_text
from mielin_cells.node.activation.activation import Activation
from mielin_cells.node.activation.inbox import Arrival

CALLS_MAX = 200
"""Listed of one agent."""


def list_calls(activation: Activation) -> list[CallInfo]:
    """The one that runs first, then those that failed, then those that wait, by inbox."""
    runs = activation.runner.turn
    running = (runs.sender, runs.n) if runs is not None else ("", 0)
    failed = [one for sender in activation.intake.delays.senders.values() for one in sender.arrivals]
    waiting = [one for inbox in activation.inbox.all() for one in inbox.queue]
    calls = [*_calls(failed, "failed", running), *_calls(waiting, "waits", running)]
    calls.sort(key=lambda one: one.state != "runs")
    return calls[:CALLS_MAX]


def _calls(arrivals: list[Arrival], state: str, running: tuple[str, int]) -> Iterator[CallInfo]:
    for arrival in arrivals:
        mail = arrival.mail
        if not isinstance(mail, Mail):
            continue
        for message in mail.messages[arrival.index :]:
            if message.handler == CANCEL or arrival.inbox.verdict(mail, message) not in (Verdict.APPLY, Verdict.HOLD):
                continue
            yield CallInfo(
                id=call_id(mail.sender, message.n), handler=message.handler, sender=sender_text(mail.sender),
                priority=priority_of(mail.sender), is_ask=message.ask,
                state="runs" if (mail.sender, message.n) == running else state,
            )  # fmt: skip
