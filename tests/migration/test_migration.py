"""The two machines of a migration: their tables are those on the page, and what must hold in every phase does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
from support.transitions import (
    DOC,
    FAR,
    LIMITS,
    NEAR,
    SOURCE_EVENTS,
    TARGET_EVENTS,
    Step,
    in_doc,
    section,
    source_in,
    source_steps,
    target_in,
    target_steps,
)

from mielin_cells.migration import source as s
from mielin_cells.migration import target as t
from mielin_cells.migration.failure import Refused
from mielin_cells.migration.progress import MigrationPhase as Phase
from mielin_cells.migration.refusal import as_refusal
from mielin_cells.migration.target import TargetPhase

BEFORE = (Phase.PLANNED, Phase.PREPARING, Phase.COPYING, Phase.PAUSED)
HANDED = (Phase.HANDING_OVER, Phase.IN_DOUBT, Phase.VERIFYING)
ENDS = (Phase.COMPLETED, Phase.ROLLED_BACK, Phase.GAVE_UP)
SOURCE, TARGET = list(source_steps()), list(target_steps())


def kinds(effects: tuple[Any, ...]) -> list[type]:
    return [type(effect) for effect in effects]


def test_the_tables_on_the_page_are_what_the_machines_do() -> None:
    assert in_doc(DOC.read_text()) == section(), (
        "read the difference, then: PYTHONPATH=tests python -m support.transitions"
    )


def test_every_event_and_every_phase_is_walked() -> None:
    assert {type(event) for _, event in SOURCE_EVENTS} == set(get_args(s.Event))
    assert {type(event) for _, event in TARGET_EVENTS} == set(get_args(t.Event))
    assert {step.phase for step in SOURCE} == {phase.value for phase in Phase}
    assert {step.phase for step in TARGET} == {phase.value for phase in TargetPhase}


def test_every_effect_is_used() -> None:
    assert {kind for step in SOURCE for kind in kinds(step.effects)} == set(get_args(s.Effect))
    assert {kind for step in TARGET for kind in kinds(step.effects)} == set(get_args(t.Effect))


# ---- cancel: one expectation for every phase, and no phase without one ----

CANCEL: dict[Phase, tuple[Phase, list[type]]] = {
    Phase.PLANNED: (Phase.ROLLED_BACK, [s.ReleaseTarget, s.End]),
    Phase.PREPARING: (Phase.ROLLED_BACK, [s.ReleaseTarget, s.End]),
    Phase.COPYING: (Phase.ROLLED_BACK, [s.ReleaseTarget, s.End]),
    Phase.PAUSED: (Phase.ROLLED_BACK, [s.ResumeIntake, s.ReleaseTarget, s.End]),
    Phase.HANDING_OVER: (Phase.HANDING_OVER, [s.RefuseCancel]),
    Phase.IN_DOUBT: (Phase.IN_DOUBT, [s.RefuseCancel]),
    Phase.VERIFYING: (Phase.VERIFYING, [s.RefuseCancel]),
    Phase.COMPLETED: (Phase.COMPLETED, []),
    Phase.ROLLED_BACK: (Phase.ROLLED_BACK, []),
    Phase.GAVE_UP: (Phase.GAVE_UP, []),
}


def test_no_phase_is_without_a_cancel_test() -> None:
    assert len(Phase) == 10
    assert set(CANCEL) == set(Phase) == {*BEFORE, *HANDED, *ENDS}


@pytest.mark.parametrize("phase", Phase, ids=lambda p: p.value)
def test_a_cancel(phase: Phase) -> None:
    after, effects = source_in(phase).on(s.Cancel())
    assert (after.phase, kinds(effects)) == CANCEL[phase]


# ---- before the handover ----

FAILURES: list[s.Event] = [s.Cancel(), s.Deadline(), s.Broken("X", "it broke")]


@pytest.mark.parametrize("phase", BEFORE, ids=lambda p: p.value)
@pytest.mark.parametrize("event", FAILURES, ids=lambda e: type(e).__name__)
def test_before_the_handover_a_failure_rolls_back_and_the_source_serves(phase: Phase, event: s.Event) -> None:
    after, effects = source_in(phase).on(event)
    made = kinds(effects)
    assert after.phase is Phase.ROLLED_BACK
    assert not {s.ClaimBack, s.Refold, s.FreeCopy} & set(made)
    assert (s.ResumeIntake in made) == (phase is Phase.PAUSED)  # elsewhere the intake was never stopped
    assert s.ReleaseTarget in made


@pytest.mark.parametrize("phase", BEFORE, ids=lambda p: p.value)
@pytest.mark.parametrize("event", [s.Overtaken(False), s.SeenClaimed("n3")], ids=["Overtaken", "SeenClaimed"])
def test_a_source_that_was_fenced_does_not_resume(phase: Phase, event: s.Event) -> None:
    after, effects = source_in(phase).on(event)
    assert after.phase is Phase.ROLLED_BACK
    assert s.Refold in kinds(effects)
    assert s.ResumeIntake not in kinds(effects)


def test_a_refusal_names_every_reason() -> None:
    _, effects = source_in(Phase.PREPARING).on(s.Refused((as_refusal("no memory"), as_refusal("no class"))))
    refused = Refused((as_refusal("no memory"), as_refusal("no class")))
    assert effects == (s.End("rolled_back", "MigrationRefused", "no memory; no class", refused),)


# ---- the copy ----


def test_a_copy_that_is_not_behind_is_converged() -> None:
    after, effects = source_in(Phase.COPYING).on(NEAR)
    assert (after.phase, effects) == (Phase.PAUSED, (s.StopIntake(),))


def test_a_copy_within_the_bounds_goes_on_while_each_round_leaves_at_most_half() -> None:
    machine = replace(source_in(Phase.COPYING), limits=replace(LIMITS, rounds_max=100))
    for behind in (LIMITS.lag_bytes_max, LIMITS.lag_bytes_max // 2, LIMITS.lag_bytes_max // 4):
        machine, effects = machine.on(s.Copied(LIMITS.lag_records_max, behind))
        assert (machine.phase, effects) == (Phase.COPYING, (s.AskCopy(),))
    machine, effects = machine.on(s.Copied(1, LIMITS.lag_bytes_max // 8 + 1))
    assert (machine.phase, effects) == (Phase.PAUSED, (s.StopIntake(),))


def test_a_copy_within_the_bounds_is_converged_before_the_source_is_slowed_for_it() -> None:
    after, effects = source_in(Phase.COPYING, LIMITS.rounds_max // 2).on(
        s.Copied(LIMITS.lag_records_max, LIMITS.lag_bytes_max)
    )
    assert (after.phase, effects) == (Phase.PAUSED, (s.StopIntake(),))


def test_one_more_record_or_byte_is_not() -> None:
    for copied in (s.Copied(LIMITS.lag_records_max + 1, 0), s.Copied(0, LIMITS.lag_bytes_max + 1)):
        after, effects = source_in(Phase.COPYING).on(copied)
        assert (after.phase, effects) == (Phase.COPYING, (s.AskCopy(),))


def test_a_copy_that_does_not_converge_ends_after_its_rounds_the_later_half_slow() -> None:
    machine, effects = source_in(Phase.PREPARING, 0).on(s.Prepared())
    rounds: list[s.Effect] = []
    while not machine.phase.is_end:
        rounds += effects
        machine, effects = machine.on(FAR)
    assert rounds == [s.AskCopy(False), s.AskCopy(False), s.AskCopy(True), s.AskCopy(True)]
    assert len(rounds) == LIMITS.rounds_max
    assert kinds(effects) == [s.ReleaseTarget, s.End]


def test_a_copy_may_converge_in_its_last_round() -> None:
    after, _ = source_in(Phase.COPYING, LIMITS.rounds_max).on(NEAR)
    assert after.phase is Phase.PAUSED


# ---- the handover ----


def test_only_a_claim_or_what_took_its_place_leaves_doubt() -> None:
    leaving = {step.label for step in SOURCE if step.phase == "IN_DOUBT" and step.after.phase is not Phase.IN_DOUBT}
    assert leaving == {"ClaimedBack", "Overtaken, by the handover", "Overtaken"}


def test_whatever_goes_wrong_with_a_handover_leads_to_a_claim() -> None:
    for event in (s.Doubtful(), s.Deadline(), s.Broken("X", "it broke")):
        after, effects = source_in(Phase.HANDING_OVER).on(event)
        assert (after.phase, effects) == (Phase.IN_DOUBT, (s.ClaimBack(),))


@pytest.mark.parametrize("phase", [Phase.HANDING_OVER, Phase.IN_DOUBT], ids=lambda p: p.value)
def test_the_own_handover_found_in_the_log_is_a_handover(phase: Phase) -> None:
    """Rules 2 and 7: what is in the log has happened, whatever answer was lost."""
    after, effects = source_in(phase).on(s.Overtaken(True))
    assert (after.phase, effects) == (Phase.VERIFYING, (s.WatchLog(),))


def test_a_handover_is_sent_once() -> None:
    sending = [step for step in SOURCE if s.HandOver in kinds(step.effects)]
    assert [(step.phase, step.label) for step in sending] == [("PAUSED", "Quiet")]
    entering = {step.phase for step in SOURCE if step.after.phase is Phase.PAUSED}
    assert entering == {"COPYING", "PAUSED"}
    back = {step.after.phase for step in SOURCE if step.phase in {p.value for p in HANDED}}
    assert not back & set(BEFORE)


def test_the_source_resumes_only_what_it_owns() -> None:
    """Rule 6: without an append only if nothing was sent; else after its claim, or after the target's return."""
    resuming = {(step.phase, step.label) for step in SOURCE if s.ResumeIntake in kinds(step.effects)}
    never_sent = {("PAUSED", label) for label in ("Cancel", "Deadline", "Broken")}
    claimed = {("IN_DOUBT", "ClaimedBack"), ("VERIFYING", "ClaimedBack")}
    assert resuming == never_sent | claimed | {("VERIFYING", "SeenReturned")}


def test_the_source_frees_its_copy_only_when_it_has_read_accepted() -> None:
    freeing = [(step.phase, step.label) for step in SOURCE if s.FreeCopy in kinds(step.effects)]
    assert freeing == [("VERIFYING", "SeenAccepted")]
    completing = [step for step in SOURCE if step.after.phase is Phase.COMPLETED and step.phase != "COMPLETED"]
    assert [(step.phase, step.label) for step in completing] == freeing


def test_silence_in_probation_leads_to_a_claim_and_losing_it_to_reading_on() -> None:
    verifying = source_in(Phase.VERIFYING)
    assert verifying.on(s.Deadline()) == (verifying, (s.ClaimBack(),))
    assert verifying.on(s.Overtaken(False)) == (verifying, (s.WatchLog(),))


# ---- ends ----


@pytest.mark.parametrize("step", SOURCE, ids=lambda step: f"{step.phase}-{step.label}")
def test_an_end_is_reported_once_and_last_and_is_final(step: Step) -> None:
    is_end = Phase(step.phase).is_end
    ends = [effect for effect in step.effects if isinstance(effect, s.End)]
    assert len(ends) == (step.after.phase.is_end and not is_end)
    assert not ends or step.effects[-1] is ends[0]
    for end in ends:
        assert end.outcome == step.after.phase.value.lower()
        assert (end.code == "") == (end.outcome == "completed") == (end.reason == "")
    if is_end:
        assert (step.after, step.effects) == (step.machine, ())
    assert step.after.migration == step.machine.migration


@pytest.mark.parametrize("phase", TargetPhase, ids=lambda p: p.value)
def test_the_ends_of_a_target_are_final(phase: TargetPhase) -> None:
    if phase.is_end:
        for _, event in TARGET_EVENTS:
            assert target_in(phase).on(event) == (target_in(phase), ())
    else:
        assert target_in(phase).on(t.Overtaken()) == (target_in(TargetPhase.DROPPED), (t.Drop(),))


def reachable(first: Any, events: list[Any]) -> dict[Any, set[Any]]:
    """Every machine that `first` can become, with its successors."""
    edges: dict[Any, set[Any]] = {}
    pending = [first]
    while pending:
        machine = pending.pop()
        if machine not in edges:
            edges[machine] = {machine.on(event)[0] for event in events}
            pending += edges[machine]
    return edges


@pytest.mark.parametrize(
    ("first", "events", "phases"),
    [
        (s.Source("m-1", LIMITS), [e for _, e in SOURCE_EVENTS], {*Phase} - {Phase.GAVE_UP}),  # a recovery gives up
        (t.Target("m-1"), [e for _, e in TARGET_EVENTS], {*TargetPhase}),
    ],
    ids=["source", "target"],
)
def test_every_phase_is_reached_and_leads_to_an_end(first: Any, events: list[Any], phases: set[Any]) -> None:
    edges = reachable(first, events)
    assert {machine.phase for machine in edges} == phases
    can_end = {machine for machine in edges if machine.phase.is_end}
    while more := {m for m, after in edges.items() if m not in can_end and after & can_end}:
        can_end |= more
    assert can_end == set(edges)


# ---- the target ----


def test_the_target_serves_only_when_its_acceptance_is_acknowledged() -> None:
    """Rule 8."""
    serving = [(step.phase, step.label) for step in TARGET if t.Serve in kinds(step.effects)]
    assert serving == [("ACCEPTING", "Acknowledged")]


def test_the_target_accepts_what_is_verified_and_returns_what_is_not() -> None:
    appends = {(step.phase, step.label, k) for step in TARGET for k in kinds(step.effects) if k in (t.Accept, t.Return)}
    assert appends == {("PROBATION", "Verified", t.Accept), ("PROBATION", "NotVerified", t.Return)}
    assert target_in(TargetPhase.PROBATION).on(t.NotVerified("digest"))[1] == (t.Return("digest"),)


@pytest.mark.parametrize("phase", [TargetPhase.PROBATION, TargetPhase.ACCEPTING, TargetPhase.RETURNING])
@pytest.mark.parametrize("event", [t.Released(), t.Expired(), t.CopyAsked()], ids=lambda e: type(e).__name__)
def test_after_the_handover_only_the_log_ends_it(phase: TargetPhase, event: t.Event) -> None:
    assert target_in(phase).on(event) == (target_in(phase), ())


@pytest.mark.parametrize("phase", [TargetPhase.RESERVED, TargetPhase.COPYING])
@pytest.mark.parametrize("event", [t.Released(), t.Expired(), t.Overtaken()], ids=lambda e: type(e).__name__)
def test_a_copy_that_was_not_handed_over_is_dropped(phase: TargetPhase, event: t.Event) -> None:
    assert target_in(phase).on(event) == (target_in(TargetPhase.DROPPED), (t.Drop(),))


def late_and_repeated() -> Iterator[tuple[Any, Callable[[], list[Any]]]]:
    yield source_in(Phase.VERIFYING), lambda: [s.Begin(), s.Prepared(), NEAR, s.Quiet(), s.HandedOver(), s.Doubtful()]
    yield source_in(Phase.COPYING), lambda: [s.Begin(), s.Prepared(), s.Refused((as_refusal("late"),))]
    yield target_in(TargetPhase.COPYING), lambda: [t.CopyAsked()]
    yield target_in(TargetPhase.ACCEPTING), lambda: [t.HandoverSeen(), t.Verified(), t.NotVerified("late")]


def test_late_and_repeated_events_change_nothing() -> None:
    for machine, events in late_and_repeated():
        for event in events():
            assert machine.on(event) == (machine, ())
