"""How much a session may send: the limit of an inbox is kept exactly, and the owner is asked once for many messages."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from mielin_cells.errors import InboxFull, NotConnected
from mielin_cells.rpc.answers import InboxRoom
from mielin_cells.tasks.supervision import Backoff

SHARE = 10
"""Once a session may have a tenth of the inbox limit outstanding, it checks the inbox length before it sends more."""


def closed() -> NotConnected:
    return NotConnected(
        "The cluster is closed: its `async with` block has ended. Call inside the block; what was sent before may still take effect."
    )


class Window:
    """Of one session.  Calls that may not be sent yet wait here, and go on in their order."""

    def __init__(
        self, agent: str, limit: int, last: Callable[[], int], count: Callable[[], Awaitable[InboxRoom | None]],
        start: Callable[[Coroutine[Any, Any, None]], None], patience_s: float,
    ) -> None:  # fmt: skip
        """`last` gives the last number sent.  `count` tells of the inbox (None: not known) with all numbers sent in it.

        `limit` is what its class or the settings say; what the owner says counts.  `patience_s`: how long a call waits for an inbox
        whose senders are to wait.
        """
        self._agent = agent
        self._limit = limit
        self._last = last
        self._count = count
        self._start = start
        self._share = -(-limit // SHARE)
        self.free = self._share
        """Numbers up to this one are sent without a look at the inbox."""
        self.held = 0
        """Calls that wait or have not continued yet.  Later calls wait behind them, so messages are sent in the order of the calls."""
        self._patience_s = patience_s
        self._backoff = Backoff()
        self._queue: deque[tuple[asyncio.Future[None], float]] = deque()
        """The calls that wait, and until when."""
        self._released = 0
        """Calls that may continue and have not yet."""
        self._is_running = False

    def passed(self, n: int) -> None:
        """Notes that message `n` and all before it have left the inbox, which is processed in order."""
        self.free = max(self.free, n + self._share)

    def close(self) -> None:
        """Ends every call that waits here with `NotConnected`."""
        self._fail(closed)

    async def enter(self) -> None:
        """Returns when the call may send.  Raises `InboxFull`: nothing was sent."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._queue.append((turn, loop.time() + self._patience_s))
        self.held += 1
        if not self._is_running:
            self._is_running = True
            self._start(self._release())
        try:
            await turn
        finally:
            self.held -= 1
            self._released -= turn.done() and not turn.cancelled() and turn.exception() is None

    async def _release(self) -> None:
        """Lets the calls that wait go on, many at a time."""
        try:
            while self._queue:
                if self._last() >= self.free:
                    await self._look()
                for _ in range(min(len(self._queue), self.free - self._last())):
                    turn, _ = self._queue.popleft()
                    if not turn.done():
                        turn.set_result(None)
                        self._released += 1
                while self._released:
                    await asyncio.sleep(0)
        finally:
            self._is_running = False
            self.close()

    async def _look(self) -> None:
        room, last = await self._count(), self._last()
        if room is None:  # as many as this session knows of
            room = InboxRoom(last - self.free + self._share, self._limit, "refuse")
        elif room.limit != self._limit:
            self._limit, self._share = room.limit, -(-room.limit // SHARE)
        if room.is_full and room.when_full == "wait":
            self._fail(partial(self._full, room), asyncio.get_running_loop().time())
            await self._backoff.wait()
            return
        if room.is_full:
            self._fail(partial(self._full, room))
            return
        self._backoff.reset()
        self.passed(last - room.waiting)
        more = room.limit if room.when_full == "drop_oldest" else (room.limit - room.waiting) // SHARE
        self.free = max(self.free, last + max(1, more))

    def _full(self, room: InboxRoom) -> InboxFull:
        waited = f" for {self._patience_s:g} s" if room.when_full == "wait" else ""
        return InboxFull(
            f"Agent {self._agent!r} has {room.waiting} messages waiting{waited} (limit {room.limit}); this one was not sent. Try "
            "again later.", agent=self._agent, waiting=room.waiting, limit=room.limit,
        )  # fmt: skip

    def _fail(self, error: Callable[[], Exception], now: float = math.inf) -> None:
        """Ends the calls that may wait no longer than until `now`."""
        while self._queue and self._queue[0][1] <= now:
            turn, _ = self._queue.popleft()
            if not turn.done():
                turn.set_exception(error())
