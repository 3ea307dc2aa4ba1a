"""The recovery manager's decisions: other targets, ends, operators; and what was wrong with the seed's, by name."""

from __future__ import annotations

import pytest
from support.recoveries import (
    CORRUPTION,
    ELSEWHERE,
    INCOMPATIBLE,
    ROLLBACK,
    SAME,
    TIMEOUT,
    UNREACHABLE,
    due,
    fail_next,
    failure,
    managed,
    nobody,
)

import mielin_cells as cells
from mielin_cells.migration import MigrationRecoveryManager, RecoveryConfig, recoveries
from mielin_cells.migration.breaker import BreakerConfig, Targets
from mielin_cells.migration.case import ATTEMPTS_KEPT

# ---- 4.B: decisions --------------------------------------------------------------------------------------------


def test_an_incompatible_target_is_never_chosen_again() -> None:
    manager = managed()
    fail_next(manager, kind=INCOMPATIBLE)
    ticket = manager.begin("a", due(manager))
    assert ticket.strategy is ELSEWHERE
    assert ticket.target_node is None
    assert {"node-1", "node-2"} <= ticket.excluded

    with pytest.raises(cells.errors.MigrationRefused):
        manager.assign(ticket.token, "node-2", 50.0)
    with pytest.raises(cells.errors.AlreadyThere):
        manager.assign(ticket.token, "node-1", 50.0)


def test_a_timeout_of_an_incompatible_target_does_not_bring_it_back() -> None:
    manager = managed()
    fail_next(manager, kind=INCOMPATIBLE)
    ticket = manager.begin("a", due(manager))
    assert manager.assign(ticket.token, "node-3", 50.0)

    manager.finish(ticket.token, 51.0, failure(51.0, TIMEOUT, target="node-2"))

    assert manager.decide("a", 52.0) == (ELSEWHERE, "node-2 cannot run the agent")


def test_the_attempt_records_the_node_that_was_chosen() -> None:
    manager = managed()
    fail_next(manager, kind=UNREACHABLE)
    ticket = manager.begin("a", due(manager))
    assert (manager.get_history("a") or [])[-1].target_node is None

    assert manager.assign(ticket.token, "node-3", 50.0)

    assert (manager.get_history("a") or [])[-1].target_node == "node-3"
    running = manager.ticket("a")
    assert running is not None
    assert running.target_node == "node-3"
    assert not manager.assign(ticket.token, "node-4", 50.0)


def test_a_node_that_failed_in_a_passing_way_may_be_chosen_again_later() -> None:
    manager = managed(RecoveryConfig(max_retries=9, recovery_timeout_secs=10_000))
    end = fail_next(manager, kind=UNREACHABLE)
    ticket = manager.begin("a", due(manager))
    assert "node-2" in ticket.excluded
    assert manager.assign(ticket.token, "node-3", ticket.deadline - 1)
    manager.finish(ticket.token, end + 30, failure(end + 30, UNREACHABLE, target="node-3"))

    later = manager.begin("a", end + 1000)

    assert later.excluded == {"node-1", "node-3"}


def test_without_a_candidate_it_waits_then_rolls_back_and_never_returns_to_the_same_node() -> None:
    manager = managed()
    fail_next(manager, kind=UNREACHABLE)
    waits: list[float] = []
    while (ticket := manager.begin("a", due(manager))).strategy is ELSEWHERE:
        assert "node-2" in ticket.excluded
        now = nobody(manager, ticket.token)
        waits.append(due(manager) - now)
        assert len(waits) < 10

    assert ticket.strategy is ROLLBACK
    assert waits == [40, 0]
    assert ticket.why == "TargetUnreachable with 3 of 3 retries used"
    assert [attempt.attempt_number for attempt in manager.get_history("a") or []] == [1, 2, 3, 4]


def test_an_open_circuit_sends_a_retry_elsewhere() -> None:
    targets = Targets()
    manager = managed(targets=targets)
    for _ in range(5):
        targets.failed("node-2", 9.0, TIMEOUT)

    ticket = manager.begin("a", 10.0)

    assert (ticket.strategy, ticket.why) == (ELSEWHERE, "the circuit of node-2 is open")
    assert "node-2" in ticket.excluded


def test_a_target_with_enough_attempts_makes_the_others_wait() -> None:
    targets = Targets(BreakerConfig(running_max=1))
    manager = managed(targets=targets)
    manager.record_failure(failure(agent="b"))
    first = manager.begin("a", 10.0)

    with pytest.raises(cells.errors.RecoveryNotDue):
        manager.begin("b", 10.0)
    assert due(manager, "b") == 20.0
    assert manager.get_history("b") == []

    manager.finish(first.token, 11.0)
    assert manager.begin("b", 20.0).target_node == "node-2"


def test_a_migration_tries_one_target_only_so_often() -> None:
    manager = managed(RecoveryConfig(max_retries=9), Targets(BreakerConfig(tries_max=2)))
    fail_next(manager)
    fail_next(manager)

    assert manager.decide("a", due(manager)) == (ELSEWHERE, "node-2 was tried 2 times")


def test_results_of_attempts_reach_the_circuits() -> None:
    targets = Targets()
    manager = managed(RecoveryConfig(max_retries=9), targets)
    for _ in range(4):
        fail_next(manager, took=0.1)

    assert targets.free_at("node-2", due(manager)) >= due(manager)
    assert not targets.is_full("node-2")
    ticket = manager.begin("a", due(manager))
    manager.finish(ticket.token, 500.0)
    assert targets.unfit(500.0) == frozenset()


def test_a_success_without_an_attempt_is_refused() -> None:
    manager = managed()

    with pytest.raises(cells.errors.RecoveryNotDue):
        manager.mark_recovery_success("a")
    with pytest.raises(cells.errors.RecoveryNotDue):
        manager.mark_recovery_failure("a", "late", 10.0)
    with pytest.raises(cells.errors.NoSuchMigration):
        manager.mark_recovery_success("b")
    assert manager.pending_count == 1


def test_a_late_failure_does_not_undo_a_success() -> None:
    manager = managed()
    manager.execute_recovery("a", 10.0)
    manager.mark_recovery_success("a")

    with pytest.raises(cells.errors.NoSuchMigration):
        manager.mark_recovery_failure("a", "late", 12.0)
    assert [attempt.success for attempt in manager.get_history("a") or []] == [True]


def test_clearing_the_history_keeps_a_live_recovery_and_its_count() -> None:
    manager = managed()
    fail_next(manager)
    manager.clear_history("a")
    assert (manager.get_history("a"), manager.pending_count) == ([], 1)
    assert manager.get_pending()[0].retry_count == 1

    ticket = manager.begin("a", due(manager))
    manager.clear_history("a")
    assert manager.finish(ticket.token, 100.0)
    assert [attempt.attempt_number for attempt in manager.get_history("a") or []] == [2]

    manager.clear_history("a")
    assert manager.get_history("a") is None


def test_histories_are_bounded_for_one_agent_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recoveries, "AGENTS_KEPT", 10)
    config = RecoveryConfig(max_retries=1000, recovery_timeout_secs=1e9)
    manager = managed(config)
    for _ in range(ATTEMPTS_KEPT + 20):
        fail_next(manager)
    history = manager.get_history("a") or []
    assert (len(history), history[-1].attempt_number) == (ATTEMPTS_KEPT, ATTEMPTS_KEPT + 20)

    for number in range(30):
        manager.record_failure(failure(agent=f"b{number}"))
        manager.execute_recovery(f"b{number}", 10.0)
        manager.mark_recovery_success(f"b{number}")

    assert manager.get_history("b19") is None
    assert manager.get_history("b20") is not None
    assert manager.get_history("a") is not None


def test_two_migrations_of_one_agent_do_not_overwrite_each_other() -> None:
    manager = managed()

    with pytest.raises(cells.errors.MigrationInProgress):
        manager.record_failure(failure(1.0, CORRUPTION), migration="m-2")

    assert manager.get_pending() == [failure()]


def test_agents_of_a_group_are_recovered_side_by_side() -> None:
    manager = MigrationRecoveryManager()
    for agent in "abc":
        manager.record_failure(failure(agent=agent))
    tickets = [manager.begin(agent, 10.0) for agent in "abc"]

    assert [manager.finish(ticket.token, 11.0) for ticket in tickets] == [True] * 3
    assert len({ticket.token for ticket in tickets}) == 3


# ---- ends ------------------------------------------------------------------------------------------------------


def test_a_migration_that_the_log_has_decided_is_settled() -> None:
    targets = Targets(BreakerConfig(running_max=1))
    manager = managed(targets=targets)
    ticket = manager.begin("a", 10.0)

    assert manager.settle("a", 11.0)

    assert not manager.settle("a", 11.0)
    assert not manager.finish(ticket.token, 12.0)
    assert manager.next_wake() is None
    assert not targets.is_full("node-2")


def test_a_new_failure_after_an_end_begins_a_new_recovery() -> None:
    manager = managed()
    for _ in range(3):
        fail_next(manager)
    manager.execute_recovery("a", due(manager))
    manager.mark_recovery_success("a")

    manager.record_failure(failure(1000.0), migration="m-2")

    assert manager.end_of("a") is None
    assert manager.execute_recovery("a", 1010.0) is SAME
    assert [attempt.attempt_number for attempt in manager.get_history("a") or []] == [1, 2, 3, 4, 1]
