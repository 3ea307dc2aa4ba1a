"""What an append costs: pipelined and one after another, in memory and in a file.

    python -m benchmarks.bench_substrate [--smoke]

Medians of some rounds on this machine.  "busy" is the latency of one append while the event loop has other work all the
time, which is when a thread has to fight for the interpreter.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Literal

from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Appended, Log

DATA = bytes(300)
SUBJECTS = [f"log.agent-{n}" for n in range(2000)]
CALLERS = 500


async def pipelined(log: Log, count: int) -> float:
    """Seconds per append with 500 callers that each wait for their own."""
    order = iter(range(count))

    async def caller() -> None:
        for n in order:
            assert isinstance(await log.append(SUBJECTS[n % len(SUBJECTS)], DATA), Appended)

    start = perf_counter()
    await asyncio.gather(*[caller() for _ in range(CALLERS)])
    return (perf_counter() - start) / count


async def sequential(log: Log, count: int) -> float:
    """Seconds per append where each depends on the one before."""
    last = await log.last("log.one")
    seq = last.seq if last is not None else 0
    start = perf_counter()
    for _ in range(count):
        outcome = await log.append("log.one", DATA, expect=seq)
        assert isinstance(outcome, Appended)
        seq = outcome.seq
    return (perf_counter() - start) / count


async def busy(log: Log, count: int) -> float:
    """Median seconds of one append on a loop that is never idle."""
    is_done = False

    async def spin() -> None:
        while not is_done:
            sum(range(1000))
            await asyncio.sleep(0)

    spinning = asyncio.create_task(spin())
    times = []
    for _ in range(count):
        start = perf_counter()
        assert isinstance(await log.append("log.busy", DATA), Appended)
        times.append(perf_counter() - start)
    is_done = True
    await spinning
    return median(times)


async def reading(log: Log, count: int) -> float:
    """Seconds per entry read in pages of 1,000."""
    await asyncio.gather(*[log.append("log.read", DATA) for _ in range(count)])
    start, after, seen = perf_counter(), 0, 0
    while entries := await log.read("log.read", after):
        after, seen = entries[-1].seq, seen + len(entries)
    return (perf_counter() - start) / seen


CASES: list[tuple[str, Callable[[Log, int], Awaitable[float]], int]] = [
    ("pipelined", pipelined, 60_000),
    ("sequential", sequential, 5_000),
    ("busy", busy, 100),
    ("read", reading, 20_000),
]


async def measure(path: Path | None, sync: Literal["process", "power"], rounds: int, share: float) -> None:
    where = "memory" if path is None else f"file, {sync}"
    for name, case, count in CASES:
        times = []
        for number in range(rounds):
            fresh = None if path is None else path / f"{sync}-{name}-{number}.db"
            substrate = await Embedded.open(fresh, sync=sync)
            times.append(await case(substrate.log, max(10, int(count * share))))
            await substrate.close()
        print(f"{where:15} {name:11} {median(times) * 1e6:10.1f} us", flush=True)


async def main(*, smoke: bool) -> None:
    rounds, share = (1, 0.01) if smoke else (3, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        await measure(None, "process", rounds, share)
        await measure(Path(folder), "process", rounds, share)
        await measure(Path(folder), "power", rounds, share / 10)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="only shows that it runs")
    asyncio.run(main(smoke=parser.parse_args().smoke))
