"""The seed's recovery manager: which migrations have failed, what is to be done about each, and when.

A bookkeeper with clock and chance passed in: it decides, and whoever runs migrations performs.  One migration of an agent is open
at a time, so the agent's id names it.  A failed migration waits until it is due, is run by one attempt at a time, and leaves the
queue by one of five ends (`RecoveryOutcome`):

    record_failure -> waiting -> begin -> running -> finish -> waiting again, or ended

The seed's methods are there, under their names; `begin`, `assign`, `postpone`, `finish` and `expire` are what a driver with several
attempts under way needs besides.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mielin_cells.errors import (
    AlreadyThere,
    MigrationInProgress,
    MigrationRefused,
    NoSuchMigration,
    RecoveryNotDue,
    never,
)
from mielin_cells.migration.breaker import Circuit, Targets
from mielin_cells.migration.case import Case, RecoveryEnd, RecoveryOutcome, Rule, Ticket
from mielin_cells.migration.due import DueQueue
from mielin_cells.migration.failure import MigrationError, MigrationErrorType
from mielin_cells.migration.recovery import (
    Jitter,
    RecoveryAttempt,
    RecoveryConfig,
    RecoveryStrategy,
    determine,
    no_jitter,
)
from mielin_cells.migration.refusal import RefusalKind, refusal
from mielin_cells.migration.validation import MigrationValidator

AGENTS_KEPT = 10_000
"""Agents whose attempts and ends are remembered after their recovery; likewise those that are parked."""

ATTEMPT_TIMEOUT_SECS = 60.0
"""An attempt that has not reported by then is taken away: as long as a whole migration may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryStatistics:
    """Counted since the manager was made; by the seed's names."""

    pending: int
    running: int
    parked: int
    failures: Mapping[str, int]
    decisions: Mapping[str, int]
    outcomes: Mapping[str, int]


class MigrationRecoveryManager:
    """Belongs to one event loop; not shared between threads.

    `now` is monotonic seconds, `jitter` gives 0 to 1.  Times are only compared with each other, so whoever restores a recovery
    after a restart gives what was left of it (`restore`).
    """

    def __init__(
        self,
        config: RecoveryConfig | None = None,
        *,
        targets: Targets | None = None,
        attempt_timeout_secs: float = ATTEMPT_TIMEOUT_SECS,
    ) -> None:
        """`targets`: circuits and limits of nodes, often shared; None: none are kept.  Raises `ConfigError`."""
        self._config = config if config is not None else RecoveryConfig()
        self._config.validate()
        self._targets = targets
        self._attempt_timeout = attempt_timeout_secs
        self._cases: dict[str, Case] = {}
        self._due = DueQueue()
        self._leases = DueQueue()
        self._tokens = 0
        self._tokens_of: dict[int, str] = {}
        """The agent whose attempt a token is, while it runs."""
        self._resting: OrderedDict[str, list[RecoveryAttempt]] = OrderedDict()
        self._ends: OrderedDict[str, RecoveryEnd] = OrderedDict()
        self._parked: OrderedDict[str, Case] = OrderedDict()
        self._failures: Counter[str] = Counter()
        self._decisions: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._validator = MigrationValidator()

    @classmethod
    def with_defaults(cls) -> MigrationRecoveryManager:
        return cls(RecoveryConfig())

    @property
    def config(self) -> RecoveryConfig:
        return self._config

    def set_config(self, config: RecoveryConfig) -> None:
        """For what is decided from now on; deadlines that are set stay.  Raises `ConfigError`; then the former one stays."""
        config.validate()
        self._config = config

    @property
    def validator(self) -> MigrationValidator:
        return self._validator

    # ---- failures --------------------------------------------------------------------------------------------

    def record_failure(
        self,
        error: MigrationError,
        now: float | None = None,
        jitter: Jitter = no_jitter,
        *,
        migration: str = "",
        source: str = "",
    ) -> None:
        """A migration of `error.agent_id` has failed; while an attempt runs, the attempt has.

        The next attempt is due after its delay, counted from `now` (default: the error's own time).  A new error of an open
        migration classifies it anew and never begins the count again.  Raises `MigrationInProgress` if another migration of the
        agent is open.
        """
        now = error.timestamp if now is None else now
        agent = error.agent_id
        case = self._cases.get(agent)
        if case is None:
            case = self._open(error, now, migration, source)
        elif migration and case.migration and migration != case.migration:
            raise MigrationInProgress(
                f"The migration {case.migration} of agent {agent!r} is being recovered; {migration} cannot be, too.",
                agent=agent, migration=case.migration,
            )  # fmt: skip
        if case.ticket is not None:
            self._fail(case, error, now, jitter)
            return
        self._reclassify(case, error)
        self._schedule(case, now, jitter)

    def restore(
        self,
        error: MigrationError,
        now: float,
        *,
        migration: str = "",
        source: str = "",
        elapsed_secs: float = 0.0,
        wait_secs: float = 0.0,
        excluded: Mapping[str, int] | None = None,
    ) -> None:
        """Takes up a recovery that another process began, from its journal.  `error.retry_count` says how many retries were made.

        `elapsed_secs` of its time are over; its next attempt is due in `wait_secs`.  `excluded`: nodes that failed it, each with
        the retry that its failure was answered with, 0 for one that cannot run the agent.  Of a failure that passes the time begins
        anew: no clock of another process decides it.  Raises `MigrationInProgress`.
        """
        if error.agent_id in self._cases:
            raise MigrationInProgress(
                f"A migration of agent {error.agent_id!r} is being recovered here already.", agent=error.agent_id
            )
        case = self._open(error, now - max(0.0, elapsed_secs), migration, source)
        for node, retry in (excluded or {}).items():
            case.excluded[node] = now + case.passing(retry, self._config) if retry else math.inf
        case.exclude(error, self._config)
        self._due.put(error.agent_id, min(now + max(0.0, wait_secs), max(now, case.deadline)))

    # ---- decisions -------------------------------------------------------------------------------------------

    def determine_strategy(self, error: MigrationError) -> RecoveryStrategy:
        """The seed's decision: a pure function of the error and the configuration."""
        return determine(error, self._config)

    def decide(self, agent_id: str, now: float) -> Rule:
        """What is to be done about the agent's migration, and the rule that says so; changes nothing.

        As `determine_strategy`, within the overall timeout, what rollbacks and waits have shown, and what its target admits.
        Raises `NoSuchMigration` for an agent without a failure.
        """
        case = self._failed(agent_id)
        rule = case.rule(self._config, now)
        target = case.error.target_node
        if rule.strategy is not RecoveryStrategy.RETRY_ON_SAME_TARGET or target is None or case.ordered is not None:
            return rule
        if self._targets is None:
            return rule
        most = self._targets.config.tries_max
        if most is not None and case.tries.get(target, 0) >= most:
            return Rule(RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET, f"{target} was tried {most} times")
        if self._targets.circuit(target, now) is Circuit.OPEN:
            return Rule(RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET, f"the circuit of {target} is open")
        return rule

    def forbidden(self, agent_id: str, now: float) -> frozenset[str]:
        """Nodes that a retry elsewhere must not go to now; none for an agent without a failure."""
        case = self._cases.get(agent_id)
        return case.forbidden(now) if case is not None else frozenset()

    def execute_recovery(self, agent_id: str, now: float, target_node: str | None = None) -> RecoveryStrategy:
        """Begins the next attempt and says what it is: the caller performs it, and reports by `mark_recovery_*`.

        As `begin`, which gives a token besides.
        """
        return self.begin(agent_id, now, target_node).strategy

    def begin(self, agent_id: str, now: float, target_node: str | None = None) -> Ticket:
        """Begins the next attempt.  Until it is reported nobody else can begin one for this agent.

        `target_node`: the node that was chosen (default: for a retry on the same target that one; for one elsewhere it is assigned
        later).  After `GiveUp` there is nothing to report: the recovery has ended, and its agent is parked.
        Raises `NoSuchMigration` for an agent without a failure; `RecoveryNotDue` before its time, while an attempt runs, and while
        its target admits no more; `MigrationRefused` and `AlreadyThere` for a node that this migration must not go to.
        """
        case = self._failed(agent_id)
        rule = self.decide(agent_id, now)
        self._check_due(case, rule.strategy, now)
        target = target_node or case.ordered_target
        if rule.strategy is not RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET:
            target = target or case.error.target_node
        elif target is not None and target != case.ordered_target:
            self._check_target(case, target, now)
        if rule.strategy.is_retry and target is not None:
            self._take_place(case, target, now)
        return self._begun(case, rule, target, now)

    def assign(self, token: int, target_node: str, now: float) -> bool:
        """The node that was chosen for a retry elsewhere; the attempt records it.

        False if the attempt is not this token's any more, or the node admits none now: choose another.  Raises `MigrationRefused` and
        `AlreadyThere` for a node that this migration must not go to.
        """
        case = self._holder(token)
        if case is None or case.ticket is None or case.ticket.target_node is not None:
            return False
        self._check_target(case, target_node, now)
        if self._targets is not None and not self._targets.begin(target_node, now):
            return False
        case.ticket = replace(case.ticket, target_node=target_node)
        case.attempts[-1] = replace(case.attempts[-1], target_node=target_node)
        case.tries[target_node] = case.tries.get(target_node, 0) + 1
        return True

    def postpone(self, token: int, now: float, jitter: Jitter = no_jitter) -> bool:
        """No other node can be had: the attempt is as if it had not begun, and is due again after a delay that grows.

        After more waits in a row than there are retries the migration is rolled back.  False if the attempt is not this token's.
        """
        case = self._holder(token)
        if case is None or case.ticket is None:
            return False
        self._release(case.ticket)
        case.attempts.pop()
        case.error = replace(case.error, retry_count=case.error.retry_count - 1)
        case.waits += 1
        self._stop_running(case)
        self._put(case, now + self._config.jittered_delay(case.waits, jitter))
        return True

    def finish(self, token: int, now: float, error: MigrationError | None = None, jitter: Jitter = no_jitter) -> bool:
        """How the attempt ended; None: it did what it was for, and for a rollback: it is performed and verified.

        False, and nothing is changed, if the attempt is not this token's any more: it was reported, or taken away.
        """
        case = self._holder(token)
        if case is None:
            return False
        if error is None:
            self._succeed(case, now)
        else:
            self._fail(case, error, now, jitter)
        return True

    def mark_recovery_success(self, agent_id: str, now: float | None = None) -> None:
        """The running attempt did what it was for.  Raises `NoSuchMigration`, and `RecoveryNotDue` if none runs."""
        case = self._running(agent_id)
        self._succeed(case, case.attempts[-1].timestamp if now is None else now)

    def mark_recovery_failure(
        self, agent_id: str, error: str | MigrationError, now: float, jitter: Jitter = no_jitter
    ) -> None:
        """The running attempt failed; a `MigrationError` classifies the migration anew, a text leaves its type.

        The next is due after its delay, counted from now.  Raises `NoSuchMigration`, and `RecoveryNotDue` if none runs: late and
        repeated reports change nothing.
        """
        case = self._running(agent_id)
        if isinstance(error, str):
            target = case.ticket.target_node if case.ticket is not None else None
            error = replace(
                case.error, message=error, target_node=target or case.error.target_node, timestamp=now
            )  # fmt: skip
        self._fail(case, error, now, jitter)

    def expire(self, now: float, jitter: Jitter = no_jitter) -> list[Ticket]:
        """Takes away every attempt whose time is over; its runner must be cancelled, and what it still reports is ignored.

        Each counts as failed by `Timeout`.  Where the whole recovery's time is over, a rollback is due at once.
        """
        taken: list[Ticket] = []
        for agent in self._leases.ready(now):
            case = self._cases[agent]
            ticket = case.ticket
            if ticket is None:
                raise never("a lease without an attempt")
            taken.append(ticket)
            message = f"attempt {ticket.attempt_number} ran out of time"
            kind = MigrationErrorType.TIMEOUT
            target = ticket.target_node or case.error.target_node
            self._fail(case, MigrationError.new(kind, message, agent, target, now=now), now, jitter)
        return taken

    def order(self, agent_id: str, now: float, strategy: RecoveryStrategy, target_node: str | None = None) -> None:
        """An operator's decision: the next attempt is this, and due now; also for an agent that is parked.

        `target_node` is taken even if it has failed this migration: a person may know that it is mended.

        Raises `NoSuchMigration`, and `RecoveryNotDue` while an attempt runs.
        """
        case = self._cases.get(agent_id) or self._parked.pop(agent_id, None)
        if case is None:
            raise NoSuchMigration(f"No failed migration of agent {agent_id!r} is known here.", agent=agent_id)
        if case.ticket is not None:
            raise RecoveryNotDue(
                f"An attempt to recover the migration of {agent_id!r} runs; wait for its end.", agent=agent_id
            )
        if agent_id not in self._cases:
            self._cases[agent_id] = case
            case.attempts = self._resting.pop(agent_id, [])
            case.error = replace(case.error, retry_count=0)
            case.began, case.deadline = now, now + self._config.recovery_timeout_secs
            case.waits = case.rollbacks = 0
        case.ordered, case.ordered_target = Rule(strategy, "ordered by an operator"), target_node
        self._due.put(agent_id, now)

    def settle(self, agent_id: str, now: float, outcome: RecoveryOutcome = RecoveryOutcome.SETTLED) -> bool:
        """The migration has ended as its agent's log says, whatever was planned here.  False if none is open."""
        case = self._cases.get(agent_id)
        if case is None:
            return False
        if case.ticket is not None:
            self._release(case.ticket)
        self._end(case, outcome, now)
        return True

    # ---- questions -------------------------------------------------------------------------------------------

    @property
    def pending_count(self) -> int:
        """Migrations that have failed and have not ended, with those that an attempt runs for."""
        return len(self._cases)

    def get_pending(self) -> list[MigrationError]:
        """The last failure of each."""
        return [case.error for case in self._cases.values()]

    def pending(self, agent_id: str) -> MigrationError | None:
        case = self._cases.get(agent_id)
        return case.error if case is not None else None

    def get_history(self, agent_id: str) -> list[RecoveryAttempt] | None:
        """The attempts that are remembered, the newest last; None for an agent of which nothing is known."""
        case = self._cases.get(agent_id)
        found = case.attempts if case is not None else self._resting.get(agent_id)
        return list(found) if found is not None else None

    def ticket(self, agent_id: str) -> Ticket | None:
        """The attempt that runs."""
        case = self._cases.get(agent_id)
        return case.ticket if case is not None else None

    def is_running(self, agent_id: str) -> bool:
        return self.ticket(agent_id) is not None

    def deadline(self, agent_id: str) -> float | None:
        """When the recovery's time is over."""
        case = self._cases.get(agent_id)
        return case.deadline if case is not None else None

    def end_of(self, agent_id: str) -> RecoveryEnd | None:
        """How the agent's last recovery ended, while it is remembered."""
        return self._ends.get(agent_id)

    def parked(self) -> list[RecoveryEnd]:
        """Agents that wait for a person, the longest first."""
        return [self._ends[agent] for agent in self._parked if agent in self._ends]

    def next_retry_time(self, agent_id: str) -> float | None:
        """When the next attempt is due; None if there is none to wait for, or one runs."""
        return self._due.at(agent_id)

    def next_wake(self) -> float | None:
        """When `get_ready_for_retry` or `expire` has something next."""
        times = [time for time in (self._due.next(), self._leases.next()) if time is not None]
        return min(times, default=None)

    def is_ready_for_retry(self, agent_id: str, now: float) -> bool:
        due = self._due.at(agent_id)
        return due is not None and now >= due

    def get_ready_for_retry(self, now: float, most: int | None = None) -> list[str]:
        """Agents whose next attempt is due, the longest due first, at most so many.  Costs O(k log n) for k of n."""
        return self._due.ready(now, most)

    def clear_history(self, agent_id: str) -> None:
        """Forgets the attempts; a recovery that is open goes on, with its count."""
        self._resting.pop(agent_id, None)
        case = self._cases.get(agent_id)
        if case is not None:
            case.attempts[:] = case.attempts[-1:] if case.ticket is not None else []

    def statistics(self) -> RecoveryStatistics:
        return RecoveryStatistics(
            pending=len(self._cases), running=len(self._leases), parked=len(self._parked),
            failures=dict(self._failures), decisions=dict(self._decisions), outcomes=dict(self._outcomes),
        )  # fmt: skip

    # ---- within ----------------------------------------------------------------------------------------------

    def _open(self, error: MigrationError, began: float, migration: str, source: str) -> Case:
        agent = error.agent_id
        self._parked.pop(agent, None)
        self._ends.pop(agent, None)
        case = self._cases[agent] = Case(
            error, migration, source, began, began + self._config.recovery_timeout_secs, self._resting.pop(agent, [])
        )
        return case

    def _failed(self, agent: str) -> Case:
        case = self._cases.get(agent)
        if case is None:
            raise NoSuchMigration(f"No migration of agent {agent!r} has failed and is open.", agent=agent)
        return case

    def _running(self, agent: str) -> Case:
        case = self._failed(agent)
        if case.ticket is None:
            raise RecoveryNotDue(f"No attempt to recover the migration of {agent!r} runs; begin one.", agent=agent)
        return case

    def _holder(self, token: int) -> Case | None:
        agent = self._tokens_of.get(token)
        return self._cases.get(agent) if agent is not None else None

    def _check_due(self, case: Case, strategy: RecoveryStrategy, now: float) -> None:
        agent = case.error.agent_id
        if case.ticket is not None:
            raise RecoveryNotDue(f"An attempt to recover the migration of {agent!r} runs already.", agent=agent)
        due = self._due.at(agent) or now
        if now < due and (strategy.is_retry or case.rollbacks):
            raise RecoveryNotDue(
                f"The migration of {agent!r} is recovered in {due - now:.3g} s, not before.", agent=agent, due=due
            )

    def _check_target(self, case: Case, target: str, now: float) -> None:
        agent = case.error.agent_id
        if target == case.source:
            raise AlreadyThere(f"Agent {agent!r} is on {target} already.", agent=agent, node=target)
        if target in case.forbidden(now):
            reason = refusal(RefusalKind.HAS_FAILED, node=target)
            raise MigrationRefused(
                f"Agent {agent!r} is not moved to {target} now: it has failed this migration; choose another.",
                agent=agent, migration=case.migration, reasons=[str(reason)], kinds=[reason.name],
            )  # fmt: skip

    def _take_place(self, case: Case, target: str, now: float) -> None:
        if self._targets is not None and not self._targets.begin(target, now):
            first = self._config.initial_retry_delay_secs
            due = max(now + first, self._targets.free_at(target, now))
            self._put(case, due)
            agent = case.error.agent_id
            raise RecoveryNotDue(
                f"{target} takes no more attempts now; agent {agent!r} is tried in {due - now:.3g} s.",
                agent=agent, due=due,
            )  # fmt: skip
        case.tries[target] = case.tries.get(target, 0) + 1

    def _begun(self, case: Case, rule: Rule, target: str | None, now: float) -> Ticket:
        agent = case.error.agent_id
        self._tokens += 1
        lease = now + self._attempt_timeout
        excluded = case.forbidden(now)
        if self._targets is not None:
            excluded |= self._targets.unfit(now)
        ticket = Ticket(
            token=self._tokens, agent_id=agent, migration=case.migration, attempt_number=case.error.retry_count + 1,
            strategy=rule.strategy, why=rule.why, target_node=target, excluded=excluded,
            deadline=min(lease, case.deadline) if rule.strategy.is_retry and not case.ordered else lease,
        )  # fmt: skip
        case.note(
            RecoveryAttempt(
                attempt_number=ticket.attempt_number, strategy=rule.strategy, timestamp=now, target_node=target
            )
        )
        case.ordered = case.ordered_target = None
        case.error = case.error.increment_retry()
        self._decisions[rule.strategy.value] += 1
        self._due.drop(agent)
        if rule.strategy is RecoveryStrategy.GIVE_UP:
            self._end(case, RecoveryOutcome.EXPIRED if case.is_over(now) else RecoveryOutcome.GAVE_UP, now)
            return ticket
        case.ticket = ticket
        self._tokens_of[ticket.token] = agent
        self._leases.put(agent, ticket.deadline)
        return ticket

    def _succeed(self, case: Case, now: float) -> None:
        ticket = case.ticket
        if ticket is None:
            raise never("an attempt that does not run cannot succeed")
        case.attempts[-1] = replace(case.attempts[-1], success=True, error=None)
        if self._targets is not None and ticket.strategy.is_retry and ticket.target_node is not None:
            self._targets.end(ticket.target_node, now, None)
        rolled_back = ticket.strategy is RecoveryStrategy.ROLLBACK
        self._end(case, RecoveryOutcome.ROLLED_BACK if rolled_back else RecoveryOutcome.RECOVERED, now)

    def _fail(self, case: Case, error: MigrationError, now: float, jitter: Jitter) -> None:
        ticket = case.ticket
        if ticket is None:
            raise never("an attempt that does not run cannot fail")
        case.attempts[-1] = replace(case.attempts[-1], success=False, error=error.message)
        if ticket.strategy is RecoveryStrategy.ROLLBACK:
            case.rollbacks += 1
        elif self._targets is not None and ticket.target_node is not None:
            self._targets.end(ticket.target_node, now, error.error_type)
        case.waits = 0
        self._stop_running(case)
        self._reclassify(case, error, told=True)
        self._schedule(case, now, jitter)

    def _reclassify(self, case: Case, error: MigrationError, told: bool = False) -> None:
        self._failures[error.error_type.value] += 1
        count = max(case.error.retry_count, error.retry_count)
        case.error = replace(error, agent_id=case.error.agent_id, retry_count=count)
        case.exclude(case.error, self._config)
        if self._targets is not None and not told and error.target_node is not None:
            self._targets.failed(error.target_node, error.timestamp, error.error_type)

    def _schedule(self, case: Case, now: float, jitter: Jitter) -> None:
        """Retry k waits the delay of k; what is no retry waits only if it has failed before."""
        if case.rollbacks:
            delay = self._config.jittered_delay(case.rollbacks, jitter)
        elif case.rule(self._config, now).strategy.is_retry:
            delay = self._config.jittered_delay(case.error.retry_count + 1, jitter)
        else:
            delay = 0.0
        self._put(case, now + delay)

    def _put(self, case: Case, due: float) -> None:
        """When the recovery's time is over there is something to do, too: it is rolled back."""
        self._due.put(case.error.agent_id, due if case.rollbacks else min(due, case.deadline))

    def _stop_running(self, case: Case) -> None:
        if case.ticket is not None:
            self._tokens_of.pop(case.ticket.token, None)
            self._leases.drop(case.error.agent_id)
            case.ticket = None

    def _release(self, ticket: Ticket) -> None:
        if self._targets is not None and ticket.strategy.is_retry and ticket.target_node is not None:
            self._targets.release(ticket.target_node)

    def _end(self, case: Case, outcome: RecoveryOutcome, now: float) -> None:
        agent = case.error.agent_id
        self._stop_running(case)
        self._due.drop(agent)
        del self._cases[agent]
        self._outcomes[outcome.value] += 1
        self._resting[agent] = case.attempts
        self._ends[agent] = RecoveryEnd(
            agent_id=agent, migration=case.migration, outcome=outcome, timestamp=now, error=case.error
        )
        if outcome.is_parked:
            self._parked[agent] = case
        for kept in (self._resting, self._ends, self._parked):
            while len(kept) > AGENTS_KEPT:
                kept.popitem(last=False)
