"""What every part's program is: it measures at one size, and writes what it has found."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.figures import Found, Size

Measure: TypeAlias = Callable[[Size, Found], Coroutine[Any, Any, None]]

SEED = 20261123
"""What chance decides in a benchmark (where a load changes a state) is the same in every run."""


def run(measure: Measure) -> None:
    """The program: `--size`, and `--out` for a file instead of standard output.

    What has been found is written also when it fails, or is ended by SIGTERM because it took too long.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=("smoke", "quick", "full"), default="quick")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    random.seed(SEED)
    found = Found()

    def written() -> None:
        text = json.dumps(found.as_json(), indent=1)
        if options.out is None:
            print(text)
        else:
            options.out.write_text(text)

    def ended(*_: object) -> None:
        written()
        os._exit(1)  # its loop may be anywhere, or nowhere; what it has started ends with it, or is ended

    signal.signal(signal.SIGTERM, ended)
    try:
        _run(measure(options.size, found))
    finally:
        written()


def _run(work: Coroutine[Any, Any, None]) -> None:
    """On uvloop, as nodes run, if it is there."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


def say(text: str) -> None:
    """How far it is, for whoever watches."""
    print(text, file=sys.stderr, flush=True)


async def pipelined(ask: Callable[[int], Awaitable[object]], count: int, window: int) -> float:
    """Answers per second with `window` asks on their way: so many callers, each of which asks again when it has its answer."""

    async def caller(number: int) -> None:
        for _ in range(count // window):
            await ask(number)

    at = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(window)))
    return count // window * window / (time.perf_counter() - at)


def alternating(rounds: int, *names: str) -> Sequence[str]:
    """Who is measured when: A B C, then C B A, and so on, so that a drift of the machine harms all alike."""
    order: list[str] = []
    for number in range(rounds):
        order += names if number % 2 == 0 else reversed(names)
    return order
