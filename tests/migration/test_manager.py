"""The recovery manager: the seed's methods, and what was wrong with its counting and scheduling, by name."""

from __future__ import annotations

import pytest
from support.recoveries import CORRUPTION, GIVE_UP, ROLLBACK, SAME, TIMEOUT, due, fail_next, failure, managed
from support.written import Written

import mielin_cells as cells
from mielin_cells.migration import MigrationRecoveryManager, RecoveryConfig, RecoveryOutcome
from mielin_cells.migration.case import ROLLBACKS_MAX, SOURCE_LOST, Case


def ended(manager: MigrationRecoveryManager, agent: str = "a") -> RecoveryOutcome | None:
    end = manager.end_of(agent)
    return end.outcome if end is not None else None


# ---- the seed's methods ----------------------------------------------------------------------------------------


def test_a_failure_is_pending_and_has_an_empty_history() -> None:
    manager = managed()

    assert manager.pending_count == 1
    assert manager.get_pending() == [failure()]
    assert manager.get_history("a") == []


def test_an_agent_that_is_not_known_answers_none_and_cannot_be_recovered() -> None:
    manager = managed()

    assert manager.get_history("b") is None
    assert manager.next_retry_time("b") is None
    assert not manager.is_ready_for_retry("b", 1e9)
    with pytest.raises(cells.errors.NoSuchMigration):
        manager.execute_recovery("b", 0.0)


def test_a_bad_config_is_refused_and_the_old_one_stays() -> None:
    manager = managed()

    with pytest.raises(cells.errors.ConfigError):
        manager.set_config(RecoveryConfig(initial_retry_delay_secs=0))
    assert manager.config == RecoveryConfig()

    manager.set_config(RecoveryConfig(max_retries=0))
    assert manager.decide("a", 10).strategy is ROLLBACK
    with pytest.raises(cells.errors.ConfigError):
        MigrationRecoveryManager(RecoveryConfig(recovery_timeout_secs=0))


def test_an_attempt_is_recorded_with_number_strategy_time_and_target() -> None:
    manager = managed()

    assert manager.execute_recovery("a", 10.0) is SAME

    [attempt] = manager.get_history("a") or []
    assert (attempt.attempt_number, attempt.strategy, attempt.timestamp) == (1, SAME, 10.0)
    assert (attempt.target_node, attempt.success, attempt.error) == ("node-2", False, None)


def test_a_success_takes_the_migration_off_the_queue_and_keeps_the_history() -> None:
    manager = managed()
    manager.execute_recovery("a", 10.0)

    manager.mark_recovery_success("a")

    assert manager.pending_count == 0
    assert [attempt.success for attempt in manager.get_history("a") or []] == [True]
    end = manager.end_of("a")
    assert end is not None
    assert (end.outcome, end.migration) == (RecoveryOutcome.RECOVERED, "m-1")


def test_a_failed_attempt_says_why_and_is_tried_again() -> None:
    manager = managed()
    manager.execute_recovery("a", 10.0)

    manager.mark_recovery_failure("a", "no answer", 12.0)

    assert [attempt.error for attempt in manager.get_history("a") or []] == ["no answer"]
    assert manager.get_pending()[0].retry_count == 1
    assert manager.get_pending()[0].error_type is TIMEOUT


def test_retries_end_in_a_rollback_when_they_are_used_up() -> None:
    manager = managed()
    for _ in range(3):
        fail_next(manager)

    assert manager.execute_recovery("a", due(manager)) is ROLLBACK
    assert [attempt.attempt_number for attempt in manager.get_history("a") or []] == [1, 2, 3, 4]


def test_readiness_is_asked_with_a_clock() -> None:
    manager = managed()

    assert not manager.is_ready_for_retry("a", 9.999)
    assert manager.is_ready_for_retry("a", 10.0)
    assert manager.get_ready_for_retry(9.999) == []
    assert manager.get_ready_for_retry(10.0) == ["a"]
    assert manager.get_ready_for_retry(10.0) == ["a"]


# ---- 4.A: counting and scheduling ------------------------------------------------------------------------------


def test_each_wait_between_retries_is_longer_than_the_one_before() -> None:
    manager, waits, end = managed(), [], 0.0
    for _ in range(3):
        waits.append(due(manager) - end)
        end = fail_next(manager)

    assert waits == [10, 20, 40]


def test_the_next_retry_counts_from_the_end_of_the_last_attempt() -> None:
    manager = managed()

    end = fail_next(manager, took=50.0)

    assert end == 60.0
    assert due(manager) == 60.0 + 20


def test_a_fresh_error_never_resets_the_count() -> None:
    manager = managed()
    strategies = []
    for _ in range(4):
        now = due(manager)
        strategies.append(manager.execute_recovery("a", now))
        manager.record_failure(failure(now + 1))

    assert strategies == [SAME, SAME, SAME, ROLLBACK]


def test_a_failed_attempt_is_classified_anew() -> None:
    manager = managed()
    manager.execute_recovery("a", 10.0)

    manager.mark_recovery_failure("a", failure(11.0, CORRUPTION), 11.0)

    assert manager.decide("a", 11.0).strategy is ROLLBACK
    assert manager.is_ready_for_retry("a", 11.0)


def test_an_attempt_before_its_time_is_refused() -> None:
    manager = managed()

    with pytest.raises(cells.errors.RecoveryNotDue) as caught:
        manager.begin("a", 9.0)

    assert caught.value.due == 10.0
    assert manager.get_history("a") == []


def test_one_attempt_has_one_runner() -> None:
    manager = managed()
    manager.begin("a", 10.0)

    with pytest.raises(cells.errors.RecoveryNotDue):
        manager.begin("a", 1000.0)
    assert manager.get_ready_for_retry(1000.0) == []
    assert len(manager.get_history("a") or []) == 1


def test_late_and_repeated_reports_are_ignored() -> None:
    manager = managed()
    first = manager.begin("a", 10.0)
    assert manager.finish(first.token, 11.0, failure(11.0))
    second = manager.begin("a", due(manager))

    assert not manager.finish(first.token, 40.0)
    assert not manager.finish(first.token, 40.0, failure(40.0))
    assert not manager.finish(999, 40.0)
    assert manager.ticket("a") == second

    assert manager.finish(second.token, 41.0)
    assert not manager.finish(second.token, 42.0, failure(42.0))
    assert [attempt.success for attempt in manager.get_history("a") or []] == [False, True]


def test_giving_up_leaves_the_queue() -> None:
    manager = managed(RecoveryConfig(auto_rollback=False, max_retries=0))

    assert manager.execute_recovery("a", 0.0) is GIVE_UP

    assert manager.pending_count == 0
    assert manager.get_ready_for_retry(1e9) == []
    assert ended(manager) is RecoveryOutcome.GAVE_UP
    with pytest.raises(cells.errors.NoSuchMigration):
        manager.execute_recovery("a", 1.0)
    assert len(manager.get_history("a") or []) == 1


def test_a_rollback_leaves_the_queue_only_when_it_is_done() -> None:
    manager = managed(RecoveryConfig(max_retries=0))
    ticket = manager.begin("a", 0.0)
    assert (ticket.strategy, manager.pending_count) == (ROLLBACK, 1)

    assert manager.finish(ticket.token, 1.0)

    assert (ended(manager), manager.pending_count) == (RecoveryOutcome.ROLLED_BACK, 0)


def test_a_rollback_that_fails_is_finished_not_turned_into_a_retry() -> None:
    manager = managed(RecoveryConfig(max_retries=0))
    now, strategies = 0.0, []
    for _ in range(ROLLBACKS_MAX):
        ticket = manager.begin("a", now)
        strategies.append(ticket.strategy)
        manager.finish(ticket.token, now, failure(now))
        assert due(manager) > now
        now = due(manager)

    assert strategies == [ROLLBACK] * ROLLBACKS_MAX
    assert manager.begin("a", now).strategy is GIVE_UP
    assert ended(manager) is RecoveryOutcome.GAVE_UP


def test_a_rollback_that_fails_in_a_passing_way_stays_a_rollback() -> None:
    manager = MigrationRecoveryManager()
    manager.record_failure(failure(kind=CORRUPTION))
    ticket = manager.begin("a", 0.0)

    manager.finish(ticket.token, 1.0, failure(1.0, TIMEOUT))

    assert manager.decide("a", 1.0).strategy is ROLLBACK
    assert due(manager) == 11.0


def test_an_attempt_that_runs_too_long_is_stopped_and_rolled_back() -> None:
    manager = MigrationRecoveryManager(RecoveryConfig(recovery_timeout_secs=30), attempt_timeout_secs=1000)
    manager.record_failure(failure())
    ticket = manager.begin("a", 10.0)
    assert ticket.deadline == 30.0
    assert manager.expire(29.9) == []

    assert manager.expire(30.0) == [ticket]
    assert manager.expire(30.0) == []
    assert manager.finish(ticket.token, 31.0, failure(31.0))

    assert manager.is_ready_for_retry("a", 31.0)
    assert manager.decide("a", 31.0) == (ROLLBACK, "recovery took longer than 30 s")


def test_an_attempt_that_was_beyond_being_stopped_may_have_done_what_it_was_for() -> None:
    manager = managed()
    ticket = manager.begin("a", 10.0)
    assert manager.expire(70.0) == [ticket]

    assert manager.finish(ticket.token, 71.0)

    assert ended(manager) is RecoveryOutcome.RECOVERED


def test_an_attempt_whose_time_is_over_is_tried_again_within_the_whole_time() -> None:
    manager = managed()
    ticket = manager.begin("a", 10.0)
    assert ticket.deadline == 70.0

    assert manager.expire(70.0) == [ticket]
    assert manager.next_wake() is None
    manager.mark_recovery_failure("a", "attempt 1 ran out of time", 70.0)

    assert manager.decide("a", 70.0).strategy is SAME
    assert due(manager) == 90.0
    assert [attempt.error for attempt in manager.get_history("a") or []] == ["attempt 1 ran out of time"]


def test_a_wait_never_goes_beyond_the_whole_time() -> None:
    manager = managed(RecoveryConfig(recovery_timeout_secs=25))
    fail_next(manager)

    assert due(manager) == 25.0
    assert manager.execute_recovery("a", 25.0) is ROLLBACK


def test_without_rollback_time_that_is_over_ends_as_expired() -> None:
    manager = managed(RecoveryConfig(recovery_timeout_secs=25, auto_rollback=False))

    assert manager.execute_recovery("a", 25.0) is GIVE_UP
    assert ended(manager) is RecoveryOutcome.EXPIRED


def test_jitter_spreads_what_failed_together() -> None:
    manager = MigrationRecoveryManager()
    drawn = iter([0.0, 0.5, 0.99])
    for agent in "abc":
        manager.record_failure(failure(agent=agent), 0.0, lambda: next(drawn))

    assert [round(due(manager, agent), 3) for agent in "abc"] == [10.0, 11.25, 12.475]
    assert manager.get_ready_for_retry(12.0) == ["a", "b"]


def test_the_longest_due_comes_first_and_a_poll_can_be_limited() -> None:
    manager = MigrationRecoveryManager()
    for number, agent in enumerate("cab"):
        manager.record_failure(failure(float(number), agent=agent))

    assert manager.get_ready_for_retry(100.0) == ["c", "a", "b"]
    assert manager.get_ready_for_retry(100.0, 2) == ["c", "a"]
    assert manager.next_wake() == 10.0


def test_a_restart_continues_with_the_remaining_time() -> None:
    """A new process has a monotonic clock of its own; the journal's times are wall times."""
    written = Written().tried().failed().decided().tried(strategy="RetryOnSameTarget").failed().decided(delay_s=593.0)
    case = Case.of(written.journal, source="n1", now=5.0, wall=written.at + 590.0)
    manager = MigrationRecoveryManager()

    manager.open(case, 5.0)
    manager.record_failure(failure(5.0), 5.0, code=SOURCE_LOST)

    assert due(manager) == 8.0
    assert case.deadline == 15.0
    assert manager.decide("a", 8.0).strategy is SAME
    assert manager.get_pending()[0].retry_count == 1
    with pytest.raises(cells.errors.MigrationInProgress):
        manager.open(case, 5.0)
