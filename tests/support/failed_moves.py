"""Nodes between which moves fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import mielin_cells as cells
from mielin_cells.agents.context import current
from mielin_cells.agents.reference import classes
from mielin_cells.client.client import Client
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.node.node import Node
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.testing.faults import Faults, FaultySubstrate

SOON = RecoveryConfig(initial_retry_delay_secs=0.01, max_retry_delay_secs=0.02, recovery_timeout_secs=20)


QUICK = cells.Settings(prepare_s=0.3, pause_s=0.2, probation_s=1.0, handover_s=0.2, reconcile_s=0.2)


class Kiosk(cells.Agent):
    total: int = 0
    stock: bytes = b""

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.total += n
        return self.total

    @cells.handler
    async def slow(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@asynccontextmanager
async def nodes(
    *names: str, faults: Faults | None = None, recovery: RecoveryConfig = SOON
) -> AsyncIterator[tuple[Client, dict[str, Node]]]:
    substrate = await Embedded.open()
    client = Client(substrate.log, substrate.wire, settings=QUICK, rng=Random(0))
    await client.open()
    running: dict[str, Node] = {}
    for name in names:
        running[name] = await started(name, substrate, client, faults, recovery)
    token = current.set(client)
    try:
        yield client, running
    finally:
        current.reset(token)
        for node in running.values():
            await node.stop()
        await client.close()
        await substrate.close()


async def started(
    name: str, substrate: Embedded, client: Client, faults: Faults | None, recovery: RecoveryConfig = SOON
) -> Node:
    faults = faults or Faults(0)
    view = FaultySubstrate(substrate, faults, name)
    node = Node(
        name, view.log, view.wire, classes.get, settings=QUICK, recovery=recovery, rng=Random(name), wall=time.time
    )
    node.home.cluster = client
    node.home.step = lambda step: faults.step(step, name)
    await node.start()
    return node
