"""Nodes of one process that die, fall silent, and watch each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.membership.heartbeat import Listener, Speaker, decode_beat
from mielin_cells.membership.table import read_members
from mielin_cells.node.failover import Failover
from mielin_cells.node.node import Node
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
    """What keeps heartbeats from being heard."""

    def __init__(self) -> None:
        self.silent: set[str] = set()
        """Nobody hears these."""
        self.deaf: set[str] = set()
        """These hear nobody."""
        self.deaf_to: set[tuple[str, str]] = set()
        """The first of these does not hear the second."""
        self.stuck: dict[str, float] = {}
        """For how long the main loops of these have not answered."""


class Ear(Listener):
    def __init__(self, name: str, air: Air) -> None:
        super().__init__()
        self._name = name
        self._air = air

    def receive(self, data: bytes) -> None:
        air, node = self._air, decode_beat(data).node
        if self._name not in air.deaf and node not in air.silent and (self._name, node) not in air.deaf_to:
            super().receive(data)


async def speak(node: Node, listener: Listener, air: Air) -> None:
    speaker = Speaker(node.home.wire, listener)
    try:
        while True:
            await speaker.beat(node.beat(air.stuck.get(node.name, 0.0)), node.leads)
            await asyncio.sleep(node.settings.heartbeat_s)
    finally:
        speaker.close()


async def enter(opened: Deployment, air: Air, name: str, settings: cells.Settings = QUICK, **options: Any) -> Failover:
    """Starts a node that hears what is in the air.  `options` are `Node`'s."""
    listener = Ear(name, air)
    node = opened.make(name, settings=settings, listener=listener, **options)
    await node.start(lambda: node.home.begin(speak(node, listener, air)))
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


async def leader_of(client: Client, *but: str) -> str:
    """The node that leads, once one does that is none of these."""
    async with asyncio.timeout(60):
        while (name := (await read_members(client.log)).leader[0]) in {"", *but}:
            await asyncio.sleep(0.01)
    return name
