"""Cancels, as the owner of their messages deals with them (rule T4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from mielin_cells.errors import Cancelled, RecordInvalid
from mielin_cells.log.commit import AskCall, Out
from mielin_cells.log.inboxes.cancels import CANCEL, Cancel, Cancels, critical_line, decode_cancel, encode_cancel
from mielin_cells.log.inboxes.lines import end_of, line, priority_of
from mielin_cells.log.ledger import Verdict
from mielin_cells.log.message import Mail, Message, is_client
from mielin_cells.node.activation.core import Core
from mielin_cells.node.activation.inbox import Arrival
from mielin_cells.node.activation.turn import Turn


def cancels_in(arrival: Arrival) -> Iterator[Cancel]:
    """The cancels in an entry that are not taken yet."""
    mail = arrival.mail
    if not isinstance(mail, Mail):
        return
    for message in mail.messages[arrival.index :]:
        if message.handler == CANCEL and arrival.inbox.verdict(mail, message) in (Verdict.APPLY, Verdict.HOLD):
            with suppress(RecordInvalid):
                yield decode_cancel(message.args)


def keep(core: Core, cancel: Cancel) -> bool:
    """Takes a cancel in its turn: it is kept if its message has not been taken, and may still come.  False if it changes nothing."""
    ledger, (sender, n, start) = core.fold.ledger, cancel
    replay = ledger.replays.get((sender, n)) if ledger.replays else None
    if ledger.has_taken(sender, n) or (replay is not None and replay.taken):
        return False
    if is_client(sender) and start and ledger.judge(sender, n, start) is Verdict.EXPIRED:
        return False
    if ledger.cancels is not None and ledger.cancels.has(sender, n):
        return True
    ledger.cancels = Cancels.with_one(ledger.cancels, sender, n)
    if ledger.cancels.has(sender, n):
        core.batch.cancels.append((sender, n))
        core.touch()
    return True


def error_of(core: Core, message: Message) -> Cancelled:
    agent, handler = core.fold.agent, message.handler
    return Cancelled(
        f"{core.spec.name}.{handler} of agent {agent!r} was cancelled before its turn ended; the call has no effect, and what it had "
        "asked of others before may have.", agent=agent, handler=handler,
    )  # fmt: skip


def open_asks(core: Core, sender: str, n: int, turn: Turn | None) -> list[AskCall]:
    """Asks of a message without an outcome, as the log shows them: also those of an earlier owner."""
    fold = core.fold
    opened, replay = fold.turn, fold.ledger.replays.get((sender, n)) if fold.ledger.replays else None
    asks = list[AskCall]()
    if opened is not None and (opened.sender, opened.n) == (sender, n):
        asks += [call for call in opened.calls if isinstance(call, AskCall)]
    if replay is not None:
        asks += [AskCall(sent.to, sent.n, sent.handler, sent.body, "", sent.answer) for sent in replay.sent if sent.ask]
    answered = {(call.to, call.n) for call in asks if call.answer is not None}
    if turn is not None:
        answered |= {(call.to, call.n) for call in turn.calls if isinstance(call, AskCall) and call.answer is not None}
    by_number = {(call.to, call.n): call for call in asks if call.n}
    return [call for key, call in by_number.items() if key not in answered]


def unheard_asks(turn: Turn) -> list[AskCall]:
    """Asks of a turn that has ended whose outcomes its handler did not wait for."""
    return [call for call in turn.calls if isinstance(call, AskCall) and call.n and call.answer is None]


def cancel_asks(core: Core, asks: list[AskCall]) -> None:
    """The commit sends cancels of them.  They leave once it is acknowledged (rule 9); the asks themselves are delivered."""
    ledger, agent = core.fold.ledger, core.fold.agent
    for ask in asks:
        to = critical_line(end_of(ask.to))
        args = encode_cancel(Cancel(line(agent, priority_of(ask.to)), ask.n))
        out = Out(to, "", ledger.next_number(to), CANCEL, args, False, "", 0, 0)
        ledger.send(out)
        core.batch.outs.append(out)
