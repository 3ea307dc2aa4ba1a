"""Heartbeats of many nodes on one server: a bare connection for each node, and what the server spends on them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

BEAT = b"x" * 28
"""About what a heartbeat takes."""

INTERVAL_S = 0.5
WATCHERS = 3
"""The leader of failover and its two deputies hear every node; every node hears the leader."""


@asynccontextmanager
async def _connected(url: str, number: int) -> AsyncIterator[asyncio.StreamWriter]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    options = {"verbose": False, "pedantic": False, "user": parts.username, "pass": parts.password, "lang": "bare"}
    writer.write(b"CONNECT " + json.dumps(options).encode() + b"\r\n")
    writer.write(b"SUB bare.leader 1\r\n")
    if number < WATCHERS:
        writer.write(b"SUB bare.beats 2\r\n")
    dropped = asyncio.create_task(_drop(reader, writer))
    try:
        yield writer
    finally:
        dropped.cancel()
        writer.close()


async def _drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads what comes, and answers the server's pings."""
    while data := await reader.read(1 << 16):
        if b"PING\r\n" in data:
            writer.write(b"PONG\r\n")


async def spend(url: str, nodes: int, seconds: float, spent: Callable[[], float]) -> float:
    """Lets so many nodes beat for so long; what `spent` has grown by in a second.  `spent` is the server's processor time."""
    async with AsyncExitStack() as stack:
        writers = [await stack.enter_async_context(_connected(url, number)) for number in range(nodes)]
        ending = asyncio.Event()

        async def beat(number: int, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(INTERVAL_S * number / nodes)
            while not ending.is_set():
                writer.write(b"PUB %s %d\r\n%s\r\n" % (b"bare.beats", len(BEAT), BEAT))
                if number == 0:
                    writer.write(b"PUB %s %d\r\n%s\r\n" % (b"bare.leader", len(BEAT), BEAT))
                await asyncio.sleep(INTERVAL_S)

        beats = [asyncio.create_task(beat(number, writer)) for number, writer in enumerate(writers)]
        await asyncio.sleep(2 * INTERVAL_S)
        before, at = spent(), time.perf_counter()
        await asyncio.sleep(seconds)
        rate = (spent() - before) / (time.perf_counter() - at)
        ending.set()
        await asyncio.gather(*beats)
    return rate
