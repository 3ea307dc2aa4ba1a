"""Worlds in which new code is deployed: which nodes have the old code and the new, and who drives the deploy, pauses and undoes it."""

from __future__ import annotations

import asyncio
from random import Random
from typing import NamedTuple

from mielin_cells.client.client import Client
from mielin_cells.client.deploys.driver import Driver
from mielin_cells.errors import CellError, DeployRefused, Fenced
from mielin_cells.policy.deploys.events import AnyEvent, Began, Wish, Wished
from mielin_cells.policy.deploys.machine import UNDOING, Deploy
from mielin_cells.store.deploys import Deploys
from mielin_cells.testing.checkers.scene import WALL_S
from mielin_cells.testing.simulator.clients.policies import deploy_of
from mielin_cells.testing.simulator.deployment import Deployment
from mielin_cells.testing.simulator.loop import Killed

LATE_S = 25.0
"""After so long an operator helps a deploy on: it drains nodes that are to have no agents, and goes on with what is paused."""

WISHES: tuple[tuple[Wish, ...], ...] = ((), (), ("undo",), ("pause", "resume"), ("pause", "undo"))


class _Worker(NamedTuple):
    scenario: Deployment
    rng: Random

    def deploys(self, client: Client) -> Deploys:
        return Deploys(client.log, self.rng.randbytes)

    async def append(self, event: AnyEvent) -> str:
        """By the operator: "", or why it cannot follow."""

        async def once() -> str:
            deploys = self.deploys(self.scenario.operator)
            await deploys.read_to_end()
            return await deploys.append(event)

        return await self.scenario.until_done(once)

    async def read(self) -> Deploy | None:
        return await self.scenario.until_done(lambda: self.deploys(self.scenario.operator).read_to_end())


def begin(scenario: Deployment) -> None:
    """Before anything else goes wrong, by intention.  After a power cut, once more: the deploy may have been forgotten."""
    drawn = deploy_of(scenario.swarm)
    if drawn is not None and not scenario.is_healed:
        worker = _Worker(scenario, Random(f"deploy {scenario.swarm.seed} {scenario.world.loop.time()}"))
        scenario.job(_operate(worker, *drawn))


async def _operate(worker: _Worker, old: list[str], new: list[str]) -> None:
    scenario, rng = worker.scenario, worker.rng
    await asyncio.sleep(rng.random() * 6)
    name = f"d-{scenario.swarm.seed % 0x1000000:06x}"
    at, stages = WALL_S + scenario.world.loop.time(), rng.choice(([100], [40, 100], [10, 50, 100]))
    watch_s, rewinds = rng.choice((0.2, 2.0)), rng.random() < 0.5
    await worker.append(Began(
        deploy=name, at=at, app="new", old=old, new=new, stages=stages, watch_s=watch_s, start_s=15.0, rewinds=rewinds,
    ))  # fmt: skip
    for number in range(rng.choice((1, 1, 2))):
        name_of = f"deployer-{number}-{round(scenario.world.loop.time())}"  # after a power cut there are more of them
        scenario.job(_drive(_Worker(scenario, Random(rng.random())), name_of))
    for wish in rng.choice(WISHES):
        await asyncio.sleep(rng.random() * 4)
        await worker.append(Wished(deploy=name, wish=wish))
    await _help(worker, old, new)


async def _help(worker: _Worker, old: list[str], new: list[str]) -> None:
    """Until the deploy is over; then all nodes are in service again."""
    scenario, clock = worker.scenario, worker.scenario.world.loop.time
    late = clock() + LATE_S
    while (deploy := await worker.read()) is not None and not deploy.is_over:
        if clock() > late:
            if deploy.is_paused:
                await worker.append(Wished(deploy=deploy.name, wish="undo" if deploy.phase in UNDOING else "resume"))
            for node in {*old, *new} - {name for some in deploy.nodes for name in some}:
                await _drain(scenario, node)
        await asyncio.sleep(2.0)
    for node in (*old, *new):
        await scenario.until_done(lambda name=node: scenario.operator.uncordon(name))  # type: ignore[misc]


async def _drain(scenario: Deployment, node: str) -> None:
    try:
        await scenario.as_operator(lambda: scenario.operator.drain(node, 5.0))
    except (CellError, Killed) as error:
        scenario.scene.counts[f"deploy: drain: {type(error).__name__}"] += 1


async def _drive(worker: _Worker, name: str) -> None:
    """A process that drives, and is started again whenever it dies."""
    scenario, rng, counts = worker.scenario, worker.rng, worker.scenario.scene.counts
    deaths = rng.choice((0, 1, 3))
    await asyncio.sleep(rng.random() * 3)
    while True:
        try:
            view, client = await scenario.client(name)
            if deaths and not scenario.is_healed:
                deaths -= 1
                scenario.world.later(rng.random() * 6, scenario.crash, view)
            clock = scenario.world.loop.time
            driver = Driver(client, worker.deploys(client), lambda event: None, wall=clock, clock=clock)
            await view.process.run(driver.run())
            return
        except Killed:
            counts["deploy: driver died"] += 1
        except (Fenced, DeployRefused) as error:
            counts[f"deploy: {error.code}"] += 1
            return
        except CellError as error:
            counts[f"deploy: {error.code}"] += 1
            if not scenario.is_passing(error) and not scenario.is_torn(error):
                scenario.violate(f"I48: a driver got {error.code}: {error}")
        await asyncio.sleep(1.0)
