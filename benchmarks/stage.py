"""What is measured between processes: a server of its own, a process for each node, and the floor's process beside them."""

from __future__ import annotations

import json
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figures import Sync
from benchmarks.floors import floor_beside
from benchmarks.peer import Peer
from mielin_cells.client.client import Client
from mielin_cells.deployment.connect import Address, connect, open_substrate
from mielin_cells.deployment.fleet import Fleet
from mielin_cells.errors import CellError
from mielin_cells.substrate.jetstream.server import Server, find_program

APP = "benchmarks.agents"

LARGE = """
[settings]
state_bytes_max = 4294967296
prepare_s = 60.0
migration_s = 600.0
probation_s = 120.0
"""
"""Nodes that take a state of 1 GiB with what belongs to it, and have time to."""


@dataclass(slots=True)
class Stage:
    cluster: Client
    fleet: Fleet
    floor: Peer
    url: str
    server: str
    """Its version."""
    lines: list[tuple[float, str]]
    """What nodes have logged, and when it was read."""
    monitor: str = ""
    """The address of the server's own counters."""

    def heard(self, words: str) -> float:
        """When a node first said so.  Raises `LookupError`."""
        return next(at for at, line in self.lines if words in line)

    def counted(self, page: str) -> dict[str, Any]:
        """What the server counts itself, by the name of the page."""
        with urllib.request.urlopen(f"{self.monitor}/{page}") as answer:
            counts: dict[str, Any] = json.load(answer)
        return counts

    def sent_bytes(self) -> int:
        """What the server has sent to all connections since it started."""
        count: int = self.counted("varz")["out_bytes"]
        return count

    def sent_to(self) -> dict[int, int]:
        """By connection that is open, what the server has sent to it."""
        return {one["cid"]: one["out_bytes"] for one in self.counted("connz?limit=10000")["connections"]}

    def processes(self) -> dict[str, psutil.Process]:
        """The nodes that run, the server, and this client."""
        running = [child for child in self.fleet.children if child.process is not None]
        server = next(one for one in psutil.Process().children(recursive=True) if one.name() == "nats-server")
        return {
            **{child.name: self.process(child.name) for child in running},
            "server": server,
            "client": psutil.Process(),
        }

    def process(self, node: str) -> psutil.Process:
        child = next(child for child in self.fleet.children if child.name == node)
        assert child.process is not None
        return psutil.Process(child.process.pid)


@asynccontextmanager
async def staged(nodes: int, sync: Sync, settings: str = "", app: str = APP) -> AsyncIterator[Stage]:
    """Up and serving; ended with the block, and what it has stored is gone."""
    with tempfile.TemporaryDirectory(prefix="mielin-bench-") as folder:
        port = _free_port()
        server = await Server.start(Path(folder) / "server", sync=sync, program=_monitored(Path(folder), port))
        try:
            address = Address(server.url, sync=server.sync)
            substrate = await open_substrate(address)  # makes the streams before the nodes all want to
            version = substrate.server_version
            await substrate.close()
            lines = list[tuple[float, str]]()
            fleet = Fleet(app, address, lambda event: _tell(event, lines), (), _configured(Path(folder), settings))
            try:
                fleet.start(nodes)
                await fleet.serving()
                if fleet.failed.done():
                    child = fleet.failed.result()
                    raise CellError(f"{child.name} could not start: {child.last_line}.")
                async with connect(address.url) as cluster, floor_beside(address.url) as floor:
                    assert isinstance(cluster, Client)
                    yield Stage(cluster, fleet, floor, address.url, version, lines, f"http://127.0.0.1:{port}")
            finally:
                await fleet.stop()
        finally:
            await server.stop()


def _free_port() -> int:
    """Nobody else is given it until this process ends: it is bound, and not listened on.  A server that names it can listen."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    port: int = held.getsockname()[1]
    held.detach()
    return port


def _monitored(folder: Path, port: int) -> Path:
    """A program that is the server with its own counters, which the loopback's are no substitute for: others use that, too."""
    path = folder / "monitored" / "nats-server"  # its ports file bears this name
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec "{find_program().path}" "$@" --addr 127.0.0.1 --http_port {port}\n')
    path.chmod(0o700)
    return path


def _configured(folder: Path, settings: str) -> Sequence[str]:
    if not settings:
        return ()
    path = folder / "bench.toml"
    path.write_text(settings)
    return ("--config", str(path))


def _tell(event: dict[str, Any], lines: list[tuple[float, str]]) -> None:
    """What nodes log; of that, warnings are shown."""
    if event.get("event") != "log":
        return
    lines.append((time.perf_counter(), event["line"]))
    if " INFO " not in event["line"]:
        print(f"{event['node']} | {event['line']}", file=sys.stderr, flush=True)
