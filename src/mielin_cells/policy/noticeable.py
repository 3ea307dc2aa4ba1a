"""Which changes of a node's facts the others are told of.

What all nodes read must not change while a fact only trembles, so a change counts from a step on.  A fact that comes to a level at
which policies act is told at once, and its way back once it is clearly below that level.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from mielin_cells.policy.facts import NAMES, Facts, Value


class Change(enum.IntEnum):
    NONE = 0
    SLOW = 1
    """It is told with the next regular record."""
    PROMPT = 2
    """A policy may have to act on it at once."""


class Step(NamedTuple):
    """From what change on a fact is told again: at least `least`, and this share of what was told."""

    least: float
    share: float = 0.0
    levels: tuple[float, ...] = ()
    """Where policies act, as a rule; a fact that comes there is told promptly."""
    falls: bool = False
    """It is low values that policies act on."""


STEPS = {
    "cpu": Step(10, levels=(60, 70, 85, 95)),
    "load": Step(0.5, 0.25),
    "memory": Step(5, levels=(80, 90, 95)),
    "memory_free_bytes": Step(256 * 2**20, 0.25),
    "disk": Step(2, levels=(90, 95)),
    "disk_free_bytes": Step(2**30, 0.25),
    "battery": Step(2, levels=(10, 15, 20, 30), falls=True),
    "temperature_c": Step(3, levels=(60, 70, 85)),
    "store_ms": Step(5, 0.5, levels=(50, 100)),
    "agents": Step(4, 0.25),
    "waiting": Step(50, 0.5, levels=(50, 100, 200)),
    "oldest_s": Step(5, 0.5),
    "messages_s": Step(20, 0.5),
    # However small `agents_max` is: that a node is full is told, and that it is so no more.
    "slots": Step(1, 0.25, levels=(0, 1), falls=True),
    "cost_per_hour": Step(0, 0.01),
}

OF_SENSORS = Step(0, 0.1)


def change_of(before: Facts, now: Facts) -> Change:
    """What is to be done about facts that were told as `before`."""
    if before is now:
        return Change.NONE
    found = Change.NONE
    for name in NAMES:
        was, value = getattr(before, name), getattr(now, name)
        if was != value:
            found = max(found, _one(STEPS.get(name, OF_SENSORS), was, value))
    if before.sensors or now.sensors:
        for name in before.sensors.keys() | now.sensors.keys():
            was, value = before.sensors.get(name), now.sensors.get(name)
            if was != value:
                found = max(found, _one(OF_SENSORS, was, value))
    if before.failing != now.failing:
        found = max(found, Change.SLOW)
    return found


def _one(step: Step, was: Value | None, value: Value | None) -> Change:
    """Of one fact, which differs."""
    if isinstance(was, bool) or isinstance(value, bool):
        return Change.PROMPT
    if value is None or isinstance(was, str) or isinstance(value, str):
        return Change.SLOW
    sign = -1 if step.falls else 1
    for level in step.levels:
        was_there = was is not None and sign * was >= sign * level
        if not was_there and sign * value >= sign * level:
            return Change.PROMPT
        if was_there and sign * value < sign * level - step.least / 2:
            return Change.SLOW
    if was is None:
        return Change.SLOW
    return Change.SLOW if abs(value - was) >= max(step.least, step.share * abs(was)) else Change.NONE
