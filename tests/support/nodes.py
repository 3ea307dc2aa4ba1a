"""Nodes and a client in this process, on one embedded substrate, with their parts in reach: for faults that `local` does not offer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from mielin_cells.agents.agent import Agent
from mielin_cells.agents.context import current
from mielin_cells.agents.reference import classes
from mielin_cells.client.client import Client
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.node.node import Node
from mielin_cells.settings import Settings
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Log, Substrate, Wire
from mielin_cells.testing.faults import Faults, FaultySubstrate

ONCE = RecoveryConfig(max_retries=0)
"""One attempt: for tests about what a move does, not about what follows when it fails."""


class Deployment:
    """What the tests start nodes in.  `nodes` are those that are stopped at the end."""

    def __init__(self, substrate: Substrate, settings: Settings | None, recovery: RecoveryConfig | None) -> None:
        self.substrate = substrate
        self.settings = settings
        self.recovery = recovery
        self.client = Client(substrate.log, substrate.wire, settings=settings, rng=Random(0))
        self.nodes: dict[str, Node] = {}

    def make(
        self, name: str, *, known: Callable[[str], type[Agent] | None] = classes.get, log: Log | None = None,
        wire: Wire | None = None, faults: Faults | None = None, **options: Any,
    ) -> Node:  # fmt: skip
        """A node that has not been started.  With `faults` it sees the substrate through them; `options` are `Node`'s."""
        seen = self.substrate if faults is None else FaultySubstrate(self.substrate, faults, name)
        options = {
            "settings": self.settings,
            "recovery": self.recovery,
            "rng": Random(name),
            "wall": time.time,
            "cluster": self.client,
        } | options
        node = self.nodes[name] = Node(name, log or seen.log, wire or seen.wire, known, **options)
        if faults is not None:
            node.home.step = lambda step: faults.step(step, name)
        return node

    async def start(self, name: str, **options: Any) -> Node:
        node = self.make(name, **options)
        await node.start()
        return node

    def kill(self, name: str) -> None:
        """As `kill -9`."""
        node = self.nodes.pop(name)
        node._close_all()
        node.kill()


@asynccontextmanager
async def deployment(
    *names: str, settings: Settings | None = None, recovery: RecoveryConfig | None = ONCE, on: Substrate | None = None
) -> AsyncIterator[Deployment]:
    """With the nodes `names` started; its client is the current one.  `on`: what they run on, in place of an embedded store."""
    substrate: Substrate = on or await Embedded.open()
    opened = Deployment(substrate, settings, recovery)
    await opened.client.open()
    token = current.set(opened.client)
    try:
        for name in names:
            await opened.start(name)
        yield opened
    finally:
        current.reset(token)
        for node in opened.nodes.values():
            await node.stop()
        await opened.client.close()
        await substrate.close()
