"""Writing a migration's journal.

A journal is written by one process after another.  Each append is conditional, so of two that settle the same migration one is first,
and the other reads what is there.  What must be known before it is acted on is awaited (`write`); progress is not (`later`)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from mielin_cells.errors import (
    CellError,
    EpochRegression,
    Fenced,
    NoSuchMigration,
    RecordInvalid,
    RetryError,
    UnknownRecord,
)
from mielin_cells.log.ids import journal_subject
from mielin_cells.migration.journal import AnyRecord, Ended, Journal, decode, encode
from mielin_cells.node.activation.context import NodeContext
from mielin_cells.store.journal import read
from mielin_cells.substrate.ports import Appended, Conflict, Entry, Unknown
from mielin_cells.tasks.supervision import Backoff

R = TypeVar("R", bound=AnyRecord)

logger = logging.getLogger("mielin_cells.migration")


class JournalTaken(Fenced):
    """Another process has continued or ended the migration.  Facts: migration."""


class _WentBack(Exception):
    """The journal ends at `have`, before what it had acknowledged."""

    def __init__(self, have: int) -> None:
        super().__init__(have)
        self.have = have


class JournalWriter:
    """The only way by which a node writes one journal.  `fold` holds what is acknowledged."""

    def __init__(self, home: NodeContext, agent: str, migration: str, journal: Journal | None = None) -> None:
        self._home = home
        self._agent = agent
        self.fold = journal or Journal(migration)
        self._lock = asyncio.Lock()
        self._behind: deque[Callable[[dict[str, Any]], AnyRecord]] = deque()

    def later(self, compose: Callable[[dict[str, Any]], AnyRecord]) -> None:
        """Writes the record before the next one that is awaited; a process that dies first loses only progress."""
        self._behind.append(compose)

    async def write(self, compose: Callable[[dict[str, Any]], R]) -> R:
        """Returns the record once it is acknowledged.  Raises `JournalTaken` if another process was first."""
        async with self._lock:
            while self._behind:
                await self._append(self._behind.popleft())
            return await self._append(compose)

    async def _append(self, compose: Callable[[dict[str, Any]], R]) -> R:
        home, fold = self._home, self.fold
        record = compose(
            {
                "migration": fold.migration, "agent": self._agent, "node": home.name,
                "incarnation": home.incarnation, "nonce": home.rng.randbytes(12), "prev": fold.seq, "at": home.wall(),
            }
        )  # fmt: skip
        fold.check(fold.seq + 1, record)
        try:
            fold.apply(await self._landed(encode(record)), record)
        except _WentBack as error:
            raise await self._went_back(error) from None
        return record

    async def _went_back(self, why: _WentBack) -> EpochRegression:
        """Ends the journal that the store holds now with `gave_up`, so that only an operator continues the migration."""
        journal = self.fold
        facts = {"migration": journal.migration, "have": why.have, "need": journal.seq}
        error = EpochRegression(
            f"The journal of migration {journal.migration} of agent {self._agent!r} held record {journal.seq} and ends at "
            f"{why.have}: the store lost acknowledged records, or was put back to an older copy. The migration is not continued; see "
            f"`mielin show {journal.migration}`.", **facts,
        )  # fmt: skip
        logger.error("%s", error)
        try:
            self.fold = await read(self._home.log, self._agent, journal.migration)
        except NoSuchMigration:
            return error
        if self.fold.is_open:
            code, reason = error.code, error.message
            await self._append(lambda head: Ended(**head, outcome="gave_up", target="", code=code, reason=reason))
        return error

    async def _landed(self, data: bytes) -> int:
        """The same bytes until the outcome is known: a read may prove that they landed, never that they did not.

        What the store refuses for good is raised only if none of them can land any more: an earlier try may be on its way.
        """
        log, subject, backoff = self._home.log, journal_subject(self._agent, self.fold.migration), Backoff()
        now, behind_since, is_in_doubt = asyncio.get_running_loop().time, -1.0, False
        while True:
            try:
                outcome = await log.append(subject, data, self.fold.seq)
                is_in_doubt = is_in_doubt or isinstance(outcome, Unknown)
                if isinstance(outcome, Appended):
                    return outcome.seq
                if isinstance(outcome, Conflict):
                    entries = await log.read(subject, self.fold.seq, 1)
                    if entries and entries[0].data == data:
                        return entries[0].seq
                    if entries and _is_readable(entries[0]):  # else its bytes were damaged on their way: it may be ours
                        raise JournalTaken(
                            f"Migration {self.fold.migration} of agent {self._agent!r} was continued or ended by another "
                            "process; see `mielin show` for what it did.", migration=self.fold.migration,
                        )  # fmt: skip
                    last = await log.last(subject)
                    have = last.seq if last is not None else 0
                    if have >= self.fold.seq:
                        behind_since = -1.0
                    elif behind_since < 0:
                        behind_since = now()
                    elif now() - behind_since >= self._home.settings.regression_s:
                        raise _WentBack(have)
            except CellError as error:
                if isinstance(error, Fenced) or not (is_in_doubt or isinstance(error, RetryError)):
                    raise
                logger.info("migration %s: writing its journal failed; trying again: %s", self.fold.migration, error)
            await backoff.wait()


def _is_readable(entry: Entry) -> bool:
    try:
        decode(entry.data, "A journal")
    except UnknownRecord:
        return True  # it is whole, and of a newer version: not ours
    except RecordInvalid:
        return False
    return True
