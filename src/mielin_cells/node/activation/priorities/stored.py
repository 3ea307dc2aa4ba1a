"""Whether a message is stored: a look for the rare case in which the order of two inboxes says nothing."""

from __future__ import annotations

from mielin_cells.errors import StoreUnreachable
from mielin_cells.log.ids import inbox_subject
from mielin_cells.log.message import Mail
from mielin_cells.node.activation.inbox import Inbox, holds
from mielin_cells.substrate.ports import Log


async def is_stored(log: Log, inbox: Inbox, sender: str, n: int, until: int) -> bool:
    """True if this message, which has not been taken, is in the inbox; `until`: by this position it was, if it ever was.

    Raises `StoreUnreachable` if a replica answers that is behind.
    """
    subject, place = inbox_subject(inbox.agent, inbox.priority), inbox.place
    after, last = min([*place.held, place.cursor + 1]) - 1, await log.settled(subject)
    end = min(last.seq, until) if last is not None else 0
    while after < end:
        page = await log.read(subject, after)
        if not page:
            raise StoreUnreachable("The replica that answers is behind.", subject=subject)
        for entry in page:
            mail = (await inbox.decoded(entry)).mail
            if isinstance(mail, Mail) and holds(mail, sender, n):
                return True
        after = page[-1].seq
    return False
