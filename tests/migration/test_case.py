"""A journal folded: at each of its records another process knows as much as the one that wrote it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest
from support.written import AGENT, MIGRATION, Written

from mielin_cells.errors import UnknownRecord
from mielin_cells.migration.case import SOURCE_LOST, Case
from mielin_cells.migration.failure import MigrationError, MigrationErrorType
from mielin_cells.migration.journal import Cancelled, Decided, Ended, is_same_migration
from mielin_cells.migration.manager import MigrationRecoveryManager
from mielin_cells.migration.recovery import RecoveryAttempt, RecoveryConfig, RecoveryStrategy

RETRY_ELSEWHERE = RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET


@pytest.mark.parametrize("seed", range(40))
def test_at_each_record_the_folded_journal_is_what_the_manager_has(seed: int) -> None:
    """A manager is driven through failures, and what it does is written; the fold of that is its own case."""
    rng = Random(seed)
    config = RecoveryConfig(max_retries=rng.randint(0, 5))
    manager, written, now = (
        MigrationRecoveryManager(),
        Written(config={"max_retries": float(config.max_retries)}),
        100.0,
    )
    case = Case(AGENT, MIGRATION, "n3", config)
    manager.open(case, now)
    target: str | None = "n2"
    for _ in itertools.count():
        ticket = manager.begin(AGENT, now, target)
        assert ticket.strategy is None or ticket.strategy.is_retry
        target = ticket.target_node
        if target is None and (nodes := sorted({"n2", "n4"} - ticket.excluded)) and rng.random() < 0.8:
            target = nodes[0]
            assert manager.assign(ticket.token, target, now)
        written.at = now
        if target:
            written.tried(target, strategy=ticket.strategy.value if ticket.strategy is not None else "")
            _same(written.folded(), case)
        kinds = [kind for kind in MigrationErrorType if kind.is_retryable] * 3 + list(MigrationErrorType)
        kind, now = rng.choice(kinds), now + rng.random() * 5
        written.at = now
        written.failed(kind.value, "X", target or "")
        manager.record_failure(MigrationError.new(kind, "slow", AGENT, target, now=now), now, rng.random, code="X")
        rule, due = case.decided, case.due
        assert rule is not None
        written.decided(rule.strategy, due - now if due is not None else 0.0, rule=rule.why)
        _same(written.folded(), case)
        if not rule.strategy.is_retry:
            break
        now, target = manager.next_retry_time(AGENT) or now, None


def rounded(errors: Iterable[MigrationError]) -> list[MigrationError]:
    """Times of two clocks differ by a rounding."""
    return [replace(error, timestamp=round(error.timestamp, 6)) for error in errors]


def made(case: Case) -> list[RecoveryAttempt]:
    """The retries, without their times: no record tells when one began for which no node could be had."""
    return [replace(attempt, timestamp=0.0) for attempt in case.history]


def _same(folded: Case, case: Case) -> None:
    assert rounded([folded.error] if folded.error else []) == rounded([case.error] if case.error else [])
    assert (folded.attempts, folded.tries, folded.code) == (case.attempts, case.tries, case.code)
    assert rounded(folded.failures) == rounded(case.failures)
    assert made(folded) == made(case)
    assert (folded.decisions, folded.decided) == (case.decisions, case.decided)
    assert (folded.is_running, folded.is_undecided) == (case.is_running, case.is_undecided)
    assert folded.due == (pytest.approx(case.due) if case.due is not None else None)
    if case.began is not None:
        assert folded.began == pytest.approx(case.began)
        assert folded.deadline == pytest.approx(case.deadline)
    assert folded.excluded.keys() == case.excluded.keys()


def test_a_source_that_is_lost_before_a_retry_takes_nothing_from_it() -> None:
    written = Written().tried().failed(kind="TargetUnreachable").decided(RETRY_ELSEWHERE)
    before = written.folded()
    written.at += 4
    written.failed("NetworkTransient", SOURCE_LOST, "", "n3")
    after_loss = written.folded()
    assert before.error is not None
    assert after_loss.error is not None
    assert (before.error.retry_count, after_loss.error.retry_count) == (0, 0)
    assert (after_loss.code, after_loss.error.error_type) == (before.code, before.error.error_type)
    assert after_loss.due == written.at + 6
    assert (after_loss.is_undecided, after_loss.losses, sorted(after_loss.excluded)) == (True, 1, ["n2"])
    written.decided(RETRY_ELSEWHERE, 6.0, "n3").tried("n4", 2, "n3", strategy=RETRY_ELSEWHERE.value)
    error = written.folded().error
    assert error is not None
    assert error.retry_count == 1


def retries(written: Written) -> int:
    error = written.folded().error
    assert error is not None
    return error.retry_count


def test_a_retry_that_nobody_could_be_had_for_is_used_up() -> None:
    written = Written().tried().failed().decided(RETRY_ELSEWHERE).failed("TargetUnreachable", "TargetUnreachable", "")
    assert retries(written) == 1


def test_an_attempt_whose_source_was_lost_counts_as_one_that_failed() -> None:
    written = Written().tried().failed().decided()
    written.tried(strategy="RetryOnSameTarget").failed("NetworkTransient", SOURCE_LOST)
    case = written.folded()
    assert (retries(written), case.losses, case.attempts, case.tries) == (1, 1, 2, {"n2": 2})
    assert case.code == SOURCE_LOST


@pytest.mark.parametrize(("wall", "elapsed"), [(100.0, 30.0), (130.0, 30.0), (170.0, 70.0), (-1e9, 30.0)])
def test_time_is_never_counted_shorter_than_the_journal_shows(wall: float, elapsed: float) -> None:
    written = Written().tried().failed()
    written.at += 30
    written.decided()
    assert written.folded(now=5.0, wall=wall).began == 5.0 - elapsed


@pytest.mark.parametrize(("wall", "wait"), [(100.0, 10.0), (104.0, 6.0), (111.0, -1.0), (-1e9, 10.0)])
def test_a_wait_is_at_most_as_it_was_decided(wall: float, wait: float) -> None:
    assert Written().tried().failed().decided().folded(now=5.0, wall=wall).due == 5.0 + wait


@pytest.mark.parametrize("word", ["kind", "strategy"])
def test_a_word_of_a_newer_version_is_named_and_nothing_is_guessed(word: str) -> None:
    written = Written().tried()
    if word == "kind":
        written.failed("Sabotage")
    else:
        written.failed().add(Decided, number=1, strategy="Sabotage", rule="so")
    with pytest.raises(UnknownRecord, match="Sabotage"):
        written.folded()


def test_a_node_that_failed_in_a_passing_way_is_excluded_anew_by_a_new_owner() -> None:
    written = Written().tried().failed("TargetUnreachable").decided(RETRY_ELSEWHERE)
    assert written.folded(now=5.0, wall=1e6).excluded == {"n2": 5.0 + 40.0}
    written = Written().tried().failed("IncompatibleTarget").decided(RETRY_ELSEWHERE)
    assert written.folded(now=5.0, wall=1e6).excluded == {"n2": math.inf}


def test_nothing_follows_a_cancel_but_its_end() -> None:
    written = Written().tried().add(Cancelled).failed("NetworkPermanent", "Cancelled")
    written.add(Ended, outcome="rolled_back", target="n2", code="Cancelled")
    assert written.journal.end is not None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("m-1.1", "m-1.2", True), ("m-1.1", "m-2.1", False), ("m-1", "m-2", False), ("m-1.1", "m-1", False)],
)
def test_attempts_of_one_migration_know_each_other(one: str, other: str, same: bool) -> None:
    assert is_same_migration(one, other) is same
