"""Dead letters: messages that could not be handled, as an agent's log holds them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from blake3 import blake3

from mielin_cells.agents.values.models import readable
from mielin_cells.errors import RecordInvalid
from mielin_cells.log.commit import DeadLetter
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import inbox_subject
from mielin_cells.log.inboxes.lines import NORMAL, PRIORITIES
from mielin_cells.log.inboxes.places import InboxPlace
from mielin_cells.log.ledger import Verdict
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.message import decode_mail, sender_text
from mielin_cells.redaction import scrubbed
from mielin_cells.settings import DEAD_LETTERS_MAX
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Entry, Log
from mielin_cells.substrate.retry import whole

PAGE = 256
"""Inbox entries read at a time."""


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter as operators see it.  `number` is its place in the list and changes; `id` does not."""

    number: int
    id: str
    handler: str
    sender: str
    n: int
    cause: str
    tries: int
    asks: list[str]
    """Asks made by the last turn that failed."""
    args: Any
    seq: int
    """Sequence of its inbox entry; 0: not known."""
    at: float = 0.0
    """When it became a dead letter, in wall seconds; 0: not known."""


def letter_id(agent: str, letter: DeadLetter) -> str:
    return blake3(msgspec.msgpack.encode((agent, letter.key))).hexdigest(length=8)


def describe_letter(agent: str, number: int, letter: DeadLetter) -> Letter:
    try:
        args = readable(msgspec.msgpack.decode(letter.args)) if letter.args else None
    except msgspec.MsgspecError:
        args = letter.args.hex()
    return Letter(
        number=number, id=letter_id(agent, letter), handler=letter.handler, sender=sender_text(letter.sender), n=letter.n,
        cause=scrubbed(letter.cause),
        tries=letter.tries, asks=letter.asks, args=args, seq=letter.seq, at=letter.at,
    )  # fmt: skip


async def read_letters(log: Log, agent: str) -> tuple[Fold, list[DeadLetter]]:
    """The agent and its dead letters, the oldest first.  Messages that an ended agent never took are among them (rule 20)."""
    fold = await load(log, agent)
    dead = list(fold.ledger.dead)
    if fold.phase is Phase.TERMINATED:
        async for letter in read_unread(log, fold):
            dead.append(letter)
            if len(dead) >= DEAD_LETTERS_MAX:
                break
    return fold, dead


async def read_unread(log: Log, fold: Fold) -> AsyncIterator[DeadLetter]:
    """The messages in the agent's inboxes that it has not taken, as if they were dead letters; a damaged entry has no handler."""
    for priority in reversed(PRIORITIES):
        place = fold.ledger if priority == NORMAL else (fold.ledger.inboxes or {}).get(priority, InboxPlace())
        inbox, at = inbox_subject(fold.agent, priority), place.cursor
        for seq in place.held:
            for entry in await log.read(inbox, seq - 1, 1):
                if entry.seq == seq:
                    for letter in await _of(log, fold, inbox, entry):
                        yield letter
        while entries := await log.read(inbox, at, PAGE):
            for entry in entries:
                for letter in await _of(log, fold, inbox, entry):
                    yield letter
            at = entries[-1].seq


async def _of(log: Log, fold: Fold, inbox: str, entry: Entry) -> list[DeadLetter]:
    cause = "AgentTerminated: the agent ended before this message was handled"
    try:
        where = f"The inbox of agent {fold.agent!r} at {entry.seq}"
        mail = await whole(log, inbox, entry, lambda data: decode_mail(data, where))
    except RecordInvalid as error:
        return [DeadLetter(entry.seq, "", 0, "", error.message, 0, [], b"")]
    open_to = (Verdict.APPLY, Verdict.HOLD)
    return [
        DeadLetter(entry.seq, mail.sender, message.n, message.handler, cause, 0, [], message.args)
        for message in mail.messages
        if fold.ledger.judge(mail.sender, message.n, mail.start) in open_to
    ]
