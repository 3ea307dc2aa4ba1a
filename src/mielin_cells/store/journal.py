"""Reading the journals of migrations; `node.moves.journal` writes them."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from mielin_cells.errors import (
    CellError,
    JournalGap,
    NoSuchMigration,
    RecordInvalid,
)
from mielin_cells.log.ids import JOURNALS, journal_subject, journals_of, migration_of
from mielin_cells.migration.journal import Journal, decode
from mielin_cells.substrate.ports import Log
from mielin_cells.tasks.together import together

logger = logging.getLogger("mielin_cells.migration")

READ_RECORDS = 256
READS = 3
"""How often a journal is read before it counts as damaged, since bytes may be damaged on their way."""

READS_MAX = 32
"""Journals read at the same time."""


async def read(log: Log, agent: str, migration: str) -> Journal:
    """Reads a journal.  Raises `NoSuchMigration`, or a `RecordInvalid` if the journal is unusable each time it is read.

    Unreadable records after its end are skipped with a warning: the migration has ended, and nothing depends on them.
    """
    for _ in range(READS - 1):
        try:
            return await _read(log, agent, migration)
        except RecordInvalid as error:
            logger.warning("migration %s: reading its journal failed; trying again: %s", migration, error)
    return await _read(log, agent, migration, passes_over=True)


async def _read(log: Log, agent: str, migration: str, *, passes_over: bool = False) -> Journal:
    subject, journal = journal_subject(agent, migration), Journal(migration)
    while True:
        entries = await log.read(subject, journal.seq, READ_RECORDS)
        for entry in entries:
            try:
                journal.apply(entry.seq, decode(entry.data, f"The journal of migration {migration} at {entry.seq}"))
            except RecordInvalid as error:
                if journal.end is None or not passes_over:
                    raise
                logger.warning("migration %s has ended; later records of its journal are ignored: %s", migration, error)
                journal.seq = entry.seq  # the next record is written behind it
        if len(entries) < READ_RECORDS:
            break
    if journal.planned is None:
        last = await log.settled(subject)
        if last is not None:
            raise JournalGap(f"The journal of migration {migration} lacks its beginning.", have=0, need=last.seq)
        raise NoSuchMigration(f"There is no migration {migration} of agent {agent!r}.", migration=migration)
    return journal


async def listed(log: Log, agent: str | None = None) -> list[tuple[str, str]]:
    """Agents and migrations that have a journal; of one agent, or of all."""
    names = []
    for subject, _ in await log.subjects(JOURNALS if agent is None else journals_of(agent)):
        with contextlib.suppress(UnicodeDecodeError):  # nobody's journal: no agent id makes this subject
            names.append(migration_of(subject))
    return names


async def find(log: Log, migration: str) -> Journal:
    """The journal of a migration whose agent is not known.  Raises as `read`."""
    for agent, name in await listed(log):
        if name == migration:
            return await read(log, agent, migration)
    raise NoSuchMigration(f"There is no migration {migration} in this deployment.", migration=migration)


async def all_of(log: Log, agent: str | None = None) -> tuple[list[Journal], list[tuple[str, CellError]]]:
    """Journals in the order of their planning, and those that cannot be read, each with the reason."""
    limit, journals, unreadable = asyncio.Semaphore(READS_MAX), list[Journal](), list[tuple[str, CellError]]()

    async def one(agent: str, migration: str) -> None:
        async with limit:
            try:
                journals.append(await read(log, agent, migration))
            except (RecordInvalid, NoSuchMigration) as error:
                unreadable.append((migration, error))

    await together(one(agent, name) for agent, name in await listed(log, agent))
    journals.sort(key=lambda journal: journal.planned.at if journal.planned is not None else 0.0)
    return journals, sorted(unreadable, key=lambda item: item[0])
