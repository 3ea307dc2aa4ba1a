"""A node's process looks for garbage among all objects when no agents come, and finds what is left of agents that have gone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from mielin_cells.deployment.garbage import ALL_S, FEW, MANY, THRESHOLDS, Garbage


class Knot:
    """As an agent's objects are: it holds itself, so that only a look finds that it has gone."""

    def __init__(self) -> None:
        self.me = self


class Process:
    """One whose count of collections of young objects the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.agents = list[Knot]()
        self.now, self.waiting = 0.0, 0
        self.garbage = Garbage(lambda: self.agents, lambda: self.now)
        monkeypatch.setattr(gc, "get_count", lambda: (0, 0, self.waiting))

    def look(self, waiting: int) -> bool:
        """True if it looked among all objects that are not kept out."""
        ran = list[str]()

        def note(phase: str, info: dict[str, int]) -> None:
            if phase == "start" and info["generation"] == 2:
                ran.append(phase)

        gc.callbacks.append(note)
        try:
            self.waiting = waiting
            self.garbage.look()
        finally:
            gc.callbacks.remove(note)
        return bool(ran)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    was = gc.get_threshold()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield Process(monkeypatch)
    finally:
        gc.unfreeze()
        gc.set_threshold(*was)


def test_it_does_not_look_while_agents_come_unless_very_much_is_new(process: Process) -> None:
    for _ in range(3):
        process.agents.append(Knot())
        assert not process.look(FEW)
    assert process.look(FEW)
    process.agents.append(Knot())
    assert process.look(MANY)


def test_it_does_not_look_when_little_is_new(process: Process) -> None:
    assert not process.look(FEW - 1)


def test_an_agent_that_goes_is_freed_though_it_was_kept_out_of_looks(process: Process) -> None:
    process.agents += [Knot() for _ in range(8)]
    process.look(FEW)
    assert process.look(FEW)
    gone = [weakref.ref(agent) for agent in process.agents[:3]]
    del process.agents[0]
    assert process.look(FEW)
    assert gone[0]() is not None  # it is one of eight: the next look is not among all yet
    del process.agents[:2]
    assert process.look(FEW)
    assert [one() for one in gone] == [None, None, None]


def test_other_things_that_were_kept_out_of_looks_are_freed_within_the_hour(process: Process) -> None:
    other = Knot()
    gone = weakref.ref(other)
    assert process.look(FEW)
    del other
    assert process.look(FEW)
    assert gone() is not None
    process.now += ALL_S
    assert process.look(FEW)
    assert gone() is None
