"""The recovery of failed migrations: decisions, attempts, their limits, and when each is due.

This module decides and keeps the time; a driver such as `node.moves` performs.  Clock and chance are passed in.  One migration of an
agent is open at a time, so the agent's id names it.  A failed migration waits until it is due, is run by one attempt at a time, and
leaves by one of five ends (`RecoveryOutcome`):

    record_failure -> waiting -> begin -> running -> finish -> waiting again, or ended

`migration.manager` adds the seed's methods.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace

from mielin_cells.errors import (
    AlreadyThere,
    MigrationInProgress,
    MigrationRefused,
    NoSuchMigration,
    RecoveryNotDue,
    never,
)
from mielin_cells.migration.breaker import Circuit, Targets
from mielin_cells.migration.case import SOURCE_LOST, Case, RecoveryEnd, RecoveryOutcome, Rule, Ticket
from mielin_cells.migration.due import DueQueue
from mielin_cells.migration.failure import MigrationError, MigrationErrorType
from mielin_cells.migration.recovery import (
    Jitter,
    RecoveryAttempt,
    RecoveryConfig,
    RecoveryStrategy,
    no_jitter,
)
from mielin_cells.migration.refusal import RefusalKind, refusal
from mielin_cells.migration.validation import MigrationValidator

AGENTS_KEPT = 10_000
"""Agents whose attempts and ends are remembered after their recovery."""

ATTEMPT_TIMEOUT_SECS = 60.0
"""The time of an attempt: as long as a whole migration may take."""


class Recoveries:
    """The migrations that are open, the attempts that run, and what is due when.

    Belongs to one event loop; not shared between threads.  `now` is monotonic seconds, `jitter` gives 0 to 1.
    """

    def __init__(
        self,
        config: RecoveryConfig | None = None,
        *,
        targets: Targets | None = None,
        attempt_timeout_secs: float = ATTEMPT_TIMEOUT_SECS,
    ) -> None:
        """`targets`: circuits and limits of nodes; None: none are kept.  Raises `ConfigError`."""
        self._config = config if config is not None else RecoveryConfig()
        self._config.validate()
        self.targets = targets
        self._attempt_timeout = attempt_timeout_secs
        self._cases: dict[str, Case] = {}
        self._unfailed: set[str] = set()
        """Agents with an open migration that has not failed."""
        self._due = DueQueue()
        self._leases = DueQueue()
        self._tokens = 0
        self._tokens_of: dict[int, str] = {}
        """Token of a running attempt to its agent."""
        self._resting: OrderedDict[str, list[RecoveryAttempt]] = OrderedDict()
        self._ends: OrderedDict[str, RecoveryEnd] = OrderedDict()
        self._validator = MigrationValidator()

    # ---- failures --------------------------------------------------------------------------------------------

    def open(self, case: Case, now: float, jitter: Jitter = no_jitter) -> None:
        """Takes up a migration that is planned here, or that another process began (`Case.of`).

        Decides about a failure that has no decision; makes a decision to end the migration due at once.  If another
        process had an attempt or a wait for a retry, its loss is reported next (`record_failure`).  Raises `MigrationInProgress`.
        """
        agent = case.agent
        if agent in self._cases:
            raise MigrationInProgress(f"A migration of agent {agent!r} is open here already.", agent=agent)
        self._ends.pop(agent, None)
        case.history = [*self._resting.pop(agent, ()), *case.history]
        self._cases[agent] = case
        if case.error is None:
            self._unfailed.add(agent)
        elif case.is_undecided:
            self._schedule(case, now, jitter)
        elif case.decided is not None and not case.decided.strategy.is_retry:
            self._due.put(agent, now)

    def record_failure(
        self,
        error: MigrationError,
        now: float | None = None,
        jitter: Jitter = no_jitter,
        *,
        migration: str = "",
        source: str = "",
        code: str = "",
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
            case = Case(agent, migration, source)
            self.open(case, now)
        elif migration and case.migration and migration != case.migration:
            raise MigrationInProgress(
                f"The migration {case.migration} of agent {agent!r} is being recovered; {migration} cannot be recovered at the "
                "same time.",
                agent=agent, migration=case.migration,
            )  # fmt: skip
        self._fail(case, error, now, jitter, code)

    # ---- decisions -------------------------------------------------------------------------------------------

    def decide(self, agent_id: str, now: float) -> Rule:
        """What is to be done about the agent's migration, and the rule that says so; changes nothing.

        As `determine_strategy`, within the overall timeout, what rollbacks have shown, and what its target admits.
        Raises `NoSuchMigration` for an agent without a failure.
        """
        case = self._failed(agent_id)
        rule = case.rule(self._config_of(case), now)
        target = case.error.target_node if case.error is not None else None
        if rule.strategy is not RecoveryStrategy.RETRY_ON_SAME_TARGET or target is None or self.targets is None:
            return rule
        if target in self._spent(case):
            return Rule(RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET, f"{target} was tried {case.tries[target]} times")
        if self.targets.circuit(target, now) is Circuit.OPEN:
            return Rule(RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET, f"the circuit of {target} is open")
        return rule

    def begin(self, agent_id: str, now: float, target_node: str | None = None) -> Ticket:
        """Begins the next attempt.  Until it is reported nobody else can begin one for this agent.

        `target_node`: the node that was chosen (default: for a retry on the same target that one; for one elsewhere it is assigned
        later).  After `GiveUp` there is nothing to report: the recovery has ended, and the caller suspends the agent.
        Raises `NoSuchMigration` for an agent without an open migration; `RecoveryNotDue` before its time, while an attempt runs, and
        while its target admits no more; `MigrationRefused` and `AlreadyThere` for a node that this migration must not go to.
        """
        case = self._cases.get(agent_id)
        if case is not None and case.error is None:
            self._check_not_running(case)
            has_place = self.targets is not None and target_node is not None and self.targets.begin(target_node, now)
            return self._begun(case, None, target_node, now, has_place)
        case = self._failed(agent_id)
        rule = self.decide(agent_id, now)
        self._check_due(case, rule.strategy, now)
        target = target_node
        if rule.strategy is not RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET:
            target = target or (case.error.target_node if case.error is not None else None)
        elif target is not None:
            self._check_target(case, target, now)
        has_place = rule.strategy.is_retry and target is not None and self._take_place(case, target, now)
        return self._begun(case, rule, target, now, has_place)

    def assign(self, token: int, target_node: str, now: float) -> bool:
        """The node that was chosen for a retry elsewhere; the attempt records it.

        False if the attempt is not this token's any more, or the node admits none now: choose another.  Raises `MigrationRefused` and
        `AlreadyThere` for a node that this migration must not go to.
        """
        case = self._holder(token)
        if case is None or case.ticket is None or case.ticket.target_node is not None:
            return False
        self._check_target(case, target_node, now)
        if self.targets is not None and not self.targets.begin(target_node, now):
            return False
        case.ticket = replace(case.ticket, target_node=target_node, has_place=self.targets is not None)
        case.assign(target_node)
        return True

    def finish(self, token: int, now: float, error: MigrationError | None = None, jitter: Jitter = no_jitter) -> bool:
        """Reports how the attempt ended; `error` is None if it succeeded, or if the rollback was performed and verified.

        An attempt for which no node was available has failed.  False, and nothing is changed, if the attempt no longer belongs to this
        token.
        """
        case = self._holder(token)
        if case is None:
            return False
        if error is None:
            self._succeed(case, now)
        else:
            self._fail(case, error, now, jitter)
        return True

    def expire(self, now: float) -> list[Ticket]:
        """Attempts whose time is over, each once: stop it, and report how it ended.

        Where the time of the whole recovery is over, a rollback is due as soon as the failure is reported.
        """
        tickets: list[Ticket] = []
        for agent in self._leases.ready(now):
            self._leases.drop(agent)
            ticket = self._cases[agent].ticket
            if ticket is None:
                raise never("a lease without an attempt")
            tickets.append(ticket)
        return tickets

    def settle(self, agent_id: str, now: float, outcome: RecoveryOutcome = RecoveryOutcome.SETTLED) -> bool:
        """Ends the migration as its agent's log says, whatever was planned here.  False if none is open."""
        case = self._cases.get(agent_id)
        if case is None:
            return False
        if case.ticket is not None and case.ticket.has_place and self.targets is not None:
            self.targets.release(case.ticket.target_node or "")
        self._end(case, outcome, now)
        return True

    # ---- questions -------------------------------------------------------------------------------------------

    def ticket(self, agent_id: str) -> Ticket | None:
        """The attempt that runs."""
        case = self._cases.get(agent_id)
        return case.ticket if case is not None else None

    def is_running(self, agent_id: str) -> bool:
        return self.ticket(agent_id) is not None

    def end_of(self, agent_id: str) -> RecoveryEnd | None:
        """How the agent's last recovery ended, while it is remembered."""
        return self._ends.get(agent_id)

    def next_wake(self) -> float | None:
        """When `get_ready_for_retry` or `expire` has something next."""
        times = [time for time in (self._due.next(), self._leases.next()) if time is not None]
        return min(times, default=None)

    # ---- within ----------------------------------------------------------------------------------------------

    def _config_of(self, case: Case) -> RecoveryConfig:
        return case.config or self._config

    def _failed(self, agent: str) -> Case:
        case = self._cases.get(agent)
        if case is None or case.error is None:
            raise NoSuchMigration(f"No migration of agent {agent!r} has failed and is open.", agent=agent)
        return case

    def _holder(self, token: int) -> Case | None:
        agent = self._tokens_of.get(token)
        return self._cases.get(agent) if agent is not None else None

    def _check_not_running(self, case: Case) -> None:
        if case.ticket is not None:
            message = f"An attempt to recover the migration of {case.agent!r} runs already."
            raise RecoveryNotDue(message, agent=case.agent)

    def _check_due(self, case: Case, strategy: RecoveryStrategy, now: float) -> None:
        self._check_not_running(case)
        due = self._due.at(case.agent) or now
        if now < due and (strategy.is_retry or case.rollbacks):
            message = f"The migration of {case.agent!r} is recovered in {due - now:.3g} s, not before."
            raise RecoveryNotDue(message, agent=case.agent, due=due)

    def _check_target(self, case: Case, target: str, now: float) -> None:
        if target == case.source:
            raise AlreadyThere(f"Agent {case.agent!r} is on {target} already.", agent=case.agent, node=target)
        if target in self._forbidden(case, now):
            reason = refusal(RefusalKind.HAS_FAILED, node=target)
            raise MigrationRefused(
                f"Agent {case.agent!r} is not moved to {target} now: it has failed this migration; choose another.",
                agent=case.agent, migration=case.migration, reasons=[str(reason)], kinds=[reason.name],
            )  # fmt: skip

    def _forbidden(self, case: Case, now: float) -> frozenset[str]:
        return case.forbidden(now) | self._spent(case)

    def _spent(self, case: Case) -> frozenset[str]:
        """Nodes that have had their share of this migration's attempts."""
        most = self.targets.config.tries_max if self.targets is not None else None
        return frozenset(node for node, tries in case.tries.items() if most is not None and tries >= most)

    def _take_place(self, case: Case, target: str, now: float) -> bool:
        if self.targets is None:
            return False
        if not self.targets.begin(target, now):
            first = self._config_of(case).initial_retry_delay_secs
            due = max(now + first, self.targets.free_at(target, now))
            self._due.put(case.agent, min(due, case.deadline))
            raise RecoveryNotDue(
                f"{target} takes no more attempts now; agent {case.agent!r} is tried in {due - now:.3g} s.",
                agent=case.agent, due=due,
            )  # fmt: skip
        return True

    def _begun(self, case: Case, rule: Rule | None, target: str | None, now: float, has_place: bool) -> Ticket:
        strategy = rule.strategy if rule is not None else None
        is_over = case.is_over(now)
        case.begin(strategy, target, now)
        self._tokens += 1
        excluded = self._forbidden(case, now)
        if self.targets is not None:
            excluded |= self.targets.unfit(now)
        lease = now + self._attempt_timeout
        ticket = Ticket(
            token=self._tokens, agent_id=case.agent, migration=case.migration,
            attempt_number=case.error.retry_count if case.error is not None else 0,
            strategy=strategy, why=rule.why if rule is not None else "the first attempt", target_node=target, excluded=excluded,
            deadline=min(lease, case.deadline) if strategy is not None and strategy.is_retry else lease, has_place=has_place,
        )  # fmt: skip
        self._due.drop(case.agent)
        if strategy is RecoveryStrategy.GIVE_UP:
            self._end(case, RecoveryOutcome.EXPIRED if is_over else RecoveryOutcome.GAVE_UP, now)
            return ticket
        case.ticket = ticket
        self._tokens_of[ticket.token] = case.agent
        if ticket.deadline < math.inf:
            self._leases.put(case.agent, ticket.deadline)
        return ticket

    def _succeed(self, case: Case, now: float) -> None:
        ticket = case.ticket
        if ticket is None:
            raise never("an attempt that does not run cannot succeed")
        if ticket.strategy is not None:
            case.history[-1] = replace(case.history[-1], success=True, error=None)
        is_rollback = ticket.strategy is RecoveryStrategy.ROLLBACK
        if not is_rollback:
            self._result(ticket.target_node, ticket, now, None)
        self._end(case, RecoveryOutcome.ROLLED_BACK if is_rollback else RecoveryOutcome.RECOVERED, now)

    def _fail(self, case: Case, error: MigrationError, now: float, jitter: Jitter, code: str = "") -> None:
        ticket = case.ticket
        if ticket is not None and ticket.strategy is RecoveryStrategy.ROLLBACK:
            case.rollbacks += 1
        elif ticket is not None and ticket.target_node is not None:
            self._result(ticket.target_node, ticket, now, error.error_type)
        elif code != SOURCE_LOST:
            self._result(error.target_node, None, error.timestamp, error.error_type)
        self._stop_running(case)
        self._unfailed.discard(case.agent)
        case.fail(error, now, self._config_of(case), code=code)
        self._schedule(case, now, jitter)

    def _result(self, target: str | None, ticket: Ticket | None, now: float, kind: MigrationErrorType | None) -> None:
        """Tells the circuits how an attempt with the target ended; `kind` is None after a success."""
        if self.targets is None or target is None:
            return
        if ticket is not None and ticket.has_place:
            self.targets.end(target, now, kind)
        elif kind is None:
            self.targets.succeeded(target)
        else:
            self.targets.failed(target, now, kind)

    def _schedule(self, case: Case, now: float, jitter: Jitter) -> None:
        """Makes the next step due.  Retry k waits for the delay of k; a rollback waits only if one has failed before.

        No wait is longer than the recovery's time: when it is over, the migration is rolled back.
        """
        rule, config = self.decide(case.agent, now), self._config_of(case)
        if case.rollbacks:
            delay = config.jittered_delay(case.rollbacks, jitter)
        elif not rule.strategy.is_retry:
            delay = 0.0
        else:
            retry = case.error.retry_count + 1 if case.error is not None else 1
            delay = config.jittered_delay(retry, jitter) if case.due is None else max(0.0, case.due - now)
            delay = min(delay, max(0.0, case.deadline - now))
        case.decide(rule, now, delay)
        self._due.put(case.agent, now + delay)

    def _stop_running(self, case: Case) -> None:
        if case.ticket is not None:
            self._tokens_of.pop(case.ticket.token, None)
            self._leases.drop(case.agent)
            case.ticket = None

    def _end(self, case: Case, outcome: RecoveryOutcome, now: float) -> None:
        agent = case.agent
        self._stop_running(case)
        self._due.drop(agent)
        self._unfailed.discard(agent)
        del self._cases[agent]
        if case.history or case.error is not None:
            self._resting[agent] = case.history
        if case.error is not None:
            self._ends[agent] = RecoveryEnd(
                agent_id=agent, migration=case.migration, outcome=outcome, timestamp=now, error=case.error
            )
        for memory in (self._resting, self._ends):
            while len(memory) > AGENTS_KEPT:
                memory.popitem(last=False)
