"""Servers that are no single cluster: two clusters with gateways between them, and leaf servers of a hub."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from mielin_cells.errors import StoreUnreachable
from mielin_cells.substrate.jetstream import JetStream
from support.nats_servers import WAIT_S, NatsServer, free_ports, listening, nats_server

SIZES = {"east": 3, "west": 1}


@contextlib.asynccontextmanager
async def supercluster(
    folder: Path, sizes: dict[str, int] = SIZES, distance_s: float = 0.0
) -> AsyncIterator[dict[str, list[NatsServer]]]:
    """Clusters by name.  Their servers have the tag `region:NAME`.

    `distance_s`: what is sent from one cluster to another arrives so much later.
    """
    gateways = {name: free_ports(size) for name, size in sizes.items()}
    async with contextlib.AsyncExitStack() as stack:
        ways = gateways
        if distance_s:
            ways = {
                name: [await stack.enter_async_context(_far(port, distance_s)) for port in ports]
                for name, ports in gateways.items()
            }
        yield await stack.enter_async_context(_clusters(folder, sizes, gateways, ways))


@contextlib.asynccontextmanager
async def _far(port: int, distance_s: float) -> AsyncIterator[int]:
    """A port that passes what it gets on to this one, later, and what comes back likewise."""
    loop = asyncio.get_running_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                loop.call_later(distance_s, writer.write, data)
        loop.call_later(distance_s, writer.close)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(pump(reader, there), pump(back, writer))
        finally:
            there.close()

    async with listening(serve) as open_port:
        yield open_port


@contextlib.asynccontextmanager
async def _clusters(
    folder: Path, sizes: dict[str, int], gateways: dict[str, list[int]], ways: dict[str, list[int]]
) -> AsyncIterator[dict[str, list[NatsServer]]]:
    known = [{"name": name, "urls": [f"nats://127.0.0.1:{port}" for port in ports]} for name, ports in ways.items()]
    clusters = dict[str, list[NatsServer]]()
    for name, size in sizes.items():
        routes = free_ports(size)
        for number in range(size):
            settings: dict[str, Any] = {
                "server_name": f"{name}-{number}", "server_tags": [f"region:{name}"],
                "cluster": {
                    "name": name, "host": "127.0.0.1", "port": routes[number],
                    "routes": [f"nats://127.0.0.1:{port}" for port in routes],
                },
                "gateway": {
                    "name": name, "host": "127.0.0.1", "port": gateways[name][number], "gateways": known,
                    "advertise": f"127.0.0.1:{ways[name][number]}",
                },
            }  # fmt: skip
            clusters.setdefault(name, []).append(NatsServer(folder / f"{name}-{number}", settings))
    servers = [server for cluster in clusters.values() for server in cluster]
    try:
        await asyncio.gather(*(server.start() for server in servers))
        yield clusters
    finally:
        for server in servers:
            server.kill()


@contextlib.asynccontextmanager
async def leaf(folder: Path, ports: list[int], **settings: Any) -> AsyncIterator[NatsServer]:
    """A leaf server of the hub that listens for leafs at these ports."""
    remotes = [{"urls": [f"nats://127.0.0.1:{port}" for port in ports]}]
    async with nats_server(folder, server_name="leaf", leafnodes={"remotes": remotes}, **settings) as server:
        yield server


async def open_when_led(url: str, **options: Any) -> JetStream:
    """Once the servers have elected who leads."""
    async with asyncio.timeout(2 * WAIT_S):
        while True:
            with contextlib.suppress(StoreUnreachable):
                return await JetStream.open(url, **options)
            await asyncio.sleep(0.1)
