"""Nodes of one process that die, fall silent, and watch each other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.node.failover import Failover
from mielin_cells.node.node import Node
from mielin_cells.rpc.answers import Beat
from support.nodes import Deployment, deployment

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


async def enter(opened: Deployment, air: Air, name: str, settings: cells.Settings = QUICK) -> Failover:
    """Starts a node that hears what is in the air."""
    node = opened.make(name, settings=settings, heard=lambda: air.heard_by(name, opened.nodes[name]))
    await node.start()
    air.last[name] = node.activations.clock()
    return node.failover


@asynccontextmanager
async def watching(
    *names: str, settings: cells.Settings = QUICK
) -> AsyncIterator[tuple[Deployment, dict[str, Failover], Air]]:
    async with deployment(settings=settings) as opened:
        air = Air()
        yield opened, {name: await enter(opened, air, name, settings) for name in names}, air


@asynccontextmanager
async def nodes(
    *names: str, settings: cells.Settings = QUICK
) -> AsyncIterator[tuple[Client, dict[str, Node], dict[str, Failover], Air]]:
    async with watching(*names, settings=settings) as (opened, keepers, air):
        yield opened.client, opened.nodes, keepers, air


def die(node: Node, air: Air) -> None:
    air.silent.add(node.name)
    node._close_all()
    node.kill()
