"""The substrate in this process: SQLite in memory or in one file, and a wire between the nodes of the process."""

from __future__ import annotations

import asyncio
import os
from typing import Literal

from mielin_cells.errors import ConfigError
from mielin_cells.substrate.embedded.health import inspected
from mielin_cells.substrate.embedded.log import EmbeddedLog
from mielin_cells.substrate.embedded.store import Store
from mielin_cells.substrate.embedded.wire import EmbeddedWire
from mielin_cells.substrate.health import Facts


class Embedded:
    """`Substrate` in one process.  `Embedded.open(path)` is the only way to make one."""

    def __init__(self, store: Store, log: EmbeddedLog, sync: str) -> None:
        self.log = log
        self.wire = EmbeddedWire()
        self.sync = sync
        self.path = store.path
        self.deployment = store.deployment
        """Random name of what is stored, made with the file and kept for its life."""
        self._store = store
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, path: str | os.PathLike[str] | None = None, *, sync: Literal["process", "power"] = "process"
    ) -> Embedded:
        """Opens or makes the store in the file `path`; without a path, one in memory that ends with this object.

        An acknowledged append to a file survives the end of the process in any way (`sync="process"`), or also a power
        cut if the disk keeps its word (`sync="power"`, slower by the disk's flush).  In memory `sync` says nothing.
        A file is for one process at a time, on a local disk: `<path>.lock` keeps others out and stays.

        Raises `StoreInUse`, `StoreCorrupt` (damaged, another program's, or of a newer format), `StoreReadOnly`,
        `ConfigError` (no such directory).
        """
        if sync not in ("process", "power"):
            raise ConfigError(f"sync is {sync!r}; it is 'process' or 'power'.", field="sync", range="process, power")
        if path is None:
            store = Store(None, "memory")
            return cls(store, EmbeddedLog(store), "memory")
        store = await asyncio.to_thread(Store, path, sync)
        try:
            log = EmbeddedLog(store)
            await log.load()
        except BaseException:
            store.close()
            raise
        return cls(store, log, sync)

    @staticmethod
    async def inspected(path: str | os.PathLike[str]) -> Facts:
        """What the file says of itself; makes nothing.  Raises `ConfigError`, `StoreCorrupt`, ..."""
        return await asyncio.to_thread(inspected, path)

    async def close(self) -> None:
        """Waits for the appends made before, ends tails and subscriptions, gives the file free.

        Repeating it is harmless.
        """
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self.wire.close()
        await self.log.close()
        if self.path is None:
            self._store.close()
        else:
            await asyncio.to_thread(self._store.close)
