"""Tails over republished messages: what was missed is read, what comes is passed on, and a gap is seen by its sequences.

The server sends each stored message once more, live, with its own sequence and its subject's before it.  So no consumer is
needed: one listens, reads what is stored, and goes on with what comes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from mielin_cells.errors import CellError
from mielin_cells.substrate.ports import Entry

logger = logging.getLogger("mielin_cells.jetstream")

WAITING_MAX = 4096
WAITING_BYTES_MAX = 16 * 1024 * 1024
"""A tail whose reader is behind keeps at most this much; beyond, it forgets it and reads it from the stream later."""

PAGE = 256
RETRY_S = 0.25
"""A tail that cannot read its stream tries again after this."""


class Live(NamedTuple):
    """A message as it came: the entry, and the subject's sequence before it."""

    entry: Entry
    previous: int


class Cut(list[Entry]):
    """What has come of a page from a slow server: there is more behind it."""


class JetTail:
    """No task and no timer: an idle tail is this object and one subscription."""

    __slots__ = (
        "_behind",
        "_bytes",
        "_check_at",
        "_closed",
        "_read",
        "_said",
        "_seen",
        "_stop",
        "_subject",
        "_waiter",
        "_waiting",
    )

    def __init__(
        self,
        subject: str,
        after: int,
        read: Callable[[str, int, int], Awaitable[list[Entry]]],
        stop: Callable[[JetTail], None],
        check_at: float | None,
    ) -> None:
        self._subject = subject
        self._seen = after
        self._read = read
        self._stop = stop
        self._check_at = check_at
        """In a cluster: when to read once more, as it takes a moment until every server knows that we listen."""
        self._behind = True
        self._closed = False
        self._bytes = 0
        self._said = ""
        self._waiting: list[Live] = []
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> JetTail:
        return self

    async def __anext__(self) -> list[Entry]:
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
        # What comes while the page is read may be in it, or behind it: nothing falls between, and what is double is dropped.
        self._drop()
        self._behind = False
        try:
            batch = await self._read(self._subject, self._seen, PAGE)
        except CellError as error:
            if not self._closed:
                self._behind = True
                if str(error) != self._said:
                    self._said = str(error)
                    logger.warning("A tail of %s waits and tries again: %s", self._subject, error)
                await asyncio.sleep(RETRY_S)
            return []
        except BaseException:  # the reader gave up waiting; it, or another, may go on
            self._behind = True
            raise
        self._said = ""
        if len(batch) == PAGE or isinstance(batch, Cut):
            self._behind = True
        return batch

    def _take(self) -> list[Entry]:
        seen = self._seen
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        if waiting and waiting[0].entry.seq <= seen:  # read already
            waiting = [live for live in waiting if live.entry.seq > seen]
        # Not "above": a server that cannot tell what came before says 0.
        if waiting and waiting[0].previous != seen:
            self._behind = True  # something was missed
            return []
        return [live.entry for live in waiting]

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError(f"Two readers wait on one tail of {self._subject!r}; give each its own tail.")
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_at(self._check_at, self._check) if self._check_at is not None else None
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def push(self, entry: Entry, previous: int) -> None:
        """A live message; `previous` is the subject's sequence before it."""
        if self._behind:
            return
        waiting = self._waiting
        if entry.seq <= previous or (waiting and previous != waiting[-1].entry.seq):
            self.look_again()  # something was missed, or somebody else than the server sent it
            return
        waiting.append(Live(entry, previous))
        self._bytes += len(entry.data)
        if len(waiting) > WAITING_MAX or self._bytes > WAITING_BYTES_MAX:
            self._behind = True
            self._drop()
        self._wake()

    def _check(self) -> None:
        self._check_at = None
        self.look_again()

    def look_again(self) -> None:
        """Something may have been missed: the connection was lost."""
        self._behind = True
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
            self._stop(self)
            self._drop()
            self._wake()
