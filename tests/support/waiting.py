"""Waiting for what comes in its own time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(holds: Callable[[], object], *, limit_s: float = 60.0, pause_s: float = 0.005) -> None:
    """Looks again and again until `holds()` is true.  Raises `TimeoutError` after `limit_s`."""
    async with asyncio.timeout(limit_s):
        while not holds():
            await asyncio.sleep(pause_s)
