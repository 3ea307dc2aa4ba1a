"""Nodes between which moves fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.node.node import Node
from mielin_cells.testing.faults import Faults
from support.nodes import deployment

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
    async with deployment(settings=QUICK, recovery=recovery) as opened:
        for name in names:
            await opened.start(name, faults=faults or Faults(0))
        yield opened.client, opened.nodes
