"""What the nodes store in: one server, or a cluster of three that keeps three copies; and how it is harmed and healed.

A harm to one stream of logs is done to any of its shards.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import resource
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
from support.nats_servers import NatsServer, free_ports, raw_client

from mielin_cells.errors import CellError
from mielin_cells.substrate.jetstream import DEPLOYMENT, JetStream
from mielin_cells.substrate.jetstream.api import stream_name
from mielin_cells.substrate.jetstream.index import index_name
from mielin_cells.substrate.jetstream.places import NOTE, place_of
from mielin_cells.substrate.ports import Appended

HEALTHY_S = 90.0
"""A store that takes no append this long after it was healed has failed."""

ASKED_S = 2.0

SMALL_FILE_BYTES = 4096
"""A server that may write no larger file can append to none that it has."""


class Store:
    """Whatever is done to it is undone by `heal`."""

    def __init__(self, name: str, servers: list[NatsServer], shards: int) -> None:
        self.name = name
        self.servers = servers
        self.streams = [stream_name(DEPLOYMENT, "log", shard) for shard in range(shards)]
        self._probes = [_probe_in(stream, shards) for stream in self.streams]

    @property
    def replicas(self) -> int:
        return len(self.servers)

    async def kill(self, number: int) -> None:
        """As `kill -9`."""
        await asyncio.to_thread(self.servers[number].kill)

    async def start(self, number: int) -> None:
        """Starts it again on its data, if it is down."""
        if not self.servers[number].is_running:
            await self.servers[number].start()

    async def leader(self, stream: str) -> int:
        """The number of the server that leads the stream; of any if nobody says."""
        info = await self._asked(f"STREAM.INFO.{stream}", {})
        leader = (info.get("cluster") or {}).get("leader", "")
        names = [server.name for server in self.servers]
        return names.index(leader) if leader in names else 0

    async def generation(self) -> int:
        """Of the index of owners: how many times it was made.  0 if nobody says."""
        wanted = {"last_by_subj": f"{DEPLOYMENT}.log.0.{NOTE}"}
        said = await self._asked(f"STREAM.MSG.GET.{stream_name(DEPLOYMENT, 'log', 0)}", wanted)
        return int(base64.b64decode((said.get("message") or {}).get("data", "")) or 0)

    async def index(self) -> str:
        """The stream that is the index of owners now."""
        return index_name(DEPLOYMENT, await self.generation())

    async def delete_index(self) -> bool:
        """False if it could not be done."""
        return bool((await self._asked(f"STREAM.DELETE.{await self.index()}", {})).get("success"))

    async def fill(self, stream: str) -> bool:
        """The stream takes no more: every append is refused, until `empty`.  False if it could not be done."""
        return await self._limited(stream, 1)

    async def empty(self, stream: str) -> bool:
        return await self._limited(stream, -1)

    async def _limited(self, stream: str, max_bytes: int) -> bool:
        config = (await self._asked(f"STREAM.INFO.{stream}", {})).get("config")
        if config is None:
            return False
        answer = await self._asked(f"STREAM.UPDATE.{stream}", {**config, "max_bytes": max_bytes})
        return "config" in answer

    def limit_files(self, number: int) -> None:
        """Writes of the server fail with "file too large", until it is killed and started again: it does not get over that."""
        pid = self.servers[number].pid
        if pid is not None:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (SMALL_FILE_BYTES, resource.RLIM_INFINITY))

    async def _asked(self, what: str, data: dict[str, Any]) -> dict[str, Any]:
        """The answer of the first server that gives one; {} if none does."""
        for server in self.servers:
            if not server.is_running:
                continue
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                async with asyncio.timeout(2 * ASKED_S), raw_client(server.url) as client:
                    body = json.dumps(data).encode() if data else b""
                    found: dict[str, Any] = json.loads((await client.request(f"$JS.API.{what}", body, ASKED_S)).data)
                    return found
        return {}

    async def heal(self) -> None:
        """Everything runs, nothing is full, and an append is taken.  Raises `TimeoutError`: then it is not over it."""
        for server in self.servers:
            server.signal(signal.SIGCONT)
        for number in range(len(self.servers)):
            await self.start(number)
        async with asyncio.timeout(HEALTHY_S):
            for stream in self.streams:
                while not await self.empty(stream):
                    await asyncio.sleep(0.2)
            while not await self._takes():
                for number in range(len(self.servers)):  # one may have been killed just when all were started
                    await self.start(number)
                await asyncio.sleep(0.2)

    async def _takes(self) -> bool:
        """True if every shard takes an append."""
        with contextlib.suppress(CellError, TimeoutError):
            async with asyncio.timeout(2 * ASKED_S):
                substrate = await JetStream.open(self.servers[0].url, replicas=self.replicas, shards=len(self.streams))
                try:
                    return all([isinstance(await substrate.log.append(probe, b""), Appended) for probe in self._probes])
                finally:
                    await substrate.close()
        return False

    async def make(self) -> None:
        """The deployment's streams, before the first node wants them.  A cluster elects first."""
        async with asyncio.timeout(HEALTHY_S):
            while not await self._takes():
                await asyncio.sleep(0.2)


def _probe_in(stream: str, shards: int) -> str:
    """A subject of this stream that nobody else uses."""
    subjects = (f"torture.probe{number}" for number in itertools.count())
    return next(subject for subject in subjects if place_of(DEPLOYMENT, shards, subject).stream == stream)


@contextlib.asynccontextmanager
async def store(folder: Path, count: int, shards: int) -> AsyncIterator[Store]:
    """One server, or a cluster; it has its streams when this is entered."""
    ports = free_ports(count)
    servers = []
    for number in range(count):
        settings: dict[str, Any] = {"server_name": f"s{number}", "max_payload": 1024 * 1024}
        if count > 1:
            routes = [f"nats://127.0.0.1:{port}" for port in ports]
            # Not advertised: a client that knew the others would go around its proxy.
            settings["cluster"] = {
                "name": "torture", "host": "127.0.0.1", "port": ports[number], "routes": routes, "no_advertise": True,
            }  # fmt: skip
        servers.append(NatsServer(folder / f"s{number}", settings))
    made = Store("single server" if count == 1 else f"cluster of {count}", servers, shards)
    try:
        await asyncio.gather(*(server.start() for server in servers))
        await made.make()
        yield made
    finally:
        for server in servers:
            server.kill()
