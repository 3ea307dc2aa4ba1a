"""What an agent that does nothing keeps in memory, counted in blocks: the number does not depend on the machine."""

from __future__ import annotations

import gc
import sys

import mielin_cells as cells

FIRST, AGENTS = 100, 400
BLOCKS_MAX = 95


class Sleeper(cells.Agent):
    total: int = 0

    @cells.handler
    async def add(self, n: int) -> int:
        self.total += n
        return self.total


def allocated() -> int:
    gc.collect()
    return sys.getallocatedblocks()


async def test_an_idle_agent_owns_few_objects() -> None:
    """An activation makes queues, sets, futures and the like when it first needs them."""
    async with cells.local(1) as cluster:
        for number in range(FIRST):
            await cluster.spawn(Sleeper, f"first-{number}")
        before = allocated()
        for number in range(AGENTS):
            await cluster.spawn(Sleeper, f"idle-{number}")
        each = (allocated() - before) / AGENTS
        assert each <= BLOCKS_MAX, f"{each:.1f} blocks of memory for each idle agent"
