"""Where our time goes, for docs/performance.md: `python -m benchmarks.profiles floor|asks|processes|moves|failover`.

floor: a delivery alone, with one append before it, with two; and what the disk takes to sync 4 KiB.
asks: functions of an in-process ask, under cProfile.
processes: processor time of client, node and server for one durable ask.
moves: phases of a move.
failover: processor time of each process for one agent that is taken over.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import pstats
import tempfile
import time
from collections.abc import Awaitable, Callable
from statistics import median

import mielin_cells as cells
from benchmarks.agents import Counter, Tally
from benchmarks.figures import SYNCS, Sync
from benchmarks.harness import pipelined
from benchmarks.parts import failover
from benchmarks.stage import Stage, staged
from benchmarks.traffic import traffic

COUNT = 20_480
WINDOW = 1024
BLOCKS, BLOCK = 10, 10
FUNCTIONS = 25
KILLED = 1_000


async def asks() -> None:
    async with cells.local() as cluster:
        agents = [await cluster.spawn(Counter, f"c{n}") for n in range(16)]
        await pipelined(lambda caller: agents[caller % 16].add(), COUNT, WINDOW)
        await _profiled("pipelined", lambda: pipelined(lambda caller: agents[caller % 16].add(), COUNT, WINDOW))

        async def one_by_one() -> None:
            for _ in range(COUNT // 4):
                await agents[0].add()

        await _profiled("one after another", one_by_one)


async def _profiled(name: str, work: Callable[[], Awaitable[object]]) -> None:
    profile = cProfile.Profile()
    at = time.perf_counter()
    await work()
    bare = time.perf_counter() - at
    profile.enable()
    await work()
    profile.disable()
    print(f"{name}: {bare * 1e6 / (COUNT if name == 'pipelined' else COUNT // 4):.1f} µs an ask without the profile")
    pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(FUNCTIONS)


async def _spent(name: str, stage: Stage, count: int, work: Callable[[], Awaitable[object]]) -> None:
    """Processor time of each process, in user and system, for each of so many things done."""
    before = {who: process.cpu_times() for who, process in stage.processes().items()}
    at = time.perf_counter()
    await work()
    took = (time.perf_counter() - at) * 1e6 / count
    print(f"{name}: {took:.0f} µs each")
    for who, process in stage.processes().items():  # without one that was killed meanwhile
        now, then = process.cpu_times(), before[who]
        user, system = ((a - b) * 1e6 / count for a, b in ((now.user, then.user), (now.system, then.system)))
        print(f"  {who:8} {user:7.0f} µs in user, {system:7.0f} µs in system")


async def processes(sync: Sync) -> None:
    async with staged(1, sync) as stage:
        agents = [await stage.cluster.on("node-1").spawn(Counter, f"c{n}") for n in range(16)]
        await pipelined(lambda caller: agents[caller % 16].add(), COUNT, WINDOW)

        async def one_by_one() -> None:
            for _ in range(COUNT // 4):
                await agents[0].add()

        await _spent(f"an ask, one after another, {sync}", stage, COUNT // 4, one_by_one)
        await _spent(
            f"an ask, pipelined, {sync}", stage, COUNT,
            lambda: pipelined(lambda caller: agents[caller % 16].add(), COUNT, WINDOW),
        )  # fmt: skip


async def floor(sync: Sync) -> None:
    async with staged(1, sync) as stage:
        times: dict[int, list[float]] = {0: [], 1: [], 2: []}
        for _ in range(BLOCKS):
            for appends, found in times.items():
                found += await stage.floor.do("dependent", appends=appends, count=BLOCK)
        told = (f"{appends} appends and a delivery {median(found) * 1000:.0f} µs" for appends, found in times.items())
        print(f"floor, {sync}: {', '.join(told)}; the disk syncs 4 KiB in {await asyncio.to_thread(_disk_us):.0f} µs")


def _disk_us() -> float:
    with tempfile.TemporaryFile() as file:
        found = list[float]()
        for _ in range(200):
            at = time.perf_counter()
            os.write(file.fileno(), b"x" * 4096)
            os.fdatasync(file.fileno())
            found.append(time.perf_counter() - at)
    return median(found) * 1e6


async def moves(sync: Sync) -> None:
    async with staged(2, sync) as stage:
        agent = await stage.cluster.on("node-1").spawn(Tally, "small", pad=b"x" * 1024)
        found = dict[str, list[float]]()
        async with traffic(agent.take.tell, 1000):
            for number in range(220):
                await asyncio.sleep(0.01)
                report = await stage.cluster.migrate(agent)
                if number >= 20:
                    for phase, seconds in (*report.phases, ("pause", report.pause_ms / 1000)):
                        found.setdefault(phase, []).append(seconds * 1000)
        print(
            f"a move, {sync}: " + ", ".join(f"{phase.lower()} {median(times):.2f} ms" for phase, times in found.items())
        )


async def taken_over(sync: Sync) -> None:
    async with staged(3, sync) as stage:
        await asyncio.sleep(failover.KNOWN_S)
        await _spent(
            f"spawned, killed, taken over, {sync}", stage, KILLED, lambda: failover.one(stage, "node-3", KILLED)
        )


async def main(what: str) -> None:
    if what == "asks":
        await asks()
        return
    for sync in SYNCS:
        await {"floor": floor, "processes": processes, "moves": moves, "failover": taken_over}[what](sync)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiles")
    parser.add_argument("what", choices=("floor", "asks", "processes", "moves", "failover"))
    asyncio.run(main(parser.parse_args().what))
