"""Whether a call was ever stored: by the receiver's log, its inbox, and the log of the agent that makes it."""

from __future__ import annotations

from functools import partial

from mielin_cells.errors import NoSuchAgent, RecordInvalid, StoreUnreachable
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import inbox_subject, log_subject
from mielin_cells.log.inboxes.lines import NORMAL, end_of, line, priority_of
from mielin_cells.log.inboxes.places import InboxPlace, first_needed
from mielin_cells.log.message import decode_mail, is_client
from mielin_cells.store.reader import load, load_behind
from mielin_cells.substrate.ports import Log
from mielin_cells.substrate.retry import whole


async def is_stored(log: Log, fold: Fold, sender: str, n: int) -> bool:
    """True if message `n` of the line, which has not taken effect as of `fold`, is stored, or its sender owes it.

    False is certain as of the time of the call, and says nothing about what a client sends later.  The order of the reads matters:
    a message leaves the inbox only after the commit that takes it.  Raises `RetryError` if that cannot be told now.
    """
    if (
        _knows(fold, sender, n)
        or await _is_in_inbox(log, fold, sender, n)
        or await _is_owed(log, fold.agent, sender, n)
    ):
        return True
    return _knows(await _settled(log, fold.agent), sender, n)


def _knows(fold: Fold, sender: str, n: int) -> bool:
    return fold.ledger.has_taken(sender, n) or (sender, n) in fold.ledger.replays


async def _is_in_inbox(log: Log, fold: Fold, sender: str, n: int) -> bool:
    priority = priority_of(sender)
    place = fold.ledger if priority == NORMAL else (fold.ledger.inboxes or {}).get(priority, InboxPlace())
    subject, after = inbox_subject(fold.agent, priority), first_needed(place) - 1
    last = await log.settled(subject)
    while last is not None and after < last.seq:
        page = await log.read(subject, after)
        if not page:
            raise StoreUnreachable("The replica that answers is behind.", subject=subject)
        for entry in page:
            where = f"The inbox of agent {fold.agent!r} at {entry.seq}"
            try:
                mail = await whole(log, subject, entry, partial(decode_mail, where=where))
            except RecordInvalid:  # nobody can say that it is not this one
                return True
            if mail.sender == sender and any(message.n == n for message in mail.messages):
                return True
        after = page[-1].seq
    return False


async def _is_owed(log: Log, agent: str, sender: str, n: int) -> bool:
    """True if an agent has sent it: what is in its log is delivered."""
    if is_client(sender):
        return False
    try:
        fold = await _settled(log, end_of(sender))
    except NoSuchAgent:
        return False
    return fold.ledger.numbers.get(line(agent, priority_of(sender)), 0) >= n


async def _settled(log: Log, agent: str) -> Fold:
    last = await log.settled(log_subject(agent))
    return await load(log, agent) if last is None else await load_behind(log, agent, last)
