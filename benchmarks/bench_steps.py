"""The longest steps of the event loop while an agent with a large state works, is snapshotted, moved and loaded.

    python -m benchmarks.bench_steps [--smoke] [--json]

Every callback of the loop is timed.  A step is told with what it was: the task's innermost coroutine at its end, or the
callback.  "process ms" is the CPU time of the thread in that step: where it is much less than the wall time, the machine was
busy with something else, or another thread had the interpreter.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import heapq
import json
import sys
import tempfile
import time
from asyncio.events import Handle
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import Snapshot, decode_record
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Log

GOAL_MS = 50.0
KEEP = 5
"""Longest steps that are kept of each part of the run."""

AGENT = "large"
VALUE_BYTES = 1024
PER_TURN = 256
FRAME_BYTES = 256 * 1024


class Large(cells.Agent):
    fills: int = 0
    rows: cells.Table[int, bytes] = cells.Table()
    film: cells.Buffer = cells.Buffer()

    @cells.handler
    async def fill(self, first: int, count: int) -> None:
        self.fills += 1
        for key in range(first, first + count):
            self.rows[key] = b"%08d" % (key + self.fills) * (VALUE_BYTES // 8)

    @cells.handler
    async def film_on(self, size: int) -> None:
        self.film.append(b"x" * size)

    @cells.handler
    async def put(self, key: int) -> int:
        self.rows[key] = b"%08d" % time.monotonic_ns() * (VALUE_BYTES // 8)
        self.film[key % max(len(self.film), 1)] = key % 256
        return len(self.rows)


class Steps:
    """Wall and CPU time of every callback that a loop runs, by part of the run."""

    def __init__(self) -> None:
        self.part = "start"
        self.longest: dict[str, list[tuple[float, float, str]]] = {}
        self.counts: dict[str, int] = {}
        self.collecting_s = 0.0
        self._gc_at = 0.0

    def took(self, wall: float, cpu: float, what: Callable[[], str]) -> None:
        kept = self.longest.setdefault(self.part, [])
        self.counts[self.part] = self.counts.get(self.part, 0) + 1
        if len(kept) < KEEP:
            heapq.heappush(kept, (wall, cpu, what()))
        elif wall > kept[0][0]:
            heapq.heapreplace(kept, (wall, cpu, what()))

    def collected(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._gc_at = time.perf_counter()
        else:
            self.collecting_s += time.perf_counter() - self._gc_at

    @contextmanager
    def watching(self) -> Iterator[None]:
        run = Handle._run

        def timed(handle: Handle) -> None:
            where = _place(handle)  # before: a task that ends forgets where it was
            collecting = self.collecting_s
            at, cpu = time.perf_counter(), time.thread_time()
            run(handle)
            wall, cpu = time.perf_counter() - at, time.thread_time() - cpu
            swept = self.collecting_s - collecting
            self.took(
                wall,
                cpu,
                lambda: where() + (f", {swept * 1e3:.1f} ms of it garbage collection" if swept > 1e-3 else ""),
            )

        Handle._run = timed  # type: ignore[method-assign, assignment]  # the loop calls it, and nothing else
        gc.callbacks.append(self.collected)
        try:
            yield
        finally:
            Handle._run = run  # type: ignore[method-assign]
            gc.callbacks.remove(self.collected)

    def report(self) -> dict[str, Any]:
        return {
            part: {
                "steps": self.counts[part],
                "longest": [
                    {"ms": round(wall * 1e3, 1), "process_ms": round(cpu * 1e3, 1), "in": what}
                    for wall, cpu, what in sorted(kept, reverse=True)
                ],
            }
            for part, kept in self.longest.items()
        }


def _place(handle: Handle) -> Callable[[], str]:
    callback: Any = getattr(handle, "_callback", None)
    task = getattr(callback, "__self__", None)
    if not isinstance(task, asyncio.Task):
        return lambda: getattr(callback, "__qualname__", repr(callback))
    coroutine = task.get_coro()
    before = _innermost(coroutine)

    def told() -> str:
        after = _innermost(coroutine)
        return before if after == before or not after else f"{before} to {after}"

    return told


def _innermost(coroutine: Any) -> str:
    """Where a coroutine waits, or waited: through everything that it awaits."""
    found = ""
    seen = 0
    while coroutine is not None and seen < 50:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        if frame is not None:
            file = Path(frame.f_code.co_filename)
            if file.parent.parent.name == "mielin_cells" or not found:
                found = f"{file.parent.name}/{file.name}:{frame.f_lineno} {frame.f_code.co_name}"
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
        seen += 1
    return found


@asynccontextmanager
async def turning(agent: Large, rows: int) -> AsyncIterator[None]:
    """Four callers that change a row at a time, so that the rest meets an agent at work."""
    going = True

    async def caller(who: int) -> None:
        n = who
        while going:
            await agent.put(n * 7919 % rows)
            n += 4
            await asyncio.sleep(0.001)

    tasks = [asyncio.create_task(caller(who)) for who in range(4)]
    yield
    going = False
    await asyncio.gather(*tasks)


async def measure(steps: Steps, path: Path | None, rows: int, film: int) -> dict[str, Any]:
    settings = cells.Settings(retention_s=0, snapshot_records=100_000, probation_s=60, migration_s=600)
    async with cells.local(nodes=2, path=path, settings=settings) as cluster:
        assert isinstance(cluster, Client)
        with steps.watching():
            steps.part = "spawn"
            large = await cluster.on("node-1").spawn(Large, AGENT)
            steps.part = "fill, with its snapshots"
            for first in range(0, rows, PER_TURN):
                await large.fill(first, min(PER_TURN, rows - first))
            for _ in range(0, film, FRAME_BYTES):
                await large.film_on(FRAME_BYTES)
            steps.part = "turns"
            async with turning(large, rows):
                await asyncio.sleep(2)
            steps.part = "load of the log"
            fold = await load(cluster.log, AGENT)
            size = fold.state.size_bytes
            steps.part = "move, under turns"
            async with turning(large, rows):
                report = await cluster.migrate(large, to="node-2")
            if not report.ok:
                raise SystemExit(f"the move was rolled back: {report.reason}")
            steps.part = "snapshot and trim, under turns"
            async with turning(large, rows):
                await until_snapshot(cluster, large, rows)
                await asyncio.sleep(0.5)
            steps.part = "move back"
            report = await cluster.migrate(large, to="node-1")
            if not report.ok:
                raise SystemExit(f"the move was rolled back: {report.reason}")
    if path is not None:
        with steps.watching():
            steps.part = "restart"
            async with cells.local(nodes=2, path=path, settings=settings) as cluster:
                await cluster.get(Large, AGENT).put(0)
    figures = steps.report()
    longest = max((step for part in figures.values() for step in part["longest"]), key=lambda step: step["ms"])
    return {
        "where": "memory" if path is None else "file",
        "state_mib": round(size / 2**20),
        "goal_ms": GOAL_MS,
        "longest": longest,
        "parts": figures,
    }


async def until_snapshot(cluster: Client, large: Large, rows: int) -> None:
    """Changes rows until the state has been written once more."""
    before = await newest_snapshot(cluster.log)
    first = 0
    while await newest_snapshot(cluster.log) == before:
        await large.fill(first, min(PER_TURN, rows - first))
        first = (first + PER_TURN) % rows


async def newest_snapshot(log: Log) -> int:
    last = await log.last(log_subject(AGENT))
    assert last is not None
    record = decode_record(last.data, "the log")
    return last.seq if isinstance(record, Snapshot) else record.snap


def show(result: dict[str, Any]) -> None:
    longest = result["longest"]
    print(f"{result['where']}, {result['state_mib']} MiB: longest step {longest['ms']} ms in {longest['in']}")
    for name, part in result["parts"].items():
        print(f"  {name}: {part['steps']} steps")
        for step in part["longest"]:
            print(f"    {step['ms']:8.1f} ms ({step['process_ms']:.1f} of process time)  {step['in']}")


async def main(smoke: bool) -> list[dict[str, Any]]:
    rows, film = (2_000, 2 * 2**20) if smoke else (100 * 1024, 32 * 2**20)
    results = [await measure(Steps(), None, rows, film)]
    with tempfile.TemporaryDirectory() as folder:
        results.append(await measure(Steps(), Path(folder) / "steps.db", rows, film))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small sizes: that it runs, not how long its steps are")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    options = parser.parse_args()
    found = asyncio.run(main(options.smoke))
    if options.json:
        json.dump(found, sys.stdout, indent=2)
        print()
    else:
        for one in found:
            show(one)
