"""The audit: bounded, and every question is answered from what is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mielin_cells as cells
from mielin_cells.migration import AuditEvent, MigrationAuditLog


def log_of(capacity: int, *entries: tuple[str, str, AuditEvent, bool]) -> MigrationAuditLog:
    log = MigrationAuditLog(capacity)
    for now, (migration, agent, event, success) in enumerate(entries):
        log.add(migration, agent, event, now=float(now), success=success)
    return log


STORY = [
    ("m-1", "a", AuditEvent.MIGRATION_STARTED, True),
    ("m-1", "a", AuditEvent.VERIFICATION_COMPLETED, False),
    ("m-2", "b", AuditEvent.MIGRATION_STARTED, True),
    ("m-1", "a", AuditEvent.MIGRATION_COMPLETED, True),
    ("m-2", "b", AuditEvent.MIGRATION_FAILED, False),
    ("m-3", "a", AuditEvent.MIGRATION_STARTED, True),
]


def test_events_are_the_seeds() -> None:
    assert [event.value for event in AuditEvent] == [
        "MigrationStarted", "ValidationCompleted", "SnapshotCaptured", "TransferStarted", "TransferCompleted",
        "VerificationCompleted", "MigrationCompleted", "MigrationFailed", "RollbackStarted", "RollbackCompleted",
    ]  # fmt: skip


def test_a_log_keeps_ten_thousand_entries_by_default() -> None:
    assert MigrationAuditLog().capacity == 10_000


def test_a_log_that_would_keep_nothing_is_refused() -> None:
    with pytest.raises(cells.ConfigError):
        MigrationAuditLog(0)


def test_entries_are_found_by_migration_agent_event_and_time() -> None:
    log = log_of(100, *STORY)

    assert [entry.timestamp for entry in log.by_migration("m-1")] == [0, 1, 3]
    assert [entry.timestamp for entry in log.by_agent("a")] == [0, 1, 3, 5]
    assert [entry.timestamp for entry in log.by_event(AuditEvent.MIGRATION_STARTED)] == [0, 2, 5]
    assert [entry.timestamp for entry in log.between(1.0, 3.0)] == [1, 2, 3]
    assert log.by_migration("m-9") == log.by_agent("z") == []


def test_a_failure_on_the_way_is_not_a_failed_migration() -> None:
    log = log_of(100, *STORY)

    assert [entry.migration_id for entry in log.failures()] == ["m-1", "m-2"]
    assert [entry.migration_id for entry in log.failed_migrations()] == ["m-2"]


@given(
    capacity=st.integers(1, 8),
    story=st.lists(
        st.tuples(
            st.sampled_from(["m-1", "m-2", "m-3"]), st.sampled_from("ab"), st.sampled_from(AuditEvent), st.booleans()
        ),
        max_size=40,
    ),
)
def test_the_oldest_go_first_and_from_every_index(
    capacity: int, story: list[tuple[str, str, AuditEvent, bool]]
) -> None:
    log = log_of(capacity, *story)

    kept = list(log)
    assert [entry.timestamp for entry in kept] == [float(now) for now in range(len(story))][-capacity:]
    for migration in ("m-1", "m-2", "m-3"):
        assert log.by_migration(migration) == [entry for entry in kept if entry.migration_id == migration]
    for agent in "ab":
        assert log.by_agent(agent) == [entry for entry in kept if entry.agent_id == agent]


def test_clearing_leaves_nothing() -> None:
    log = log_of(100, *STORY)

    log.clear()

    assert (len(log), log.by_agent("a"), log.by_migration("m-1")) == (0, [], [])
