"""`python -m benchmarks.processes [--smoke] [--sync lazy]`: the speed goals between processes, each beside its floor.

A floor is what the server alone takes for the steps that nobody can leave out, measured in the same run, one after the other,
from one process: so it does not pay for the wake-up of another process, which what is measured does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import psutil

import mielin_cells as cells
from benchmarks.agents import Counter
from mielin_cells.cli.stage import processes
from mielin_cells.node.client import Client
from mielin_cells.substrate.jetstream import JetStream
from mielin_cells.substrate.ports import Appended

RECORD = b"x" * 300
"""About what a commit of one turn takes."""

MESSAGES_PER_S = 200
REST_S = 0.01
SPAWNS_AT_ONCE = 128


class Floor:
    """Appends of a writer and deliveries to a listener, each on a connection of its own."""

    def __init__(self, writer: JetStream, reader: JetStream) -> None:
        self._writer = writer
        self._heard = asyncio.Event()
        self._reader = reader
        self._number = 0

    async def open(self) -> None:
        await self._reader.wire.subscribe("floor", lambda _: self._heard.set())

    async def ms(self, appends: int) -> float:
        """Dependent conditional appends, and one delivery."""
        self._number += 1
        at, last = time.perf_counter(), 0
        for _ in range(appends):
            outcome = await self._writer.log.append(f"floor.{self._number}", RECORD, last)
            assert isinstance(outcome, Appended)
            last = outcome.seq
        self._heard.clear()
        await self._writer.wire.publish("floor", RECORD)
        await self._heard.wait()
        return (time.perf_counter() - at) * 1000


async def asks(cluster: cells.Cluster, floor: Floor, count: int) -> dict[str, Any]:
    """A durable ask from this process: inbox append, commit append, one reply."""
    counter = await cluster.on("node-1").spawn(Counter, "asked")
    found, floors = [], []
    for _ in range(count):
        at = time.perf_counter()
        await counter.add(1)
        found.append((time.perf_counter() - at) * 1000)
        floors.append(await floor.ms(2))
    return compared("ask", found, floors)


async def pauses(cluster: cells.Cluster, floor: Floor, moves: int) -> dict[str, Any]:
    """Moves of a 1 KiB agent under 200 messages/s: two dependent appends and one delivery."""
    counter = await cluster.on("node-1").spawn(Counter, "moved", pad=b"x" * 1024)
    going, told = True, 0

    async def traffic() -> None:
        nonlocal told
        begun = time.perf_counter()
        while going:
            await counter.add.tell(1)
            told += 1
            await asyncio.sleep(max(0.0, begun + told / MESSAGES_PER_S - time.perf_counter()))

    task = asyncio.create_task(traffic())
    found, floors = [], []
    begun = time.perf_counter()
    for _ in range(moves):
        await asyncio.sleep(REST_S)
        report = await cluster.migrate(counter)
        assert report.ok, report
        found.append(report.pause_ms)
        await asyncio.sleep(REST_S)
        floors.append(await floor.ms(2))
    rate = told / (time.perf_counter() - begun)
    going = False
    await task
    assert await counter.add(0) == told
    return {**compared("pause", found, floors), "pause_messages_per_s": round(rate)}


def compared(what: str, found: list[float], floors: list[float]) -> dict[str, Any]:
    middle, floor = statistics.median(found), statistics.median(floors)
    return {
        f"{what}_ms": round(middle, 3),
        f"{what}_p99_ms": round(statistics.quantiles(found, n=100)[98], 3),
        f"{what}_floor_ms": round(floor, 3),
        f"{what}_ratio": round(middle / floor, 2),
    }


async def idle(cluster: cells.Cluster, count: int) -> dict[str, Any]:
    """What an idle agent takes of its node's memory."""
    node = next(info for info in await cluster.nodes() if info.name == "node-2")
    process = psutil.Process(node.process)
    before = process.memory_info().rss
    numbers = iter(range(count))

    async def worker() -> None:
        for n in numbers:
            await cluster.on("node-2").spawn(Counter, f"idle-{n}")

    await asyncio.gather(*(worker() for _ in range(SPAWNS_AT_ONCE)))
    grown = process.memory_info().rss - before
    return {"idle_agents": count, "idle_kib_each": round(grown / count / 1024, 2)}


async def measure(sync: Literal["always", "lazy"], smoke: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        async with processes(2, Path(folder), sync, None, app="benchmarks.agents") as (cluster, facts, url, _):
            assert isinstance(cluster, Client)
            writer, reader = await JetStream.open(url), await JetStream.open(url)
            try:
                floor = Floor(writer, reader)
                await floor.open()
                figures = {**facts, **await asks(cluster, floor, 50 if smoke else 1000)}
                figures |= await pauses(cluster, floor, 10 if smoke else 300)
                return figures | await idle(cluster, 500 if smoke else 10_000)
            finally:
                await writer.close()
                await reader.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes")
    parser.add_argument("--smoke", action="store_true", help="small sizes: that it runs, not how fast")
    parser.add_argument("--sync", choices=("always", "lazy"), default="always")
    options = parser.parse_args()
    json.dump(asyncio.run(measure(options.sync, options.smoke)), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
