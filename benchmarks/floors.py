"""What the server alone takes for the steps that nobody can leave out: `python -m benchmarks.floors` beside a server.

In one process of its own, which has nothing else to do: so it does not pay for the wake-up of other processes, which what is
measured does.  Every append is one entry, at the server's sync setting.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from benchmarks.peer import Peer, of_ours
from benchmarks.peers.serve import serve_async
from mielin_cells.log.ids import log_subject
from mielin_cells.substrate.jetstream import JetStream
from mielin_cells.substrate.parts import put_parts
from mielin_cells.substrate.ports import Appended, Log

URL = "BENCH_URL"
RECORD = b"x" * 300
"""About what a commit of one turn takes."""

GROUP = 64
"""Takeovers at the same time, as many as a leader asks for."""


class Floor:
    def __init__(self, writer: JetStream, reader: JetStream, logs: JetStream) -> None:
        """`logs`: a deployment of its own on the same server, for agents' logs that no node shall look at."""
        self._logs = logs.log
        self._writer = writer
        self._reader = reader
        self._heard: dict[bytes, asyncio.Future[None]] = {}
        self._numbers = itertools.count(1)
        self._owning: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._reader.wire.subscribe("floor", self._receive)

    def _receive(self, data: bytes) -> None:
        if (heard := self._heard.pop(data, None)) is not None:  # else another process's
            heard.set_result(None)

    async def _one(self, subject: str, appends: int, log: Log, owner: str | None = None) -> None:
        """Dependent conditional appends to a fresh subject, and one delivery on another connection.

        `owner`: the first is an ownership record that names it.
        """
        last = 0
        for _ in range(appends):
            outcome = await log.append(subject, RECORD, last, owner)
            assert isinstance(outcome, Appended)
            last, owner = outcome.seq, None
        heard = self._heard[subject.encode()] = asyncio.get_running_loop().create_future()
        await self._writer.wire.publish("floor", subject.encode())
        await heard

    async def dependent(self, appends: int, count: int) -> list[float]:
        """Milliseconds of each."""
        found = []
        for _ in range(count):
            at = time.perf_counter()
            await self._one(f"floor.{next(self._numbers)}", appends, self._writer.log)
            found.append((time.perf_counter() - at) * 1000)
        return found

    async def handovers(self, appends: int, count: int) -> list[float]:
        """Milliseconds of each: the same appends to an agent's log, the first of which names another owner.

        The server puts that one into the index of owners as well, on the processors that the second append needs.
        """
        found = []
        for _ in range(count):
            at = time.perf_counter()
            await self._one(log_subject(f"floor-{next(self._numbers)}"), appends, self._logs, "after")
            found.append((time.perf_counter() - at) * 1000)
        return found

    async def owns(self) -> None:
        """From now on this process does what an owner must: for each message a commit, and then an answer."""
        self._owning = asyncio.create_task(self._own())

    async def _own(self) -> None:
        last = 0
        async for batch in self._reader.log.tail("floor-inbox"):
            for message in batch:
                outcome = await self._writer.log.append("floor-log", RECORD, last)
                assert isinstance(outcome, Appended)
                last = outcome.seq
                await self._writer.wire.publish("floor", message.data)

    async def between(self, count: int) -> list[float]:
        """Milliseconds of each message to another process that `owns`, up to its answer."""
        found = []
        for _ in range(count):
            data = b"%d" % next(self._numbers)
            heard = self._heard[data] = asyncio.get_running_loop().create_future()
            at = time.perf_counter()
            await self._writer.log.append("floor-inbox", data)
            await heard
            found.append((time.perf_counter() - at) * 1000)
        return found

    async def pipelined(self, appends: int, count: int, window: int) -> float:
        """How many per second, with `window` on their way."""

        async def caller() -> None:
            for _ in range(count // window):
                await self._one(f"floor.{next(self._numbers)}", appends, self._writer.log)

        at = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(window)))
        return count // window * window / (time.perf_counter() - at)

    async def takeovers(self, agents: list[str]) -> float:
        """Seconds to take over so many agents barely: each two reads, a claim, a commit and a subscription.

        Created and claimed by ownership records, which the server puts into the index of owners as well.
        """
        log, open_ones = self._logs, asyncio.Semaphore(GROUP)

        async def one(agent: str) -> None:
            async with open_ones:
                subject = log_subject(agent)
                last = await log.last(subject)
                assert last is not None
                await log.read(subject, last.seq - 1, 1)
                claimed = await log.append(subject, RECORD, last.seq, "after")
                assert isinstance(claimed, Appended)
                committed = await log.append(subject, RECORD, claimed.seq)
                assert isinstance(committed, Appended)
                subscriptions.append(await self._reader.wire.subscribe(f"floor-of.{agent}", lambda _: None))

        async def made(agent: str) -> None:
            async with open_ones:
                await log.append(log_subject(agent), RECORD, 0, "before")

        subscriptions: list[Any] = []
        await asyncio.gather(*(made(agent) for agent in agents))
        at = time.perf_counter()
        await asyncio.gather(*(one(agent) for agent in agents))
        taken = time.perf_counter() - at
        for subscription in subscriptions:
            subscription.close()
        return taken

    async def parts(self, size: int) -> float:
        """Seconds to append so many bytes in parts."""
        data = os.urandom(1 << 20) * (size >> 20)
        subject = f"part.floor-{next(self._numbers)}.x"
        at = time.perf_counter()
        refs = await put_parts(self._writer.log, subject, data)
        taken = time.perf_counter() - at
        await self._writer.log.trim(subject, refs[-1].seq + 1)
        return taken


async def main() -> None:
    url = os.environ[URL]
    writer, reader = await JetStream.open(url), await JetStream.open(url)
    logs = await JetStream.open(url, deployment="floor", shards=writer.shards)
    floor = Floor(writer, reader, logs)
    await floor.open()
    does: dict[str, Any] = {
        "dependent": floor.dependent, "handovers": floor.handovers, "owns": floor.owns, "between": floor.between,
        "pipelined": floor.pipelined, "takeovers": floor.takeovers, "parts": floor.parts,
    }  # fmt: skip
    await serve_async(does, {"uvloop": True})
    await writer.close()
    await reader.close()
    await logs.close()


@asynccontextmanager
async def floor_beside(url: str) -> AsyncIterator[Peer]:
    os.environ[URL] = url  # it holds a password, which arguments would show
    async with of_ours("benchmarks.floors") as peer:
        yield peer


if __name__ == "__main__":
    uvloop.run(main())
