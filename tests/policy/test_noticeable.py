"""Which changes of facts are told: from a step on, at once where policies act, and never for a tremble."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mielin_cells.policy.facts import UNKNOWN, Facts
from mielin_cells.policy.noticeable import STEPS, Change, change_of


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        (UNKNOWN, UNKNOWN, Change.NONE),
        (Facts(cpu=20.0), Facts(cpu=29.0), Change.NONE),
        (Facts(cpu=20.0), Facts(cpu=30.0), Change.SLOW),
        (Facts(cpu=84.0), Facts(cpu=85.0), Change.PROMPT),
        (Facts(cpu=86.0), Facts(cpu=84.0), Change.NONE),
        (Facts(cpu=86.0), Facts(cpu=79.0), Change.SLOW),  # clearly below the level, though by less than a step
        (Facts(temperature_c=69.5), Facts(temperature_c=70.0), Change.PROMPT),
        (UNKNOWN, Facts(temperature_c=40.0), Change.SLOW),
        (UNKNOWN, Facts(temperature_c=90.0), Change.PROMPT),
        (Facts(battery=16.0), Facts(battery=15.0), Change.PROMPT),
        (Facts(battery=15.0), Facts(battery=15.5), Change.NONE),
        (Facts(battery=15.0), Facts(battery=16.5), Change.SLOW),
        (Facts(battery=50.0), UNKNOWN, Change.SLOW),
        (Facts(mains=True), Facts(mains=False), Change.PROMPT),
        (Facts(waiting=0), Facts(waiting=49), Change.NONE),
        (Facts(waiting=0), Facts(waiting=60), Change.PROMPT),
        (Facts(agents=100), Facts(agents=120), Change.NONE),
        (Facts(agents=100), Facts(agents=125), Change.SLOW),
        (Facts(slots=1), Facts(slots=0), Change.PROMPT),
        (Facts(slots=5), Facts(slots=0), Change.PROMPT),
        (Facts(slots=0), Facts(slots=1), Change.SLOW),
        (Facts(slots=0), Facts(slots=3), Change.SLOW),
        (Facts(slots=100), Facts(slots=80), Change.NONE),
        (Facts(cost_per_hour=1.0), Facts(cost_per_hour=1.1), Change.SLOW),
        (Facts(sensors={"fan": 100}), Facts(sensors={"fan": 109}), Change.NONE),
        (Facts(sensors={"fan": 100}), Facts(sensors={"fan": 110}), Change.SLOW),
        (Facts(sensors={"fan": 100}), UNKNOWN, Change.SLOW),
        (Facts(sensors={"door": True}), Facts(sensors={"door": False}), Change.PROMPT),
        (Facts(sensors={"rack": "a"}), Facts(sensors={"rack": 1}), Change.SLOW),
        (UNKNOWN, Facts(failing={"gpu": "raised"}), Change.SLOW),
        (Facts(cpu=20.0, mains=True), Facts(cpu=31.0, mains=False), Change.PROMPT),
    ],
)
def test_what_a_change_is(before: Facts, now: Facts, change: Change) -> None:
    assert change_of(before, now) is change
    assert change_of(now, now) is Change.NONE


@given(st.sampled_from(["cpu", "memory", "battery", "temperature_c"]), st.lists(st.floats(0, 100), max_size=60))
def test_what_was_told_is_always_near_and_each_level_that_is_reached_is_told_at_once(
    name: str, values: list[float]
) -> None:
    """Of what a node tells: whoever reads it is wrong by less than a step, and never misses a level."""
    told, step = UNKNOWN, STEPS[name]
    for value in values:
        now = msgspec.convert({name: value}, Facts)
        change = change_of(told, now)
        was = told.get(name)
        assert was is None or isinstance(was, float)
        reached = [
            level for level in step.levels
            if (value <= level if step.falls else value >= level)
            and (was is None or not (was <= level if step.falls else was >= level))
        ]  # fmt: skip
        assert (change is Change.PROMPT) == bool(reached)
        if change is not Change.NONE:
            told, was = now, value
        assert was is not None
        assert abs(was - value) < step.least


@given(st.floats(-0.7, 0.7), st.sampled_from([30.0, 59.0, 70.0, 85.0]))
def test_a_tremble_of_less_than_half_a_step_is_told_once_at_most(tremble: float, around: float) -> None:
    told, times = Facts(temperature_c=around), 0
    for sign in (1, -1) * 20:
        now = Facts(temperature_c=around + sign * tremble)
        if change_of(told, now) is not Change.NONE:
            told, times = now, times + 1
    assert times <= 1
