"""What makes agents leave a node: a policy's thresholds as conditions on single facts."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from mielin_cells.log.triggers.values import MigrationPolicy
from mielin_cells.policy.facts import Facts
from mielin_cells.policy.triggers.needs import Need, number, read, shown

CRITICAL = 100
"""Moves of this priority do not wait for a cooldown, a window or the hourly limit."""

EASES = 0.1
"""A condition that holds ceases only when its fact is better than the threshold by this share."""


class Condition(NamedTuple):
    """One fact against one threshold."""

    trigger: str
    priority: int
    fact: str
    bound: float
    is_below: bool = False
    """It holds below the bound; otherwise above it."""
    at_bound: bool = False
    """It holds at the bound, too."""
    sustained_s: float = 0.0
    needs: tuple[Need, ...] = ()
    sheds: bool = False
    """Some agents leave, and not all: the node has then `sustained_s` to recover before more do."""
    on_battery: bool = False
    """It cannot hold on a node that is on mains."""

    def holds(self, facts: Facts, *, held: bool) -> bool | None:
        """Whether it holds, if it did or did not before; None: the fact is absent."""
        value = number(facts, self.fact)
        if value is None:
            return None
        if self.on_battery and read(facts, "mains") is True:
            return False
        sign = -1.0 if self.is_below else 1.0
        over = sign * (value - self.bound)
        if held:
            return over > -EASES * abs(self.bound)
        return over > 0 or (self.at_bound and over == 0)

    def says(self, facts: Facts) -> str:
        """`temperature 88 C, the limit is 85`."""
        return f"{shown(self.fact, number(facts, self.fact))}, the limit is {self.bound:g}"

    def share(self, facts: Facts) -> float:
        """The share of its load that the node should lose, to come down to what a target may have."""
        value = number(facts, self.fact)
        aim = next((need.at_most for need in self.needs if need.fact == self.fact and need.at_most is not None), None)
        if value is None or value <= 0:
            return 0.0
        return min(1.0, max(0.0, 1.0 - (aim if aim is not None else self.bound * 0.8) / value))


@lru_cache(maxsize=1024)
def conditions_of(policy: MigrationPolicy) -> tuple[Condition, ...]:
    """In order of priority; of equal ones, in the original's order."""
    found = list[Condition]()
    if (thermal := policy.thermal) is not None:
        cool = Need("temperature_c", at_most=thermal.warn_c)
        cooler = Need("temperature_c", at_most=thermal.warn_c - 10)
        found += [
            Condition("thermal", CRITICAL, "temperature_c", thermal.critical_c, at_bound=True, needs=(cool,)),
            Condition(
                "thermal", 80, "temperature_c", thermal.warn_c, at_bound=True, sustained_s=thermal.sustained_s, needs=(cooler,)
            ),
        ]  # fmt: skip
    if (battery := policy.battery) is not None:
        charged = Need("battery", at_least=min(100.0, battery.min_percent + 10), or_mains=battery.prefer_mains)
        found.append(Condition(
            "battery", 90, "battery", battery.min_percent, is_below=True, sustained_s=battery.sustained_s, needs=(charged,),
            on_battery=battery.prefer_mains,
        ))  # fmt: skip
    if (load := policy.load) is not None:
        for_s = load.sustained_s
        idle, free = Need("cpu", at_most=load.cpu - 20), Need("memory", at_most=load.memory - 20)
        half = Need("cpu", at_most=50)
        found += [
            Condition("load", 70, "cpu", load.cpu, sustained_s=for_s, needs=(idle,), sheds=True),
            Condition("load", 75, "memory", load.memory, sustained_s=for_s, needs=(free,), sheds=True),
            Condition("load", 60, "waiting", load.waiting, sustained_s=for_s, needs=(half,), sheds=True),
        ]
    if (latency := policy.latency) is not None:
        near, fast = Need("store_ms", at_most=latency.max_ms / 2), Need("store_ms", at_most=latency.max_ms)
        found += [
            Condition("latency", 65, "store_ms", latency.max_ms, sustained_s=latency.sustained_s, needs=(near,)),
            Condition(
                "latency", 55, "bytes_per_s", latency.min_bytes_per_s, is_below=True, sustained_s=latency.sustained_s, needs=(fast,)
            ),
        ]  # fmt: skip
    if (cost := policy.cost) is not None:
        cheap = Need("cost_per_hour", at_most=cost.max_per_hour * (1 - cost.reduction / 100))
        found.append(
            Condition("cost", 40, "cost_per_hour", cost.max_per_hour, sustained_s=cost.sustained_s, needs=(cheap,))
        )
    return tuple(sorted(found, key=lambda one: -one.priority))


@lru_cache(maxsize=4096)
def avoids_of(policy: MigrationPolicy, condition: Condition) -> tuple[Need, ...]:
    """The policy's other reasons to leave a node: a target that gives one is none.

    An agent that leaves in an emergency goes wherever that emergency is not.
    """
    if condition.priority >= CRITICAL:
        return ()
    facts = {need.fact for need in condition.needs}
    return tuple(
        Need(one.fact, at_least=one.bound, or_mains=one.on_battery) if one.is_below else Need(one.fact, at_most=one.bound)
        for one in conditions_of(policy) if one.fact not in facts and one.priority < CRITICAL
    )  # fmt: skip
