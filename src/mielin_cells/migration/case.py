"""One open migration: what its journal says of it, as the manager that decides about it keeps it.

A case changes in three ways: an attempt begins (`begin`), something fails (`fail`), and somebody decides what follows (`decide`).  The
manager calls them as things happen here; `Case.of` calls them for the journal of a migration that another process began.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple, TypeVar

from mielin_cells.errors import UnknownRecord, never
from mielin_cells.migration.failure import MigrationError, MigrationErrorType
from mielin_cells.migration.journal import AnyRecord, Attempted, Cancelled, Decided, Failed, Journal
from mielin_cells.migration.recovery import (
    RecoveryAttempt,
    RecoveryConfig,
    RecoveryStrategy,
    changed,
    explain,
    last_resort,
)

E = TypeVar("E", MigrationErrorType, RecoveryStrategy)

ATTEMPTS_KEPT = 100
"""Attempts remembered for one agent, the oldest forgotten first."""

ROLLBACKS_MAX = 5
"""Failed rollbacks after which the agent is suspended and an operator decides: a sixth try would hardly succeed."""

EXCLUDED_DELAYS = 4
"""After a failure that may pass, the migration avoids the node for this many delays; by then it may have recovered."""

SOURCE_LOST = "SourceLost"
"""Code of a failure whose cause is that the source's process has ended."""

LOSSES_MAX = 16
"""Sources that one migration may lose before it ends: its end must not depend on clocks."""


class RecoveryOutcome(Enum):
    """How a recovery ends.  It leaves the manager with its end."""

    RECOVERED = "Recovered"
    ROLLED_BACK = "RolledBack"
    """Performed and verified."""
    GAVE_UP = "GaveUp"
    EXPIRED = "Expired"
    """Given up because the time for recovery was over."""
    SETTLED = "Settled"
    """Decided elsewhere: an operator cancelled, another node owns the agent, the agent has ended."""


class Rule(NamedTuple):
    """A decision, and the rule that made it in words."""

    strategy: RecoveryStrategy
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """An attempt that was begun.  The holder of its token, and nobody else, reports how it ended."""

    token: int
    agent_id: str
    migration: str
    attempt_number: int
    """Of the retry, from 1; 0 for the first attempt of a migration."""
    strategy: RecoveryStrategy | None
    """None: the first attempt of a migration."""
    why: str
    target_node: str | None
    """None for a retry elsewhere until a node is assigned."""
    excluded: frozenset[str]
    """Nodes that a retry elsewhere must not go to."""
    deadline: float
    """When the attempt's time is over (monotonic seconds)."""
    has_place: bool = False
    """It counts towards the limit of attempts that run with its target."""


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
    """Times are monotonic seconds of this process."""

    agent: str
    migration: str = ""
    source: str = ""
    """Where the agent is: no retry goes there."""
    config: RecoveryConfig | None = None
    """None: the manager's."""
    error: MigrationError | None = None
    """The failure that is being recovered, with the count of retries that were begun; None before the first failure."""
    code: str = ""
    """Of that failure."""
    attempts: int = 0
    """Attempts that were begun with a node, the first one included."""
    tries: dict[str, int] = field(default_factory=dict)
    """Attempts by node."""
    failures: list[MigrationError] = field(default_factory=list)
    decisions: list[RecoveryStrategy] = field(default_factory=list)
    history: list[RecoveryAttempt] = field(default_factory=list)
    """Attempts of the agent; those of earlier migrations come first."""
    is_running: bool = False
    """An attempt was begun and has not ended."""
    is_undecided: bool = False
    """A failure is recorded, and no decision about it yet."""
    decided: Rule | None = None
    """The last decision, as long as no attempt has begun since."""
    due: float | None = None
    """When the retry that was decided on is due; None if none was, or it has begun."""
    began: float | None = None
    """When the recovery's time began."""
    deadline: float = math.inf
    rollbacks: int = 0
    """Failed rollbacks."""
    losses: int = 0
    """Sources that were lost."""
    excluded: dict[str, float] = field(default_factory=dict)
    """Nodes that failed in a way that calls for another, and until when."""
    is_cancelled: bool = False
    ticket: Ticket | None = None
    """The attempt that runs here."""

    @classmethod
    def of(cls, journal: Journal, *, source: str, now: float, wall: float) -> Case:
        """What the journal says of an open migration, to a process whose clocks show `now` (monotonic) and `wall`.

        The recovery's time also runs between processes, by wall time.  Wall time may jump, so at least the time between the journal's
        own records counts as passed.  Temporary exclusions start again.  Raises `UnknownRecord` for a word that this version
        does not know, and `ConfigError`.
        """
        planned = journal.planned
        if planned is None:
            raise never("the journal has no plan")
        config = changed(RecoveryConfig(), planned.config)
        case = cls(planned.agent, journal.migration, source, config)
        newest = max(record.at for record in journal.records)
        at = now - (max(wall, newest) - newest)
        for record in journal.records:
            case.apply(record, at - (newest - record.at), now)
        if case.began is None:
            case._start_clock(at, config)
        return case

    def apply(self, record: AnyRecord, at: float, now: float) -> None:
        """Folds a record that was written at `at`; what it excludes is excluded from `now` on."""
        config = self.config or RecoveryConfig()
        match record:
            case Attempted():
                strategy = _known(RecoveryStrategy, record.strategy, self) if record.strategy else None
                self.begin(strategy, record.target, at)
            case Failed(code=code, target=target):
                kind = _known(MigrationErrorType, record.kind, self)
                if self.due is not None and self.decided is not None and code != SOURCE_LOST:
                    self.begin(self.decided.strategy, None, at)  # no node could be had for the retry
                error = MigrationError.new(kind, record.message, self.agent, target or None, now=at)
                self.fail(error, at, config, code=code, excluded_from=now)
            case Decided():
                strategy = _known(RecoveryStrategy, record.strategy, self)
                self.decide(Rule(strategy, record.rule), at, record.delay_s)
            case Cancelled():
                self.is_cancelled = True
            case _:
                pass

    # ---- transitions -----------------------------------------------------------------------------------------

    def begin(self, strategy: RecoveryStrategy | None, target: str | None, at: float) -> None:
        if self.error is not None and strategy is not None:
            self.error = self.error.increment_retry()
            self.history.append(
                RecoveryAttempt(
                    attempt_number=self.error.retry_count, strategy=strategy, timestamp=at, target_node=target
                )
            )
            del self.history[:-ATTEMPTS_KEPT]
        self.is_running, self.decided, self.due = True, None, None
        if target is not None and (strategy is None or strategy.is_retry):
            self._count(target)

    def assign(self, target: str) -> None:
        """The node that was chosen for the attempt that runs."""
        self.history[-1] = replace(self.history[-1], target_node=target)
        self._count(target)

    def _count(self, target: str) -> None:
        self.attempts += 1
        self.tries[target] = self.tries.get(target, 0) + 1

    def fail(
        self,
        error: MigrationError,
        at: float,
        config: RecoveryConfig,
        *,
        code: str = "",
        excluded_from: float | None = None,
    ) -> None:
        """Notes the failure.  If the source was lost (`SOURCE_LOST`) before a decided retry began, the retry stays due as it was."""
        self.failures.append(error)
        self.losses += code == SOURCE_LOST
        if self.began is None:
            self._start_clock(at, config)
        self.is_undecided, self.decided = True, None
        if code == SOURCE_LOST and self.due is not None:
            return
        if self.is_running and self.error is not None and self.history:
            self.history[-1] = replace(self.history[-1], success=False, error=error.message)
        count = max(self.error.retry_count if self.error is not None else 0, error.retry_count)
        self.error, self.code = replace(error, agent_id=self.agent, retry_count=count), code
        self.is_running, self.due = False, None
        self._exclude(self.error, config, error.timestamp if excluded_from is None else excluded_from)

    def decide(self, rule: Rule, at: float, delay: float) -> None:
        self.decided, self.is_undecided = rule, False
        self.decisions.append(rule.strategy)
        self.due = at + delay if rule.strategy.is_retry else None

    def _start_clock(self, at: float, config: RecoveryConfig) -> None:
        self.began, self.deadline = at, at + config.recovery_timeout_secs

    def _exclude(self, error: MigrationError, config: RecoveryConfig, since: float) -> None:
        """Notes what a failure says about its target, for this migration."""
        if error.target_node is None or not error.error_type.should_change_target:
            return
        passes = EXCLUDED_DELAYS * config.calculate_retry_delay(error.retry_count + 1)
        until = since + passes if error.error_type.is_retryable else math.inf
        self.excluded[error.target_node] = max(until, self.excluded.get(error.target_node, 0.0))

    # ---- what follows ----------------------------------------------------------------------------------------

    def rule(self, config: RecoveryConfig, now: float) -> Rule:
        """What is to be done, decided from this migration alone."""
        error = self.error
        if error is None:
            raise never("nothing has failed")
        if self.rollbacks >= ROLLBACKS_MAX:
            return Rule(RecoveryStrategy.GIVE_UP, f"{self.rollbacks} rollbacks failed")
        if self.rollbacks:
            return Rule(RecoveryStrategy.ROLLBACK, "a rollback that was begun is finished")
        if self.is_over(now):
            return Rule(last_resort(config), f"recovery took longer than {self.deadline - (self.began or 0.0):g} s")
        rule = Rule(*explain(error, config))
        if rule.strategy.is_retry and self.losses > LOSSES_MAX:
            return Rule(last_resort(config), f"its source was lost {self.losses} times")
        target = error.target_node
        if rule.strategy is RecoveryStrategy.RETRY_ON_SAME_TARGET and self.excluded.get(target or "") == math.inf:
            return Rule(RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET, f"{target} cannot run the agent")
        return rule

    def is_over(self, now: float) -> bool:
        return now >= self.deadline

    def forbidden(self, now: float) -> frozenset[str]:
        """The source, the nodes that are excluded now, and the one that failed last."""
        names = {name for name, until in self.excluded.items() if now < until}
        failed = self.error.target_node if self.error is not None else None
        names.update(name for name in (self.source, failed) if name)
        return frozenset(names)


def _known(of: type[E], name: str, case: Case) -> E:
    try:
        return of(name)
    except ValueError:
        raise UnknownRecord(
            f"The journal of migration {case.migration} holds {name!r}, which this version does not know; upgrade it, then "
            "recover.", subject=case.migration, tag=name,
        ) from None  # fmt: skip
