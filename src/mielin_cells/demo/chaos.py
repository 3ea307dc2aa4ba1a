"""`mielin demo --chaos`: every few seconds of the main job, a node is killed and another one replaces it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from mielin_cells.client.client import Client
from mielin_cells.client.operator import Operator
from mielin_cells.demo.job import Job, quantiles, run_all
from mielin_cells.deployment.fleet import Fleet
from mielin_cells.errors import CellError, RetryError
from mielin_cells.log.records import Claimed, named_owner
from mielin_cells.membership.claims import FAILOVER
from mielin_cells.store.reader import End, list_agents, read_ends

EVERY_S = 10.0
"""From one kill to the next, and at least `PACE` times the time of the failover: most of the time all nodes serve."""

PACE = 2.0

SAMPLE = 64
"""Agents of a killed node that are checked to see when its failover is over."""

LOOK_S = 0.25

READS = 64


@dataclass(slots=True)
class Chaos:
    ends: ClassVar[bool] = False
    killed: int = 0
    waiting: dict[str, float] = field(default_factory=dict)
    """Agents of a killed node that had a call in flight, and when the node was killed."""
    unavailable_ms: list[float] = field(default_factory=list)

    def answered(self, agent: str) -> None:
        began = self.waiting.pop(agent, None)
        if began is not None:
            self.unavailable_ms.append((time.monotonic() - began) * 1000)

    def may_send(self, job: Job) -> bool:
        return True

    async def calling(self, agent: str, call: Callable[[], Awaitable[None]]) -> None:
        await call()

    def is_good(self, job: Job) -> bool:
        return True

    async def run(self, client: Client, fleet: Fleet, job: Job) -> None:
        """Kills one serving node after the other, until it is cancelled."""
        rng, took = Random(0), 0.0
        while True:
            await asyncio.sleep(max(EVERY_S - took, (PACE - 1) * took))
            took = 0.0
            serving = [child for child in fleet.children if child.state == "serving"]
            if len(serving) < job.nodes:
                continue  # the last replacement is still starting: at most one node is missing on purpose
            child = rng.choice(serving)
            busy = [agent for agent, count in job.busy.items() if count > 0]
            owners = dict(zip(busy, await asyncio.gather(*(_owner(client, agent) for agent in busy)), strict=True))
            now = time.monotonic()
            fleet.replace(child)
            self.killed += 1
            for agent, owner in owners.items():
                if owner == child.name and job.busy[agent] > 0:
                    self.waiting[agent] = now
            await _failed_over(client, child.name, rng)
            took = time.monotonic() - now

    async def report(self, client: Client) -> dict[str, Any]:
        return {
            "killed": self.killed,
            "failovers": await failovers(client),
            "unavailable_ms": {**quantiles(self.unavailable_ms, 1), "calls": len(self.unavailable_ms)},
        }


async def _failed_over(client: Client, node: str, rng: Random) -> None:
    """Returns when all agents in a sample of the killed node's have other owners."""
    owners = {end.agent: named_owner(end.record) for end in await _ends(client, None)}
    left = [agent for agent, owner in owners.items() if owner == node]
    left = rng.sample(left, min(SAMPLE, len(left)))
    while left:
        await asyncio.sleep(LOOK_S)
        left = [end.agent for end in await _ends(client, left) if named_owner(end.record) == node]


async def _ends(client: Client, agents: list[str] | None) -> list[End]:
    while True:
        try:
            return await read_ends(
                client.log, [name for name, _ in await list_agents(client.log)] if agents is None else agents
            )
        except RetryError:
            await asyncio.sleep(LOOK_S)


async def _owner(client: Client, agent: str) -> str:
    try:
        return (await client.owner(agent))[0]
    except CellError:
        return ""


async def failovers(client: Client) -> int:
    """The claims with this cause in all agents' logs, as far as the logs are kept."""
    operator = Operator(client)

    async def count(agent: str) -> int:
        records = [record async for _, _, record in operator.records(agent)]
        return sum(isinstance(record, Claimed) and record.cause.startswith(FAILOVER) for record in records)

    return sum(await run_all((count(agent) for agent, _ in await list_agents(client.log)), READS))
