"""Reading the last entry of an agent's attributes."""

from __future__ import annotations

import logging
from functools import partial

from mielin_cells.errors import RecordInvalid
from mielin_cells.log.attributes.entries import Listing, Place, decode_listing
from mielin_cells.log.ids import attributes_subject
from mielin_cells.substrate.ports import Entry, Log
from mielin_cells.substrate.retry import whole

logger = logging.getLogger("mielin_cells.attributes")


async def read_listing(log: Log, subject: str, entry: Entry) -> Listing:
    """Raises `RecordInvalid` for an entry that is damaged where it is stored."""
    return await whole(log, subject, entry, partial(decode_listing, subject=subject))


async def read_place(log: Log, agent: str, *, is_settled: bool) -> Place:
    """The last entry.  One that is stale costs a conflict, after which a settled one is read."""
    subject = attributes_subject(agent)
    entry = await (log.settled(subject) if is_settled else log.last(subject))
    if entry is None:
        return Place(0, None)
    try:
        return Place(entry.seq, await read_listing(log, subject, entry))
    except RecordInvalid as error:
        logger.error("the attributes of agent %s cannot be read, and are written again by its owner: %s", agent, error)
        return Place(entry.seq, None)
