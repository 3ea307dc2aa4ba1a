"""What `mielin up` shows: events as lines and, on a terminal, a table of the nodes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mielin_cells.cli.live import live_table, open_live
from mielin_cells.cli.show import Printer, drop_output, duration
from mielin_cells.deployment.connect import DEPLOYMENT, Address, connected
from mielin_cells.deployment.fleet import Child
from mielin_cells.errors import CellError

REFRESH_S = 0.5
POLL_S = 1.0
"""How often the live table asks the nodes for their agents."""

COLUMNS = ("node", "state", "for", "agents", "process", "incarnation", "restarts")


@dataclass(frozen=True, slots=True)
class Served:
    """The server: where it is, what it says of itself, and its exit code once it ends, if it was started here."""

    address: Address
    facts: dict[str, Any]
    ended: asyncio.Future[int] | None


def print_event(printer: Printer, event: dict[str, Any]) -> None:
    printer.show(event, lambda: event_text(event))


def event_text(event: dict[str, Any]) -> str:
    match event:
        case {"event": "server", "state": "ended", "code": code}:
            return f"the server ended by itself (code {code})"
        case {"event": "server", "url": url, "ours": True, "version": version, "sync": sync, "folder": folder}:
            return f"server {version} at {url}, sync {sync}, data in {folder}{_streams(event)}"
        case {"event": "server", "url": url}:
            return f"server at {url}{_streams(event)}"
        case {"event": "node", "node": node, "state": "serving", "incarnation": incarnation}:
            where = f", metrics at {event['metrics']}" if "metrics" in event else ""
            return f"{node} serves (process {event['process']}, incarnation {incarnation}{where})"
        case {"event": "node", "node": node, "state": "crashed", "reason": reason, "restart_s": wait_s}:
            return f"{node}: {reason}; trying again in {wait_s:g} s"
        case {"event": "node", "node": node, "state": "crashed", "code": code, "restart_s": wait_s}:
            return f"{node} ended ({_exit_text(code)}); restarting it in {wait_s:g} s"
        case {"event": "node", "node": node, "state": "crashed", "code": code}:
            return f"{node} cannot start ({_exit_text(code)})"
        case {"event": "node", "node": node, "state": state}:
            return f"{node} has {state}"
        case {"event": "log", "node": node, "line": line}:
            return f"{node} | {line}"
        case {"event": "stopping", "reason": reason}:
            return f"stopping ({reason}): turns end, commits land"
        case {"event": "waiting", "for": what}:
            return f"waiting for {what}"
        case _:
            return "everything has stopped; the next `mielin up` goes on from here"


def _streams(facts: dict[str, Any]) -> str:
    """What differs from the defaults."""
    named = [f"deployment {facts['deployment']}"] if facts["deployment"] != DEPLOYMENT else []
    counts = [f"{name} {facts[name]}" for name in ("replicas", "shards") if facts.get(name, 1) != 1]
    return "".join(f", {text}" for text in (*named, *counts))


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {-code}"


class Display:
    """Prints events, and keeps the table fresh."""

    def __init__(self, printer: Printer, served: Served, on_unread: Callable[[], None]) -> None:
        self._printer = printer
        self._on_unread = on_unread
        """Called when the reader of the output has ended."""
        self._served = served
        self.children: list[Child] = []
        self._agents: dict[str, int] = {}
        self._live: Any = None

    def __enter__(self) -> Display:
        self._live = open_live(self._printer, transient=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()

    def say(self, event: dict[str, Any]) -> None:
        try:
            if self._live is None:
                print_event(self._printer, event)
            else:
                self._live.console.print(event_text(event), markup=False, highlight=False)
                self._live.update(self._table(), refresh=True)
        except OSError:
            self._lose_output()

    def _lose_output(self) -> None:
        self._live = None
        drop_output()
        self._on_unread()

    async def watch(self) -> None:
        """Keeps the table fresh; returns at once if there is none."""
        if self._live is not None:
            await asyncio.gather(self._refresh(), self._count_agents())

    async def _refresh(self) -> None:
        while self._live is not None:
            try:
                self._live.update(self._table(), refresh=True)
            except OSError:
                self._lose_output()
            await asyncio.sleep(REFRESH_S)

    async def _count_agents(self) -> None:
        while self._live is not None:
            with contextlib.suppress(CellError):  # a server that does not answer is asked again
                async with connected(self._served.address.existing, makes=False) as client:
                    while self._live is not None:
                        self._agents = {node.name: node.agents for node in await client.nodes()}
                        await asyncio.sleep(POLL_S)
            await asyncio.sleep(POLL_S)

    def _table(self) -> Any:
        facts = self._served.facts
        title = facts["url"] + (f"  sync {facts['sync']}" if "sync" in facts else "")
        return live_table(title, COLUMNS, COLUMNS[2:], map(self._row, self.children))

    def _row(self, child: Child) -> list[Any]:
        agents = self._agents.get(child.name, "") if child.state == "serving" else ""
        process = child.process.pid if child.process is not None and child.lives else ""
        age = duration(time.monotonic() - child.since)
        return [child.name, child.state, age, agents, process, child.incarnation or "", child.restarts or ""]
