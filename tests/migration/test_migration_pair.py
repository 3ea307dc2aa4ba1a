"""Two real machines over one log, walked through completely: never two that serve, and always one owner in the end."""

from __future__ import annotations

from collections import Counter

import pytest
from support.migration_pair import LIMITS, Budget, World, faults, outcome_of, owner_of, steps

from mielin_cells.log.lifecycle import Phase as LogPhase
from mielin_cells.migration import source as s
from mielin_cells.migration import target as t
from mielin_cells.migration.progress import MigrationPhase as Phase
from mielin_cells.migration.target import TargetPhase


def check(w: World) -> None:
    """What holds in every state."""
    owner, phase = owner_of(w.log)  # refuses a log that rule 3 does not allow
    assert not {"S", "T"} <= w.serving, f"both serve: {w}"
    for name, seen in (("S", w.source_seen), ("T", w.target_seen)):
        if name in w.serving and seen == len(w.log):
            assert (owner, phase) == (name, LogPhase.RUN), f"serves what the log gives to {owner}: {w}"
    if w.ended:
        assert outcome_of(w.log) in ("", w.ended), f"{w.ended} is not what the log says: {w}"
    if w.ended == "completed":
        assert outcome_of(w.log) == "completed"


def check_end(w: World) -> None:
    """What holds where nothing more happens by itself."""
    owner, phase = owner_of(w.log)
    assert phase is LogPhase.RUN, f"nobody owns: {w}"
    assert w.serving == {owner}, f"{owner} owns, {set(w.serving)} serve: {w}"
    assert w.source is None, f"the source's machine waits for ever: {w}"
    assert w.target is None, f"the target's machine waits for ever: {w}"


def explored(first: World) -> dict[World, list[World]]:
    """Every state that can be reached, with what follows it without a fault."""
    edges: dict[World, list[World]] = {}
    pending = [first]
    while pending:
        w = pending.pop()
        if w in edges:
            continue
        check(w)
        edges[w] = list(steps(w))
        if not edges[w]:
            check_end(w)
        pending += edges[w]
        pending += faults(w)
    return edges


BUDGETS = {
    "no fault": Budget(),
    "lost answers": Budget(lost=2, commits=1),
    "crashes": Budget(lost=1, crashes=1),
    "suspicion": Budget(lost=1, suspicions=1),
    "all": Budget(lost=2, crashes=1, suspicions=1, commits=1),
    "crashes of both": Budget(lost=1, crashes=2, suspicions=1),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_never_two_serve_and_every_end_has_one_owner(name: str) -> None:
    edges = explored(World(BUDGETS[name]))
    ends = {w for w, after in edges.items() if not after}
    before: dict[World, list[World]] = {}
    for w, after in edges.items():
        for later in after:
            before.setdefault(later, []).append(w)
    can_end, pending = set(ends), list(ends)
    while pending:
        for earlier in before.get(pending.pop(), ()):
            if earlier not in can_end:
                can_end.add(earlier)
                pending.append(earlier)
    stuck = next((w for w in edges if w not in can_end), None)
    assert stuck is None, f"once faults stop, this never ends: {stuck}"


def test_the_walk_reaches_the_rare_states() -> None:
    """A checker that never sees the rare states proves nothing."""
    edges = explored(World(BUDGETS["all"]))
    assert {w.source.phase for w in edges if w.source} == {p for p in Phase if not p.is_end}
    assert {w.target.phase for w in edges if w.target} == {p for p in TargetPhase if not p.is_end}
    ends = Counter((w.ended, outcome_of(w.log), owner_of(w.log)[0]) for w, after in edges.items() if not after)
    told = {(ended, owner) for ended, _, owner in ends}
    assert told == {
        ("rolled_back", "S"), ("rolled_back", "K"), ("completed", "T"), ("completed", "K"), ("", "S"), ("", "T"), ("", "K"),
    }  # fmt: skip
    logs = {w.log for w in edges}
    for log in (
        ("HandedOff S", "Accepted T"), ("HandedOff S", "Returned T"), ("HandedOff S", "Claimed S"), ("Claimed S",),
        ("HandedOff S", "Claimed K"), ("Claimed K",), ("HandedOff S", "Accepted T", "Claimed K"),
    ):  # fmt: skip
        assert log in logs


# ---- the walk finds each of these mistakes ----


class ResumesInDoubt(s.Source):
    def on(self, event: s.Event) -> tuple[s.Source, tuple[s.Effect, ...]]:
        if self.phase is Phase.HANDING_OVER and isinstance(event, s.Doubtful):
            return self._back("no answer", "Timeout", s.ResumeIntake())
        return super().on(event)


class ResumesWithoutAClaim(s.Source):
    def on(self, event: s.Event) -> tuple[s.Source, tuple[s.Effect, ...]]:
        if self.phase is Phase.VERIFYING and isinstance(event, s.Deadline):
            return self._back("silence", "Timeout", s.ResumeIntake())
        return super().on(event)


class CompletesAtTheHandover(s.Source):
    def on(self, event: s.Event) -> tuple[s.Source, tuple[s.Effect, ...]]:
        if self.phase is Phase.HANDING_OVER and isinstance(event, s.HandedOver):
            return self._to(Phase.COMPLETED, s.End("completed"))
        return super().on(event)


class CallsAHandoverAClaim(s.Source):
    def on(self, event: s.Event) -> tuple[s.Source, tuple[s.Effect, ...]]:
        return super().on(s.Overtaken(False) if isinstance(event, s.Overtaken) else event)


class DropsNothingWhenFenced(s.Source):
    def on(self, event: s.Event) -> tuple[s.Source, tuple[s.Effect, ...]]:
        if self.phase is Phase.VERIFYING and isinstance(event, s.SeenClaimed):
            return self._back("claimed", "Fenced", s.ResumeIntake())
        return super().on(event)


class HandsOverTwice(s.Source):
    def on(self, event: s.Event) -> tuple[s.Source, tuple[s.Effect, ...]]:
        if self.phase is Phase.HANDING_OVER and isinstance(event, s.Doubtful):
            return self, (s.HandOver(),)
        return super().on(event)


class ServesUnacknowledged(t.Target):
    def on(self, event: t.Event) -> tuple[t.Target, tuple[t.Effect, ...]]:
        if self.phase is TargetPhase.PROBATION and isinstance(event, t.Verified):
            return self._to(TargetPhase.SERVING, t.Serve())
        return super().on(event)


class NeverClaims(s.Source):
    def on(self, event: s.Event) -> tuple[s.Source, tuple[s.Effect, ...]]:
        machine, effects = super().on(event)
        return machine, tuple(effect for effect in effects if not isinstance(effect, s.ClaimBack))


SOURCES = [
    ResumesInDoubt, ResumesWithoutAClaim, CompletesAtTheHandover, CallsAHandoverAClaim, DropsNothingWhenFenced,
    HandsOverTwice, NeverClaims,
]  # fmt: skip


@pytest.mark.parametrize("mutant", SOURCES, ids=lambda m: m.__name__)
def test_a_wrong_source_is_caught(mutant: type[s.Source]) -> None:
    with pytest.raises(AssertionError):
        explored(World(BUDGETS["suspicion"], source=mutant("m-1", LIMITS)))


def test_a_target_that_serves_too_early_is_caught() -> None:
    with pytest.raises(AssertionError):
        explored(World(BUDGETS["lost answers"], new_target=ServesUnacknowledged))
