"""The thread that runs a file's transactions, and what one transaction is."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

from mielin_cells.substrate.embedded.store import Store, Trim
from mielin_cells.substrate.ports import Outcome


class Batch:
    """One transaction: what to write, what to answer, and how to take the decisions back."""

    __slots__ = ("answers", "rows", "trimmed", "trims", "undo")

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.trims: list[Trim] = []
        self.answers: list[tuple[asyncio.Future[Outcome], Outcome]] = []
        self.trimmed: list[tuple[asyncio.Future[Trim], Trim]] = []
        self.undo: list[tuple[str, int]] = []


class Writer:
    """The thread that runs a file's transactions.  A daemon: a program that forgot `close` can still end."""

    def __init__(
        self,
        store: Store,
        loop: asyncio.AbstractEventLoop,
        written: Callable[[Batch, BaseException | None], None],
        context: contextvars.Context,
    ) -> None:
        self.jobs: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._store = store
        self._loop = loop
        self._written = written
        self._context = context
        self._thread = threading.Thread(target=self._run, name="mielin-store", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (batch := self.jobs.get()) is not None:
            failure: BaseException | None = None
            try:
                self._store.write(batch.rows, batch.trims)
            except BaseException as error:  # noqa: BLE001 - every append gets an answer, whatever broke
                failure = error
            try:
                self._loop.call_soon_threadsafe(self._written, batch, failure, context=self._context)
            except RuntimeError:
                return  # the event loop is gone, and with it all who wait

    def stop(self) -> None:
        """Nothing is queued: the thread ends at once."""
        self.jobs.put(None)
        self._thread.join()
