"""Which conditions of one policy hold on one node, and since when: a machine `on(event) -> (machine, effects)`.

A condition arms when its fact crosses the threshold, and holds once it has been armed for `sustained_s`.  It ceases when the fact is
better than the threshold by a tenth, or is absent.  So a fact that swings around its threshold makes it hold at most once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from mielin_cells.log.triggers.values import MigrationPolicy
from mielin_cells.policy.facts import UNKNOWN, Facts
from mielin_cells.policy.triggers.conditions import Condition, conditions_of

# ---- events --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """The node has measured its facts."""

    now: float
    facts: Facts


@dataclass(frozen=True, slots=True)
class Passed:
    """Time has passed."""

    now: float


@dataclass(frozen=True, slots=True)
class Shed:
    """Agents were chosen to leave because of this condition, which has time to cease before more are chosen."""

    now: float
    condition: Condition


Event: TypeAlias = Measured | Passed | Shed

# ---- effects -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Holds:
    """From now on agents should leave."""

    condition: Condition
    why: str


@dataclass(frozen=True, slots=True)
class Ceases:
    condition: Condition
    why: str


Effect: TypeAlias = Holds | Ceases

# ---- the machine ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Armed:
    """A condition whose fact is beyond its threshold."""

    since: float
    holds: bool = False
    sheds_from: float = 0.0
    """Agents that it sheds are chosen from then on."""


@dataclass(frozen=True, slots=True)
class Triggers:
    policy: MigrationPolicy
    armed: tuple[Armed | None, ...] = ()
    facts: Facts = UNKNOWN
    now: float = 0.0

    @classmethod
    def of(cls, policy: MigrationPolicy) -> Triggers:
        return cls(policy, (None,) * len(conditions_of(policy)))

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return conditions_of(self.policy)

    def on(self, event: Event) -> tuple[Triggers, tuple[Effect, ...]]:
        """What the event changes.  Time that seems to go back is taken as no time."""
        now = max(self.now, event.now)
        match event:
            case Measured(facts=facts):
                return self._measure(now, facts)
            case Passed():
                return self._pass(now, list(self.armed), [])
            case Shed(condition=condition):
                armed = tuple(
                    replace(one, sheds_from=now + condition.sustained_s) if one is not None and mine == condition else one
                    for one, mine in zip(self.armed, self.conditions, strict=True)
                )  # fmt: skip
                return replace(self, armed=armed, now=now), ()

    def _measure(self, now: float, facts: Facts) -> tuple[Triggers, tuple[Effect, ...]]:
        armed, effects = list(self.armed), list[Effect]()
        for place, (condition, before) in enumerate(zip(self.conditions, self.armed, strict=True)):
            holds = condition.holds(facts, held=before is not None and before.holds)
            if not holds:
                armed[place] = None
                if before is not None and before.holds:
                    effects.append(Ceases(condition, condition.says(facts)))
            elif before is None:
                armed[place] = Armed(now)
        return replace(self, facts=facts)._pass(now, armed, effects)

    def _pass(
        self, now: float, armed: list[Armed | None], effects: list[Effect]
    ) -> tuple[Triggers, tuple[Effect, ...]]:
        for place, (condition, one) in enumerate(zip(self.conditions, armed, strict=True)):
            if one is not None and not one.holds and now >= one.since + condition.sustained_s:
                armed[place] = replace(one, holds=True)
                effects.append(Holds(condition, condition.says(self.facts)))
        return replace(self, armed=tuple(armed), now=now), tuple(effects)

    # ---- what follows from it --------------------------------------------------------------------------------

    def holding(self) -> list[tuple[Condition, Armed]]:
        """The conditions that hold, the most urgent first."""
        return [
            (condition, one)
            for condition, one in zip(self.conditions, self.armed, strict=True)
            if one is not None and one.holds
        ]

    def next_wake(self) -> float | None:
        """When an armed condition will hold, or one that sheds may shed again; None: only a new fact changes anything."""
        dues = [
            one.since + condition.sustained_s if not one.holds else one.sheds_from
            for condition, one in zip(self.conditions, self.armed, strict=True)
            if one is not None and (not one.holds or one.sheds_from > self.now)
        ]
        return min(dues, default=None)
