"""One failed migration as the recovery manager keeps it, and the values that it gives out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from mielin_cells.migration.failure import MigrationError
from mielin_cells.migration.recovery import RecoveryAttempt, RecoveryConfig, RecoveryStrategy, explain, last_resort

ATTEMPTS_KEPT = 100
"""Attempts remembered for one agent, the oldest forgotten first."""

ROLLBACKS_MAX = 5
"""Failed rollbacks after which the agent is parked: a person sees more than a sixth try."""

EXCLUDED_DELAYS = 4
"""A node that failed in a passing way is not chosen again by this migration for so many delays; then it may have recovered."""


class RecoveryOutcome(Enum):
    """How a recovery ends; whoever has one leaves the queue."""

    RECOVERED = "Recovered"
    ROLLED_BACK = "RolledBack"
    """Performed and verified."""
    GAVE_UP = "GaveUp"
    EXPIRED = "Expired"
    """Given up because the time for recovery was over."""
    SETTLED = "Settled"
    """Decided elsewhere: an operator cancelled, another node owns the agent, the agent has ended."""

    @property
    def is_parked(self) -> bool:
        return self in (RecoveryOutcome.GAVE_UP, RecoveryOutcome.EXPIRED)


class Rule(NamedTuple):
    """A decision, and the rule that made it in words."""

    strategy: RecoveryStrategy
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """An attempt that was begun.  Whoever holds its token, and nobody else, reports how it ended."""

    token: int
    agent_id: str
    migration: str
    attempt_number: int
    strategy: RecoveryStrategy
    why: str
    target_node: str | None
    """None for a retry elsewhere until a node is assigned."""
    excluded: frozenset[str]
    """Nodes that a retry elsewhere must not go to."""
    deadline: float
    """When the attempt is taken away (monotonic seconds)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryEnd:
    """A recovery that has ended."""

    agent_id: str
    migration: str
    outcome: RecoveryOutcome
    timestamp: float
    error: MigrationError
    """The last failure."""


@dataclass(slots=True)
class Case:
    """Kept by the manager alone.  Attempts belong to it, not to the error of the day."""

    error: MigrationError
    """The last failure, with this migration's count of retries."""
    migration: str
    source: str
    began: float
    deadline: float
    attempts: list[RecoveryAttempt] = field(default_factory=list)
    ticket: Ticket | None = None
    """Set while an attempt runs."""
    waits: int = 0
    """In a row, because no other node could be had."""
    rollbacks: int = 0
    """That failed."""
    ordered: Rule | None = None
    """An operator's decision about the next attempt."""
    ordered_target: str | None = None
    excluded: dict[str, float] = field(default_factory=dict)
    """Nodes that failed in a way that calls for another, and until when."""
    tries: dict[str, int] = field(default_factory=dict)

    def rule(self, config: RecoveryConfig, now: float) -> Rule:
        """What is to be done, as far as this migration alone tells."""
        if self.ordered is not None:
            return self.ordered
        if self.rollbacks >= ROLLBACKS_MAX:
            return Rule(RecoveryStrategy.GIVE_UP, f"{self.rollbacks} rollbacks failed")
        if self.rollbacks:
            return Rule(RecoveryStrategy.ROLLBACK, "a rollback that was begun is finished")
        if self.is_over(now):
            return Rule(last_resort(config), f"recovery took longer than {self.deadline - self.began:g} s")
        rule = Rule(*explain(self.error, config))
        if rule.strategy.is_retry and self.waits > config.max_retries:
            return Rule(last_resort(config), f"no other node could be had in {self.waits} tries")
        target = self.error.target_node
        if rule.strategy is RecoveryStrategy.RETRY_ON_SAME_TARGET and self.excluded.get(target or "") == math.inf:
            return Rule(RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET, f"{target} cannot run the agent")
        return rule

    def is_over(self, now: float) -> bool:
        return now >= self.deadline

    def exclude(self, error: MigrationError, config: RecoveryConfig) -> None:
        """Notes what a failure says about its target, for this migration."""
        if error.target_node is None or not error.error_type.should_change_target:
            return
        until = (
            error.timestamp + self.passing(self.error.retry_count + 1, config)
            if error.error_type.is_retryable
            else math.inf
        )
        self.excluded[error.target_node] = max(until, self.excluded.get(error.target_node, 0.0))

    @staticmethod
    def passing(retry: int, config: RecoveryConfig) -> float:
        """How long a node is excluded whose failure passes, and was answered with this retry."""
        return EXCLUDED_DELAYS * config.calculate_retry_delay(retry)

    def forbidden(self, now: float) -> frozenset[str]:
        """The source, the nodes that are excluded now, and the one that failed last."""
        names = {name for name, until in self.excluded.items() if now < until}
        names.update(name for name in (self.source, self.error.target_node) if name)
        return frozenset(names)

    def note(self, attempt: RecoveryAttempt) -> None:
        self.attempts.append(attempt)
        del self.attempts[:-ATTEMPTS_KEPT]
