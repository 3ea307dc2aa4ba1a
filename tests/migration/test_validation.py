"""Compatibility with every reason, versions as they are ordered, and rollback information that is not lost on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mielin_cells as cells
from mielin_cells.log.policy import Policy
from mielin_cells.migration import (
    AgentRequirements,
    AuditEvent,
    Manifest,
    MigrationValidator,
    NodeCapabilities,
    RollbackInfo,
)
from mielin_cells.migration.admission import GIB, Version, check_compatibility

NODE = NodeCapabilities()


def info(state: bytes = b"state", now: float = 0.0) -> RollbackInfo:
    return RollbackInfo.capture("a", state, now, source_node="node-1")


def told(validator: MigrationValidator) -> list[tuple[AuditEvent, bool]]:
    return [(entry.event, entry.success) for entry in validator.audit]


# ---- compatibility ---------------------------------------------------------------------------------------------


def test_a_node_is_by_default_what_the_crate_says() -> None:
    assert NODE.architectures == ("x86_64", "aarch64")
    assert (NODE.available_memory, NODE.available_storage, NODE.max_state_size) == (8 * GIB, 100 * GIB, GIB)
    assert NODE.features == ("bulk-memory", "simd")
    assert (NODE.version, NODE.min_version) == ("0.1.0", "0.1.0")


def test_an_agent_that_requires_nothing_is_compatible() -> None:
    status = check_compatibility(AgentRequirements(), NODE)

    assert (status.name, status.can_proceed, status.is_compatible) == ("Compatible", True, True)


def test_every_reason_is_reported_in_the_crates_order() -> None:
    agent = AgentRequirements(
        architectures=("riscv64",),
        required_memory=9 * GIB,
        required_storage=101 * GIB,
        state_size=2 * GIB,
        features=("simd", "threads", "gc"),
        version="0.0.9",
    )

    status = check_compatibility(agent, NODE)

    assert (status.name, status.can_proceed) == ("Incompatible", False)
    words = ["riscv64", "memory", "storage", "takes at most", "threads", "gc", "0.0.9"]
    assert len(status.reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, status.reasons, strict=True))


def test_the_state_counts_as_memory() -> None:
    node = replace(NODE, available_memory=100)

    assert check_compatibility(AgentRequirements(required_memory=60, state_size=40), node).can_proceed
    assert not check_compatibility(AgentRequirements(required_memory=60, state_size=41), node).can_proceed


@pytest.mark.parametrize(("need", "name"), [(80, "Compatible"), (81, "CompatibleWithWarnings"), (101, "Incompatible")])
def test_little_memory_left_is_a_warning(need: int, name: str) -> None:
    status = check_compatibility(AgentRequirements(required_memory=need), replace(NODE, available_memory=100))

    assert status.name == name
    assert bool(status.warnings) == (name == "CompatibleWithWarnings")


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("", "Compatible"),
        ("1.2.0", "Compatible"),
        ("v1.2.3", "Compatible"),
        ("1.2.0-rc.1", "Incompatible"),
        ("1.3.0-rc.1", "Compatible"),
        ("1.1.9", "Incompatible"),
        ("1.5.1", "CompatibleWithWarnings"),
        ("2.0.0", "Incompatible"),
        ("0.9.0", "Incompatible"),
        ("newest", "Incompatible"),
    ],
)
def test_a_version_is_of_the_same_major_and_at_least_the_nodes_minimum(version: str, name: str) -> None:
    node = replace(NODE, version="1.5.0", min_version="1.2.0")

    assert check_compatibility(AgentRequirements(version=version), node).name == name


def test_a_node_may_take_agents_of_the_major_version_before_its_own() -> None:
    node = replace(NODE, version="2.0.0", min_version="1.2.0")

    assert check_compatibility(AgentRequirements(version="1.5.0"), node).can_proceed
    assert check_compatibility(AgentRequirements(version="2.0.0"), node).can_proceed
    assert not check_compatibility(AgentRequirements(version="3.0.0"), node).can_proceed


# ---- versions --------------------------------------------------------------------------------------------------


def test_versions_are_ordered_as_semver_says() -> None:
    texts = [
        "0.9.9", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
        "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0",
    ]  # fmt: skip

    assert [str(version) for version in sorted(map(Version, reversed(texts)))] == texts


def test_versions_are_read_as_they_are_written() -> None:
    assert Version("0.1.0-rc.1").pre == ("rc", "1")
    assert Version("v1.2.3") == Version("1.2.3") == Version("1.2.3+build.7")
    assert Version("1.2") == Version("1.2.0")
    assert hash(Version("v1.2.3")) == hash(Version("1.2.3"))


@pytest.mark.parametrize("text", ["", "x", "1.", "1.2.3.4", "1.2.3-", "-1.0.0", "1.0.0 beta", "\u0661.0.0", "9" * 5000])
def test_a_malformed_version_is_refused(text: str) -> None:
    with pytest.raises(cells.ConfigError):
        Version(text)


parts = st.lists(st.from_regex(r"[0-9A-Za-z-]{1,4}", fullmatch=True), max_size=3)
numbers = st.integers(0, 3)
versions = st.builds(
    lambda a, b, c, pre: Version(f"{a}.{b}.{c}" + (f"-{'.'.join(pre)}" if pre else "")),
    numbers, numbers, numbers, parts,
)  # fmt: skip


@given(one=versions, two=versions, three=versions)
def test_the_order_of_versions_is_total(one: Version, two: Version, three: Version) -> None:
    assert (one < two) + (two < one) + (one == two) == 1
    if one < two < three:
        assert one < three
    if one.pre:
        assert one < Version(f"{one.major}.{one.minor}.{one.patch}")


# ---- the validator ---------------------------------------------------------------------------------------------


def test_checks_are_in_the_audit_with_their_outcome() -> None:
    validator = MigrationValidator()

    validator.validate_pre("m-1", "a", AgentRequirements(), NODE, now=1.0, target="node-2")
    validator.validate_pre("m-1", "a", AgentRequirements(version="9.0.0"), NODE, now=2.0, target="node-2")
    validator.verify_post("m-1", "a", Manifest.of(b"x"), b"y", agent_responsive=True, now=3.0)

    checked, verified = AuditEvent.VALIDATION_COMPLETED, AuditEvent.VERIFICATION_COMPLETED
    assert told(validator) == [(checked, True), (checked, False), (verified, False)]
    assert "9.0.0" in list(validator.audit)[1].details


def test_a_rollback_is_recorded_as_done_only_when_it_is_verified() -> None:
    validator = MigrationValidator()
    validator.capture_rollback("m-1", info(), now=0.0)

    assert validator.execute_rollback("m-1", now=1.0) == info()
    assert (AuditEvent.ROLLBACK_COMPLETED, True) not in told(validator)
    with pytest.raises(cells.errors.DigestMismatch):
        validator.confirm_rollback("m-1", Manifest.of(b"other"), now=2.0)
    assert validator.rollback_info("m-1") == info()

    validator.confirm_rollback("m-1", Manifest.of(b"state"), now=3.0)

    assert validator.rollback_info("m-1") is None
    assert told(validator) == [
        (AuditEvent.SNAPSHOT_CAPTURED, True),
        (AuditEvent.ROLLBACK_STARTED, True),
        (AuditEvent.ROLLBACK_COMPLETED, False),
        (AuditEvent.ROLLBACK_COMPLETED, True),
    ]


def test_rollback_information_asked_for_twice_is_given_twice() -> None:
    validator = MigrationValidator()
    validator.capture_rollback("m-1", info(), now=0.0)

    assert validator.execute_rollback("m-1", now=1.0) == validator.execute_rollback("m-1", now=2.0)


def test_expired_rollback_information_is_refused_and_kept() -> None:
    validator = MigrationValidator(max_rollback_age_secs=10)
    validator.capture_rollback("m-1", info(), now=0.0)

    for _ in range(2):
        with pytest.raises(cells.errors.RollbackExpired):
            validator.execute_rollback("m-1", now=10.0)

    assert validator.rollback_info("m-1") == info()
    assert told(validator)[-1] == (AuditEvent.ROLLBACK_STARTED, False)


def test_a_rollback_of_nothing_is_an_error_and_in_the_audit() -> None:
    validator = MigrationValidator()

    with pytest.raises(cells.errors.NoSuchMigration):
        validator.execute_rollback("m-1", now=0.0)
    with pytest.raises(cells.errors.NoSuchMigration):
        validator.confirm_rollback("m-1", Manifest.of(b""), now=0.0)

    assert told(validator) == [(AuditEvent.ROLLBACK_STARTED, False)]


def test_rollback_information_that_changed_is_not_restored() -> None:
    validator = MigrationValidator()
    validator.capture_rollback("m-1", replace(info(), original_state=b"stale"), now=0.0)

    with pytest.raises(cells.errors.DigestMismatch):
        validator.execute_rollback("m-1", now=1.0)

    assert validator.rollback_info("m-1") is not None


def test_the_first_capture_of_a_migration_counts() -> None:
    validator = MigrationValidator()
    validator.capture_rollback("m-1", info(b"before"), now=0.0)

    validator.capture_rollback("m-1", info(b"after"), now=1.0)

    assert validator.execute_rollback("m-1", now=2.0).original_state == b"before"


def test_the_way_back_outlives_a_failure_and_ends_with_success() -> None:
    validator = MigrationValidator()
    validator.capture_rollback("m-1", info(), now=0.0)
    validator.complete("m-1", "a", success=False, now=1.0, details="timed out")
    assert validator.rollback_info("m-1") is not None

    validator.complete("m-1", "a", success=True, now=2.0)

    assert validator.rollback_info("m-1") is None


def test_an_end_is_recorded_also_without_rollback_information() -> None:
    validator = MigrationValidator()

    validator.complete("m-1", "a", success=True, now=0.0)
    validator.complete("m-2", "b", success=False, now=0.0)

    assert told(validator) == [(AuditEvent.MIGRATION_COMPLETED, True), (AuditEvent.MIGRATION_FAILED, False)]


def test_only_what_is_too_old_and_has_ended_is_cleaned_up() -> None:
    validator = MigrationValidator(max_rollback_age_secs=10)
    for name in ("m-open", "m-failed"):
        validator.capture_rollback(name, info(), now=0.0)
    validator.complete("m-failed", "a", success=False, now=1.0)

    assert validator.cleanup_expired(now=9.0) == 0
    assert validator.cleanup_expired(now=10.0) == 1
    assert validator.cleanup_expired(now=11.0) == 0

    assert validator.rollback_info("m-open") is not None
    assert validator.rollback_info("m-failed") is None


@given(st.lists(st.tuples(st.sampled_from(("capture", "lost", "won", "execute", "confirm", "fail", "clean")),
                          st.sampled_from(("m-1", "m-2")), st.floats(0, 3000)), max_size=30))  # fmt: skip
def test_calls_in_any_order_raise_only_documented_errors(calls: list[tuple[str, str, float]]) -> None:
    validator, now = MigrationValidator(), 0.0
    for what, migration, pause in calls:
        now += pause
        try:
            match what:
                case "capture":
                    validator.capture_rollback(migration, RollbackInfo.capture("a", b"x", now), now=now)
                case "lost" | "won":
                    validator.complete(migration, "a", success=what == "won", now=now)
                case "execute":
                    validator.execute_rollback(migration, now=now)
                case "confirm":
                    info = validator.rollback_info(migration)
                    checksum = info.original_checksum if info is not None else b""
                    validator.confirm_rollback(migration, Manifest(checksum=checksum, size=1), now=now)
                case "fail":
                    validator.fail_rollback(migration, "why", now=now)
                case _:
                    assert validator.cleanup_expired(now=now) in (0, 1, 2)
        except (cells.errors.NoSuchMigration, cells.errors.RollbackExpired):
            assert what in ("execute", "confirm")
    assert validator.cleanup_expired(now=now + 1e6) in (0, 1, 2)


def test_an_age_that_cannot_be_is_refused_and_the_old_one_stays() -> None:
    validator = MigrationValidator()

    with pytest.raises(cells.ConfigError):
        validator.set_max_rollback_age(0)

    assert validator.max_rollback_age_secs == 3600


# ---- of a move, whose state stays in the agent's log ---------------------------------------------------------------


def test_a_sealed_state_is_rolled_back_to_without_a_copy_of_it() -> None:
    validator, seal = MigrationValidator(), Manifest(checksum=b"d" * 32, size=1_000_000)
    validator.capture_rollback("m-1", RollbackInfo.sealed("a", seal, 0.0, policy=Policy(), source_node="n1"), now=0.0)

    assert validator.execute_rollback("m-1", now=1.0).original_state == b""
    with pytest.raises(cells.errors.DigestMismatch):
        validator.confirm_rollback("m-1", replace(seal, checksum=b"e" * 32), now=2.0)
    with pytest.raises(cells.errors.DigestMismatch):
        validator.confirm_rollback("m-1", replace(seal, size=1), now=2.0)
    validator.confirm_rollback("m-1", seal, now=3.0, details="back at 7")

    assert validator.rollback_info("m-1") is None
    last = validator.audit.by_migration("m-1")[-1]
    assert (last.event, last.success, last.details, last.source) == (
        AuditEvent.ROLLBACK_COMPLETED, True, "back at 7", "n1",
    )  # fmt: skip


def test_a_rollback_that_is_not_tried_again_gives_way_to_the_next_attempt() -> None:
    validator = MigrationValidator()
    validator.capture_rollback("m-1", info(b"before"), now=0.0)
    validator.fail_rollback("m-1", "its log is read again", now=1.0, is_final=True)
    assert validator.rollback_info("m-1") == info(b"before")

    validator.capture_rollback("m-1", info(b"after"), now=2.0)

    assert validator.execute_rollback("m-1", now=3.0).original_state == b"after"


def test_an_arrived_state_may_be_given_as_its_manifest() -> None:
    validator, sealed = MigrationValidator(), Manifest.of(b"state")
    for arrived, passed in ((sealed, True), (Manifest.of(b"other"), False)):
        result = validator.verify_post("m-1", "a", sealed, arrived, agent_responsive=True, now=0.0)
        assert (result.passed, result.checksum_valid) == (passed, passed)
