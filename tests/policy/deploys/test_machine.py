"""The machine of a deploy: what follows what, what is due, and that no order of events leads out of it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mielin_cells.errors import RecordInvalid
from mielin_cells.policy.deploys.events import (
    AnyEvent,
    Began,
    Drives,
    Failed,
    Moved,
    Opened,
    Passed,
    Retired,
    Served,
    Stopped,
    TakenBack,
    Wished,
    decode_event,
    encode_event,
)
from mielin_cells.policy.deploys.machine import (
    OVER,
    UNDOING,
    AwaitNodes,
    Deploy,
    MoveAgents,
    OpenNodes,
    Phase,
    RetireNodes,
    StopNodes,
    TakeBack,
    WatchHealth,
)

BEGAN = Began(deploy="d", app="new.py", old=["o1", "o2"], new=["n1"], stages=[5, 50, 100], watch_s=7.0)


def after(*events: AnyEvent, began: Began = BEGAN) -> Deploy:
    deploy, _ = Deploy.begin(began)
    for event in events:
        assert deploy.refusal(event) == ""
        deploy, _ = deploy.on(event)
    return deploy


def moved(stage: int) -> Moved:
    return Moved(deploy="d", stage=stage, agents=10)


def passed(stage: int) -> Passed:
    return Passed(deploy="d", stage=stage)


SERVED, OPENED, RETIRED, STOPPED = Served(deploy="d"), Opened(deploy="d"), Retired(deploy="d"), Stopped(deploy="d")
UNWELL = Failed(deploy="d", why="it is not well")
WHOLE: list[AnyEvent] = [SERVED, moved(0), passed(0), OPENED, moved(1), passed(1), moved(2), passed(2), RETIRED]


def wished(wish: Any) -> Wished:
    return Wished(deploy="d", wish=wish)


def taken_back(stay: int = 0) -> TakenBack:
    return TakenBack(deploy="d", moved=3, rewound=1, stuck=[("a", "why")] if stay else [], stay=stay)


def test_a_deploy_that_goes_well_does_one_thing_after_the_other() -> None:
    deploy, effects = Deploy.begin(BEGAN)
    due = [effects]
    for event in WHOLE:
        deploy, effects = deploy.on(event)
        due.append(effects)
    assert due == [
        (AwaitNodes(),), (MoveAgents(0, 5),), (WatchHealth(0, 7.0),), (OpenNodes(),), (MoveAgents(1, 50),), (WatchHealth(1, 7.0),),
        (MoveAgents(2, 100),), (WatchHealth(2, 7.0),), (RetireNodes(),), (),
    ]  # fmt: skip
    assert (deploy.phase, deploy.moved, deploy.is_over) == (Phase.DONE, 30, True)
    assert deploy.nodes == ([], ["n1"])


@pytest.mark.parametrize("count", range(len(WHOLE)))
def test_bad_health_at_any_time_takes_all_agents_back_and_stops_the_new_nodes(count: int) -> None:
    deploy = after(*WHOLE[:count], UNWELL)
    assert (deploy.due, deploy.why, deploy.nodes) == ((TakeBack(),), "it is not well", (["o1", "o2"], ["n1"]))
    deploy, due = deploy.on(taken_back())
    assert (due, deploy.nodes) == ((StopNodes(),), (["o1", "o2"], []))
    deploy, due = deploy.on(STOPPED)
    assert (deploy.phase, due, deploy.why) == (Phase.UNDONE, (), "it is not well")


def test_agents_that_cannot_go_back_keep_the_new_nodes() -> None:
    deploy = after(SERVED, moved(0), wished("undo"), taken_back(stay=1))
    assert (deploy.phase, deploy.due, deploy.nodes) == (Phase.PARTLY_UNDONE, (), (["o1", "o2"], ["n1"]))


@pytest.mark.parametrize("count", range(len(WHOLE)))
def test_a_pause_at_any_time_stops_what_is_due_until_it_is_resumed(count: int) -> None:
    before = after(*WHOLE[:count])
    paused, due = before.on(wished("pause"))
    assert (due, paused.is_paused, paused.phase) == ((), True, before.phase)
    assert "is paused already" in paused.refusal(wished("pause"))
    resumed, due = paused.on(wished("resume"))
    assert (resumed.due, resumed.phase) == (before.due, before.phase)
    assert "is not paused" in resumed.refusal(wished("resume"))
    _, due = paused.on(wished("undo"))
    assert due == (TakeBack(),)


def test_bad_health_pauses_a_deploy_that_is_not_to_undo_itself() -> None:
    deploy = after(SERVED, moved(0), UNWELL, began=msgspec.structs.replace(BEGAN, undoes=False))
    assert (deploy.due, deploy.is_paused, deploy.phase, deploy.why) == ((), True, Phase.WATCHING, "it is not well")


def test_an_undo_that_cannot_be_done_is_paused_and_can_be_begun_again() -> None:
    deploy = after(SERVED, wished("undo"), UNWELL)
    assert (deploy.is_paused, deploy.phase) == (True, Phase.TAKING_BACK)
    assert deploy.on(wished("undo"))[1] == (TakeBack(),)
    assert deploy.on(wished("resume"))[1] == (TakeBack(),)


def test_what_an_earlier_driver_has_done_counts_once() -> None:
    deploy = after(SERVED, moved(0))
    assert "Moved cannot follow" in deploy.refusal(moved(0))
    assert deploy.on(moved(0)) == (deploy, deploy.due)
    assert "Passed cannot follow" in deploy.refusal(passed(1))
    assert after(SERVED, moved(0), wished("undo")).on(passed(0))[0].phase is Phase.TAKING_BACK


def test_one_deploy_goes_on_at_a_time_and_another_may_follow_its_end() -> None:
    other = msgspec.structs.replace(BEGAN, deploy="e")
    assert "end it first" in after(SERVED).refusal(other)
    assert "not the deploy that goes on" in after(SERVED).refusal(Served(deploy="e"))
    ended = after(*WHOLE)
    assert "is done" in ended.refusal(wished("undo"))
    assert ended.on(other)[0].name == "e"


def test_whoever_drives_last_drives() -> None:
    deploy = after(Drives(deploy="d", driver="one"), SERVED, Drives(deploy="d", driver="two", by="host"))
    assert (deploy.driver, deploy.driven_by, deploy.due) == ("two", "host", (MoveAgents(0, 5),))


def test_the_first_stage_may_go_by_a_condition() -> None:
    began = msgspec.structs.replace(BEGAN, where="tier == 'test'")
    assert after(SERVED, began=began).due == (MoveAgents(0, 5, "tier == 'test'"),)
    assert after(*WHOLE[:4], began=began).due == (MoveAgents(1, 50),)


EVENTS: list[AnyEvent] = [
    SERVED, OPENED, RETIRED, STOPPED, UNWELL, moved(0), moved(1), moved(2), passed(0), passed(1), passed(2), wished("pause"),
    wished("resume"), wished("undo"), taken_back(), taken_back(1), Drives(deploy="d", driver="x"),
]  # fmt: skip


@given(st.lists(st.sampled_from(EVENTS), max_size=60), st.booleans())
def test_whatever_events_come_something_is_due_unless_it_is_paused_or_over_and_an_undo_is_never_left(
    events: list[AnyEvent], undoes: bool
) -> None:
    deploy, _ = Deploy.begin(msgspec.structs.replace(BEGAN, undoes=undoes))
    for event in events:
        before = deploy
        deploy, due = deploy.on(event)
        assert bool(due) == (not deploy.is_paused and not deploy.is_over)
        assert 0 <= deploy.stage < len(BEGAN.stages)
        if before.phase in OVER:
            assert deploy is before
        if before.phase in UNDOING:
            assert deploy.phase in UNDOING | OVER
            assert deploy.phase is not Phase.DONE
        if deploy.phase is Phase.DONE and before is not deploy:
            assert before.phase is Phase.RETIRING


def test_every_phase_can_be_reached_and_left() -> None:
    first, _ = Deploy.begin(BEGAN)
    seen, todo = {repr(first): first}, [first]
    while todo:
        deploy = todo.pop()
        for event in EVENTS:
            following = replace(deploy.on(event)[0], moved=0, driver="", driven_by="")
            if repr(following) not in seen:
                seen[repr(following)] = following
                todo.append(following)
    assert {deploy.phase for deploy in seen.values()} == set(Phase)
    for deploy in seen.values():
        if not deploy.is_over:
            ends = [deploy.on(first)[0].on(second)[0] for first, second in itertools.product(EVENTS, repeat=2)]
            assert any(end.phase is not deploy.phase or end.is_paused != deploy.is_paused for end in ends)


@pytest.mark.parametrize("event", [BEGAN, *EVENTS], ids=lambda event: type(event).__name__)
def test_an_event_is_the_same_after_it_was_stored_and_fields_of_newer_versions_are_skipped(event: AnyEvent) -> None:
    assert decode_event(encode_event(event), "here") == event
    with pytest.raises(RecordInvalid):
        decode_event(encode_event(event)[:-1], "here")
