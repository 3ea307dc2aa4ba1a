"""Policies of agents in the simulator's mix, and in Python what each of them forbids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from mielin_cells.log.policy import Policy
from mielin_cells.log.triggers.values import Battery, Load, MigrationPolicy, Thermal
from mielin_cells.policy.facts import Facts
from mielin_cells.policy.selectors import Selector

PREFIX = "mover"
"""What the names of such agents begin with; `mover-zone-1` is of the kind `zone`."""

TRIGGERS = MigrationPolicy(
    thermal=Thermal(sustained_s=0.5), battery=Battery(sustained_s=0.5), load=Load(sustained_s=1.0), latency=None,
    cooldown_s=5.0, per_hour=2,
)  # fmt: skip

ZONE = "zone"
"""A label of nodes, "a" or "b"."""


def _anywhere(labels: Mapping[str, str], facts: Facts) -> str:
    return ""


def _in_zone(labels: Mapping[str, str], facts: Facts) -> str:
    return "" if labels.get(ZONE) == "a" else f"its {ZONE} is {labels.get(ZONE)}"


def _not_busy(labels: Mapping[str, str], facts: Facts) -> str:
    return "" if facts.cpu is None or facts.cpu < 98 else f"its cpu is {facts.cpu}"


class Kind(NamedTuple):
    policy: Policy
    """The agent's own."""
    why_not: Callable[[Mapping[str, str], Facts], str] = _anywhere
    """Why the agent may not be on a node with these labels and facts; "" if it may."""
    is_fixed: bool = False
    """Nothing moves it but an order of an operator, and no such order is given."""
    entry: Policy | None = None
    """What an entry of `mielin.toml` makes of its policy."""
    is_lasting: bool = False
    """What `why_not` says of a node is always the same: labels do not change."""


KINDS: dict[str, Kind] = {
    "free": Kind(Policy(migration=TRIGGERS)),
    "zone": Kind(Policy(migration=TRIGGERS, require=(f"node.labels.{ZONE} == 'a'",)), _in_zone, is_lasting=True),
    "calm": Kind(Policy(migration=TRIGGERS, require=("not known(node.cpu) or node.cpu < 98",)), _not_busy),
    "fixed": Kind(Policy(migration=TRIGGERS, immovable=True), is_fixed=True),
    "named": Kind(
        Policy(migration=TRIGGERS), _in_zone, entry=Policy(require=(f"node.labels.{ZONE} == 'a'",)), is_lasting=True
    ),
    "held": Kind(Policy(migration=TRIGGERS), is_fixed=True, entry=Policy(immovable=True)),
}


def kind_of(agent: str) -> Kind | None:
    """None for an agent without such a policy."""
    return KINDS[agent.split("-")[1]] if agent.startswith(f"{PREFIX}-") else None


def entries_of(agents: list[str]) -> tuple[Selector, ...]:
    """The entries of `mielin.toml` in a world with these agents."""
    return tuple(
        Selector(match={"id": agent}, policy=kind.entry)
        for agent in agents if (kind := kind_of(agent)) is not None and kind.entry is not None
    )  # fmt: skip
