"""The lifecycle: every pair of states, and each hole that the original mielin-cells left, by name."""

from __future__ import annotations

from itertools import product
from typing import Any

import msgspec
import pytest
from support.agent_log import (
    accepted,
    after,
    claimed,
    committed,
    failed,
    handed_off,
    paused,
    resumed,
    returned,
    suspended,
)

from mielin_cells.errors import InvalidTransition, RecordInvalid
from mielin_cells.log.fold import Fold
from mielin_cells.log.lifecycle import HISTORY_MAX, AgentError, AgentState, Lifecycle

CREATED, RUNNING, PAUSED, SUSPENDED, MIGRATING, ERROR, TERMINATED = AgentState

# As the original's table is written down, state by state; not taken from the code.
LEGAL = {
    (CREATED, RUNNING), (CREATED, TERMINATED),
    (RUNNING, PAUSED), (RUNNING, SUSPENDED), (RUNNING, MIGRATING), (RUNNING, ERROR), (RUNNING, TERMINATED),
    (PAUSED, RUNNING), (PAUSED, SUSPENDED), (PAUSED, MIGRATING), (PAUSED, TERMINATED),
    (SUSPENDED, RUNNING), (SUSPENDED, PAUSED), (SUSPENDED, MIGRATING), (SUSPENDED, ERROR), (SUSPENDED, TERMINATED),
    (MIGRATING, RUNNING), (MIGRATING, ERROR), (MIGRATING, TERMINATED),
    (ERROR, RUNNING), (ERROR, SUSPENDED), (ERROR, TERMINATED),
}  # fmt: skip
PAIRS = list(product(AgentState, repeat=2))


def in_state(state: AgentState, fatal: bool = False) -> Lifecycle:
    error = AgentError(message="boom", fatal=fatal) if state is ERROR else None
    return Lifecycle(state=state, error=error, came_from=RUNNING if state is MIGRATING else None)


def test_there_are_22_edges_of_49_pairs() -> None:
    assert len(LEGAL) == 22
    assert len(PAIRS) == 49


@pytest.mark.parametrize(("have", "need"), PAIRS, ids=lambda s: s.value)
def test_a_pair_is_an_edge_or_refused(have: AgentState, need: AgentState) -> None:
    here = in_state(have)
    if (have, need) in LEGAL:
        there = here.to(need)
        assert there.state is need
        assert there.history == (have,)
    else:
        with pytest.raises(InvalidTransition) as caught:
            here.to(need)
        assert (caught.value.have, caught.value.need) == (have.value, need.value)


@pytest.mark.parametrize("origin", [RUNNING, PAUSED, SUSPENDED])
@pytest.mark.parametrize("back", [RUNNING, PAUSED, SUSPENDED])
def test_migrating_leads_back_only_to_where_it_came_from(origin: AgentState, back: AgentState) -> None:
    """Hole: a paused or suspended agent that migrated could only come back running."""
    moving = in_state(origin).to(MIGRATING)
    if back is origin:
        assert moving.to(back).state is origin
    else:
        with pytest.raises(InvalidTransition):
            moving.to(back)


@pytest.mark.parametrize("need", [s for s in AgentState if s is not TERMINATED])
def test_a_fatal_error_ends_only_in_termination(need: AgentState) -> None:
    """Hole: `resume()` revived a fatal error.  By way of Suspended it would be revived all the same."""
    with pytest.raises(InvalidTransition):
        in_state(ERROR, fatal=True).to(need)


def test_a_fatal_error_can_be_terminated() -> None:
    assert in_state(ERROR, fatal=True).to(TERMINATED).state is TERMINATED


@pytest.mark.parametrize(
    "before",
    [[], [committed], [paused], [suspended], [failed]],
    ids=["created", "running", "paused", "suspended", "error"],
)
def test_an_end_of_a_migration_needs_a_migration(before: list[Any]) -> None:
    """Hole: `complete_migration()` worked from Paused or Created."""
    fold = after(*before)
    with pytest.raises(RecordInvalid):
        fold.apply(fold.seq + 1, accepted(fold))
    with pytest.raises(RecordInvalid):
        fold.apply(fold.seq + 1, returned(fold))


def test_nothing_sets_a_state_past_the_table() -> None:
    """Hole: `set_state` bypassed everything."""
    with pytest.raises(AttributeError):
        in_state(RUNNING).state = TERMINATED  # type: ignore[misc]


@pytest.mark.parametrize("need", [RUNNING, SUSPENDED, TERMINATED])
def test_no_error_is_left_over_outside_error(need: AgentState) -> None:
    """Hole: `set_state` kept a stale error."""
    assert in_state(ERROR).to(need).error is None


def test_an_error_is_kept_while_in_error() -> None:
    error = AgentError(message="boom", code="OSError")
    assert in_state(RUNNING).to(ERROR, error).error == error


def test_attempts_are_counted_until_one_succeeds() -> None:
    """Hole: the counter was erased by the transition that it counted; and Error to Error was refused."""
    attempts = []
    for makers in ([failed], [failed] * 2, [failed] * 3, [failed, failed, resumed, failed]):
        error = after(*makers).lifecycle.error
        assert error is not None
        attempts.append(error.attempts)
    assert attempts == [0, 1, 2, 0]
    assert after(failed, failed, resumed).lifecycle.error is None


def test_a_failed_recovery_does_not_make_a_fatal_error_ordinary() -> None:
    fold = after(lambda f: failed(f, fatal=True))
    fold.apply(fold.seq + 1, failed(fold))
    with pytest.raises(InvalidTransition):
        fold.lifecycle.to(RUNNING)


def test_created_is_in_the_history_once() -> None:
    """Hole: the history was seeded with Created and then took it again."""
    life = Lifecycle()
    assert life.history == ()
    life = life.to(RUNNING).to(PAUSED)
    assert life.history == (CREATED, RUNNING)


def test_history_keeps_the_newest_and_is_bounded() -> None:
    life = Lifecycle().to(RUNNING)
    for _ in range(20):
        life = life.to(PAUSED).to(SUSPENDED).to(RUNNING)
    assert HISTORY_MAX == 10
    assert life.history == (
        SUSPENDED,
        RUNNING,
        PAUSED,
        SUSPENDED,
        RUNNING,
        PAUSED,
        SUSPENDED,
        RUNNING,
        PAUSED,
        SUSPENDED,
    )


@pytest.mark.parametrize("state", AgentState)
def test_a_lifecycle_can_be_stored(state: AgentState) -> None:
    """Hole: monotonic instants made it not serialisable.  (There are none: records carry no clock of a process.)"""
    life = in_state(state)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(life), type=Lifecycle) == life


# "Hooks can block a transition" (claimed, not so in the original) cannot occur: hooks run before the record, in the driver.
# "TODO's state list disagrees with the code" cannot occur: the names below are the only ones.


def test_names_and_kinds_of_states() -> None:
    names = ["Created", "Running", "Paused", "Suspended", "Migrating", "Error", "Terminated"]
    assert [s.value for s in AgentState] == names
    assert [s for s in AgentState if s.is_active] == [RUNNING]
    assert [s for s in AgentState if s.accepts_work] == [CREATED, RUNNING]
    assert {s for s in AgentState if s.is_recoverable} == {ERROR, SUSPENDED, PAUSED}


# ---- in the log: lifecycle flags and ownership do not touch each other (rule 20) ----


@pytest.mark.parametrize("stop", [suspended, paused, failed])
def test_a_stopped_agent_stays_stopped_through_handover_and_claim(stop: object) -> None:
    fold = after(stop)
    stopped = fold.lifecycle
    fold.apply(fold.seq + 1, handed_off(fold))
    assert fold.status is MIGRATING
    assert fold.lifecycle == stopped
    fold.apply(fold.seq + 1, claimed(fold))
    assert fold.status is stopped.state
    assert not fold.may_run


def test_a_new_agent_is_created_until_it_does_something() -> None:
    fold = after()
    assert fold.status is CREATED
    assert fold.may_run
    fold.apply(fold.seq + 1, suspended(fold))
    assert fold.lifecycle.history == (CREATED, RUNNING)


def test_an_agent_that_nobody_created_has_no_log() -> None:
    assert not Fold("nobody").may_run
