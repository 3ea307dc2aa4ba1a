"""Where the demo runs: node processes on a server of its own, or nodes in this process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import mielin_cells as cells
from mielin_cells.deployment.connect import Address, connect, open_substrate
from mielin_cells.deployment.deploys.follower import fleet_name, follow_deploys
from mielin_cells.deployment.fleet import Fleet
from mielin_cells.errors import CellError
from mielin_cells.substrate.jetstream.server import Server

Sync: TypeAlias = Literal["always", "lazy"]

APP = "mielin_cells.demo.flights"

SOON = """
[recovery]
initial_retry_delay_secs = 0.25
max_retry_delay_secs = 2.0
"""
"""Retries come soon, so that faults and kills do not hold the job up for minutes."""

SHORT = """
[settings]
prepare_s = 1.0
"""
"""A node gives up soon on a request that a fault has swallowed."""


class Stage(NamedTuple):
    """A deployment, what the report says of it, its server's URL, and its node processes if it has any."""

    cluster: cells.Cluster
    facts: dict[str, Any]
    url: str = ""
    fleet: Fleet | None = None


@asynccontextmanager
async def embedded(nodes: int, path: Path, sync: Sync) -> AsyncIterator[Stage]:
    """Nodes in this process on the file `path`."""
    async with cells.local(nodes=nodes, path=path, sync="power" if sync == "always" else "process") as cluster:
        yield Stage(cluster, {"substrate": "embedded", "server": None, "sync": sync})


@asynccontextmanager
async def processes(
    nodes: int, folder: Path, sync: Sync, program: Path | None, app: str = APP, faults: str | None = None,
    kills: bool = False, deploys: bool = False,
) -> AsyncIterator[Stage]:  # fmt: skip
    """A server with its data in `folder`, and a process for each node; this one is only a client of them.

    `kills`: nodes will be killed.  `deploys`: the fleet follows deploys.

    Raises `ConfigError` if there is no server program, `CellError` if a node cannot start.
    """
    server = await Server.start(folder, sync=sync, program=program)
    try:
        address = Address(server.url, sync=server.sync)
        substrate = await open_substrate(address)  # makes the streams before the nodes all want to
        version = substrate.server_version
        await substrate.close()
        name = fleet_name(folder) if deploys else ""
        fleet = Fleet(app, address, _print_event, (), _fault_options(folder, faults, kills or deploys), name)
        following = asyncio.create_task(follow_deploys(fleet, address)) if deploys else None
        try:
            fleet.start(nodes)
            await fleet.serving()
            if fleet.failed.done():
                child = fleet.failed.result()
                raise CellError(f"{child.name} could not start: {child.last_line}.")
            async with connect(address.url) as cluster:
                yield Stage(cluster, {"substrate": "jetstream", "server": version, "sync": sync}, address.url, fleet)
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            await fleet.stop()
    finally:
        await server.stop()


def _fault_options(folder: Path, faults: str | None, kills: bool) -> list[str]:
    """Options that inject the faults into nodes, and have nodes retry soon."""
    if faults is None and not kills:
        return []
    path = folder / "soon.toml"
    path.write_text(SOON + (SHORT if faults is not None else ""))
    return ["--config", str(path), *(["--faults", faults] if faults is not None else [])]


def _print_event(event: dict[str, Any]) -> None:
    """Prints what nodes log, and nodes that end by themselves; that nodes start and stop is expected."""
    if event.get("event") == "log":
        print(f"{event['node']} | {event['line']}", file=sys.stderr, flush=True)
    elif event.get("state") == "crashed":
        why = event.get("reason") or f"has ended by itself (code {event['code']})"
        print(f"{event['node']} {why}", file=sys.stderr, flush=True)
