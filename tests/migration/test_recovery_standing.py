"""What a journal tells of an open migration: as much as the process knew that wrote it, at each of its records."""

from __future__ import annotations

import itertools
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from support.agent_log import after, claimed, handed_off, returned

from mielin_cells.errors import UnknownRecord
from mielin_cells.log.fold import Fold
from mielin_cells.migration.failure import MigrationError, MigrationErrorType
from mielin_cells.migration.journal import (
    AnyRecord,
    Attempted,
    Cancelled,
    Decided,
    Ended,
    Failed,
    Journal,
    Planned,
    attempt_id,
    is_same_migration,
)
from mielin_cells.migration.manager import MigrationRecoveryManager
from mielin_cells.migration.recovery import RecoveryConfig, RecoveryStrategy
from mielin_cells.migration.standing import SOURCE_LOST, journal_outcome, standing, verdict

AGENT, MIGRATION = "a", "m-1"
RETRY_HERE, RETRY_ELSEWHERE = (
    RecoveryStrategy.RETRY_ON_SAME_TARGET,
    RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET,
)


class Written:
    """A journal as a process writes it, whose clock shows `at`."""

    def __init__(self, target: str = "n2") -> None:
        self.journal = Journal(MIGRATION)
        self.at = 100.0
        self.add(Planned, source="n1", target=target, epoch=1, config={"max_retries": 3.0})

    def add(self, cls: type[Any], node: str = "n1", /, **fields: Any) -> Written:
        journal = self.journal
        record: AnyRecord = cls(
            migration=MIGRATION,
            agent=AGENT,
            node=node,
            incarnation=1,
            nonce=b"n",
            prev=journal.seq,
            at=self.at,
            **fields,
        )
        journal.apply(journal.seq + 1, record)
        return self

    def tried(self, target: str = "n2", epoch: int = 1, node: str = "n1") -> Written:
        number = len(self.journal.attempts) + 1
        return self.add(
            Attempted, node, number=number, id=attempt_id(MIGRATION, number), target=target, strategy="", epoch=epoch
        )

    def failed(self, kind: str = "Timeout", code: str = "Timeout", target: str = "n2", node: str = "n1") -> Written:
        number = len(self.journal.attempts)
        return self.add(Failed, node, number=number, target=target, kind=kind, code=code, message="slow")

    def decided(self, strategy: RecoveryStrategy = RETRY_HERE, delay_s: float = 10.0, node: str = "n1") -> Written:
        number = len(self.journal.attempts)
        return self.add(Decided, node, number=number, strategy=strategy.value, rule="so", delay_s=delay_s)


# ---- as the manager has it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_at_each_record_a_journal_tells_what_the_manager_knows(seed: int) -> None:
    """A real manager is driven through failures; whoever reads the journal decides the same, of the same count."""
    rng = Random(seed)
    config = RecoveryConfig(max_retries=rng.randint(0, 5))
    manager, written, now = MigrationRecoveryManager(config), Written(), 100.0
    kinds = [kind for kind in MigrationErrorType if kind.is_retryable] * 3 + list(MigrationErrorType)
    decided = None
    for number in itertools.count(1):
        target = rng.choice(
            ["n2" if number == 1 else "", *sorted({"n2", "n3"} - standing(written.journal).avoided.keys())]
        )
        if target:
            written.tried(target)
        kind = rng.choice(kinds)
        now += rng.random() * 5
        written.at = now
        written.failed(kind.value, "X", target)
        error = MigrationError.new(kind, "slow", AGENT, target or None, now=now)
        if number == 1:
            manager.record_failure(error, now)
        else:
            manager.mark_recovery_failure(AGENT, error, now)
        rule = manager.decide(AGENT, now)

        heir = MigrationRecoveryManager(config)
        stands = standing(written.journal)
        assert stands.cause is not None
        known = manager.pending(AGENT)
        assert known is not None
        assert stands.retries == known.retry_count
        again = replace(stands.error(stands.cause, now, now), retry_count=stands.retries)
        heir.restore(again, now, elapsed_secs=stands.elapsed(now))
        assert again == known
        assert heir.decide(AGENT, now) == rule
        assert heir.deadline(AGENT) == pytest.approx(manager.deadline(AGENT))

        decided = rule.strategy
        written.decided(decided)
        if not decided.is_retry:
            break
        now = manager.next_retry_time(AGENT) or now
        manager.begin(AGENT, now)
    assert standing(written.journal).decided is decided


def test_a_source_that_is_lost_before_a_retry_takes_nothing_from_it() -> None:
    written = Written().tried().failed().decided(RETRY_ELSEWHERE)
    before = standing(written.journal)
    written.at += 4
    written.failed("NetworkTransient", SOURCE_LOST, "", "n3")
    after_loss = standing(written.journal)
    assert (before.retries, after_loss.retries) == (0, 0)
    assert after_loss.cause == before.cause
    assert after_loss.wait(written.at) == 6.0
    assert (after_loss.is_undecided, after_loss.losses, sorted(after_loss.avoided)) == (True, 1, ["n2"])
    written.decided(RETRY_ELSEWHERE, 6.0, "n3").tried("n4", 2, "n3")
    assert standing(written.journal).retries == 1


def test_a_retry_that_nobody_could_be_had_for_is_used_up() -> None:
    written = Written().tried().failed().decided(RETRY_ELSEWHERE).failed("TargetUnreachable", "TargetUnreachable", "")
    assert standing(written.journal).retries == 1


def test_an_attempt_whose_source_was_lost_counts_as_one_that_failed() -> None:
    written = Written().tried().failed().decided().tried().failed("NetworkTransient", SOURCE_LOST)
    stands = standing(written.journal)
    assert (stands.retries, stands.losses, stands.attempts, stands.tried) == (1, 1, 2, {"n2": 2})
    assert stands.cause is not None
    assert stands.cause.code == SOURCE_LOST


@pytest.mark.parametrize(("now", "elapsed"), [(100.0, 30.0), (130.0, 30.0), (170.0, 70.0), (-1e9, 30.0)])
def test_time_is_never_counted_shorter_than_the_journal_shows(now: float, elapsed: float) -> None:
    written = Written().tried().failed()
    written.at += 30
    written.decided()
    assert standing(written.journal).elapsed(now) == elapsed


@pytest.mark.parametrize(("now", "wait"), [(100.0, 10.0), (104.0, 6.0), (111.0, 0.0), (-1e9, 10.0)])
def test_a_wait_is_at_most_as_it_was_decided(now: float, wait: float) -> None:
    assert standing(Written().tried().failed().decided().journal).wait(now) == wait


@pytest.mark.parametrize("word", ["kind", "strategy"])
def test_a_word_of_a_newer_version_is_named_and_nothing_is_guessed(word: str) -> None:
    written = Written().tried()
    if word == "kind":
        written.failed("Sabotage")
    else:
        written.failed().add(Decided, number=1, strategy="Sabotage", rule="so")
    with pytest.raises(UnknownRecord, match="Sabotage"):
        standing(written.journal)


# ---- what is done about it -----------------------------------------------------------------------------------


def owned_by(node: str, *, handed: str = "", back: bool = False) -> Fold:
    """The agent's log after `node` has claimed it; before that, attempt `handed` was handed over, and given back or not."""
    fold = after()
    if handed:
        fold.apply(fold.seq + 1, handed_off(fold, migration=handed))
        if back:
            fold.apply(fold.seq + 1, returned(fold, migration=handed))
    fold.apply(fold.seq + 1, claimed(fold, node, 7))
    return fold


def test_an_attempt_that_was_under_way_is_gone_on_with() -> None:
    journal = Written().tried().journal
    assert verdict(journal, standing(journal), owned_by("n3"), "n3") is None
    assert verdict(journal, standing(journal), owned_by("n1"), "n1") is None


@pytest.mark.parametrize(
    ("written", "node", "is_newest", "code"),
    [
        (Written(), "n3", True, SOURCE_LOST),
        (Written().tried(), "n2", True, SOURCE_LOST),
        (Written("").tried("n3"), "n3", True, SOURCE_LOST),
        (Written().tried(), "n3", False, SOURCE_LOST),
        (Written().tried().add(Cancelled), "n3", True, "Cancelled"),
        (Written().tried().failed().decided().add(Cancelled), "n3", True, "Cancelled"),
    ],
)
def test_what_must_not_go_on_is_rolled_back(written: Written, node: str, is_newest: bool, code: str) -> None:
    journal = written.journal
    found = verdict(journal, standing(journal), owned_by(node), node, is_newest=is_newest)
    assert found is not None
    assert (found.outcome, found.code) == ("rolled_back", code)


def test_a_handover_that_is_open_or_an_older_fold_tells_nothing() -> None:
    journal = Written().tried().journal
    fold = after()
    fold.apply(fold.seq + 1, handed_off(fold, migration="m-1.1"))
    assert journal_outcome(journal, fold) == (None, "n2")
    assert journal_outcome(Written().tried(epoch=9).journal, after()) == (None, "n2")
    assert journal_outcome(journal, owned_by("n3", handed="m-1.1")) == ("rolled_back", "n2")
    assert journal_outcome(journal, owned_by("n3", handed="m-1.1", back=True)) == ("rolled_back", "n2")


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
