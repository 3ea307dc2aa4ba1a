"""The keepers' log: who acts when nodes fall silent, and below which number no incarnation of a forgotten node is given again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from mielin_cells.errors import RecordInvalid
from mielin_cells.log.codec import UNREADABLE, framed, unframed
from mielin_cells.substrate.ports import Appended, Entry, Log
from mielin_cells.substrate.retry import whole

logger = logging.getLogger("mielin_cells.keeper")

SUBJECT = "keeper"

FLOOR_UNKNOWN = 1 << 32
"""Taken for the floor where the record that held it cannot be read: higher than any that was ever given."""


class Term(msgspec.Struct, array_like=True, frozen=True):
    node: str
    incarnation: int
    number: int
    nonce: bytes
    floor: int = 0
    """The highest incarnation of a node whose log was removed: who enters without a log takes a higher one."""


class Standing(NamedTuple):
    """The last record of the keepers' log; `seq` 0: there is none, `term` None: nobody keeps."""

    seq: int
    term: Term | None
    floor: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Term)


def decode_term(data: bytes) -> Term:
    try:
        return _decoder.decode(unframed(data, "The keepers' log"))
    except UNREADABLE as error:
        raise RecordInvalid(f"The keepers' log holds no term: {error}.", subject=SUBJECT) from error


async def standing(log: Log, last: Entry | None) -> Standing:
    """What the last entry of the keepers' log says."""
    if last is None:
        return Standing(0, None, 0)
    try:
        term = await whole(log, SUBJECT, last, decode_term)
    except RecordInvalid as error:
        logger.warning("the keepers' log is gone on with behind what cannot be read: %s", error)
        return Standing(last.seq, None, FLOOR_UNKNOWN)
    return Standing(last.seq, term, term.floor)


async def append(log: Log, term: Term, after: int) -> bool:
    """False if somebody else was first, or the outcome is not known: whoever reads the log finds out."""
    outcome = await log.append(SUBJECT, framed(_encoder.encode(term)), after)
    if not isinstance(outcome, Appended):
        return False
    await log.trim(SUBJECT, outcome.seq)
    return True


async def floor(log: Log) -> int:
    """For a node that enters without a log of its own: its incarnation is above this."""
    return (await standing(log, await log.settled(SUBJECT))).floor


async def raised(log: Log, incarnation: int, me: tuple[str, int], nonce: Callable[[], bytes]) -> bool:
    """Notes, if this process still keeps, that incarnations up to this one may have been forgotten."""
    found = await standing(log, await log.last(SUBJECT))
    if found.term is None or (found.term.node, found.term.incarnation) != me:
        return False
    if found.floor >= incarnation:
        return True
    return await append(log, msgspec.structs.replace(found.term, nonce=nonce(), floor=incarnation), found.seq)
