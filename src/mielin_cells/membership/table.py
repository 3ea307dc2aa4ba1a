"""The table of members as a process reads it from its log, and appends to that log.

Every append expects the last record that the process has read.  After a conflict, or an outcome that is not known, it reads on and
decides anew: of all appends that expect one record, at most one lands.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from mielin_cells.errors import CellError, RecordInvalid, UnknownNode, described
from mielin_cells.log.ids import MEMBERS
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.members import (
    AnyRecord,
    Cordoned,
    Joined,
    Left,
    Member,
    Status,
    Table,
    decode_record,
    encode_record,
)
from mielin_cells.substrate.ports import Appended, Entry, Log, Tail
from mielin_cells.substrate.retry import whole
from mielin_cells.tasks.supervision import Backoff, persist

logger = logging.getLogger("mielin_cells.members")

READ = 256
"""Records in one read."""


class Members:
    """The table, as far as this process has read its log.  It is read on by `read`, `read_to_end` and `follow`."""

    def __init__(self, log: Log) -> None:
        self.table = Table()
        self._log = log
        self._lock = asyncio.Lock()
        """Entries are taken in order, also if two readers have them."""
        self._tail: Tail | None = None

    # ---- reading ---------------------------------------------------------------------------------------------

    async def read(self) -> Table:
        """Reads on.  The newest records may be missing."""
        while entries := await self._log.read(MEMBERS, self.table.seq, READ):
            await self._take(entries)
            if len(entries) < READ:
                break
        return self.table

    async def read_to_end(self) -> Table:
        """Reads on to the end of the log, and includes every record that was acknowledged before the call."""
        table, seq = self.table, self.table.seq  # it may be read on by others meanwhile
        last = await self._log.settled(MEMBERS)
        if self.table is table and (last.seq if last is not None else 0) < seq:
            self._start_over()
        backoff = Backoff()
        while last is not None and self.table.seq < last.seq:
            before = self.table.seq
            await self.read()
            if self.table.seq == before:  # a replica that is behind
                await backoff.wait()
        return self.table

    def _start_over(self) -> None:
        """The store was put back to an older copy: what was read is not there any more."""
        logger.error("the log of the members ends before what was read of it: the store was put back; it is read again")
        self.table = Table()
        if self._tail is not None:
            self._tail.close()

    async def follow(self, changed: Callable[[Table], None]) -> None:
        """Reads the log as it grows, and calls `changed` behind each batch.  It returns when the store is closed."""
        while True:
            table = self.table
            self._tail = tail = self._log.tail(MEMBERS, table.seq)
            try:
                async for batch in tail:
                    await persist(lambda batch=batch: self._take(batch), CellError, _note_failure)  # type: ignore[misc]
                    changed(self.table)
            finally:
                tail.close()
            if self.table is table:
                return

    async def _take(self, entries: list[Entry]) -> None:
        async with self._lock:
            for entry in entries:
                if entry.seq > self.table.seq:
                    self._apply(entry.seq, await self._decode(entry))

    async def _decode(self, entry: Entry) -> AnyRecord | None:
        where = f"The log of the members at {entry.seq}"
        try:
            return await whole(self._log, MEMBERS, entry, lambda data: decode_record(data, where))
        except RecordInvalid as error:
            logger.warning("a record of the members cannot be read and is skipped: %s", error)
            return None

    def _apply(self, seq: int, record: AnyRecord | None) -> None:
        try:
            self.table.apply(seq, record)
        except RecordInvalid as error:
            logger.warning("an image of the members' table cannot be read and is skipped: %s", error)
            self.table.apply(seq, None)

    # ---- appending -------------------------------------------------------------------------------------------

    async def try_append(self, record: AnyRecord) -> int:
        """Appends the record behind all that was read; returns its position.

        0 if somebody else was first, or if the outcome is not known: then the log is read to its end, and the caller decides anew.
        """
        table, data = self.table, encode_record(record)
        outcome = await self._log.append(MEMBERS, data, table.seq)
        if isinstance(outcome, Appended):
            if self.table is table:
                await self._take([Entry(outcome.seq, data)])
            return outcome.seq
        await self.read_to_end()
        return 0

    async def append(self, decide: Callable[[Table], AnyRecord | None]) -> AnyRecord | None:
        """Appends what `decide` makes of the table, which it is asked again whenever somebody else was first.

        Returns the record, or None if `decide` had none.  Raises a `RetryError` while the store does not answer.
        """
        backoff = Backoff()
        while (record := decide(self.table)) is not None:
            at = self.table.seq
            if await self.try_append(record):
                return record
            if self.table.seq == at:  # not known, or known to nobody yet
                await backoff.wait()
        return None

    async def trim(self, seq: int) -> None:
        """Removes the records before the image at `seq`."""
        await self._log.trim(MEMBERS, seq)


def _note_failure(error: Exception) -> None:
    logger.info("reading the log of the members failed; trying again: %s", error)


async def read_members(log: Log) -> Table:
    """The table as of now, nearly: nothing is decided by it."""
    return await Members(log).read()


async def enter(members: Members, name: str, about: Announcement, nonce: bytes) -> Member:
    """Takes the next incarnation of the name.  Raises a `RetryError` while the store does not answer."""
    tried = 0

    def decide(table: Table) -> AnyRecord | None:
        nonlocal tried
        have = table.get(name)
        if have is not None and have.nonce == nonce and have.incarnation == tried:
            return None  # it had landed
        tried = table.next_incarnation(name)
        return Joined(name, tried, nonce, about)

    await members.read_to_end()
    await members.append(decide)
    return members.table.members[name]


async def leave(members: Members, name: str, incarnation: int) -> None:
    """Notes that the process has ended cleanly, unless others suspect it.  Its agents stay claimable.

    Whatever the store raises, the process ends all the same.
    """

    def decide(table: Table) -> AnyRecord | None:
        member = table.get(name)
        is_in = member is not None and member.status in (Status.JOINED, Status.SERVING)
        return Left(name, incarnation) if is_in and table.is_current(name, incarnation) else None

    try:
        await members.read_to_end()
        await members.append(decide)
    except Exception as error:  # whatever the store raises
        logger.info("node %s: recording its stop failed: %s", name, described(error))


async def cordon(log: Log, name: str, is_cordoned: bool) -> Member:
    """Records that the node takes no agents, or takes agents again.

    Raises `UnknownNode` if there is no such node, and a `RetryError` while the store does not answer.
    """
    members = Members(log)

    def decide(table: Table) -> AnyRecord | None:
        member = table.get(name)
        if member is None:
            raise UnknownNode.of(name, sorted(table.members))
        is_so = member.is_cordoned == is_cordoned and not member.is_reserved
        return None if is_so else Cordoned(name, member.incarnation, is_cordoned)

    await members.read_to_end()
    await members.append(decide)
    return members.table.members[name]


async def is_known(log: Log, name: str) -> bool:
    """True if a node of this name is in the table."""
    return (await Members(log).read_to_end()).get(name) is not None


async def list_names(log: Log) -> list[str]:
    """Every node of the table, in order."""
    return sorted((await read_members(log)).members)
