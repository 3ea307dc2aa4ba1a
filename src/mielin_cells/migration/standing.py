"""Where an open migration stands: what whoever owns the agent next reads from journal and log, and goes on from.

Pure functions.  What became of an attempt is in the agent's log alone (rule 7); what was tried and decided is in the journal.  Time
between processes is wall time, which may jump: so it is never counted shorter than the journal itself shows, and it only ever
decides that a recovery is over (`docs/recovery.md`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mielin_cells.errors import UnknownRecord, never
from mielin_cells.log.fold import Fold, Phase
from mielin_cells.migration.failure import MigrationError, MigrationErrorType
from mielin_cells.migration.journal import Attempted, Decided, Failed, Journal
from mielin_cells.migration.recovery import RecoveryStrategy

SOURCE_LOST = "SourceLost"
"""Code of a failure that is nobody's but the source's: its process has ended."""

LOSSES_MAX = 16
"""Sources that one migration may lose before it ends: that it does must not depend on clocks."""


# ---- rule 7 --------------------------------------------------------------------------------------------------


def outcome_of(fold: Fold, attempt: str, epoch: int) -> str | None:
    """What the agent's log says of an attempt that was begun in `epoch`; None while it is open (rule 7)."""
    outcome = fold.outcomes.get(attempt)
    if outcome is not None:
        return outcome
    if fold.migration != attempt and (fold.epoch > epoch or fold.phase is Phase.TERMINATED):
        return "rolled_back"
    return None


def journal_outcome(found: Journal, fold: Fold) -> tuple[str | None, str]:
    """What became of an open journal's migration, now that nobody who began it runs it any more; and the target.

    None while its handover is open, and for a fold that is older than the last attempt.
    """
    if found.planned is None:
        raise never("found.planned is not None does not hold")
    target = found.planned.target
    for attempt in found.attempts:
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


# ---- the journal ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """An open migration as its journal tells.  Times are wall seconds."""

    agent: str
    last: Attempted | None
    """The last attempt."""
    is_running: bool
    """It was begun, and the journal does not say how it ended."""
    attempts: int
    retries: int
    """Retries that were begun."""
    tried: Mapping[str, int]
    """Attempts by target."""
    avoided: Mapping[str, int]
    """Nodes whose failure was answered with a retry elsewhere: with which, or 0 for a node that cannot run the agent."""
    failures: tuple[Failed, ...]
    decisions: tuple[RecoveryStrategy, ...]
    cause: Failed | None
    """The failure that is being recovered.  A source that is lost before a retry has begun takes nothing's place."""
    is_undecided: bool
    """A failure is written, and what is done about it is not."""
    decided: RecoveryStrategy | None
    """The decision that stands: nothing was begun since."""
    due: float | None
    """When the retry that was decided on is due; None if none was, or it has begun."""
    delay: float
    """As it was decided."""
    is_cancelled: bool
    losses: int
    coordinator: str
    """Who wrote last."""
    began: float
    """When the recovery's time began: at the first failure, or, before one, when its source was last heard of."""
    newest: float

    def elapsed(self, now: float) -> float:
        """Seconds of the recovery's time that are over: never fewer than the journal's own times say."""
        return max(now, self.newest) - self.began

    def wait(self, now: float) -> float | None:
        """Seconds until the retry that was decided on; None if none was."""
        return None if self.due is None else min(max(0.0, self.due - now), self.delay)

    def errors(self, now: float, clock: float) -> list[MigrationError]:
        """The failures as values of this process, whose monotonic clock is at `clock`."""
        return [self.error(failed, now, clock) for failed in self.failures]

    def error(self, failed: Failed, now: float, clock: float) -> MigrationError:
        age = max(0.0, now - failed.at)
        kind = MigrationErrorType(failed.kind)
        return MigrationError.new(kind, failed.message, self.agent, failed.target or None, now=clock - age)


def standing(found: Journal) -> Standing:
    """Raises `UnknownRecord` for a type of failure or a strategy that this version does not know."""
    if found.planned is None:
        raise never("found.planned is not None does not hold")
    tried: Counter[str] = Counter()
    avoided: dict[str, int] = {}
    failures: list[Failed] = []
    decisions: list[RecoveryStrategy] = []
    cause: Failed | None = None
    due: float | None = None
    delay, retries, losses = 0.0, 0, 0
    for record in found.records:
        match record:
            case Attempted():
                tried[record.target] += 1
                retries, due = retries + (due is not None), None
            case Failed():
                _known(MigrationErrorType, record.kind, found)
                failures.append(record)
                losses += record.code == SOURCE_LOST
                if due is None or record.code != SOURCE_LOST:
                    # Nobody could be had for the retry that was due, or the attempt failed.
                    retries, due, cause = retries + (due is not None), None, record
            case Decided():
                strategy = RecoveryStrategy(_known(RecoveryStrategy, record.strategy, found))
                decisions.append(strategy)
                delay = record.delay_s
                due = record.at + delay if strategy.is_retry else None
                if strategy is RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET and cause is not None and cause.target:
                    passes = MigrationErrorType(cause.kind).is_retryable and avoided.get(cause.target) != 0
                    avoided[cause.target] = retries + 1 if passes else 0
            case _:
                pass
    attempts, last = found.attempts, found.records[-1]
    newest = max(record.at for record in found.records)
    return Standing(
        agent=found.planned.agent, last=attempts[-1] if attempts else None, is_running=found.in_attempt,
        attempts=len(attempts), retries=retries, tried=tried, avoided=avoided, failures=tuple(failures),
        decisions=tuple(decisions), cause=cause, is_undecided=found.has_failed,
        decided=decisions[-1] if decisions and not found.has_failed and not found.in_attempt else None, due=due,
        delay=delay,
        is_cancelled=found.is_cancelled, losses=losses,
        coordinator=last.node, began=failures[0].at if failures else newest, newest=newest,
    )  # fmt: skip


def _known(of: type[MigrationErrorType] | type[RecoveryStrategy], name: str, found: Journal) -> str:
    if name not in {member.value for member in of}:
        raise UnknownRecord(
            f"The journal of migration {found.migration} tells of {name!r}, which this version does not know; upgrade it, then "
            "recover.", subject=found.migration, tag=name,
        )  # fmt: skip
    return name


# ---- what is to be done --------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """An end that needs no further decision."""

    outcome: str
    code: str = ""
    reason: str = ""


def verdict(found: Journal, stands: Standing, fold: Fold, node: str, *, is_newest: bool = True) -> Verdict | None:
    """How the migration ends now that `node` owns the agent; None: it goes on from there, as far as its journal and rule 7 say.

    `is_newest`: no later migration of the agent is known.  Asked only when `journal_outcome` is not None.
    """
    planned = found.planned
    if planned is None:
        raise never("planned is not None does not hold")
    if journal_outcome(found, fold)[0] == "completed":
        return Verdict("completed")
    if stands.is_cancelled:
        return Verdict("rolled_back", "Cancelled", "cancelled")
    if fold.phase is Phase.TERMINATED:
        return Verdict("rolled_back", "AgentTerminated", "the agent has ended")
    lost = f"{stands.coordinator} was lost before it ended"
    if not is_newest:
        return Verdict("rolled_back", SOURCE_LOST, f"{lost}, and the agent was moved again since")
    if stands.last is None and not stands.failures:
        return Verdict("rolled_back", SOURCE_LOST, f"{lost}, and before anything was begun")
    if node == planned.target or (stands.last is not None and node == stands.last.target):
        return Verdict("rolled_back", SOURCE_LOST, f"{lost}, and {node}, where the agent was to go, has claimed it")
    return None
