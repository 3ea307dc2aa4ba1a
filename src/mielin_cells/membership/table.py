"""The table of members: one log for each node, which says whether it runs and which process of its name is the newest.

A process enters by a conditional append to the log of its name.  The number in that record is its incarnation: of two processes with
one name the later has the higher incarnation, and the earlier one sees it and stops.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from mielin_cells.errors import CellError, RecordInvalid, UnknownNode, described
from mielin_cells.log.codec import UNREADABLE, framed, unframed
from mielin_cells.log.ids import decoded, node_log_subject
from mielin_cells.membership import leader
from mielin_cells.substrate.ports import Appended, Entry, Log
from mielin_cells.substrate.retry import whole
from mielin_cells.tasks.supervision import Backoff, persist

logger = logging.getLogger("mielin_cells.node")


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """What a process says about itself when it enters; shown to operators and used to choose targets of moves."""

    classes: dict[str, int] = {}
    """Agent classes that it knows, with their versions."""
    cores: int = 0
    memory_bytes: int = 0
    architecture: str = ""
    labels: dict[str, str] = {}
    host: str = ""
    process: int = 0
    python: str = ""
    package: str = ""
    at: float = 0.0
    """When it entered, in wall seconds."""


class Entered(msgspec.Struct, array_like=True, frozen=True):
    """A record of a node's log."""

    incarnation: int
    name: str
    nonce: bytes
    about: Announcement = Announcement()
    has_stopped: bool = False
    """The incarnation has ended cleanly; its agents stay claimable."""
    is_cordoned: bool = False
    """It takes no agents, in this incarnation and those that follow, until an operator uncordons it."""


class Place(NamedTuple):
    """The end of a node's log as its process knows it."""

    incarnation: int
    seq: int
    is_cordoned: bool = False


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entered)


def decode_entered(data: bytes, where: str) -> Entered:
    payload = unframed(data, where)
    try:
        return _decoder.decode(payload)
    except UNREADABLE as error:
        raise RecordInvalid(f"{where} holds no node's record: {error}.", subject=where) from error


async def _entered(log: Log, name: str, entry: Entry) -> Entered:
    where = f"The log of node {name} at {entry.seq}"
    return await whole(log, node_log_subject(name), entry, lambda data: decode_entered(data, where))


async def enter(log: Log, name: str, about: Announcement, nonce: Callable[[], bytes]) -> Place:
    """Takes the next incarnation of the name.  Raises a `RetryError` while the store does not answer."""
    subject, backoff = node_log_subject(name), Backoff()
    while True:
        last = await log.last(subject)
        before, at = Entered(0, name, b""), 0
        if last is not None:
            at = last.seq
            try:
                before = await _entered(log, name, last)
            except RecordInvalid as error:
                before = Entered(at, name, b"")  # an incarnation is never above the sequence of its record
                logger.warning("node %s: its last record cannot be read and is skipped: %s", name, error)
        else:  # a node of this name may have been forgotten
            before = Entered(await leader.read_floor(log), name, b"")
        incarnation, is_cordoned = before.incarnation + 1, before.is_cordoned
        mine = Entered(incarnation, name, nonce(), about, is_cordoned=is_cordoned)
        outcome = await log.append(subject, framed(_encoder.encode(mine)), at)
        if isinstance(outcome, Appended):
            return Place(incarnation, outcome.seq, is_cordoned)
        await backoff.wait()  # unknown or lost: whatever is there now, the next number is free or ours


async def wait_for_newer(log: Log, name: str, place: Place, changed: Callable[[Entered, int], None]) -> int:
    """Waits until another process enters the name, and returns its incarnation (0: the store was closed).

    `changed` is called with what operators write about this one, and its sequence.
    """
    tail = log.tail(node_log_subject(name), place.seq)
    try:
        async for batch in tail:
            for entry in batch:
                entered = await _read_own(log, name, entry)
                if entered is None:
                    continue
                if entered.incarnation > place.incarnation:
                    return entered.incarnation
                changed(entered, entry.seq)
    finally:
        tail.close()
    return 0


async def _read_own(log: Log, name: str, entry: Entry) -> Entered | None:
    """The record, once the store answers; None if it is damaged where it is stored."""

    def failed(error: Exception) -> None:
        logger.info("node %s: reading its own log failed; trying again: %s", name, error)

    async def read() -> Entered | None:
        try:
            return await _entered(log, name, entry)
        except RecordInvalid as error:
            logger.warning("node %s: a record of its own log cannot be read and is skipped: %s", name, error)
            return None

    return await persist(read, CellError, failed)


async def cordon(log: Log, name: str, is_cordoned: bool, nonce: Callable[[], bytes]) -> Entered:
    """Records that the node takes no agents, or takes agents again; returns the record.

    Raises `UnknownNode` if no such node ever entered, `RecordInvalid`, and a `RetryError` while the store does not answer.
    """
    subject, backoff = node_log_subject(name), Backoff()
    while True:
        last = await log.last(subject)
        if last is None and not await is_known(log, name):
            names = await list_names(log)
            raise UnknownNode.of(name, names)
        if last is None:
            continue  # it has entered, and a leader that was cut off did not know it
        entered = await _entered(log, name, last)
        if entered.is_cordoned == is_cordoned:
            return entered
        wanted = msgspec.structs.replace(entered, nonce=nonce(), is_cordoned=is_cordoned)
        outcome = await log.append(subject, framed(_encoder.encode(wanted)), last.seq)
        if isinstance(outcome, Appended):
            return wanted
        await backoff.wait()  # somebody was first, or it is not known: read again


async def leave(log: Log, name: str, incarnation: int, nonce: bytes) -> None:
    """Records that the process has ended cleanly.  Nothing is decided by this hint, so it is tried once."""
    try:
        last = await log.last(node_log_subject(name))
        entered = await _entered(log, name, last) if last is not None else None
        if last is None or entered is None or entered.incarnation != incarnation:
            return
        data = framed(_encoder.encode(msgspec.structs.replace(entered, nonce=nonce, has_stopped=True)))
        await log.append(node_log_subject(name), data, last.seq)
    except Exception as error:  # whatever the store raises: the process ends all the same
        logger.info("node %s: recording its stop failed: %s", name, described(error))


async def is_known(log: Log, name: str) -> bool:
    """True if a node of this name ever entered; the answer is certain."""
    subject = node_log_subject(name)
    return await log.last(subject) is not None or await log.settled(subject) is not None


async def forget(
    log: Log, name: str, entered: Entered, me: tuple[str, int], nonce: Callable[[], bytes]
) -> bool:  # fmt: skip
    """Removes the log of a node that has stopped, if this is still its end; the next one of its name has a higher incarnation."""
    last = await log.last(node_log_subject(name))
    if last is None:
        return False
    found = await _entered(log, name, last)
    if not found.has_stopped or found.incarnation != entered.incarnation:
        return False
    if not await leader.raise_floor(log, found.incarnation, me, nonce):
        return False
    await log.trim(node_log_subject(name), last.seq + 1)  # what is appended behind it stays
    return True


async def list_names(log: Log) -> list[str]:
    """Every node that ever entered, in order."""
    prefix, found = node_log_subject(""), []
    for subject, _ in await log.subjects(prefix):
        with contextlib.suppress(UnicodeDecodeError):  # else nobody's log: no name makes this subject
            found.append(decoded(subject.removeprefix(prefix)))
    return sorted(found)


async def read_members(log: Log) -> dict[str, Entered]:
    """The last record of every node that ever entered, by name; with incarnation 0 where it cannot be read.

    It may be a little old: nothing is decided by it.
    """
    known = await list_names(log)
    last = await log.lasts([node_log_subject(name) for name in known])
    found = dict[str, Entered]()
    for name in known:
        found[name] = Entered(0, name, b"")
        entry = last.get(node_log_subject(name))
        if entry is not None:
            try:
                found[name] = await _entered(log, name, entry)
            except RecordInvalid as error:
                logger.warning("%s", error)
    return found


async def read_present(log: Log) -> dict[str, Entered]:
    """The members that have not recorded their stop."""
    return {name: entered for name, entered in (await read_members(log)).items() if not entered.has_stopped}
