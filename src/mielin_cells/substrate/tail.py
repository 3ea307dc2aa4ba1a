"""Tails of both adapters: pages from the store until there is no more, then the entries that the log hands over live."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from mielin_cells.substrate.ports import Entry

WAITING_MAX = 4096
WAITING_BYTES_MAX = 16 * 1024 * 1024
"""A tail whose reader is slow keeps at most this much.  Beyond, it forgets all of it and reads it from the store later."""

PAGE = 256
"""Entries in one batch while catching up."""


class Cut(list[Entry]):
    """A page that ended early: more may follow."""


class BufferedTail:
    """No task and no timer: an idle tail is this object and its place with the log.  One reader at a time."""

    __slots__ = (
        "_behind", "_bytes", "_closed", "_come", "_forget", "_is_reading", "_previous", "_read", "_seen", "_subject", "_waiter",
        "_waiting",
    )  # fmt: skip

    def __init__(
        self,
        subject: str,
        after: int,
        read: Callable[[str, int, int], Awaitable[list[Entry]]],
        forget: Callable[[Any], None],
        *,
        behind: bool = True,
    ) -> None:
        self._subject = subject
        self._seen = after
        self._read = read
        self._forget = forget
        self._behind = behind
        """There may be entries in the store that neither the reader nor the buffer has."""
        self._closed = False
        self._bytes = 0
        self._waiting: list[Entry] = []
        self._previous: int | None = None
        """The subject's sequence before the first entry in the buffer, if the log reports it."""
        self._waiter: asyncio.Future[None] | None = None
        self._is_reading = False
        """A page is being read: what it holds is neither here nor with the reader yet."""
        self._come: Callable[[], None] | None = None

    def __aiter__(self) -> BufferedTail:
        return self

    async def __anext__(self) -> list[Entry]:
        self._come = None
        while not self._closed:
            if self._behind:
                batch = await self._catch_up()
            else:
                if not self._waiting:
                    await self._wait()
                batch = self._take()
            if batch and not self._closed:
                self._seen = batch[-1].seq
                return batch
        raise StopAsyncIteration

    async def _catch_up(self) -> list[Entry]:
        # Entries that arrive while the page is read are buffered: none falls between, and `_take` drops repeats.
        self._drop()
        self._behind, self._is_reading = False, True
        try:
            batch = await self._read(self._subject, self._seen, PAGE)
        except BaseException:  # the reader gave up waiting; it, or another, may go on
            self._behind = True
            raise
        finally:
            self._is_reading = False
        if len(batch) == PAGE or isinstance(batch, Cut):
            self._behind = True
        return batch

    def _take(self) -> list[Entry]:
        seen, previous = self._seen, self._previous
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        if waiting and waiting[0].seq <= seen:  # read already
            fresh = [entry for entry in waiting if entry.seq > seen]
            previous = None if previous is None else waiting[-len(fresh) - 1].seq
            waiting = fresh
        # Not "above": a server that does not know the sequence before says 0.
        if waiting and previous is not None and previous != seen:
            self._behind = True  # something was missed
            return []
        return waiting

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError(f"Two readers wait on one tail of {self._subject!r}; give each its own tail.")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def expect_news(self) -> None:
        """What its reader wants is appended later than now, so the store is not read first.

        What was appended behind its place before now is read when the next entry comes, which says what was before it.
        """
        self._behind = False

    def push(self, entry: Entry, previous: int | None = None) -> None:
        """The next entry of the subject; `previous` is the subject's sequence before it, if the log reports that."""
        if self._behind:
            return
        waiting = self._waiting
        if previous is not None and (entry.seq <= previous or (waiting and previous != waiting[-1].seq)):
            self.look_again()  # something was missed, or somebody else than the server sent it
            return
        if not waiting:
            self._previous = previous
        waiting.append(entry)
        self._bytes += len(entry.data)
        if len(waiting) > WAITING_MAX or self._bytes > WAITING_BYTES_MAX:
            self._behind = True
            self._drop()
        self._wake()

    def look_again(self) -> None:
        """Something may have been missed: read the store once more."""
        self._behind = True
        self._wake()

    def watch(self, come: Callable[[], None]) -> bool:
        if self._closed or self._behind or self._is_reading or self._waiting:
            return False
        self._come = come
        return True

    def _drop(self) -> None:
        self._waiting, self._bytes = [], 0

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        come, self._come = self._come, None
        if come is not None:
            come()

    def close(self) -> None:
        if not self._closed:
            self._closed, self._come = True, None
            self._forget(self)
            self._drop()
            self._wake()
