"""Messages at a steady rate, numbered, so that one that is lost, doubled or out of order shows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

TICK_S = 0.001


class Sequence(Protocol):
    async def found(self) -> tuple[int, int]: ...


class Traffic:
    def __init__(self, tell: Callable[[int], Awaitable[object]], per_s: float, after: int) -> None:
        self._tell = tell
        self._per_s = per_s
        self._tasks: set[asyncio.Task[object]] = set()
        self._going = True
        self._begun = time.perf_counter()
        self._first = after
        self.sent = after
        self.seconds = 0.0

    async def run(self) -> None:
        """What is due is sent, whether or not the last one is stored: the rate does not give way."""
        loop = asyncio.get_running_loop()
        while self._going:
            due = self._first + int((time.perf_counter() - self._begun) * self._per_s)
            while self.sent < due:
                self.sent += 1
                task = loop.create_task(_awaited(self._tell(self.sent)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(max(TICK_S, 0.2 / self._per_s))
        self.seconds = time.perf_counter() - self._begun

    async def end(self) -> None:
        self._going = False
        await asyncio.gather(*list(self._tasks))

    @property
    def rate(self) -> float:
        return (self.sent - self._first) / self.seconds


async def _awaited(work: Awaitable[object]) -> object:
    return await work


@asynccontextmanager
async def traffic(tell: Callable[[int], Awaitable[object]], per_s: float, after: int = 0) -> AsyncIterator[Traffic]:
    """Messages `after` + 1 and on."""
    going = Traffic(tell, per_s, after)
    task = asyncio.create_task(going.run())
    try:
        yield going
    finally:
        await going.end()
        await task


async def checked(going: Traffic, agent: Sequence) -> None:
    """Every message was taken once, in order.  Raises `AssertionError`."""
    last, gaps = await agent.found()
    assert (last, gaps) == (going.sent, 0), f"{last} of {going.sent} messages, {gaps} out of order"
