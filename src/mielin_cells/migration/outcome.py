"""Decides what became of a migration from the agent's log (rule 7), and from its journal whether it continues.

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
    """The outcome and the target of an open migration that its process no longer runs.

    The outcome is None while the handover is open, and if the fold is older than the last attempt.
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
    """The state in which a rolled-back agent continues, as text for reports."""
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
    """How the migration ends now that `node` owns the agent; None: it continues from there.

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
