"""The seed's recovery manager, method by method: which migrations have failed, what is to be done about each, and when."""

from __future__ import annotations

from dataclasses import replace

from mielin_cells.errors import NoSuchMigration, RecoveryNotDue, never
from mielin_cells.migration.case import Case
from mielin_cells.migration.failure import MigrationError
from mielin_cells.migration.recoveries import Recoveries
from mielin_cells.migration.recovery import (
    Jitter,
    RecoveryAttempt,
    RecoveryConfig,
    RecoveryStrategy,
    determine,
    no_jitter,
)
from mielin_cells.migration.validation import MigrationValidator


class MigrationRecoveryManager(Recoveries):
    """A node has one.  The driver's methods are those of `Recoveries`."""

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

    def determine_strategy(self, error: MigrationError) -> RecoveryStrategy:
        """The seed's decision: a pure function of the error and the configuration."""
        return determine(error, self._config)

    def execute_recovery(self, agent_id: str, now: float, target_node: str | None = None) -> RecoveryStrategy:
        """Begins the next attempt and says what it is: the caller performs it, and reports by `mark_recovery_*`.

        As `begin`, which gives a token besides.
        """
        strategy = self.begin(agent_id, now, target_node).strategy
        if strategy is None:
            raise NoSuchMigration(f"No migration of agent {agent_id!r} has failed and is open.", agent=agent_id)
        return strategy

    def mark_recovery_success(self, agent_id: str, now: float | None = None) -> None:
        """The running attempt did what it was for.  Raises `NoSuchMigration`, and `RecoveryNotDue` if none runs."""
        case = self._running(agent_id)
        self._succeed(case, case.history[-1].timestamp if now is None else now)

    def mark_recovery_failure(
        self, agent_id: str, error: str | MigrationError, now: float, jitter: Jitter = no_jitter
    ) -> None:
        """The running attempt failed; a `MigrationError` classifies the migration anew, a text leaves its type.

        The next is due after its delay, counted from now.  Raises `NoSuchMigration`, and `RecoveryNotDue` if none runs: late and
        repeated reports change nothing.
        """
        case = self._running(agent_id)
        if isinstance(error, str):
            last, target = case.error, case.ticket.target_node if case.ticket is not None else None
            if last is None:
                raise never("an attempt runs, and nothing has failed")
            error = replace(last, message=error, target_node=target or last.target_node, timestamp=now)
        self._fail(case, error, now, jitter)

    @property
    def pending_count(self) -> int:
        """Migrations that have failed and have not ended, with those that an attempt runs for."""
        return len(self._cases) - len(self._unfailed)

    def get_pending(self) -> list[MigrationError]:
        """The last failure of each."""
        return [case.error for case in self._cases.values() if case.error is not None]

    def get_history(self, agent_id: str) -> list[RecoveryAttempt] | None:
        """The attempts that are remembered, the newest last; None for an agent of which nothing is known."""
        case = self._cases.get(agent_id)
        history = case.history if case is not None else self._resting.get(agent_id)
        return list(history) if history is not None else None

    def next_retry_time(self, agent_id: str) -> float | None:
        """When the next attempt is due; None if there is none to wait for, or one runs."""
        return self._due.at(agent_id)

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
            case.history[:] = case.history[-1:] if case.ticket is not None else []

    def _running(self, agent: str) -> Case:
        case = self._failed(agent)
        if case.ticket is None:
            raise RecoveryNotDue(f"No attempt to recover the migration of {agent!r} runs; begin one.", agent=agent)
        return case
