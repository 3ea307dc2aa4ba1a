"""`mielin up`: a server and nodes here, shown while they live, and ended together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mielin_cells.cli.link import log_to_stderr
from mielin_cells.cli.show import Printer, duration, to_nowhere
from mielin_cells.deployment.codes import DONE, FAILED, INTERRUPTED, code_of
from mielin_cells.deployment.config import find as find_config
from mielin_cells.deployment.connect import (
    ADDRESS_FILE,
    DEPLOYMENT,
    DEPLOYMENT_VARIABLE,
    Address,
    connected,
    open_substrate,
)
from mielin_cells.deployment.fleet import Child, Fleet
from mielin_cells.deployment.folder import Folder, take
from mielin_cells.errors import CellError, ConfigError, StoreUnreachable, never
from mielin_cells.substrate.jetstream.server import Server

if TYPE_CHECKING:
    from mielin_cells.cli.app import Server as Connection
    from mielin_cells.cli.app import Streams

NODES_MAX = 64
"""Processes on one machine; more of them are for tools that run fleets."""

REFRESH_S = 0.5
WATCH_S = 0.1
POLL_S = 1.0
"""How often a live table asks the nodes for their agents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    app: str
    nodes: int
    sync: Literal["always", "lazy"]
    folder: Path
    config: Path | None
    nats_server: Path | None
    server: Connection
    streams: Streams


@dataclass(frozen=True, slots=True)
class Served:
    """The server: where it is, what it says of itself, and (if it is ours) when it ends."""

    address: Address
    facts: dict[str, Any]
    ended: asyncio.Future[int] | None


def run(wanted: Wanted) -> int:
    """The exit code: 0 after Ctrl-C or SIGTERM, 2 for an app that cannot be used, 1 if the server ends."""
    log_to_stderr(logging.WARNING)
    printer = Printer(wanted.server.json)
    try:
        if not 1 <= wanted.nodes <= NODES_MAX:
            wish = f"1 to {NODES_MAX}"
            raise ConfigError(f"--nodes {wanted.nodes} is out of range; wanted: {wish}.", field="nodes", range=wish)
        find_config(wanted.config)  # a mistake in it is told before anything is started
        return asyncio.run(_up(wanted, printer))
    except CellError as error:
        printer.fail(error)
        return code_of(error)


async def _up(wanted: Wanted, printer: Printer) -> int:
    ending = _Ending()
    folder = await take(
        wanted.folder, lambda: printer.show(*_event({"event": "waiting", "for": "an earlier run to end"}))
    )
    try:
        async with _server(wanted, folder) as served:
            served.address.write(folder.path)
            try:
                return await _nodes(wanted, printer, ending, folder, served)
            finally:
                (folder.path / ADDRESS_FILE).unlink(missing_ok=True)
    finally:
        folder.close()


@asynccontextmanager
async def _server(wanted: Wanted, folder: Folder) -> AsyncIterator[Served]:
    replicas, shards = wanted.streams.replicas, wanted.streams.shards
    if wanted.server.connect is not None:
        address = replace(wanted.server.address(), replicas=replicas, shards=shards)
        facts: dict[str, Any] = {"url": address.shown, "ours": False, "deployment": address.deployment}
        with contextlib.suppress(StoreUnreachable):  # the nodes wait for it, and say so
            facts.update(await _made(address))
        yield Served(address, facts, None)
        return
    server = await Server.start(folder.path, sync=wanted.sync, program=wanted.nats_server)
    watching: asyncio.Task[int] | None = None
    try:
        named = wanted.server.deployment or os.environ.get(DEPLOYMENT_VARIABLE) or DEPLOYMENT
        address = Address(server.url, sync=server.sync, deployment=named, replicas=replicas, shards=shards)
        facts = {
            "url": address.shown, "ours": True, "deployment": named, **await _made(address), "sync": wanted.sync,
            "process": server.process.pid, "folder": str(folder.path),
        }  # fmt: skip
        watching = asyncio.create_task(_ended(server))
        yield Served(address, facts, watching)
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        await server.stop()


async def _made(address: Address) -> dict[str, Any]:
    """Makes the streams before the nodes all want to, and says what there is."""
    substrate = await open_substrate(address)
    try:
        return {"version": substrate.server_version, "replicas": substrate.replicas, "shards": substrate.shards}
    finally:
        await substrate.close()


async def _ended(server: Server) -> int:
    while (code := server.process.poll()) is None:
        await asyncio.sleep(WATCH_S)
    return code


async def _nodes(wanted: Wanted, printer: Printer, ending: _Ending, folder: Folder, served: Served) -> int:
    display = Display(printer, served, lambda: ending.end(signal.SIGPIPE))
    ending.fleet = fleet = Fleet(
        wanted.app, served.address, display.say, (folder.lock,),
        ("--config", str(wanted.config)) if wanted.config is not None else (),
    )  # fmt: skip
    display.children = fleet.children
    with display:
        display.say({"event": "server", **served.facts})
        watching = asyncio.create_task(display.watch())
        fleet.start(wanted.nodes)
        waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(ending.event.wait()), fleet.failed]
        if served.ended is not None:
            waiting.append(served.ended)
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            waiting[0].cancel()
            display.say({"event": "stopping", "reason": ending.reason or "failure"})
            await fleet.stop()
            await asyncio.gather(watching, waiting[0], return_exceptions=True)
            display.say({"event": "stopped"})
    if fleet.failed.done():
        child = fleet.failed.result()
        raise ConfigError(child.last_line or f"{child.name} could not start.", field="app", range="an app that imports")
    if ending.reason:
        return DONE
    if served.ended is None:
        raise never("served.ended is not None does not hold")
    printer.show(*_event({"event": "server", "state": "ended", "code": served.ended.result()}))
    return FAILED


class _Ending:
    """Ctrl-C, SIGTERM, or the end of the terminal or of whoever reads; a second Ctrl-C ends everything at once."""

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


# ---- what is shown -------------------------------------------------------------------------------------------


def _event(event: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    return event, lambda: _text(event)


def _text(event: dict[str, Any]) -> str:
    match event:
        case {"event": "server", "state": "ended", "code": code}:
            return f"the server has ended by itself (code {code})"
        case {"event": "server", "url": url, "ours": True, "version": version, "sync": sync, "folder": folder}:
            return f"server {version} at {url}, sync {sync}, data in {folder}{_streams(event)}"
        case {"event": "server", "url": url}:
            return f"server at {url}{_streams(event)}"
        case {"event": "node", "node": node, "state": "serving", "incarnation": incarnation}:
            return f"{node} serves (process {event['process']}, incarnation {incarnation})"
        case {"event": "node", "node": node, "state": "crashed", "reason": reason, "restart_s": wait}:
            return f"{node}: {reason}; it is tried again in {wait:g} s"
        case {"event": "node", "node": node, "state": "crashed", "code": code, "restart_s": wait}:
            return f"{node} has ended ({_why(code)}); it is started again in {wait:g} s"
        case {"event": "node", "node": node, "state": "crashed", "code": code}:
            return f"{node} cannot start ({_why(code)})"
        case {"event": "node", "node": node, "state": state}:
            return f"{node} has {state}"
        case {"event": "log", "node": node, "line": line}:
            return f"{node} | {line}"
        case {"event": "stopping", "reason": reason}:
            return f"stopping ({reason}): turns end, commits land"
        case {"event": "waiting", "for": what}:
            return f"waiting for {what}"
        case _:
            return "everything has stopped; `mielin up` goes on with it"


def _streams(facts: dict[str, Any]) -> str:
    """What is not as everybody's."""
    told = [f"{name} {facts[name]}" for name in ("replicas", "shards") if facts.get(name, 1) != 1]
    named = [f"deployment {facts['deployment']}"] if facts["deployment"] != DEPLOYMENT else []
    return "".join(f", {text}" for text in (*named, *told))


def _why(code: int) -> str:
    if code >= 0:
        return f"code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {-code}"


class Display:
    """Events as lines; on a terminal also a table that stays."""

    def __init__(self, printer: Printer, served: Served, unread: Callable[[], None]) -> None:
        self._printer = printer
        self._unread = unread
        """Called when nobody reads the lines any more."""
        self._served = served
        self.children: list[Child] = []
        self._agents: dict[str, int] = {}
        self._live: Any = None
        if sys.stdout.isatty() and not printer.as_json:
            from rich.live import Live

            self._live = Live(self._table(), auto_refresh=False)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()

    def say(self, event: dict[str, Any]) -> None:
        try:
            if self._live is None:
                self._printer.show(*_event(event))
            else:
                self._live.console.print(_text(event), markup=False, highlight=False)
                self._live.update(self._table(), refresh=True)
        except OSError:
            self._lost()

    def _lost(self) -> None:
        """The terminal is gone, or whoever read the lines."""
        self._live = None
        to_nowhere()
        self._unread()

    async def watch(self) -> None:
        """Keeps the table fresh; without a terminal there is nothing to do."""
        if self._live is not None:
            await asyncio.gather(self._refresh(), self._count())

    async def _refresh(self) -> None:
        while self._live is not None:
            try:
                self._live.update(self._table(), refresh=True)
            except OSError:
                self._lost()
            await asyncio.sleep(REFRESH_S)

    async def _count(self) -> None:
        """Asks the nodes for their agents; of a server that does not answer, again later."""
        while self._live is not None:
            with contextlib.suppress(CellError):
                async with connected(self._served.address.met, makes=False) as client:
                    while self._live is not None:
                        self._agents = {node.name: node.agents for node in await client.nodes()}
                        await asyncio.sleep(POLL_S)
            await asyncio.sleep(POLL_S)

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        facts = self._served.facts
        table = Table(title=Text(f"{facts['url']}" + (f"  sync {facts['sync']}" if "sync" in facts else "")))
        for name in ("node", "state", "for", "agents", "process", "incarnation", "restarts"):
            table.add_column(name, justify="left" if name in ("node", "state") else "right", overflow="fold")
        for child in self.children:
            table.add_row(*self._row(child))
        return table

    def _row(self, child: Child) -> list[str]:
        is_there = child.process is not None and child.process.returncode is None
        return [
            child.name, child.state, duration(time.monotonic() - child.since),
            str(self._agents.get(child.name, "")) if child.state == "serving" else "",
            str(child.process.pid) if is_there and child.process is not None else "",
            str(child.incarnation or ""), str(child.restarts or ""),
        ]  # fmt: skip
