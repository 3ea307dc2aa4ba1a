"""A store that is put back to an older copy while nodes and clients live: its address stays."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import mielin_cells as cells
from mielin_cells.agents.context import current
from mielin_cells.agents.reference import classes
from mielin_cells.client.client import Client
from mielin_cells.node.node import Node
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Entry, Log, Tail
from mielin_cells.testing.forwarded import ForwardedLog

QUICK = cells.Settings(reconcile_s=0.1, compare_s=0.1, ask_repeat_s=0.1, regression_s=0.1)
WAIT_S = 60.0
"""Nothing here takes that long; what waits for it has failed."""


class LastingTail:
    """Goes on with another log where the one before ended, as a tail does whose server was started again."""

    def __init__(self, of: LastingLog, subject: str, after: int) -> None:
        self._of = of
        self._subject = subject
        self._seen = after
        self._is_closed = False
        self._log = of.log
        self._inner: Tail = of.log.tail(subject, after)

    def __aiter__(self) -> LastingTail:
        return self

    async def __anext__(self) -> list[Entry]:
        while not self._is_closed:
            try:
                batch = await self._inner.__anext__()
            except StopAsyncIteration:
                await self._of.changed(self._log)
                if not self._is_closed:
                    self._log = self._of.log
                    self._inner = self._log.tail(self._subject, self._seen)
                continue
            self._seen = batch[-1].seq
            return batch
        raise StopAsyncIteration

    def watch(self, come: Callable[[], None]) -> bool:
        return False  # so an agent that reads it stays in memory

    def close(self) -> None:
        self._is_closed = True
        self._inner.close()


class LastingLog(ForwardedLog):
    """Another log may take the place of the one behind it."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self._change = asyncio.Event()

    def move(self, log: Log) -> None:
        self.log = log
        self._change.set()
        self._change = asyncio.Event()

    async def changed(self, log: Log) -> None:
        while self.log is log:
            await self._change.wait()

    def tail(self, subject: str, after: int = 0) -> LastingTail:
        return LastingTail(self, subject, after)


class Deployment:
    """Nodes and a client in this process on a SQLite file that can be copied, put back, and harmed."""

    def __init__(self, folder: Path, substrate: Embedded) -> None:
        self._folder = folder
        self._opened = [substrate]
        self._copies = 0
        self.log = LastingLog(substrate.log)
        self.wire = substrate.wire
        self.nodes: dict[str, Node] = {}
        self.client = self.new_client()

    def new_client(self) -> Client:
        return Client(self.log, self.wire, settings=QUICK)

    async def start(self, name: str) -> Node:
        node = Node(name, self.log, self.wire, classes.get, settings=QUICK, wall=time.time, cluster=self.client)
        self.nodes[name] = node
        await node.start()
        return node

    def kill(self, name: str) -> None:
        """As `kill -9`: nothing that it remembers is left."""
        node = self.nodes.pop(name)
        for activation in list(node.activations.live.values()):
            activation.close()
        node.kill()

    def copied(self) -> Path:
        """What the store holds now."""
        self._copies += 1
        copy = self._folder / f"copy-{self._copies}.db"
        assert self._opened[-1].path is not None
        with sqlite3.connect(self._opened[-1].path) as source, sqlite3.connect(copy) as target:
            source.backup(target)
        source.close()
        target.close()
        return copy

    async def put_back(self, copy: Path) -> None:
        """The store is away, and comes back as it was when the copy was made."""
        await self._opened[-1].log.close()
        place = self._folder / f"put-back-{len(self._opened)}.db"
        shutil.copy(copy, place)
        self._opened.append(await Embedded.open(place))
        self.log.move(self._opened[-1].log)

    async def close(self) -> None:
        for name in list(self.nodes):
            node = self.nodes[name]
            self.kill(name)
            await asyncio.gather(*node.home.tasks, return_exceptions=True)
        await self.client.close()
        for substrate in self._opened:
            await substrate.close()


@asynccontextmanager
async def deployed(folder: Path, *names: str, path: Path | None = None) -> AsyncIterator[Deployment]:
    """`path`: on a store that is there."""
    made = Deployment(folder, await Embedded.open(path or folder / "first.db"))
    token = current.set(made.client)
    try:
        await made.client.open()
        for name in names:
            await made.start(name)
        yield made
    finally:
        current.reset(token)
        await made.close()
