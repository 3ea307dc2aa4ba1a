"""Nodes of one process that die, fall silent, and watch each other."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import mielin_cells as cells
from mielin_cells.agents.context import current
from mielin_cells.agents.reference import classes
from mielin_cells.client.client import Client
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.node.failover import Failover
from mielin_cells.node.node import Node
from mielin_cells.rpc.answers import Beat
from mielin_cells.substrate.embedded import Embedded

QUICK = cells.Settings(heartbeat_s=0.05, heartbeat_misses=4, reconcile_s=0.3, ask_repeat_s=0.1)


LIMIT_S = QUICK.heartbeat_s * QUICK.heartbeat_misses


class Gauge(cells.Agent):
    count: int = 0

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.count += n
        return self.count

    @cells.handler
    async def where(self) -> str:
        return cells.this().node


class Air:
    """What heartbeats would carry, as of now."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.silent: set[str] = set()
        self.deaf: set[str] = set()

    def heard_by(self, name: str, node: Node) -> list[Beat]:
        now = node.activations.clock()
        if name not in self.deaf:
            self.last.update(dict.fromkeys(self.last.keys() - self.silent, now))
        return [Beat(other, 1, 0.0, now - at) for other, at in self.last.items()]


async def entered(name: str, client: Client, air: Air, settings: cells.Settings = QUICK) -> tuple[Node, Failover]:
    node = Node(
        name, client.log, client.wire, classes.get, settings=settings, rng=Random(name), wall=time.time,
        recovery=RecoveryConfig(max_retries=0), heard=lambda: air.heard_by(name, node),
    )  # fmt: skip
    node.home.cluster = client
    await node.start()
    air.last[name] = node.activations.clock()
    return node, node.failover


@asynccontextmanager
async def nodes(
    *names: str, settings: cells.Settings = QUICK
) -> AsyncIterator[tuple[Client, dict[str, Node], dict[str, Failover], Air]]:
    substrate = await Embedded.open()
    client = Client(substrate.log, substrate.wire, settings=settings, rng=Random(0))
    await client.open()
    running, keepers, air = dict[str, Node](), dict[str, Failover](), Air()
    for name in names:
        running[name], keepers[name] = await entered(name, client, air, settings)
    token = current.set(client)
    try:
        yield client, running, keepers, air
    finally:
        current.reset(token)
        for node in running.values():
            await node.stop()
        await client.close()
        await substrate.close()


def die(node: Node, air: Air) -> None:
    air.silent.add(node.name)
    node._close_all()
    node.kill()
