"""Nodes of one process between which agents move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import mielin_cells as cells
from mielin_cells.agents.reference import classes
from mielin_cells.client.client import Client
from mielin_cells.node.node import Node
from mielin_cells.substrate.ports import Log
from support.nodes import deployment


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
async def nodes(
    *names: str, settings: cells.Settings | None = None, logs: dict[str, Log] | None = None,
    known: dict[str, type[cells.Agent]] | None = None,
) -> AsyncIterator[tuple[Client, dict[str, Node]]]:  # fmt: skip
    """`logs`: for single nodes, the log that they see.  A node named "poor" has only the classes `known`."""
    async with deployment(settings=settings) as opened:
        for name in names:
            lookup = (known or {}).get if name == "poor" else classes.get
            await opened.start(name, log=(logs or {}).get(name), known=lookup)
        yield opened.client, opened.nodes
