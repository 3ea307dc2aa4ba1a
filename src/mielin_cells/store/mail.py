"""Storing mail in its receiver's inbox."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mielin_cells.errors import RetryError, StoreFull, StoreUnreachable
from mielin_cells.log.inboxes.lines import NORMAL, priority_of
from mielin_cells.log.message import Mail, encode_mail, inbox_of, opening_of
from mielin_cells.substrate.ports import Appended, Log
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.outbox")


def _never(_: RetryError) -> bool:
    return False


async def store_mail(log: Log, mail: Mail, late: Callable[[RetryError], bool] = _never) -> int:
    """Appends a client's mail to the receiver's inbox until it is known to be stored; returns its sequence.

    The same bytes may be stored twice: the receiver drops what it has already.  Errors that no retry mends are raised at once, and so
    is `StoreFull` while it is certain that nothing was stored.  `late` is called with the error before each retry; if it returns True,
    nobody waits for the mail any more, and the error is raised.
    """
    data, subject, backoff, in_doubt = encode_mail(mail), inbox_of(mail), Backoff(), False
    while True:
        try:
            outcome = await log.append(subject, data)
            if isinstance(outcome, Appended):
                return outcome.seq
            in_doubt = True
            error: RetryError = StoreUnreachable(
                f"It is not known whether mail for {mail.to!r} is stored.", agent=mail.to
            )
        except RetryError as refused:
            if isinstance(refused, StoreFull) and not in_doubt:
                raise
            error = refused
        if late(error):
            raise error
        logger.info("mail from %s to %s is not stored yet; trying again: %s", mail.sender, mail.to, error)
        await backoff.wait()


class Posting:
    """Stores the mail of one session of a client."""

    __slots__ = ("_is_open",)

    def __init__(self) -> None:
        self._is_open = False
        """The receiver's owner has been told to read the inbox."""

    async def store(self, log: Log, mail: Mail, late: Callable[[RetryError], bool]) -> int:
        """As `store_mail`; before the first mail of another priority than normal, its inbox is opened."""
        if not self._is_open:
            if priority_of(mail.sender) != NORMAL:
                await store_mail(log, opening_of(mail), late)
            self._is_open = True
        return await store_mail(log, mail, late)
