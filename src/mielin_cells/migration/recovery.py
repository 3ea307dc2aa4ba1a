"""The seed's rules of recovery: what may be done about a failure, how often, and after how long.

Pure functions of an error and a configuration.  The manager (`manager`) decides who acts, and when.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Annotated, Any, TypeAlias

import msgspec

from mielin_cells.agents.agent import Agent
from mielin_cells.errors import ConfigError
from mielin_cells.migration.failure import MigrationError, MigrationErrorType
from mielin_cells.settings import check_ranges

Jitter: TypeAlias = Callable[[], float]
"""Gives a number from 0 (included) to 1 (excluded), from a seeded source of the caller's."""

JITTER_MAX = 0.25
"""Largest share of a delay that jitter adds to it, so that agents that failed together do not retry together."""

Retries: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
DelaySecs: TypeAlias = Annotated[float, msgspec.Meta(ge=0.001, le=1e9)]
"""At most about 31 years: larger values are mistakes, and sums up to there stay exact to microseconds."""


class RecoveryStrategy(Enum):
    """What is done about a failed move.  Values are the seed's names."""

    RETRY_ON_SAME_TARGET = "RetryOnSameTarget"
    RETRY_ON_DIFFERENT_TARGET = "RetryOnDifferentTarget"
    ROLLBACK = "Rollback"
    GIVE_UP = "GiveUp"
    """The agent is suspended and can be claimed; an operator decides."""

    @property
    def is_retry(self) -> bool:
        return self in (RecoveryStrategy.RETRY_ON_SAME_TARGET, RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryAttempt:
    """One attempt to recover.  `timestamp` is when it began, monotonic seconds."""

    attempt_number: int
    """From 1; counts the attempts of this migration, whatever errors they ended with."""
    strategy: RecoveryStrategy
    timestamp: float
    target_node: str | None = None
    """The node that was chosen for it; of a rollback the one that failed."""
    success: bool = False
    error: str | None = None
    """Why it failed; None while it runs, and after a success."""


def no_jitter() -> float:
    """Every delay exactly as configured."""
    return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryConfig:
    """How failed moves are recovered.  Durations are seconds and may be fractions.  `validate` says whether it makes sense.

    >>> from mielin_cells.migration import RecoveryConfig
    >>> patient = RecoveryConfig(max_retries=5, initial_retry_delay_secs=1)
    >>> [patient.calculate_retry_delay(n) for n in (1, 2, 3)]
    [1, 2, 4]
    >>> async with cells.local(nodes=2, recovery=patient) as deployment:
    ...     pass
    ...
    """

    max_retries: Retries = 3
    """Retries of one migration; 0: roll back at the first failure."""
    initial_retry_delay_secs: DelaySecs = 10
    """Wait before the first retry."""
    max_retry_delay_secs: DelaySecs = 300
    """No wait between two retries is longer, but for the jitter."""
    use_exponential_backoff: bool = True
    """Each wait is twice the one before; False: all are as long as the first."""
    recovery_timeout_secs: DelaySecs = 600
    """From the first failure; then whatever runs is cancelled and the move is rolled back."""
    auto_rollback: bool = True
    """False: the agent is suspended where it would be rolled back."""

    def calculate_retry_delay(self, attempt: int) -> float:
        """Seconds between the end of the last attempt and retry number `attempt`, from 1; for 0 the same as for 1.

        Doubles from the initial delay up to the cap, for any number; without back-off it is the initial delay.
        """
        first, cap = self.initial_retry_delay_secs, self.max_retry_delay_secs
        doublings = max(0, attempt - 1)
        if not self.use_exponential_backoff or doublings == 0:
            return first
        # 2**enough is above cap/first, so a retry that doubles more often is at the cap: no power is ever too large.
        enough = math.frexp(cap / first)[1]
        return cap if doublings >= enough else min(cap, first * 2**doublings)

    def jittered_delay(self, attempt: int, jitter: Jitter) -> float:
        """The delay and up to `JITTER_MAX` of it on top, also at the cap, where most of a herd would meet again."""
        return self.calculate_retry_delay(attempt) * (1 + JITTER_MAX * min(max(jitter(), 0.0), 1.0))

    def validate(self) -> None:
        """Raises `ConfigError` naming the field and its range, for a value out of range and for two that contradict each other."""
        check_ranges(self)
        first = self.initial_retry_delay_secs
        if self.max_retry_delay_secs < first:
            raise _bad("max_retry_delay_secs", self.max_retry_delay_secs, f"at least the initial delay, {first:g}")
        if self.max_retries and self.recovery_timeout_secs < first:
            wanted = f"at least the initial delay, {first:g}, or no retry is ever made"
            raise _bad("recovery_timeout_secs", self.recovery_timeout_secs, wanted)


def _bad(field: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(f"{field} = {value!r} is out of range ({wanted}).", field=field, range=wanted)


RETRIES: dict[MigrationErrorType, RecoveryStrategy] = {
    MigrationErrorType.NETWORK_TRANSIENT: RecoveryStrategy.RETRY_ON_SAME_TARGET,
    MigrationErrorType.TIMEOUT: RecoveryStrategy.RETRY_ON_SAME_TARGET,
    MigrationErrorType.INSUFFICIENT_RESOURCES: RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET,
    MigrationErrorType.INCOMPATIBLE_TARGET: RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET,
    MigrationErrorType.TARGET_UNREACHABLE: RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET,
}
"""The retry for each type of failure, while retries are left; other types are not retried."""


def last_resort(config: RecoveryConfig) -> RecoveryStrategy:
    return RecoveryStrategy.ROLLBACK if config.auto_rollback else RecoveryStrategy.GIVE_UP


def determine(error: MigrationError, config: RecoveryConfig) -> RecoveryStrategy:
    """The seed's decision, from the error and the configuration alone."""
    return explain(error, config)[0]


def explain(error: MigrationError, config: RecoveryConfig) -> tuple[RecoveryStrategy, str]:
    """The seed's decision, and the rule that made it in words."""
    name = error.error_type.value
    if error.retry_count >= config.max_retries:
        return last_resort(config), f"{name} with {error.retry_count} of {config.max_retries} retries used"
    retry = RETRIES.get(error.error_type)
    if retry is None:
        return last_resort(config), f"{name} is not retried"
    where = "the same target" if retry is RecoveryStrategy.RETRY_ON_SAME_TARGET else "another target"
    return retry, f"{name} is retried on {where}"


def changed(config: RecoveryConfig, *changes: dict[str, Any] | None) -> RecoveryConfig:
    """The configuration with changes, of which later ones win.  Raises `ConfigError` naming what is wrong."""
    whole = asdict(config)
    for change in changes:
        for name, value in (change or {}).items():
            if name not in whole:
                names = ", ".join(whole)
                raise ConfigError(f"There is no recovery setting {name!r}; there are {names}.", field=name, range=names)
            is_whole = isinstance(value, float) and value.is_integer() and type(whole[name]) in (int, bool)
            whole[name] = type(whole[name])(value) if is_whole and name in ("max_retries", *_FLAGS) else value
    result = RecoveryConfig(**whole)
    result.validate()
    return result


def of_class(
    cls: type[Agent], config: RecoveryConfig, own: dict[str, Any] | None, changes: dict[str, Any] | None = None
) -> RecoveryConfig:
    """The configuration for moves of a class's agents: the node's, changed by the class, by the node's file (`own`), then by one move.

    Raises `ConfigError` naming the setting, and the class unless the move's own change is wrong.
    """
    if not (cls.__mielin_recovery__ or own or changes):
        return config
    try:
        return changed(config, cls.__mielin_recovery__, own, changes)
    except ConfigError as error:
        if changes:
            raise
        raise ConfigError(
            f"The recovery settings of class {cls.__mielin_name__} are invalid: {error.message}", **error.facts
        ) from error


_FLAGS = ("use_exponential_backoff", "auto_rollback")
