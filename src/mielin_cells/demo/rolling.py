"""`mielin demo --drain`: while the main job runs, each node in turn is replaced: a new one starts, the old one is stopped."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mielin_cells.client.client import Client
from mielin_cells.demo.job import Job, quantiles
from mielin_cells.deployment.fleet import Fleet

ROUNDS = 3


@dataclass(slots=True)
class Rolling:
    ends: ClassVar[bool] = True
    wanted: int
    """How many nodes are to be replaced."""
    codes: list[int] = field(default_factory=list)
    """How each of them ended."""
    left: int = 0
    """Agents that a node still had as it stopped."""
    moved: int = 0
    seconds: list[float] = field(default_factory=list)

    def may_send(self, job: Job) -> bool:
        """Shares the events out over the replacements."""
        return job.sent < job.to_send * (len(self.codes) + 1) // self.wanted or len(self.codes) >= self.wanted

    def answered(self, agent: str) -> None:
        """A call waits no longer than for any move."""

    async def run(self, client: Client, fleet: Fleet, job: Job) -> None:
        for _ in range(ROUNDS):
            for child in list(fleet.children):
                began = time.monotonic()
                agents = {info.name: info.agents for info in await client.nodes()}.get(child.name, 0)
                self.codes.append(await fleet.retire(child))
                self.seconds.append(time.monotonic() - began)
                self.left += child.left
                self.moved += agents - child.left
                job.notify()

    async def calling(self, agent: str, call: Callable[[], Awaitable[None]]) -> None:
        await call()

    def is_good(self, job: Job) -> bool:
        """Agents that were left behind were taken over, which the comparison shows."""
        return self.codes == [0] * self.wanted and not job.unanswered

    async def report(self, client: Client) -> dict[str, Any]:
        return {
            "replaced": len(self.codes), "exit_codes": sorted(set(self.codes)), "moved_off": self.moved,
            "left_behind": self.left, "drain_s": quantiles(self.seconds, 1),
        }  # fmt: skip
