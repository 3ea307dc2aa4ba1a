"""Agents whose messages were counted for a moment only: what is called even has to be even in truth."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from support.proposals import propose
from support.scripted_policies import node

from mielin_cells.policy.rebalance.estimate import Estimate
from mielin_cells.policy.rebalance.proposal import AGAIN, HOLD, WITHIN, unevenness
from mielin_cells.policy.rebalance.values import AgentLoad, shorten

NODES = {name: node(name) for name in ("n1", "n2", "n3")}
WINDOW_S = 2.0
AGENTS_MAX, BYTES_MAX = 2000, 512 << 10
"""Fewer than there are: some are told of together."""


@dataclass
class World:
    """Agents with a true rate each, of which only counts are seen."""

    rng: Random
    rates: dict[str, float]
    where: dict[str, str]

    def count(self, window_s: float) -> dict[str, list[AgentLoad]]:
        found: dict[str, list[AgentLoad]] = {name: [] for name in NODES}
        for agent, rate in self.rates.items():
            mean, messages = rate * window_s, 0
            time_s = self.rng.expovariate(mean)
            while time_s < 1.0:
                messages += 1
                time_s += self.rng.expovariate(mean)
            load = AgentLoad(agent, messages / window_s, cls=agent.partition("-")[0])
            found[self.where[agent]].append(load)
        return {name: shorten(some, window_s, AGENTS_MAX, BYTES_MAX) for name, some in found.items()}

    def parts(self) -> dict[str, float]:
        found = dict.fromkeys(NODES, 0.0)
        for agent, rate in self.rates.items():
            found[self.where[agent]] += rate
        return found


def like_the_main_job(seed: int) -> World:
    """Three thousand planes, which do little, those with later names more; and a hundred airports, some of which do much."""
    rng = Random(seed)
    rates = {f"plane-{n:04}": (n + 1) / 3000 * rng.uniform(0, 0.66) for n in range(3000)}
    rates |= {f"airport-{n:03}": 90 / (n + 1) for n in range(100)}
    return World(rng, rates, dict.fromkeys(rates, "n1"))


@pytest.mark.parametrize("seed", range(5))
def test_what_is_counted_for_two_seconds_is_spread_within_a_tenth_in_truth(seed: int) -> None:
    world, moved = like_the_main_job(seed), set[str]()
    for number in range(6):
        within, hold = (AGAIN, 0.0) if number else (WITHIN, HOLD)
        proposal = propose(NODES, world.count(WINDOW_S), fixed=moved, window_s=WINDOW_S, within=within, hold=hold)
        if not proposal.moves:
            break
        for move in proposal.moves:
            world.where[move.agent] = move.target
            moved.add(move.agent)
    assert unevenness(world.parts()) <= WITHIN


def test_a_node_whose_agents_all_do_a_little_more_is_seen() -> None:
    """None of them got many messages, so an agent's own count says nothing; that of all of them does."""
    loads = {
        "n1": [AgentLoad(f"a{n}", 1.0, cls="A") for n in range(400)],
        "n2": [AgentLoad(f"b{n}", 0.0, cls="A") for n in range(400)],
        "n3": [AgentLoad(f"c{n}", 0.5, cls="A") for n in range(400)],
    }
    proposal = propose(NODES, loads, window_s=WINDOW_S)
    assert unevenness(proposal.before) > 0.8
    assert unevenness(proposal.after) <= WITHIN
    assert {(move.source, move.target) for move in proposal.moves} == {("n1", "n2")}


def test_a_few_agents_alone_count_as_those_of_their_class_elsewhere() -> None:
    loads = {"n1": [AgentLoad(f"a{n}", 0.5, cls="A") for n in range(400)], "n2": [AgentLoad("b", 0.0, cls="A")]}
    estimate = Estimate(loads, WINDOW_S)
    assert estimate.weight("n2", loads["n2"][0]) == pytest.approx(estimate.weight("n1", loads["n1"][0]), rel=0.1)


def test_agents_that_are_told_of_together_count_as_their_class_and_lose_no_message() -> None:
    loads = [AgentLoad(f"a{n}", float(n % 3), cls="A" if n % 2 else "B", size_bytes=10) for n in range(100)]
    told = shorten(loads, 2.0, 40, BYTES_MAX)
    assert len(told) == 42
    assert sum(load.count for load in told) == 100
    assert sum(load.rate for load in told) == sum(load.rate for load in loads)
    assert sum(load.size_bytes for load in told) == 1000
    assert {load.cls for load in told if not load.agent} == {"A", "B"}
    assert {load.rate for load in told if load.agent} == {0.0, 1.0, 2.0}, "those with most, and then any"
    assert sum(load.rate == 2.0 for load in told if load.agent) == 33
    assert len(shorten(loads, 2.0, 1000, 500)) < 50, "an answer is bounded in bytes, too"
