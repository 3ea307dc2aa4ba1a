"""Reads from the logs who owns an agent, and what became of an attempt whose end this process has not seen."""

from __future__ import annotations

import logging
from dataclasses import replace

from mielin_cells.agents.reports import MigrationReport
from mielin_cells.errors import CellError, RecordInvalid, RetryError
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import AnyRecord, HandedOff, Returned, named_owner
from mielin_cells.migration.case import SOURCE_LOST
from mielin_cells.migration.failure import Coded, Happened, SentBack
from mielin_cells.migration.journal import Attempted, Journal, Reached
from mielin_cells.store import journal
from mielin_cells.store.reader import read_record
from mielin_cells.substrate.ports import Log
from mielin_cells.tasks.supervision import persist

logger = logging.getLogger("mielin_cells.migration")


async def owner_of(log: Log, agent: str) -> str:
    """The node that the log names now; waits for the store.  "" if there is none any more."""
    record = await _last_of(log, agent)
    return named_owner(record) if record is not None else ""


async def owns(log: Log, agent: str, node: str, epoch: int) -> bool:
    """True if the log gives the agent to `node` in `epoch` now, in phase run; waits for the store."""
    record = await _last_of(log, agent)
    if record is None or isinstance(record, HandedOff) or named_owner(record) != node:
        return False
    return record.epoch + isinstance(record, Returned) == epoch


async def _last_of(log: Log, agent: str) -> AnyRecord | None:
    async def read() -> AnyRecord | None:
        last = await log.settled(log_subject(agent))
        return await read_record(log, agent, last) if last is not None else None

    return await persist(read, RetryError)


async def journal_of(log: Log, agent: str, migration: str) -> Journal | None:
    """The journal as another process has continued it, perhaps to its end; waits for the store.  None if it cannot be read."""
    try:
        return await persist(lambda: journal.read(log, agent, migration), RetryError)
    except CellError as error:
        logger.error("the journal of migration %s of agent %s is unusable: %s", migration, agent, error)
        return None


async def loss_of(log: Log, fold: Fold, attempt: Attempted, coordinator: str) -> tuple[str, str, Happened]:
    """Why an attempt failed whose source did not see its end: the target may have returned the agent, with a reason.

    Returns the code, the reason, and the value to classify.
    """
    handed = fold.handed.get(attempt.id)
    if handed is not None:
        entries = await log.read(log_subject(fold.agent), handed, 1)
        try:
            record = await read_record(log, fold.agent, entries[0]) if entries else None
        except RecordInvalid:
            record = None  # trimmed, or damaged on its way: it would only have said more
        if isinstance(record, Returned) and record.prev == handed:
            return "Returned", f"the target returned it: {record.cause}", SentBack(record.code)
    return SOURCE_LOST, f"{coordinator} was lost in attempt {attempt.number}", Coded(SOURCE_LOST)


def report_of(journal: Journal, report: MigrationReport) -> MigrationReport:
    """The report, completed by the journal: its last attempt ended in another process."""
    end, number = journal.end, len(journal.attempts)
    target = end.target if end is not None else report.target
    report = replace(report, target=target, phases=(), rounds=0, bytes=0, pause_ms=0.0, error_type=journal.error_type)
    for record in journal.records:
        if isinstance(record, Reached) and record.number == number:
            report = replace(
                report, phases=tuple(record.phases), rounds=record.rounds, bytes=record.bytes, pause_ms=record.pause_ms
            )  # fmt: skip
    return report
