"""The seed's values and rules: members, defaults, delays, decisions."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mielin_cells as cells
from mielin_cells import Policy, migration
from mielin_cells.agents.reference import make_ref
from mielin_cells.migration import (
    MigrationErrorType,
    MigrationRecoveryManager,
    RecoveryAttempt,
    RecoveryConfig,
    RecoveryStrategy,
    RollbackInfo,
)
from mielin_cells.migration.failure import MigrationError
from mielin_cells.migration.recovery import JITTER_MAX, determine, explain
from mielin_cells.migration.validation import checksum

KINDS = {
    # name: retryable, changes target, strategy while retries are left
    "NetworkTransient": (True, False, "RetryOnSameTarget"),
    "NetworkPermanent": (False, False, "Rollback"),
    "InsufficientResources": (True, True, "RetryOnDifferentTarget"),
    "IncompatibleTarget": (False, True, "RetryOnDifferentTarget"),
    "StateCorruption": (False, False, "Rollback"),
    "Timeout": (True, False, "RetryOnSameTarget"),
    "TargetUnreachable": (True, True, "RetryOnDifferentTarget"),
    "Unknown": (False, False, "Rollback"),
}


class Notes(cells.Agent):
    text: str = ""


def error(kind: MigrationErrorType = MigrationErrorType.TIMEOUT, retries: int = 0) -> MigrationError:
    return replace(MigrationError.new(kind, "slow", "a", "node-2", now=5.0), retry_count=retries)


def info(state: bytes = b"state", now: float = 0.0) -> RollbackInfo:
    return RollbackInfo.capture(
        "a", state, now=now, policy=Policy(preferred_architectures=("x86_64",)), source_node="node-1"
    )


VALUES: list[Any] = [
    MigrationErrorType.NETWORK_TRANSIENT,
    RecoveryStrategy.GIVE_UP,
    error(),
    replace(error(), target_node=None),
    RecoveryAttempt(attempt_number=1, strategy=RecoveryStrategy.ROLLBACK, timestamp=0.25, error="gone"),
    RecoveryConfig(initial_retry_delay_secs=0.25, max_retry_delay_secs=2),
    info(bytes(range(256))),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_the_six_values_survive_json_and_messagepack(value: Any) -> None:
    for codec in (msgspec.json, msgspec.msgpack):
        assert codec.decode(codec.encode(value), type=type(value)) == value


def test_enums_are_stored_by_the_seeds_names() -> None:
    assert [kind.value for kind in MigrationErrorType] == list(KINDS)
    assert [strategy.value for strategy in RecoveryStrategy] == [
        "RetryOnSameTarget", "RetryOnDifferentTarget", "Rollback", "GiveUp",
    ]  # fmt: skip
    assert msgspec.json.encode(MigrationErrorType.NETWORK_TRANSIENT) == b'"NetworkTransient"'


@pytest.mark.parametrize("value", VALUES[2:], ids=lambda value: type(value).__name__)
def test_values_are_frozen_and_take_keywords(value: Any) -> None:
    name = fields(value)[0].name

    with pytest.raises(FrozenInstanceError):
        setattr(value, name, None)
    assert type(value)(**{field.name: getattr(value, field.name) for field in fields(value)}) == value


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_says_what_may_be_done(name: str) -> None:
    kind = MigrationErrorType(name)

    assert (kind.is_retryable, kind.should_change_target) == KINDS[name][:2]


# ---- decisions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_the_strategy_is_a_function_of_error_and_config(name: str) -> None:
    kind, wanted = MigrationErrorType(name), RecoveryStrategy(KINDS[name][2])
    by_hand = RecoveryConfig(auto_rollback=False)

    assert determine(error(kind), RecoveryConfig()) is wanted
    assert determine(error(kind, retries=2), RecoveryConfig()) is wanted
    assert determine(error(kind, retries=3), RecoveryConfig()) is RecoveryStrategy.ROLLBACK
    assert determine(error(kind, retries=3), by_hand) is RecoveryStrategy.GIVE_UP
    last = RecoveryStrategy.GIVE_UP if wanted is RecoveryStrategy.ROLLBACK else wanted
    assert determine(error(kind), by_hand) is last
    assert MigrationRecoveryManager.with_defaults().determine_strategy(error(kind)) is wanted


def test_without_retries_the_first_failure_is_rolled_back() -> None:
    assert determine(error(), RecoveryConfig(max_retries=0)) is RecoveryStrategy.ROLLBACK


def test_an_incompatible_target_is_never_retried_on_the_same_node() -> None:
    for retries in range(5):
        for auto in (True, False):
            config = RecoveryConfig(auto_rollback=auto)
            found = determine(error(MigrationErrorType.INCOMPATIBLE_TARGET, retries), config)
            assert found is not RecoveryStrategy.RETRY_ON_SAME_TARGET


def test_a_decision_names_its_rule() -> None:
    assert explain(error(retries=3), RecoveryConfig())[1] == "Timeout with 3 of 3 retries used"
    assert explain(error(MigrationErrorType.UNKNOWN), RecoveryConfig())[1] == "Unknown is not retried"


# ---- delays ----------------------------------------------------------------------------------------------------


def test_delays_are_the_seeds() -> None:
    config = RecoveryConfig()

    found = [config.calculate_retry_delay(n) for n in (0, 1, 2, 3, 4, 5, 10, 29, 30, 31, 32, 33, 1000, 10**6)]

    assert found == [10, 10, 20, 40, 80, 160] + [300] * 8


def test_delays_without_backoff_are_the_first() -> None:
    config = RecoveryConfig(use_exponential_backoff=False)

    assert {config.calculate_retry_delay(n) for n in (0, 1, 7, 10**6)} == {10}


durations = st.floats(0.001, 1e6, allow_nan=False)


@given(first=durations, factor=st.floats(1, 1e6), attempt=st.integers(0, 10**6))
def test_a_delay_never_overflows_and_never_falls(first: float, factor: float, attempt: int) -> None:
    config = RecoveryConfig(initial_retry_delay_secs=first, max_retry_delay_secs=first * factor)

    delay, following = config.calculate_retry_delay(attempt), config.calculate_retry_delay(attempt + 1)

    assert first <= delay <= following <= first * factor
    if attempt >= 1:
        assert following == min(first * factor, 2 * delay)


@given(attempt=st.integers(0, 10**6), drawn=st.floats(0, 1))
def test_jitter_comes_on_top_of_the_seeds_delay(attempt: int, drawn: float) -> None:
    config = RecoveryConfig()
    delay = config.calculate_retry_delay(attempt)

    assert delay <= config.jittered_delay(attempt, lambda: drawn) <= delay * (1 + JITTER_MAX)


def test_jitter_spreads_also_at_the_cap() -> None:
    config = RecoveryConfig()

    drawn = iter(range(10))

    assert len({config.jittered_delay(50, lambda: next(drawn) / 10) for _ in range(10)}) == 10


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"initial_retry_delay_secs": 0}, "initial_retry_delay_secs"),
        ({"initial_retry_delay_secs": -1}, "initial_retry_delay_secs"),
        ({"initial_retry_delay_secs": float("nan")}, "initial_retry_delay_secs"),
        ({"initial_retry_delay_secs": True}, "initial_retry_delay_secs"),
        ({"max_retry_delay_secs": 9.99}, "max_retry_delay_secs"),
        ({"max_retry_delay_secs": float("inf")}, "max_retry_delay_secs"),
        ({"recovery_timeout_secs": 0}, "recovery_timeout_secs"),
        ({"recovery_timeout_secs": 9}, "recovery_timeout_secs"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_retries": 2**32 - 1}, "max_retries"),
        ({"max_retries": 2.0}, "max_retries"),
        ({"auto_rollback": 1}, "auto_rollback"),
    ],
)
def test_settings_that_cannot_be_or_contradict_each_other_are_refused(given: dict[str, Any], field: str) -> None:
    with pytest.raises(cells.ConfigError) as caught:
        RecoveryConfig(**given).validate()

    assert caught.value.field == field
    assert caught.value.range


def test_good_settings_pass() -> None:
    RecoveryConfig().validate()
    RecoveryConfig(initial_retry_delay_secs=0.25, max_retry_delay_secs=0.25, recovery_timeout_secs=0.25).validate()
    RecoveryConfig(max_retries=0, recovery_timeout_secs=1).validate()
    RecoveryConfig(max_retries=10).validate()


# ---- errors and rollback points ---------------------------------------------------------------------------------


def test_a_retry_is_counted_on_a_new_value() -> None:
    first = error()

    second = first.increment_retry()

    assert (first.retry_count, second.retry_count) == (0, 1)
    assert replace(second, retry_count=0) == first


def test_an_age_is_monotonic_and_never_negative() -> None:
    assert error().age_secs(7.5) == 2.5
    assert error().age_secs(4.0) == 0.0
    assert info(now=5.0).age_secs(4.0) == 0.0


def test_rollback_information_is_valid_only_below_its_age() -> None:
    captured = info(now=100.0)

    assert captured.is_valid(10.0, now=109.999)
    assert not captured.is_valid(10.0, now=110.0)
    assert not captured.is_valid(0, now=100.0)


def test_a_capture_holds_state_digest_policy_and_source() -> None:
    captured = info(b"state", now=1.5)

    assert (captured.agent_id, captured.original_state, captured.created_at) == ("a", b"state", 1.5)
    assert captured.source_node == "node-1"
    assert captured.original_checksum == checksum(b"state")
    assert captured.policy == Policy(preferred_architectures=("x86_64",))
    captured.verify()


def test_a_capture_takes_a_reference() -> None:
    reference = make_ref(Notes, "n-1")

    captured = RollbackInfo.capture(reference, b"", 0.0)

    assert (captured.agent_id, captured.policy) == ("n-1", Policy())


def test_rollback_information_that_changed_is_not_used() -> None:
    with pytest.raises(cells.errors.DigestMismatch):
        replace(info(), original_state=b"other").verify()
    with pytest.raises(cells.errors.RecordInvalid):
        _ = replace(info(), original_policy_data=b"\xc1").policy


@pytest.mark.parametrize(
    ("one", "other"),
    [(b"\x02\x00", b"\x00\x01"), (b"a", b"a\x00"), (bytes(100), bytes(200)), (b"", b"\x00")],
    ids=["positions", "appended-zeros", "all-zeros", "empty"],
)
def test_a_checksum_sees_what_the_seeds_sum_does_not(one: bytes, other: bytes) -> None:
    def seeds(data: bytes) -> int:
        return sum(byte * (place + 1) for place, byte in enumerate(data)) % 2**32

    assert seeds(one) == seeds(other)
    assert checksum(one) != checksum(other)


def test_names_of_the_seed_are_importable_from_the_package() -> None:
    for name in (
        "MigrationErrorType", "MigrationError", "RecoveryStrategy", "RecoveryAttempt", "RecoveryConfig", "RollbackInfo",
        "MigrationRecoveryManager", "MigrationValidator", "CompatibilityStatus", "AgentRequirements", "NodeCapabilities",
        "StateVerifier", "VerificationResult",
    ):  # fmt: skip
        assert name in migration.__all__
        assert hasattr(migration, name)
    assert {"Policy", "CellError"} <= {*cells.__all__} & {*vars(cells)}
