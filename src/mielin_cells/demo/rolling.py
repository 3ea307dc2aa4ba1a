"""`mielin demo --drain`: while the main job runs, each node in turn is replaced: another one comes, and it is told to stop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mielin_cells.client.client import Client
from mielin_cells.deployment.fleet import Fleet

if TYPE_CHECKING:
    from mielin_cells.demo.demo import Job

ROUNDS = 3


@dataclass(slots=True)
class Rolling:
    """What was replaced, and how that went."""

    wanted: int
    """Nodes to be replaced in all."""
    codes: list[int] = field(default_factory=list)
    """How each of them ended."""
    left: int = 0
    """Agents that a node still had as it stopped."""
    moved: int = 0
    seconds: list[float] = field(default_factory=list)

    def may_send(self, job: Job) -> bool:
        """Events are shared out over the replacements, so that each meets its part of them."""
        return job.sent < job.to_send * (len(self.codes) + 1) // self.wanted or len(self.codes) >= self.wanted

    def answered(self, agent: str) -> None:
        """Calls wait as for any move."""

    async def run(self, client: Client, fleet: Fleet, job: Job) -> None:
        for _ in range(ROUNDS):
            for child in list(fleet.children):
                began = time.monotonic()
                agents = {info.name: info.agents for info in await client.nodes()}.get(child.name, 0)
                self.codes.append(await fleet.retire(child))
                self.seconds.append(time.monotonic() - began)
                self.left += child.left
                self.moved += agents - child.left
                job.tell()

    @property
    def is_good(self) -> bool:
        return (
            self.codes == [0] * self.wanted
        )  # what was left behind others have taken over, which the comparison shows

    async def report(self, client: Client) -> dict[str, Any]:
        return {
            "replaced": len(self.codes), "exit_codes": sorted(set(self.codes)), "moved_off": self.moved,
            "left_behind": self.left, "drain_s": {
                "p50": round(sorted(self.seconds)[len(self.seconds) // 2], 1) if self.seconds else 0.0,
                "max": round(max(self.seconds, default=0.0), 1),
            },
        }  # fmt: skip
