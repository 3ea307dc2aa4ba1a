"""The fold refuses every record that the protocol does not allow at its place, and then is as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from support.agent_log import (
    NODE,
    TARGET,
    THIRD,
    accepted,
    after,
    asked,
    claimed,
    cleared,
    commit,
    committed,
    content,
    created,
    failed,
    following,
    handed_off,
    head,
    out,
    paused,
    resumed,
    returned,
    snapshot,
    stepped,
    suspended,
    taken,
    terminated,
)

from mielin_cells.errors import (
    DigestMismatch,
    EpochOutOfOrder,
    LogGap,
    NotTheOwner,
    RecordInvalid,
    StateUnloadable,
    WrongAgent,
)
from mielin_cells.log.commit import DeadLetter
from mielin_cells.log.delta import StateDelta, TableDelta
from mielin_cells.log.fold import OUTCOMES_MAX, Fold
from mielin_cells.log.lifecycle import AgentState, Phase
from mielin_cells.log.records import PartRef, Spilled, Stepped

Make = Callable[..., Any]


def turn(fold: Fold, **over: Any) -> object:
    """A commit that holds a turn."""
    return committed(fold, commit(taken(following(fold)), cursor=fold.ledger.cursor), **over)


def spilled(fold: Fold, **over: Any) -> Spilled:
    return Spilled(**head(fold, **over), part="0a", parts=[PartRef(1, 1, bytes(32))])


BY_OWNER: list[Make] = [turn, asked, stepped, snapshot, suspended, paused, failed, cleared, terminated, handed_off]
BY_TARGET: list[Make] = [accepted, returned]
EVERY: list[Make] = [created, *BY_OWNER, resumed, *BY_TARGET, claimed]


def refuse(fold: Fold, record: Any, error: type[Exception] = RecordInvalid, seq: int | None = None) -> None:
    """The record is refused by name, and the fold is as before."""
    before = content(fold)
    with pytest.raises(error):
        fold.apply(fold.seq + 1 if seq is None else seq, record)
    assert content(fold) == before


def take(fold: Fold, *makers: Make) -> Fold:
    for make in makers:
        fold.apply(fold.seq + 1, make(fold))
    return fold


def place(make: Make) -> Fold:
    """A fold after which `make` gives a legal record."""
    if make is created:
        return Fold("museum/1")
    return after(handed_off) if make in BY_TARGET else after(paused) if make is resumed else after()


by_kind = pytest.mark.parametrize("make", EVERY, ids=lambda m: m.__name__)

# ---- any record ----


@by_kind
def test_a_legal_record_is_taken(make: Make) -> None:
    fold = take(place(make), make)
    assert fold.seq == place(make).seq + 1


@by_kind
def test_a_record_of_another_agent_is_refused(make: Make) -> None:
    fold = place(make)
    refuse(fold, make(fold, agent="museum/2"), WrongAgent)


@by_kind
def test_a_record_over_a_gap_is_refused(make: Make) -> None:
    fold = place(make)
    for prev in (fold.seq + 1, fold.seq - 1, 2**63):
        refuse(fold, make(fold, prev=prev), LogGap, fold.seq + 2)


@by_kind
def test_a_record_that_is_read_twice_is_refused(make: Make) -> None:
    fold = place(make)
    record = make(fold)
    fold.apply(fold.seq + 1, record)
    refuse(fold, record, LogGap)
    refuse(fold, record, LogGap, fold.seq)


def test_sequences_may_have_holes_where_prev_has_none() -> None:
    fold = after()
    fold.apply(17, committed(fold))
    fold.apply(40, committed(fold))
    assert fold.seq == 40


@by_kind
@pytest.mark.parametrize("off", [-1, 1, 2, 2**63])
def test_a_record_of_another_epoch_is_refused(make: Make, off: int) -> None:
    fold = place(make)
    record = make(fold)
    refuse(fold, make(fold, epoch=record.epoch + off), EpochOutOfOrder)


@pytest.mark.parametrize("make", [*BY_OWNER, resumed, *BY_TARGET], ids=lambda m: m.__name__)
def test_a_record_by_another_node_is_refused(make: Make) -> None:
    fold = place(make)
    refuse(fold, make(fold, node=THIRD), NotTheOwner)


@pytest.mark.parametrize("make", [*BY_OWNER, resumed], ids=lambda m: m.__name__)
def test_a_record_by_an_incarnation_without_a_claim_is_refused(make: Make) -> None:
    """Rule 5: a node that was restarted never goes on in its old epoch."""
    fold = place(make)
    for incarnation in (fold.incarnation + 1, fold.incarnation - 1, 0):
        refuse(fold, make(fold, incarnation=incarnation), NotTheOwner)


@by_kind
def test_nothing_follows_terminated(make: Make) -> None:
    refuse(after(terminated), make(after(terminated)))


@by_kind
def test_a_log_begins_with_created_and_has_it_once(make: Make) -> None:
    if make is created:
        refuse(after(), created(after(), epoch=2))
        refuse(after(handed_off), created(after(handed_off), epoch=3))
    else:
        refuse(Fold("museum/1"), make(Fold("museum/1")))


@pytest.mark.parametrize("fold", [after(), after(handed_off), Fold("museum/1")], ids=["run", "probation", "none"])
def test_a_stand_in_for_a_large_record_is_never_folded(fold: Fold) -> None:
    refuse(fold, spilled(fold))


def test_a_commit_whose_state_contradicts_itself_changes_nothing() -> None:
    fold = after()
    bad = commit(taken(), state=StateDelta(plain={"a": b""}, removed=[], tables={"a": TableDelta({}, [])}), cursor=9)
    refuse(fold, committed(fold, bad), StateUnloadable)


# ---- probation (rules 3, 6, 7, 8) ----


@pytest.mark.parametrize("make", [*BY_OWNER, resumed], ids=lambda m: m.__name__)
@pytest.mark.parametrize("node", [NODE, TARGET])
def test_in_probation_records_of_an_owner_are_refused(make: Make, node: str) -> None:
    fold = after(handed_off)
    for epoch in (fold.epoch, fold.epoch - 1):
        refuse(fold, make(fold, node=node, epoch=epoch))


@pytest.mark.parametrize("make", BY_TARGET)
def test_acceptance_and_return_are_refused_outside_probation(make: Make) -> None:
    for fold in (after(), after(suspended), after(handed_off, accepted), after(handed_off, returned)):
        refuse(fold, make(fold))
        refuse(fold, make(fold, node=TARGET))


@pytest.mark.parametrize("make", BY_TARGET)
def test_an_end_of_another_migration_is_refused(make: Make) -> None:
    fold = after(handed_off)
    refuse(fold, make(fold, migration="m-2"))


@pytest.mark.parametrize("make", BY_TARGET)
def test_the_source_cannot_end_probation_but_by_a_claim(make: Make) -> None:
    fold = after(handed_off)
    refuse(fold, make(fold, node=NODE, incarnation=10), NotTheOwner)


def test_a_return_goes_to_the_source_alone() -> None:
    fold = after(handed_off)
    refuse(fold, returned(fold, to=THIRD))
    refuse(fold, returned(fold, to=TARGET))


def test_epochs_grow_by_one_with_each_ownership_record() -> None:
    fold = after()
    story = (handed_off, accepted, claimed, handed_off, returned, claimed, handed_off, claimed)
    assert [fold.epoch] + [take(fold, make).epoch for make in story] == [1, 2, 2, 3, 4, 5, 6, 7, 8]


def test_the_target_owns_with_the_incarnation_that_accepts() -> None:
    fold = after(handed_off, lambda f: accepted(f, incarnation=21))
    assert (fold.owner, fold.incarnation, fold.phase) == (TARGET, 21, Phase.RUN)
    refuse(fold, turn(fold, incarnation=20), NotTheOwner)


def test_after_a_return_the_same_incarnation_of_the_source_goes_on() -> None:
    fold = after(handed_off, returned)
    assert (fold.owner, fold.incarnation, fold.phase) == (NODE, 10, Phase.RUN)
    take(fold, turn)


def test_only_one_of_two_claims_for_a_place_is_taken() -> None:
    fold = after(handed_off)
    ours, theirs = claimed(fold, NODE, 11), claimed(fold, THIRD, 30)
    fold.apply(fold.seq + 1, ours)
    refuse(fold, theirs, LogGap)
    assert fold.owner == NODE


def test_migrating_is_what_probation_looks_like() -> None:
    fold = after(turn)
    seen = [fold.status]
    for make in (handed_off, accepted, handed_off, returned, handed_off, claimed, terminated):
        seen.append(take(fold, make).status)
        assert fold.may_run == (fold.phase is Phase.RUN)
    moving, running = AgentState.MIGRATING, AgentState.RUNNING
    assert seen == [running, moving, running, moving, running, moving, running, AgentState.TERMINATED]


# ---- the outcome of a migration (rule 7) ----


@pytest.mark.parametrize(
    ("makers", "outcome"),
    [
        ([], None),
        ([handed_off], None),
        ([handed_off, accepted], "completed"),
        ([handed_off, returned], "rolled_back"),
        ([handed_off, claimed], "rolled_back"),
        ([handed_off, lambda f: claimed(f, TARGET, 21)], "rolled_back"),
        ([handed_off, accepted, claimed], "completed"),
        (
            [handed_off, accepted, lambda f: handed_off(f, "m-2", NODE), lambda f: returned(f, "m-2")],
            "completed",
        ),
        ([handed_off, claimed, lambda f: handed_off(f, "m-2"), lambda f: accepted(f, "m-2")], "rolled_back"),
        ([claimed], None),
    ],
)
def test_the_outcome_is_what_follows_the_handover(makers: list[Make], outcome: str | None) -> None:
    """Without a handover the fold tells no outcome: then it is rolled back as soon as the epoch has passed."""
    fold = after(*makers)
    assert fold.outcomes.get("m-1") == outcome
    assert (fold.migration == "m-1") == (fold.phase is Phase.PROBATION)


def test_the_newest_outcomes_are_kept() -> None:
    fold = after()
    for n in range(OUTCOMES_MAX + 3):
        fold.apply(fold.seq + 1, handed_off(fold, f"m-{n}"))
        fold.apply(fold.seq + 1, claimed(fold))
    assert list(fold.outcomes) == [f"m-{n}" for n in range(3, OUTCOMES_MAX + 3)]


# ---- lifecycle flags (rule 20) ----

STOPS = pytest.mark.parametrize("stop", [suspended, paused, failed])


@STOPS
def test_a_stopped_agent_runs_no_turn(stop: Make) -> None:
    fold = after(turn, stop)
    assert not fold.may_run
    refuse(fold, turn(fold))
    refuse(fold, asked(fold))
    refuse(fold, stepped(fold))
    refuse(fold, handed_off(fold, seal=commit(taken())))


@STOPS
def test_a_stopped_agent_releases_moves_and_is_claimed_and_stays_stopped(stop: Make) -> None:
    fold = after(lambda f: committed(f, commit(taken(), outs=(out(1),))), stop)
    flag = fold.lifecycle.state
    fold.apply(fold.seq + 1, committed(fold, commit(released={"guide": 1})))
    assert fold.ledger.unreleased() == []
    for make in (handed_off, accepted, handed_off, returned, claimed):
        take(fold, make)
        assert fold.lifecycle.state is flag
        assert not fold.may_run
    take(fold, snapshot, resumed, turn)
    assert fold.may_run


def test_the_fold_refuses_what_the_lifecycle_forbids() -> None:
    forbidden: list[tuple[Make, Make]] = [
        (turn, resumed), (paused, paused), (suspended, suspended), (paused, failed), (failed, paused),
    ]  # fmt: skip
    for before, make in forbidden:
        fold = after(before)
        refuse(fold, make(fold))


def test_a_fatal_error_is_not_resumed() -> None:
    fold = after(lambda f: failed(f, fatal=True))
    refuse(fold, resumed(fold))
    refuse(fold, suspended(fold))
    assert take(fold, terminated).phase is Phase.TERMINATED


# ---- open turns and claims (rules 5, 12, 13) ----


def test_an_open_turn_ends_with_the_commit_that_takes_its_input_and_no_other() -> None:
    fold = after(turn, asked)
    opened = fold.turn
    assert opened is not None
    release = commit(released={"guide": 1})
    take(
        fold, lambda f: committed(f, release), claimed, lambda f: committed(f, commit(dead=[])),
        lambda f: handed_off(f, seal=commit()), accepted, suspended, resumed, lambda f: committed(f, commit(taken(1, "x"))),
    )  # fmt: skip
    assert fold.turn == opened
    assert take(fold, turn).turn is None


def test_each_record_of_a_turn_replaces_what_the_log_knows_of_it_from_the_place_that_it_names() -> None:
    fold = after(asked, lambda f: asked(f, 2))
    assert fold.turn is not None
    assert [made.label for made in fold.turn.calls] == ["guide.hello"]
    assert sorted(fold.ledger.pending["guide"]) == [1, 2]
    take(fold, lambda f: stepped(f, at=1), lambda f: stepped(f, "other", 2), lambda f: stepped(f, "third", 2))
    assert [made.label for made in fold.turn.calls] == ["guide.hello", "step 'model'", "step 'third'"]


def test_a_turn_goes_on_only_after_outcomes_that_are_there() -> None:
    fold = after()
    refuse(fold, stepped(fold, at=1))
    take(fold, stepped)
    refuse(fold, stepped(fold, at=2))
    refuse(fold, stepped(fold, at=-1))
    other = msgspec.structs.replace(stepped(fold, at=1), input=2)
    refuse(fold, other)


def test_claims_are_counted_from_the_mark_of_a_turn_until_it_has_run() -> None:
    def mark(fold: Fold) -> Stepped:
        return Stepped(**head(fold), sender="visitor", input=1, at=0, calls=[])

    fold = after(claimed, claimed)
    assert fold.claims == 0  # nobody had come to a message
    take(fold, mark, claimed, lambda f: committed(f, commit(released={})), claimed)
    assert fold.claims == 2
    assert take(fold, lambda f: claimed(f, waits=False)).claims == 2
    assert take(fold, stepped).claims == 0  # it got further than before
    assert take(fold, claimed).claims == 1
    assert take(fold, turn).claims == 0


def test_a_state_that_is_not_what_its_owner_had_is_not_run() -> None:
    same = after(turn)
    take(same, lambda f: committed(f, commit(taken(2), digest=f.state.digest())))
    same.verify()
    other = after(turn)
    take(other, lambda f: committed(f, commit(taken(2), digest=b"another" * 4)))
    with pytest.raises(DigestMismatch, match="as read up to 3") as raised:
        other.verify()
    assert raised.value.facts == {"subject": other.agent, "seq": 3}


@pytest.mark.parametrize("makers", [[turn], [turn, lambda f: handed_off(f, seal=commit(taken(2)))]])
def test_a_seal_is_a_commit(makers: list[Make]) -> None:
    fold = after(*makers)
    mark = fold.ledger.peers["visitor"].mark
    assert mark == len(makers)


@pytest.mark.parametrize("stop", [None, suspended, paused, failed])
def test_cleared_removes_the_letters_that_it_names_and_nothing_else(stop: Make | None) -> None:
    letters = [DeadLetter(seq, "visitor", n, "hello", "OSError", 5, [], b"") for seq, n in ((4, 1), (4, 2), (9, 1))]
    fold = after(lambda f: committed(f, commit(taken(), dead=letters)), *([stop] if stop else []))
    phase, state = fold.phase, fold.lifecycle.state

    take(fold, lambda f: cleared(f, letters[1].key, (4, "another", 1)))

    assert fold.ledger.dead == [letters[0], letters[2]]
    assert (fold.phase, fold.lifecycle.state) == (phase, state)
