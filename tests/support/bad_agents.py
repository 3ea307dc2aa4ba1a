"""Agents that cannot run, and a deployment that has them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import mielin_cells as cells
from mielin_cells.agents.context import current
from mielin_cells.agents.reference import classes
from mielin_cells.client.client import Client
from mielin_cells.migration import RecoveryConfig
from mielin_cells.node.node import Node
from mielin_cells.substrate.embedded import Embedded

QUICK = cells.Settings(reconcile_s=0.2, ask_repeat_s=0.1, pause_s=0.3, turn_deadline_s=20.0)


def bad_class(what: str) -> type[cells.Agent] | None:
    """The class that a node has after its restart, for the agents that were made of another of that name."""
    if what == "its class is gone":
        return None

    class Bad(cells.Agent, version=2):
        count: int = 0

        @cells.upgrade(from_version=1)
        def _v1(cls, old: dict[str, Any]) -> dict[str, Any]:
            if what == "its upgrade raises":
                raise ValueError("no such field")
            if what == "its upgrade ends the process":
                sys.exit("not in my process")
            return old

        async def on_arrive(self) -> None:
            if what == "its hook raises":
                raise ValueError("no way in")
            if what == "its hook ends the process":
                sys.exit("not in my process")
            if what == "its hook is cancelled":
                raise asyncio.CancelledError
            if what == "its hook hangs":
                await asyncio.Event().wait()

        async def on_depart(self) -> None:
            if what == "its farewell ends the process":
                sys.exit("not in my process")

        @cells.handler
        async def add(self) -> int:
            self.count += 1
            return self.count

    return Bad


def good_class() -> type[cells.Agent]:
    class Bad(cells.Agent):
        count: int = 0

        @cells.handler
        async def add(self) -> int:
            self.count += 1
            return self.count

    return Bad


class Deployment:
    def __init__(self, substrate: Embedded, client: Client) -> None:
        self.substrate = substrate
        self.client = client

    async def start(self, name: str, bad: type[cells.Agent] | None) -> Node:
        known = {**classes, "Bad": bad}
        node = Node(
            name, self.substrate.log, self.substrate.wire, known.get, settings=QUICK, rng=Random(name), wall=time.time,
            recovery=RecoveryConfig(max_retries=0),
        )  # fmt: skip
        node.home.cluster = self.client
        await node.start()
        return node


@asynccontextmanager
async def deployment() -> AsyncIterator[Deployment]:
    substrate = await Embedded.open()
    client = Client(substrate.log, substrate.wire, settings=QUICK, rng=Random(0))
    await client.open()
    token = current.set(client)
    try:
        yield Deployment(substrate, client)
    finally:
        current.reset(token)
        await client.close()
        await substrate.close()
