"""What became of a migration: the agent's log says it (rule 7), and what its journal says decides whether it goes on.

Pure functions.
"""

from __future__ import annotations

from typing import NamedTuple

from mielin_cells.errors import never
from mielin_cells.log.fold import Fold
from mielin_cells.log.lifecycle import Phase
from mielin_cells.migration.case import SOURCE_LOST, Case
from mielin_cells.migration.journal import Journal


def outcome_of(fold: Fold, attempt: str, epoch: int) -> str | None:
    """What the agent's log says of an attempt that was begun in `epoch`; None while it is open."""
    outcome = fold.outcomes.get(attempt)
    if outcome is not None:
        return outcome
    if fold.migration != attempt and (fold.epoch > epoch or fold.phase is Phase.TERMINATED):
        return "rolled_back"
    return None


def journal_outcome(journal: Journal, fold: Fold) -> tuple[str | None, str]:
    """What became of an open journal's migration, now that the process that began it does not run it any more; and the target.

    None while its handover is open, and for a fold that is older than the last attempt.
    """
    if journal.planned is None:
        raise never("the journal has no plan")
    target = journal.planned.target
    for attempt in journal.attempts:
        if fold.outcomes.get(attempt.id) == "completed":
            return "completed", attempt.target
        target = attempt.target
        if fold.migration == attempt.id or attempt.epoch > fold.epoch:
            return None, target
    return "rolled_back", target


def restored(fold: Fold) -> dict[str, str]:
    """What an agent that was rolled back goes on with, in words."""
    return {
        "digest": fold.seal_digest().hex(), "cursor": str(fold.ledger.cursor), "state": fold.lifecycle.state.value,
        "version": str(fold.version), "epoch": str(fold.epoch),
    }  # fmt: skip


class Verdict(NamedTuple):
    """An end that needs no further decision."""

    outcome: str
    code: str = ""
    reason: str = ""


def verdict(journal: Journal, case: Case, fold: Fold, node: str, *, is_newest: bool = True) -> Verdict | None:
    """How the migration ends now that `node` owns the agent; None: it goes on from there, as far as its journal and rule 7 say.

    `is_newest`: no later migration of the agent is known.  Asked only when `journal_outcome` is not None.
    """
    planned, last = journal.planned, journal.attempts[-1] if journal.attempts else None
    if planned is None:
        raise never("the journal has no plan")
    if journal_outcome(journal, fold)[0] == "completed":
        return Verdict("completed")
    if case.is_cancelled:
        return Verdict("rolled_back", "Cancelled", "cancelled")
    if fold.phase is Phase.TERMINATED:
        return Verdict("rolled_back", "AgentTerminated", "the agent has ended")
    lost = f"{journal.coordinator} was lost before it ended"
    if not is_newest:
        return Verdict("rolled_back", SOURCE_LOST, f"{lost}, and the agent was moved again since")
    if last is None and not case.failures:
        return Verdict("rolled_back", SOURCE_LOST, f"{lost}, and before anything was begun")
    if node == planned.target or (last is not None and node == last.target):
        return Verdict("rolled_back", SOURCE_LOST, f"{lost}, and {node}, where the agent was to go, has claimed it")
    return None
