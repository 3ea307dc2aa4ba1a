"""What waking up costs here: a machine that rests takes many times longer over it than one that works.

An idle deployment does little but wake up for its heartbeats, so its processor time is read beside that of an event loop that wakes
up as often and does nothing.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path

EMPTY_LOOP = """
import asyncio, sys, time

async def main(rate, seconds):
    began, count, until = time.process_time(), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        await asyncio.sleep(1 / rate)
        count += 1
    print((time.process_time() - began) / count)

asyncio.run(main(float(sys.argv[1]), float(sys.argv[2])))
"""

RATE = 10.0
"""Of the empty loop, in wake-ups a second: about that of a node's thread."""


def count_wakeups(processes: Iterable[int]) -> int:
    """How often the threads of these processes have rested so far.  Only Linux says so; elsewhere 0."""
    total = 0
    for process in processes:
        for status in Path(f"/proc/{process}/task").glob("*/status"):
            for line in status.read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches:"):
                    total += int(line.split()[1])
    return total


async def empty_wakeup_s(seconds: float) -> float:
    """Processor time of one wake-up of an event loop with nothing to do."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", EMPTY_LOOP, str(RATE), str(seconds), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate()
    if child.returncode:
        raise RuntimeError(f"the empty event loop ended with {child.returncode}")
    return float(out)
