"""Agents of a simulated world that leave their nodes by policies, the weather that makes them, and rebalancing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.client.plans.rebalance import rebalance, stop_plans
from mielin_cells.errors import CellError
from mielin_cells.policy.facts import UNKNOWN, Facts
from mielin_cells.testing.checkers.plans.kinds import kind_of
from mielin_cells.testing.simulator.clients.policies import movers_of
from mielin_cells.testing.simulator.deployment import Deployment
from mielin_cells.testing.simulator.loop import Killed

WEATHER_S = 14.0
"""For how long the facts of nodes change."""

CALM = Facts(temperature_c=45.0, cpu=20.0)

WEATHERS = (
    Facts(temperature_c=95.0), Facts(temperature_c=90.0, cpu=99.0), Facts(temperature_c=75.0), Facts(battery=5.0, mains=False),
    Facts(battery=5.0, mains=True), Facts(cpu=97.0, temperature_c=50.0), Facts(cpu=99.0, temperature_c=50.0), UNKNOWN, CALM, CALM,
    Facts(sensors={"temperature_c": "broken"}), Facts(temperature_c=69.0), Facts(temperature_c=-400.0, cpu=1e9),
)  # fmt: skip
"""What the machines of nodes say of themselves, lies and silence among it."""


class Mover(cells.Agent, name="SimMover"):
    count: int = 0

    @cells.handler
    async def bump(self) -> int:
        self.count += 1
        return self.count


async def begin(scenario: Deployment) -> None:
    """Before anything else goes wrong, by intention.  After a power cut, once more."""
    agents = movers_of(scenario.swarm)
    for agent in agents:
        kind = kind_of(agent)
        placed = scenario.operator.with_policy(kind.policy) if kind is not None else scenario.operator
        await scenario.until_done(lambda a=agent, p=placed: p.spawn(Mover, a))  # type: ignore[misc]
    if agents and not scenario.is_healed:
        scenario.job(_weather(scenario))
        scenario.job(_operate(scenario))


async def _weather(scenario: Deployment) -> None:
    """Facts change, fluctuate and vanish; then all nodes are well."""
    rng, loop, nodes = Random(f"weather {scenario.swarm.seed}"), scenario.world.loop, scenario.swarm.nodes
    until = loop.time() + WEATHER_S
    for node in nodes:
        scenario.facts[node] = CALM
    while loop.time() < until:
        await asyncio.sleep(rng.random() * rng.choice((0.2, 1.0, 4.0)))
        scenario.facts[rng.choice(nodes)] = rng.choice(WEATHERS)
        scenario.scene.counts["weather changed"] += 1
    for node in nodes:
        scenario.facts[node] = CALM


async def _operate(scenario: Deployment) -> None:
    """An operator rebalances, and stops that again in some worlds."""
    rng, counts = Random(f"rebalance {scenario.swarm.seed}"), scenario.scene.counts
    for _ in range(rng.choice((0, 1, 2))):
        await asyncio.sleep(rng.random() * 8)
        try:
            async with asyncio.timeout(rng.choice((1.0, 20.0))):
                report = await scenario.as_operator(lambda: rebalance(scenario.operator))
                counts[f"rebalanced: {report.state}"] += 1
        except (CellError, TimeoutError, Killed) as error:
            counts[f"rebalancing: {type(error).__name__}"] += 1
        if rng.random() < 0.3:
            try:
                counts["plans stopped"] += bool(await scenario.as_operator(lambda: stop_plans(scenario.operator)))
            except (CellError, Killed) as error:
                counts[f"stopping plans: {type(error).__name__}"] += 1


def bumpers(scenario: Deployment, client: Client, name: str) -> list[Coroutine[Any, Any, None]]:
    """A client that keeps them busy."""
    agents = movers_of(scenario.swarm)
    return [_bump(scenario, client, agents, Random(f"bumps {scenario.swarm.seed} {name}"))] if agents else []


async def _bump(scenario: Deployment, client: Client, agents: list[str], rng: Random) -> None:
    for _ in range(rng.choice((0, 5, 15))):
        await asyncio.sleep(rng.random())
        try:
            await client.get(Mover, rng.choice(agents)).bump.tell()
        except CellError as error:
            if not scenario.is_passing(error) and not scenario.is_torn(error) and not scenario.world.power:
                scenario.violate(f"I4: a bump got {error.code}: {error}")
