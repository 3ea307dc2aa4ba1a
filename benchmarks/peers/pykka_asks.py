"""Pykka: an actor is a thread, and an ask is a future."""

from __future__ import annotations

import time
from collections import deque
from importlib.metadata import version

import pykka

from benchmarks.peers.serve import serve


class Counter(pykka.ThreadingActor):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def on_receive(self, message: int) -> int:
        self.count += message
        return self.count


actors = [Counter.start() for _ in range(16)]
total = 0


def pipelined(count: int, actors_used: int, window: int) -> float:
    """Answers per second with `window` asks on their way."""
    global total  # noqa: PLW0603 - one process, one count of what was asked
    open_asks: deque[pykka.Future] = deque()
    at = time.perf_counter()
    for n in range(count):
        if len(open_asks) >= window:
            open_asks.popleft().get()
        open_asks.append(actors[n % actors_used].ask(1, block=False))
    while open_asks:
        open_asks.popleft().get()
    taken = time.perf_counter() - at
    total += count
    check()
    return count / taken


def sequential(count: int) -> float:
    """Seconds for one ask, each after the last one's answer."""
    global total  # noqa: PLW0603 - see above
    at = time.perf_counter()
    for _ in range(count):
        actors[0].ask(1)
    taken = time.perf_counter() - at
    total += count
    check()
    return taken / count


def check() -> None:
    """Nothing lost, nothing doubled."""
    found = sum(actor.ask(0) for actor in actors)
    assert found == total, f"{found} of {total}"


serve({"pipelined": pipelined, "sequential": sequential}, {"pykka": version("pykka")})
pykka.ActorRegistry.stop_all()
