"""Pipelined asking: the same for every system that is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

CALLERS = 1024
"""Asks on their way at any moment."""


async def rate(ask: Callable[[int], Awaitable[object]], count: int) -> float:
    """Answers per second to `count` asks of `CALLERS` callers, each of which asks again when it has its answer."""

    async def caller(number: int) -> None:
        for _ in range(count // CALLERS):
            await ask(number)

    at = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    return count // CALLERS * CALLERS / (time.perf_counter() - at)
