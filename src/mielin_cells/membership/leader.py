"""The leader's log: which node does the failovers, and the floor below which no incarnation number is given again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from mielin_cells.errors import RecordInvalid
from mielin_cells.log.codec import UNREADABLE, framed, unframed
from mielin_cells.substrate.ports import Appended, Entry, Log
from mielin_cells.substrate.retry import whole

logger = logging.getLogger("mielin_cells.failover")

SUBJECT = "leader"

FLOOR_UNKNOWN = 1 << 32
"""Taken for the floor where the record that held it cannot be read: higher than any that was ever given."""


class Term(msgspec.Struct, array_like=True, frozen=True):
    """A node leads from this record on, until the next one."""

    node: str
    incarnation: int
    number: int
    nonce: bytes
    floor: int = 0
    """The highest incarnation of a node whose log was removed: a node that enters without a log takes a higher one."""


class LastTerm(NamedTuple):
    """The end of the leader's log; `seq` 0: the log is empty, `term` None: nobody leads."""

    seq: int
    term: Term | None
    floor: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Term)


def decode_term(data: bytes) -> Term:
    try:
        return _decoder.decode(unframed(data, "The leader's log"))
    except UNREADABLE as error:
        raise RecordInvalid(f"The leader's log holds no term: {error}.", subject=SUBJECT) from error


async def read_term(log: Log, last: Entry | None) -> LastTerm:
    """What the last entry of the leader's log says."""
    if last is None:
        return LastTerm(0, None, 0)
    try:
        term = await whole(log, SUBJECT, last, decode_term)
    except RecordInvalid as error:
        logger.warning("the last record of the leader's log cannot be read and is skipped: %s", error)
        return LastTerm(last.seq, None, FLOOR_UNKNOWN)
    return LastTerm(last.seq, term, term.floor)


async def append_term(log: Log, term: Term, after: int) -> bool:
    """False if another node was first, or if the outcome is not known: the next read tells."""
    outcome = await log.append(SUBJECT, framed(_encoder.encode(term)), after)
    if not isinstance(outcome, Appended):
        return False
    await log.trim(SUBJECT, outcome.seq)
    return True


async def read_floor(log: Log) -> int:
    """A node that enters without a log of its own takes an incarnation above this."""
    return (await read_term(log, await log.settled(SUBJECT))).floor


async def raise_floor(log: Log, incarnation: int, me: tuple[str, int], nonce: Callable[[], bytes]) -> bool:
    """Notes that incarnations up to this one may have been forgotten; False if this process does not lead any more."""
    last = await read_term(log, await log.last(SUBJECT))
    if last.term is None or (last.term.node, last.term.incarnation) != me:
        return False
    if last.floor >= incarnation:
        return True
    return await append_term(log, msgspec.structs.replace(last.term, nonce=nonce(), floor=incarnation), last.seq)
