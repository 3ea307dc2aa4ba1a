"""`mielin demo --rebalance`: all agents begin on one node, and are spread over all of them while the main job runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mielin_cells.client.client import Client
from mielin_cells.client.plans.rebalance import rebalance
from mielin_cells.demo.job import Job
from mielin_cells.deployment.fleet import Fleet
from mielin_cells.policy.rebalance.proposal import WITHIN, unevenness
from mielin_cells.rpc import plans
from mielin_cells.rpc.plans import Rebalanced
from mielin_cells.tasks.together import together

EVENTS_PER_S = 500
"""Until the agents are spread; so the job lasts for longer than that."""

TICK_S = 0.05
WARM_S = 2.0

MEASURED_S = 10.0
"""How long messages are counted at the end: a busy machine sends few, and what came by chance must not decide."""

LIMIT_S = 30.0


@dataclass(slots=True)
class Rebalancing:
    ends: ClassVar[bool] = True
    began: float = 0.0
    is_over: bool = False
    _moved_at: float = 0.0
    seconds: float = 0.0
    even_s: float | None = None
    """From the first move until a measurement found the nodes even."""
    ended: Rebalanced | None = None
    rates: dict[str, float] = field(default_factory=dict)
    """By node, messages a second after it, as the nodes counted them."""

    def may_send(self, job: Job) -> bool:
        return self.is_over or job.sent < EVENTS_PER_S * (time.monotonic() - job.flowing_at)

    def answered(self, agent: str) -> None:
        """A call waits no longer than for any move."""

    async def calling(self, agent: str, call: Callable[[], Awaitable[None]]) -> None:
        await call()

    async def run(self, client: Client, fleet: Fleet, job: Job) -> None:
        pace = asyncio.create_task(_tick(job))
        try:
            await asyncio.sleep(WARM_S)
            began = time.monotonic()
            self.ended = await rebalance(client, seen=self._see)
            self.seconds = time.monotonic() - began
            await together(self._count(client, child.name) for child in fleet.children)
        finally:
            self.is_over = True
            pace.cancel()
            job.notify()

    def _see(self, progress: Rebalanced) -> None:
        now = time.monotonic()
        if progress.moved and not self._moved_at:
            self._moved_at = now
        if self._moved_at and self.even_s is None and progress.now and unevenness(progress.now) <= WITHIN:
            self.even_s = now - self._moved_at

    async def _count(self, client: Client, node: str) -> None:
        loads = await client.request(node, plans.ListLoads(MEASURED_S), MEASURED_S + 10)
        self.rates[node] = sum(load.rate for load in loads)

    @property
    def uneven(self) -> float:
        return unevenness(self.rates) if self.rates else 1.0

    def is_good(self, job: Job) -> bool:
        is_done = self.ended is not None and self.ended.state in (plans.DONE, plans.EVEN)
        return is_done and not job.unanswered and self.seconds < LIMIT_S and self.uneven <= WITHIN

    async def report(self, client: Client) -> dict[str, Any]:
        ended = self.ended
        return {
            "rebalanced": ended.state if ended is not None else "not begun", "rebalance_s": round(self.seconds, 1),
            "even_after_s": round(self.even_s, 1) if self.even_s is not None else None,
            "moved": ended.moved if ended is not None else 0, "failed_moves": ended.failed if ended is not None else [],
            "messages_per_s": {node: round(rate, 1) for node, rate in sorted(self.rates.items())},
            "uneven": round(self.uneven, 4), "agents_by_node": {info.name: info.agents for info in await client.nodes()},
        }  # fmt: skip


async def _tick(job: Job) -> None:
    """The flow looks again whether it may send."""
    while True:
        await asyncio.sleep(TICK_S)
        job.notify()
