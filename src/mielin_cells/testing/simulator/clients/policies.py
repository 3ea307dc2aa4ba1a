"""Which worlds have agents with policies or a deploy, and what their nodes say of themselves: labels, and entries of `mielin.toml`."""

from __future__ import annotations

from random import Random

from mielin_cells.policy.selectors import Selector
from mielin_cells.testing.checkers.plans.kinds import KINDS, PREFIX, ZONE, entries_of
from mielin_cells.testing.simulator.swarm import Swarm

WORLDS = 0.5
"""The share of the worlds with failover in which agents have policies: elsewhere nobody leads, and nothing is planned."""

DEPLOYS = 0.3
"""The share of the other worlds with failover in which new code is deployed."""


def deploy_of(swarm: Swarm) -> tuple[list[str], list[str]] | None:
    """Old and new nodes of a deploy, some of each alive to the end; None: there is none."""
    rng = Random(f"deploys {swarm.seed}")
    living = [name for name in swarm.nodes if name not in swarm.dead]
    if not swarm.keepers or len(living) < 2 or movers_of(swarm) or rng.random() >= DEPLOYS:
        return None  # agents that are immovable would be moved by order
    old, new = rng.sample(living, 2)
    olds = [name for name in swarm.nodes if name == old or (name != new and rng.random() < 0.5)]
    return olds, [name for name in swarm.nodes if name not in olds]


def movers_of(swarm: Swarm) -> list[str]:
    """The agents with policies; none in most worlds."""
    rng = Random(f"policies {swarm.seed}")
    if not swarm.keepers or rng.random() >= WORLDS:
        return []
    return [f"{PREFIX}-{rng.choice([*KINDS])}-{n}" for n in range(rng.randint(2, 5))]


def labels_of(swarm: Swarm) -> dict[str, dict[str, str]]:
    """By node; a node that stays alive is where an agent may be that looks at them."""
    if not movers_of(swarm):
        return {}
    rng = Random(f"zones {swarm.seed}")
    zones = {node: rng.choice("aab") for node in swarm.nodes}
    zones[next(node for node in swarm.nodes if node not in swarm.dead)] = "a"
    return {node: {ZONE: zone} for node, zone in zones.items()}


def selectors_of(swarm: Swarm) -> tuple[Selector, ...]:
    return entries_of(movers_of(swarm))
