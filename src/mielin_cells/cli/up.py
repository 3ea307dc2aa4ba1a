"""`mielin up`: a server and nodes here, shown while they run, and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from mielin_cells.cli.command import finish
from mielin_cells.cli.display import Display, Served, print_event
from mielin_cells.cli.options import ANY, HERE, NODES_MAX, App, Config, Metrics, NatsServer, Streams, Sync
from mielin_cells.cli.options import Server as Connection
from mielin_cells.cli.show import Printer
from mielin_cells.deployment.codes import DONE, FAILED, INTERRUPTED
from mielin_cells.deployment.config import find as find_config
from mielin_cells.deployment.connect import ADDRESS_FILE, DEPLOYMENT, DEPLOYMENT_VARIABLE, Address, open_substrate
from mielin_cells.deployment.deploys.follower import fleet_name, follow_deploys
from mielin_cells.deployment.fleet import Fleet
from mielin_cells.deployment.folder import hold
from mielin_cells.errors import ConfigError, StoreUnreachable, never
from mielin_cells.metrics.place import Place
from mielin_cells.substrate.jetstream.server import Server
from mielin_cells.tasks.supervision import supervised

POLL_S = 0.1
"""How often the server's process is checked."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    app: App
    nodes: Annotated[
        int, Parameter(validator=Number(gte=1, lte=NODES_MAX), help="How many nodes; each is a process.")
    ] = 3
    sync: Sync = "always"
    dir: Annotated[Path, Parameter(help="The folder for data, credential and address.")] = Path(".mielin")
    nats_server: NatsServer = None
    config: Config = None
    metrics: Metrics = None
    streams: Streams = ANY
    server: Connection = HERE


def up(options: Options) -> int:
    """Exits with 0 after Ctrl-C or SIGTERM, 2 for an app that cannot be used, 1 if the server ends by itself."""

    def work(printer: Printer) -> int:
        config = find_config(options.config)  # reports a mistake in it before anything is started
        text = options.metrics or config.node.metrics
        return asyncio.run(_run(options, printer, Place(text) if text is not None else None))

    return finish(options.server.json, work, logging.WARNING)


async def _run(options: Options, printer: Printer, metrics: Place | None) -> int:
    ending, folder = _Ending(), options.dir
    event = {"event": "waiting", "for": "an earlier `mielin up` to end"}
    async with hold(folder, lambda: print_event(printer, event)) as lock, _serve(options) as served:
        served.address.write(folder)
        try:
            return await _run_nodes(options, printer, ending, lock, served, metrics)
        finally:
            (folder / ADDRESS_FILE).unlink(missing_ok=True)


@asynccontextmanager
async def _serve(options: Options) -> AsyncIterator[Served]:
    """The server that --connect names, or one that is started here."""
    if options.server.connect is not None:
        address = options.streams.of(options.server.address())
        facts: dict[str, Any] = {"url": address.shown, "ours": False, "deployment": address.deployment}
        with contextlib.suppress(StoreUnreachable):  # the nodes wait for it, and say so
            facts.update(await _make_streams(address))
        yield Served(address, facts, None)
        return
    server = await Server.start(options.dir, sync=options.sync, program=options.nats_server)
    ended: asyncio.Task[int] | None = None
    try:
        deployment = options.server.deployment or os.environ.get(DEPLOYMENT_VARIABLE) or DEPLOYMENT
        address = options.streams.of(Address(server.url, sync=server.sync, deployment=deployment))
        facts = {
            "url": address.shown, "ours": True, "deployment": deployment, **await _make_streams(address), "sync": options.sync,
            "process": server.process.pid, "folder": str(options.dir),
        }  # fmt: skip
        ended = asyncio.create_task(_wait_for_end(server))
        yield Served(address, facts, ended)
    finally:
        if ended is not None:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)
        await server.stop()


async def _make_streams(address: Address) -> dict[str, Any]:
    """Makes the streams before all nodes try to; what the deployment has."""
    substrate = await open_substrate(address)
    try:
        return {"version": substrate.server_version, "replicas": substrate.replicas, "shards": substrate.shards}
    finally:
        await substrate.close()


async def _wait_for_end(server: Server) -> int:
    while (code := server.process.poll()) is None:
        await asyncio.sleep(POLL_S)
    return code


async def _run_nodes(
    options: Options, printer: Printer, ending: _Ending, lock: int, served: Served, metrics: Place | None
) -> int:
    display = Display(printer, served, lambda: ending.end(signal.SIGPIPE))
    config = ("--config", str(options.config)) if options.config is not None else ()
    name = fleet_name(options.dir)
    ending.fleet = fleet = Fleet(options.app, served.address, display.say, (lock,), config, name, metrics)
    with display:
        display.children = fleet.children
        display.say({"event": "server", **served.facts})
        watching = asyncio.create_task(display.watch())
        fleet.start(options.nodes)
        following = asyncio.create_task(supervised("following deploys", partial(follow_deploys, fleet, served.address)))
        ends: list[asyncio.Future[Any]] = [asyncio.ensure_future(ending.event.wait()), fleet.failed]
        if served.ended is not None:
            ends.append(served.ended)
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            following.cancel()
            ends[0].cancel()
            display.say({"event": "stopping", "reason": ending.reason or "failure"})
            await fleet.stop()
            await asyncio.gather(watching, following, ends[0], return_exceptions=True)
            display.say({"event": "stopped"})
    if fleet.failed.done():
        child = fleet.failed.result()
        raise ConfigError(child.last_line or f"{child.name} could not start.", field="app", range="an app that imports")
    if ending.reason:
        return DONE
    if served.ended is None:
        raise never("the nodes stopped without a reason")
    print_event(printer, {"event": "server", "state": "ended", "code": served.ended.result()})
    return FAILED


class _Ending:
    """Why everything is to stop: Ctrl-C, SIGTERM, or the end of the terminal.  A second Ctrl-C kills everything at once."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.reason = ""
        self.fleet: Fleet | None = None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.end, number)

    def end(self, number: signal.Signals) -> None:
        if self.reason and number == signal.SIGINT:
            if self.fleet is not None:
                self.fleet.kill()
            os._exit(INTERRUPTED)  # the server follows: its standard input ends with this process
        self.reason = self.reason or number.name
        self.event.set()
