"""What a trigger asks of the node that takes the agent."""

from __future__ import annotations

import enum
import math
from typing import NamedTuple

import msgspec

from mielin_cells.policy.facts import Facts, Value

UNITS = {
    "temperature_c": " C", "battery": " %", "cpu": " %", "memory": " %", "store_ms": " ms", "bytes_per_s": " bytes/s",
    "cost_per_hour": " an hour", "waiting": " messages",
}  # fmt: skip

NAMES = {
    "temperature_c": "temperature",
    "store_ms": "round trip to the store",
    "cost_per_hour": "cost",
    "waiting": "queue",
}


class Fits(enum.Enum):
    YES = "yes"
    UNKNOWN = "unknown"
    """The node does not say: it is taken only if no node does better."""
    NO = "no"


class Answer(NamedTuple):
    fits: Fits
    why: str


def read(facts: Facts, name: str) -> Value | None:
    """The fact of this name, or the sensor's that stands for it; None if it is absent."""
    value = facts.get(name)
    return value if value is not None else facts.sensors.get(name)


def number(facts: Facts, name: str) -> float | None:
    """As `read`; None also for what is no number."""
    value = read(facts, name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def shown(name: str, value: float | None) -> str:
    """`temperature 72 C`, or that it is unknown."""
    what = NAMES.get(name, name)
    return f"{what} {value:g}{UNITS.get(name, '')}" if value is not None else f"{what} is unknown"


class Need(msgspec.Struct, array_like=True, frozen=True):
    """A bound for one fact of the target."""

    fact: str
    at_most: float | None = None
    at_least: float | None = None
    or_mains: bool = False
    """A node on mains fits whatever the fact says."""

    def of(self, facts: Facts) -> Answer:
        value = number(facts, self.fact)
        if self.or_mains and read(facts, "mains") is True:
            return Answer(Fits.YES, "it is on mains")
        says = shown(self.fact, value)
        if value is None:
            return Answer(Fits.UNKNOWN, says)
        if self.at_most is not None and value > self.at_most:
            return Answer(Fits.NO, f"{says}, and at most {self.at_most:g} is wanted")
        if self.at_least is not None and value < self.at_least:
            return Answer(Fits.NO, f"{says}, and at least {self.at_least:g} is wanted")
        return Answer(Fits.YES, says)


def check(needs: tuple[Need, ...], facts: Facts) -> Answer:
    """The worst answer to any of them, with all reasons of that kind."""
    answers = [need.of(facts) for need in needs]
    for fits in (Fits.NO, Fits.UNKNOWN, Fits.YES):
        whys = [answer.why for answer in answers if answer.fits is fits]
        if whys:
            return Answer(fits, "; ".join(whys))
    return Answer(Fits.YES, "")


def score(facts: Facts) -> float:
    """The original's score of a target, from 0 to some 115: an absent fact neither adds nor takes away."""
    agents = facts.agents
    total = 100.0 - sum(
        weight * value
        for name, weight in (("cpu", 0.5), ("memory", 0.3), ("temperature_c", 0.2), ("store_ms", 0.1), ("cost_per_hour", 10.0))
        if (value := number(facts, name)) is not None
    )  # fmt: skip
    total += 5.0 if read(facts, "mains") is True else 0.0
    total += 10 - agents if agents is not None and agents < 10 else 0
    return max(0.0, total)
