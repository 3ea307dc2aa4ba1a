"""Which agents of one node should leave it now: a machine `on(event) -> (machine, effects)`, and what it wishes.

Agents with the same policy are one group, whose conditions are judged once, so a new measurement costs by the number of policies
that look at what has changed, and not by the number of agents.  The machine holds many agents and is changed in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeAlias

from mielin_cells.log.triggers.values import MigrationPolicy
from mielin_cells.policy.evaluation.wishes import Wish
from mielin_cells.policy.facts import Facts
from mielin_cells.policy.triggers.conditions import CRITICAL, Condition, avoids_of
from mielin_cells.policy.triggers.machine import Ceases, Effect, Holds, Measured, Passed, Shed, Triggers
from mielin_cells.policy.triggers.needs import read

WISHES_MAX = 64
"""Agents that a node asks the leader to move at a time: it asks again while there are more."""

LEAVES_S = 60.0
"""An agent that was planned to leave and is still here after this is wished away again."""


@dataclass(frozen=True, slots=True)
class Came:
    """An agent is on this node, from now on."""

    now: float
    agent: str
    policy: MigrationPolicy
    weight: float = 0.0
    """Its share of the node's work, in any unit; those with more are shed first."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """How much each agent has to do now; those that are not named have nothing to do."""

    now: float
    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Gone:
    """The agent is on this node no more."""

    now: float
    agent: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """The log of the members has a plan that moves these agents away."""

    now: float
    agents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stays:
    """The plan has ended, and the agent is still here."""

    now: float
    agent: str


Event: TypeAlias = Measured | Passed | Came | Weighed | Gone | Leaving | Stays


@dataclass(slots=True)
class _Agent:
    name: str
    came: float
    weight: float
    leaves_at: float = -math.inf
    """When a plan was last seen to move it."""


@dataclass(slots=True)
class _Group:
    """The agents of one policy."""

    triggers: Triggers
    agents: dict[str, _Agent] = field(default_factory=dict)
    looks_at: frozenset[str] = frozenset()
    """The facts that its conditions read."""


class Evaluation:
    """Of one node."""

    def __init__(self) -> None:
        self.facts = Facts()
        self.now = 0.0
        self.judged = 0
        """Conditions that were looked at, ever: what it costs."""
        self._groups: dict[MigrationPolicy, _Group] = {}
        self._of: dict[str, _Group] = {}

    def __contains__(self, agent: str) -> bool:
        return agent in self._of

    @property
    def agents(self) -> list[str]:
        return list(self._of)

    # ---- events ----------------------------------------------------------------------------------------------

    def on(self, event: Event) -> tuple[Evaluation, tuple[Effect, ...]]:
        """Takes in the event; the effects say which conditions hold now, or do no more."""
        self.now = max(self.now, event.now)
        match event:
            case Measured(facts=facts):
                return self, self._measure(facts)
            case Passed():
                return self, self._pass()
            case Came():
                return self, self._take(event)
            case Weighed(weights=weights):
                for each in self._groups.values():
                    for one in each.agents.values():
                        one.weight = weights.get(one.name, 0.0)
            case Gone(agent=agent):
                self._drop(agent)
            case Leaving(agents=agents):
                self._leave(agents)
            case Stays(agent=agent):
                if (group := self._of.get(agent)) is not None:
                    group.agents[agent].leaves_at = -math.inf
        return self, ()

    def _measure(self, facts: Facts) -> tuple[Effect, ...]:
        before, self.facts = self.facts, facts
        changed = {
            name for group in self._groups.values() for name in group.looks_at if read(before, name) != read(facts, name)
        }  # fmt: skip
        effects = list[Effect]()
        for group in self._groups.values():
            if not changed.isdisjoint(group.looks_at):
                effects += self._judge(group, Measured(self.now, facts))
        return (*effects, *self._pass())

    def _pass(self) -> tuple[Effect, ...]:
        effects = list[Effect]()
        for group in self._groups.values():
            wake = group.triggers.next_wake()
            if wake is not None and wake <= self.now:
                effects += self._judge(group, Passed(self.now))
        return tuple(effects)

    def _judge(self, group: _Group, event: Measured | Passed) -> tuple[Effect, ...]:
        self.judged += len(group.triggers.conditions)
        group.triggers, effects = group.triggers.on(event)
        return effects

    def _take(self, event: Came) -> tuple[Effect, ...]:
        known = self._of.get(event.agent)
        if known is not None and known.triggers.policy == event.policy:
            known.agents[event.agent].weight = event.weight
            return ()
        self._drop(event.agent)
        group = self._groups.get(event.policy)
        effects: tuple[Effect, ...] = ()
        if group is None:
            triggers = Triggers.of(event.policy)
            looks_at = frozenset({"mains"}.union(condition.fact for condition in triggers.conditions))
            group = self._groups[event.policy] = _Group(triggers, looks_at=looks_at)
            effects = self._judge(group, Measured(self.now, self.facts))
        group.agents[event.agent] = _Agent(event.agent, event.now, event.weight)
        self._of[event.agent] = group
        return effects

    def _drop(self, agent: str) -> None:
        group = self._of.pop(agent, None)
        if group is not None:
            del group.agents[agent]
            if not group.agents:
                del self._groups[group.triggers.policy]

    def _leave(self, agents: tuple[str, ...]) -> None:
        shed = dict[MigrationPolicy, _Group]()
        for name in agents:
            group = self._of.get(name)
            if group is not None:
                group.agents[name].leaves_at = self.now
                shed[group.triggers.policy] = group
        for group in shed.values():
            for condition, _ in group.triggers.holding():
                if condition.sheds:
                    group.triggers, _ = group.triggers.on(Shed(self.now, condition))

    @property
    def sheds(self) -> bool:
        """Some agents should leave, and it matters which."""
        return any(condition.sheds for group in self._groups.values() for condition, _ in group.triggers.holding())

    # ---- what it wishes --------------------------------------------------------------------------------------

    def wishes(self, wall: float, most: int = WISHES_MAX) -> list[Wish]:
        """The agents that should leave now, the most urgent first; at most so many."""
        holding = [
            (condition, armed.sheds_from, group)
            for group in self._groups.values()
            for condition, armed in group.triggers.holding()
        ]
        found, named = list[Wish](), set[str]()
        for condition, sheds_from, group in sorted(holding, key=lambda one: -one[0].priority):
            policy, left = group.triggers.policy, most - len(found)
            if left <= 0:
                break
            if condition.priority < CRITICAL and not policy.is_open(wall):
                continue
            if condition.sheds and sheds_from > self.now:
                continue
            why = condition.says(self.facts)
            for agent in islice(self._choose(condition, group), left):
                if agent.name not in named:
                    named.add(agent.name)
                    found.append(_wish(agent.name, policy, condition, why))
        return found

    def _choose(self, condition: Condition, group: _Group) -> list[_Agent]:
        """All that may leave; of a node that sheds load, those with most of it, until enough is gone or about to go.

        One with nothing to do stays: the node would be no less loaded without it.  But it takes memory as others do.
        """
        here = [one for one in group.agents.values() if self.now >= one.leaves_at + LEAVES_S]
        rests = 0.0 if condition.priority >= CRITICAL else group.triggers.policy.cooldown_s
        free = [one for one in here if self.now >= one.came + rests]
        if not condition.sheds:
            return free
        free.sort(key=lambda one: (-one.weight, one.name))
        whole = sum(one.weight for one in group.agents.values()) if condition.fact != "memory" else 0.0

        def part(one: _Agent) -> float:
            return one.weight / whole if whole > 0 else 1.0 / len(group.agents)

        share, chosen = condition.share(self.facts), list[_Agent]()
        gone = sum(part(one) for one in group.agents.values() if self.now < one.leaves_at + LEAVES_S)
        for one in free:
            if gone >= share or not part(one):
                break
            gone += part(one)
            chosen.append(one)
        return chosen

    def next_wake(self) -> float | None:
        """When something may change although nothing is measured; None: never."""
        dues = [wake for group in self._groups.values() if (wake := group.triggers.next_wake()) is not None]
        for group in self._groups.values():
            if any(condition.priority < CRITICAL for condition, _ in group.triggers.holding()):
                cooldown_s = group.triggers.policy.cooldown_s
                dues += [
                    at for one in group.agents.values()
                    if (at := max(one.came + cooldown_s, one.leaves_at + LEAVES_S)) > self.now
                ]  # fmt: skip
        return min(dues, default=None)


def _wish(agent: str, policy: MigrationPolicy, condition: Condition, why: str) -> Wish:
    return Wish(
        agent, condition.trigger, condition.priority, why, condition.needs, avoids_of(policy, condition), policy.cooldown_s,
        policy.per_hour,
    )  # fmt: skip


__all__ = [
    "LEAVES_S", "WISHES_MAX", "Came", "Ceases", "Evaluation", "Event", "Gone", "Holds", "Leaving", "Measured", "Passed", "Stays",
    "Weighed",
]  # fmt: skip
