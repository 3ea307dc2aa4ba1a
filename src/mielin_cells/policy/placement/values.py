"""What a placement is decided from, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import msgspec

from mielin_cells.log.policy import DEFAULT, Affinity, Policy
from mielin_cells.policy.expression import names
from mielin_cells.policy.facts import NAMES, UNKNOWN, Facts, Value


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A node, as the table of members describes it, without the number of its agents."""

    name: str
    incarnation: int = 0
    is_starting: bool = False
    """It still takes its own agents; it is chosen only if all others do so, too."""
    is_cordoned: bool = False
    classes: dict[str, int] = {}
    """Agent classes with their versions; empty: it has not said."""
    architecture: str = ""
    """Empty: it has not said."""
    cores: int = 0
    memory_bytes: int = 0
    labels: dict[str, str] = {}
    facts: Facts = UNKNOWN

    def scope(self) -> names.Facts:
        """As expressions see it."""
        facts = self.facts
        values: dict[str, Value | None] = {name: getattr(facts, name) for name in NAMES}
        values.update(
            name=self.name, architecture=self.architecture or None, cores=self.cores or None,
            memory_bytes=self.memory_bytes or None,
        )  # fmt: skip
        return names.Facts(values, {"labels": self.labels, "sensors": facts.sensors, "classes": self.classes})


class Need(NamedTuple):
    """An agent that is to be placed."""

    agent: str = ""
    cls: str = ""
    """"": not known; every node passes for it."""
    version: int = 0
    """Of the class that the stored state is of, or an earlier one: older code cannot load it."""
    policy: Policy = DEFAULT
    bytes: int | None = None
    waiting: int | None = None
    attributes: tuple[tuple[str, Value], ...] = ()
    is_known: bool = True
    """False: its attributes could not be read, and its policy depends on them; what this says of either may be wrong."""

    def scope(self) -> names.Facts:
        """As expressions see it."""
        values: dict[str, Value | None] = {
            "id": self.agent or None, "class": self.cls or None, "version": self.version or None, "bytes": self.bytes,
            "waiting": self.waiting,
        }  # fmt: skip
        return names.Facts(values, {"attributes": dict(self.attributes)})


class Term(NamedTuple):
    """A set of agents that a placement looks for."""

    kind: str
    """"agent", "where" or "class"."""
    text: str

    @classmethod
    def of(cls, affinity: Affinity) -> Term:
        return cls("agent", affinity.agent) if affinity.agent else cls("where", affinity.where)


Places: TypeAlias = Mapping[Term, Mapping[str, str]]
"""By term, the nodes of its agents, by agent, as far as they are known.  They are hints: an agent may move at any time."""

NO_PLACES: Places = {}


def terms_of(need: Need) -> list[Term]:
    """Which agents must be looked for before this one is placed; empty for most agents."""
    terms = [Term.of(one) for one in need.policy.affinities]
    return [*terms, Term("class", need.cls)] if need.policy.spread else terms


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one rule says about one node, with the values that decided."""

    rule: str
    """"out of service", "class", "architecture", "full", "require", "prefer", "near", "apart", "spread" or "agents"."""
    text: str = ""
    """The rule as it is written in the policy."""
    holds: bool | None = True
    """None: not known, because a fact is absent.  A condition that is not known is not met."""
    is_required: bool = False
    points: float = 0.0
    why: str = ""
    values: dict[str, Value | None] = {}
    """The facts that were looked at; None: absent."""

    @property
    def rules_out(self) -> bool:
        return self.is_required and self.holds is not True


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What all rules together say about one node."""

    node: str
    fits: bool
    """Every required rule holds."""
    points: float
    """Of the preferences and the agents near to it, less its load."""
    agents: int
    findings: list[Finding]
    is_left: str = ""
    """Why it is not chosen although it fits; empty for the one that is."""


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """The answer about one agent: the chosen node, if there is one, and each node with each rule."""

    node: str | None
    verdicts: list[Verdict]
    unit: int
    """So many agents count as one point."""

    def of(self, node: str) -> Verdict | None:
        return next((one for one in self.verdicts if one.node == node), None)
