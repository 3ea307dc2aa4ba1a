"""How much of one kind of work runs at the same time: so many pieces, with so many bytes together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Place:
    """One piece of work that runs."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._bytes = 0
        self._has_ended = False

    async def hold(self, size: int) -> None:
        """Waits until so many bytes are free for this piece.  A piece that is larger than the limit runs alone."""
        if size <= self._bytes or self._has_ended:
            return
        if self._bytes:  # one that has bytes and wants more does not wait: others might wait for its bytes
            self._limit.bytes += size - self._bytes
        else:
            await self._limit.take(size)
        self._keep(size)

    def _keep(self, size: int) -> None:
        if self._has_ended:  # while it waited
            self._limit.give_back(size)
        else:
            self._bytes = size

    def end(self) -> None:
        """Repeating it is harmless."""
        if not self._has_ended:
            self._has_ended = True
            self._limit.leave(self._bytes)


class Limit:
    """`count` pieces run at the same time, and hold `size` bytes together; others wait in order.

    A piece that takes longer than `patience_s` goes on, and is not counted any more: user code may hang in it.
    """

    def __init__(self, count: int, size: int, patience_s: float) -> None:
        self._free = count
        self._size = size
        self._patience_s = patience_s
        self._waiting = deque[asyncio.Future[None]]()
        self._waiting_bytes = deque[tuple[int, asyncio.Future[None]]]()
        self.bytes = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        if self._free and not self._waiting:
            self._free -= 1
        else:
            await self._queue()
        place = Place(self)
        timer = asyncio.get_running_loop().call_later(self._patience_s, place.end)
        try:
            yield place
        finally:
            timer.cancel()
            place.end()

    async def _queue(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:
                self._pass_on()  # it had just been given the place
            raise

    async def take(self, size: int) -> None:
        """Waits until so many bytes are free, or nobody holds any, and takes them."""
        if not self._waiting_bytes and self._fits(size):
            self.bytes += size
            return
        waits = size, asyncio.get_running_loop().create_future()
        self._waiting_bytes.append(waits)
        try:
            await waits[1]
        except asyncio.CancelledError:
            if waits in self._waiting_bytes:
                self._waiting_bytes.remove(waits)
            else:
                self.give_back(size)
            raise

    def _fits(self, size: int) -> bool:
        return not self.bytes or self.bytes + size <= self._size

    def give_back(self, size: int) -> None:
        self.bytes -= size
        while self._waiting_bytes and self._fits(self._waiting_bytes[0][0]):
            wanted, turn = self._waiting_bytes.popleft()
            self.bytes += wanted
            turn.set_result(None)

    def leave(self, size: int) -> None:
        self.give_back(size)
        self._pass_on()

    def _pass_on(self) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._free += 1
