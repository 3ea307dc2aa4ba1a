"""How a migration has ended, by its journal and the agent's log, when its source does not say (rule 7)."""

from __future__ import annotations

from typing import NamedTuple

from mielin_cells.errors import NoSuchMigration
from mielin_cells.log.lifecycle import Phase
from mielin_cells.migration.outcome import journal_outcome, outcome_of
from mielin_cells.store import journal
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Log

SOURCE_LOST = "the source was lost; the agent's log says that it did not move", "SourceLost"


class End(NamedTuple):
    outcome: str
    target: str
    reason: str = ""
    code: str = ""
    error_type: str = ""


async def read_end(log: Log, agent: str, migration: str, epoch: int, to: str) -> tuple[str, End | None]:
    """The agent's owner, and the end of the migration that was planned in `epoch`, with `to` as its first target; None while it is
    open, or may still begin.  Raises what the store raises."""
    outcome: str | None
    reason, code, error_type, target = "", "", "", to
    fold = await load(log, agent)
    try:
        read = await journal.read(log, agent, migration)
    except NoSuchMigration:
        outcome = outcome_of(fold, migration, epoch)
    else:
        error_type = read.error_type
        if read.end is not None:
            outcome, reason, code, target = read.end.outcome, read.end.reason, read.end.code, read.end.target
        else:  # the agent's owner goes on with it
            outcome, target = journal_outcome(read, fold)
            outcome = outcome if outcome == "completed" or fold.phase is Phase.TERMINATED else None
    if outcome is None:
        return fold.owner, None
    if outcome != "completed" and not reason:
        reason, code = SOURCE_LOST
    return fold.owner, End(outcome, target, reason, code, error_type if outcome != "completed" else "")
