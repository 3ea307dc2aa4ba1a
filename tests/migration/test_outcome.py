"""What became of a migration, and whether the agent's next owner goes on with it."""

from __future__ import annotations

import pytest
from support.agent_log import after, claimed, handed_off, returned
from support.written import Written

from mielin_cells.log.fold import Fold
from mielin_cells.migration.case import SOURCE_LOST
from mielin_cells.migration.journal import Cancelled
from mielin_cells.migration.outcome import Verdict, journal_outcome, verdict


def owned_by(node: str, *, handed: str = "", back: bool = False) -> Fold:
    """The agent's log after `node` has claimed it; before that, attempt `handed` was handed over, and given back or not."""
    fold = after()
    if handed:
        fold.apply(fold.seq + 1, handed_off(fold, migration=handed))
        if back:
            fold.apply(fold.seq + 1, returned(fold, migration=handed))
    fold.apply(fold.seq + 1, claimed(fold, node, 7))
    return fold


def judged(written: Written, node: str, *, is_newest: bool = True) -> Verdict | None:
    return verdict(written.journal, written.folded(), owned_by(node), node, is_newest=is_newest)


def test_an_attempt_that_was_under_way_is_continued() -> None:
    assert judged(Written().tried(), "n3") is None
    assert judged(Written().tried(), "n1") is None


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
def test_migrations_that_must_not_continue_are_rolled_back(
    written: Written, node: str, is_newest: bool, code: str
) -> None:
    found = judged(written, node, is_newest=is_newest)
    assert found is not None
    assert (found.outcome, found.code) == ("rolled_back", code)


def test_an_open_handover_or_an_older_fold_decides_nothing() -> None:
    journal = Written().tried().journal
    fold = after()
    fold.apply(fold.seq + 1, handed_off(fold, migration="m-1.1"))
    assert journal_outcome(journal, fold) == (None, "n2")
    assert journal_outcome(Written().tried(epoch=9).journal, after()) == (None, "n2")
    assert journal_outcome(journal, owned_by("n3", handed="m-1.1")) == ("rolled_back", "n2")
    assert journal_outcome(journal, owned_by("n3", handed="m-1.1", back=True)) == ("rolled_back", "n2")
