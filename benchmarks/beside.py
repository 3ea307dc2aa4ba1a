"""How long asks take while the nodes that they go to take over the agents of another node."""

from __future__ import annotations

import asyncio
import time

from benchmarks.agents import Counter
from benchmarks.figures import Found, Size, percentile, ratio
from benchmarks.harness import say
from benchmarks.stage import Stage, staged

COUNT: dict[Size, int] = {"smoke": 50, "quick": 3_000, "full": 10_000}
CALM_S: dict[Size, float] = {"smoke": 0.5, "quick": 5.0, "full": 10.0}
ASKERS = 4
"""Each asks an agent of its own, again and again, and rests in between: an owner that has nothing else to do answers at once."""

REST_S = 0.005
TIMES = 3.0
WAIT_S = 120.0


class Asks:
    """Asks agents of the nodes that stay, until it is told to stop; how long each ask took, and when it was sent."""

    def __init__(self, stage: Stage, names: list[str]) -> None:
        self._stage = stage
        self.taken = list[tuple[float, float]]()
        self._is_over = False
        self._tasks = [asyncio.create_task(self._ask(name)) for name in names]

    async def _ask(self, name: str) -> None:
        agent = self._stage.cluster.get(Counter, name)
        while not self._is_over:
            at = time.perf_counter()
            await agent.add()
            self.taken.append((at, (time.perf_counter() - at) * 1000))
            await asyncio.sleep(REST_S)

    async def stop(self) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)

    def p99_ms(self, since: float, until: float) -> float:
        return percentile([ms for at, ms in self.taken if since <= at < until], 0.99)


async def takeover(size: Size, found: Found) -> None:
    count, names = COUNT[size], [f"asked-{number}" for number in range(ASKERS)]
    async with staged(3, "lazy") as stage:
        cluster, todo = stage.cluster, iter(range(count))

        async def spawn_some() -> None:
            for number in todo:
                await cluster.on("node-3").spawn(Counter, f"lost-{number}", pad=b"x" * 1024)

        await asyncio.gather(*(spawn_some() for _ in range(64)))
        for number, name in enumerate(names):
            await cluster.on(f"node-{number % 2 + 1}").spawn(Counter, name)
        asks = Asks(stage, names)
        await asyncio.sleep(1.0)  # all are known everywhere
        began = time.perf_counter()
        await asyncio.sleep(CALM_S[size])
        ended = time.perf_counter()
        child = next(child for child in stage.fleet.children if child.name == "node-3")
        assert child.process is not None
        child.gone.set()
        stage.fleet.children.remove(child)
        child.process.kill()
        since = await _said(stage, "node-3 is silent")
        until = await _said(stage, "were taken over in")
        await asks.stop()
    calm, busy = asks.p99_ms(began, ended), asks.p99_ms(since, until)
    say(f"asks beside a takeover of {count} in {until - since:.2f} s: p99 {busy:.2f} ms, before {calm:.2f} ms")
    found.figures["beside_takeover"] = {
        "agents": count,
        "seconds": round(until - since, 2),
        "calm_ms": calm,
        "busy_ms": busy,
    }
    times = ratio(busy, calm)
    found.row("scale-takeover-asks", "lazy", f"{times} times ({busy:.1f} ms)", times <= TIMES,
              f"p99 of asks while two nodes take over {count:,} agents in {until - since:.1f} s; {calm:.1f} ms before")  # fmt: skip


async def _said(stage: Stage, words: str) -> float:
    """When a node has said so."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return stage.heard(words)
            except (LookupError, StopIteration):
                await asyncio.sleep(0.01)
