"""Nodes of one process between which agents move."""

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
from mielin_cells.substrate.ports import Log

ONCE = RecoveryConfig(max_retries=0)
"""One attempt: these tests are about what a move does, not about what follows (`test_recoveries`)."""


class Counter(cells.Agent):
    count: int = 0

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.count += n
        return self.count

    @cells.handler
    async def slow(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return cells.this().node

    @cells.handler(cancellable=True)
    async def patient(self, seconds: float) -> str:
        await asyncio.sleep(seconds if cells.this().node == "node-1" else 0)
        return cells.this().node

    @cells.handler
    async def leave(self, to: str) -> None:
        cells.this().migrate(to=to)


@asynccontextmanager
async def nodes(*names: str, settings: cells.Settings | None = None, logs: dict[str, Log] | None = None,
                known: dict[str, type[cells.Agent]] | None = None) -> AsyncIterator[tuple[Client, dict[str, Node]]]:  # fmt: skip
    """Nodes with their parts in reach, for faults that `local` does not offer."""
    substrate = await Embedded.open()
    client = Client(substrate.log, substrate.wire, settings=settings, rng=Random(0))
    await client.open()
    running: dict[str, Node] = {}
    for name in names:
        lookup = (known or {}).get if name == "poor" else classes.get
        log = (logs or {}).get(name, substrate.log)
        node = Node(
            name, log, substrate.wire, lookup, settings=settings, recovery=ONCE, rng=Random(name), wall=time.time
        )
        node.home.cluster = client
        await node.start()
        running[name] = node
    token = current.set(client)
    yield client, running
    current.reset(token)
    for node in running.values():
        await node.stop()
    await client.close()
    await substrate.close()
