"""Tails of the embedded log: pages from the database until there is no more, then what the log hands over live."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mielin_cells.substrate.ports import Entry

WAITING_MAX = 4096
WAITING_BYTES_MAX = 16 * 1024 * 1024
"""A tail whose reader is behind keeps at most this much; beyond, it forgets it and reads it from the database later."""

PAGE = 256
"""Entries in one batch while catching up."""


class EmbeddedTail:
    """No task and no timer: an idle tail is this object and its place in the log's list.  One reader at a time."""

    __slots__ = (
        "_behind",
        "_bytes",
        "_closed",
        "_forget",
        "_overflowed",
        "_read",
        "_seen",
        "_subject",
        "_waiter",
        "_waiting",
    )

    def __init__(
        self,
        subject: str,
        after: int,
        read: Callable[[str, int, int], Awaitable[list[Entry]]],
        forget: Callable[[str, EmbeddedTail], None],
        behind: bool,
    ) -> None:
        self._subject = subject
        self._seen = after
        self._read = read
        self._forget = forget
        self._behind = behind
        self._overflowed = False
        self._closed = False
        self._bytes = 0
        self._waiting: list[Entry] = []
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> EmbeddedTail:
        return self

    async def __anext__(self) -> list[Entry]:
        while not self._closed:
            if self._behind:
                batch = await self._catch_up()
            else:
                if not self._waiting and not self._overflowed:
                    await self._wait()
                batch = self._take()
            if batch and not self._closed:
                self._seen = batch[-1].seq
                return batch
        raise StopAsyncIteration

    async def _catch_up(self) -> list[Entry]:
        # What is committed while the page is read is handed over too: first forget, then read, and nothing falls between.
        self._drop()
        self._overflowed = False
        batch = await self._read(self._subject, self._seen, PAGE)
        if not batch:
            self._behind = self._overflowed
        return batch

    def _take(self) -> list[Entry]:
        if self._overflowed:
            self._behind = True
            return []
        batch, seen = self._waiting, self._seen
        self._waiting, self._bytes = [], 0
        if batch and batch[0].seq <= seen:
            batch = [entry for entry in batch if entry.seq > seen]
        return batch

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError(f"Two readers wait on one tail of {self._subject!r}; give each its own tail.")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def push(self, entry: Entry) -> None:
        """Called by the log for each entry of the subject, in order, once it is committed."""
        if not self._overflowed:
            self._waiting.append(entry)
            self._bytes += len(entry.data)
            if len(self._waiting) > WAITING_MAX or self._bytes > WAITING_BYTES_MAX:
                self._drop()
                self._overflowed = True
        self._wake()

    def _drop(self) -> None:
        self._waiting, self._bytes = [], 0

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._forget(self._subject, self)
            self._drop()
            self._wake()
