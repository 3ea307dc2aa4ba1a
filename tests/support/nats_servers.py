"""Real NATS servers as a test wants them, and what stands between them and a client: a proxy, a peer that talks nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import StreamInfo

from mielin_cells.errors import CellError, RetryError
from mielin_cells.substrate.jetstream import JetStream
from mielin_cells.substrate.jetstream.server import find_program
from mielin_cells.substrate.ports import Appended, Entry, Log, Outcome, Unknown

WAIT_S = 60.0
"""Nothing here takes that long; what waits for it has failed."""


def _state(thread: Path) -> str:
    """One letter, of a thread's folder in /proc."""
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]


class NatsServer:
    """A server with settings of its own.  Its port stays when it is killed and started again."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.port = -1
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def url_of(self, user: str, password: str = "secret") -> str:
        return f"nats://{user}:{password}@127.0.0.1:{self.port}"

    def _launch(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob("*.ports"):
            old.unlink()
        settings = {"host": "127.0.0.1", "port": self.port, "ports_file_dir": str(self.folder), **self._settings}
        if settings.setdefault("jetstream", {}) is not None:
            settings["jetstream"] = {"store_dir": str(self.folder / "data"), **settings["jetstream"]}
        else:
            del settings["jetstream"]
        config = self.folder / "nats.conf"
        config.write_text(json.dumps(settings))
        with open(self.folder / "nats.log", "ab") as log:
            return subprocess.Popen(
                [find_program().path, "-c", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    async def start(self) -> None:
        """Returns when it takes connections."""
        if self.port < 0:
            (self.port,) = free_ports(1)
        self._process = self._launch()
        async with asyncio.timeout(WAIT_S):
            while (port := self._listening()) is None:
                assert self._process.poll() is None, (self.folder / "nats.log").read_text()
                await asyncio.sleep(0.002)
        self.port = port

    def _listening(self) -> int | None:
        """The port that the server says, once it listens and the file is whole."""
        try:
            address: str = json.loads(next(self.folder.glob("*.ports")).read_text())["nats"][0]
        except (StopIteration, OSError, ValueError):
            return None
        return urlsplit(address).port

    @property
    def name(self) -> str:
        """In a cluster."""
        return str(self._settings.get("server_name", ""))

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def is_running(self) -> bool:
        """Also of one that is stopped by a signal."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int) -> None:
        """Of SIGSTOP, returns when every thread has stopped: one that is running goes on for a moment."""
        if self._process is None:
            return
        self._process.send_signal(number)
        if number == signal.SIGSTOP:
            threads = Path(f"/proc/{self._process.pid}/task")
            while any(_state(thread) not in "Tt" for thread in threads.iterdir()):
                time.sleep(0.001)

    def kill(self) -> None:
        """As `kill -9`: it has no time for anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.asynccontextmanager
async def nats_server(folder: Path, **settings: Any) -> AsyncIterator[NatsServer]:
    """A server with JetStream (`jetstream=None`: without) and the given settings."""
    server = NatsServer(folder, settings)
    try:
        await server.start()
        yield server
    finally:
        server.kill()


@contextlib.asynccontextmanager
async def nats_cluster(
    folder: Path, count: int = 3, advertise: bool = True, leafs: Sequence[int] = (), **settings: Any
) -> AsyncIterator[list[NatsServer]]:
    """`leafs`: the ports at which its servers listen for leaf servers, one each."""
    async with contextlib.AsyncExitStack() as stack:
        ports = free_ports(count)
        routes = [f"nats://127.0.0.1:{port}" for port in ports]
        servers = []
        for n, port in enumerate(ports):
            cluster = {"name": "c", "host": "127.0.0.1", "port": port, "routes": routes, "no_advertise": not advertise}
            own = {"leafnodes": {"host": "127.0.0.1", "port": leafs[n]}} if leafs else {}
            made = nats_server(folder / str(n), server_name=f"s{n}", cluster=cluster, **own, **settings)
            servers.append(await stack.enter_async_context(made))
        yield servers


def free_ports(count: int) -> list[int]:
    """Ports that nobody else is given until this process ends, on which nothing listens yet: a connection is refused at once.

    A server that names one can listen on it, also again after its death.  Each is bound and not listened on: the system
    gives such a port to nobody who does not name it.  A port that was only looked up would be the next test's server's.
    """
    found = list[int]()
    for _ in range(count):
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        found.append(held.getsockname()[1])
        held.detach()  # open until the process ends
    return found


def free_neighbours() -> int:
    """The first of two ports side by side, both as of `free_ports`."""
    while True:
        (port,) = free_ports(1)
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind(("127.0.0.1", port + 1))
        except OSError:
            held.close()
            continue
        held.detach()  # open until the process ends
        return port


@contextlib.asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[JetStream]:
    substrate = await JetStream.open(url, **options)
    try:
        yield substrate
    finally:
        await substrate.close()


async def list_streams(client: Client) -> list[StreamInfo]:
    """All streams of a server.  It lists 256 at a time, and the tests of a session share one server."""
    found = list[StreamInfo]()
    while page := await client.jetstream().streams_info(offset=len(found)):
        found += page
    return found


@contextlib.asynccontextmanager
async def raw_client(url: str) -> AsyncIterator[Client]:
    """Another program on the same server: it may send what ours never would."""

    async def quiet(_: Exception) -> None:
        """What a test makes wrong on purpose is not for the log."""

    client = await nats.connect(url, error_cb=quiet, skip_subject_validation=True)
    try:
        yield client
    finally:
        await client.close()


async def raw_lines(url: str, lines: bytes) -> None:
    """Sends bytes that no client library would, and returns when the server has taken them."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        user = {"user": parts.username, "pass": parts.password} if parts.username else {}
        connect = json.dumps({"verbose": False, "headers": True, "no_responders": True, **user})
        writer.write(f"CONNECT {connect}\r\n".encode() + lines + b"PING\r\n")
        async with asyncio.timeout(WAIT_S):
            while (line := await reader.readline()) != b"PONG\r\n":
                assert line, "the server closed the connection"
                assert not line.startswith(b"-ERR"), line
    finally:
        writer.close()
        await writer.wait_closed()


class Proxy:
    """Between a client and a server, or whichever of several takes a connection.

    What the server sends goes through `alter`; `cut` breaks every connection.  `hold` is a network that is cut in one direction or
    in both: what is sent that way waits, as what TCP sends again and again; `release` delivers it late.
    """

    def __init__(self, *ports: int) -> None:
        self.alter: Callable[[bytes], bytes] = bytes
        self.port = 0
        self._ports = ports
        self._to_server, self._to_client = asyncio.Event(), asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self.release()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def is_held(self) -> bool:
        return not (self._to_server.is_set() and self._to_client.is_set())

    def hold(self, *, to_server: bool = False, to_client: bool = False) -> None:
        """New connections do not come about either, until `release`."""
        if to_server:
            self._to_server.clear()
        if to_client:
            self._to_client.clear()

    def release(self) -> None:
        self._to_server.set()
        self._to_client.set()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await way.wait()
                writer.write(self.alter(data) if way is self._to_client else data)
                await writer.drain()
        writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, there = await self._upstream()
        both = {writer, there}
        self._writers |= both
        try:
            await asyncio.gather(
                self._pump(reader, there, self._to_server), self._pump(upstream, writer, self._to_client)
            )
        finally:
            self._writers -= both
            await _closed(there)

    async def _upstream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Each time another server is the first to be tried.  Raises `OSError` if none is there."""
        self._ports = self._ports[1:] + self._ports[:1]
        for port in self._ports[:-1]:
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return await asyncio.open_connection("127.0.0.1", self._ports[-1])

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], port: int = 0
) -> AsyncIterator[int]:
    """A port on which `serve` talks to whoever connects, until the end."""
    talks: set[asyncio.Future[None]] = set()
    handles: set[asyncio.Task[None] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handles.add(asyncio.current_task())
        talk = asyncio.ensure_future(serve(reader, writer))
        talks.add(talk)
        await asyncio.wait((talk,))
        await _closed(writer)

    server = await asyncio.start_server(handle, "127.0.0.1", port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for talk in talks:
            talk.cancel()
        results = await asyncio.gather(*talks, *filter(None, handles), return_exceptions=True)
        assert not [one for one in results if isinstance(one, Exception) and not isinstance(one, OSError)], results


@contextlib.asynccontextmanager
async def proxied(*servers: NatsServer) -> AsyncIterator[Proxy]:
    proxy = Proxy(*(server.port for server in servers))
    async with listening(proxy.serve) as proxy.port:
        yield proxy
        proxy.cut()
        proxy.release()


async def stored(log: Log, subject: str, data: bytes, expect: int | None = None) -> int:
    """The sequence of an append that must be stored."""
    outcome = await log.append(subject, data, expect)
    assert isinstance(outcome, Appended), outcome
    return outcome.seq


async def insisted(log: Log, subject: str, data: bytes, expect: int) -> Outcome:
    """A conditional append, tried again until it is known what became of it: a conflict may be with itself."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(RetryError):
                outcome = await log.append(subject, data, expect)
                if not isinstance(outcome, Unknown):
                    return outcome
            await asyncio.sleep(0.02)


async def followed(log: Log, subject: str, count: int, after: int = 0) -> list[Entry]:
    """The first `count` entries that a tail gives."""
    found: list[Entry] = []
    tail = log.tail(subject, after)
    try:
        async with asyncio.timeout(WAIT_S):
            async for batch in tail:
                found += batch
                if len(found) >= count:
                    break
    finally:
        tail.close()
    return found


async def refused(call: Awaitable[object], *kinds: type[CellError]) -> CellError:
    """The error that the call raises, in bounded time, with a sentence that says what to do and shows no secret."""
    with pytest.raises(kinds) as found:
        async with asyncio.timeout(WAIT_S):
            await call
    error = found.value
    assert str(error).endswith("."), error
    assert "secret" not in str(error)
    return error
