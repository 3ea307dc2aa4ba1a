"""What a turn leaves and the log does not take: it comes late, or the agent says that it is in ERROR.  Never is half of it kept."""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest
from test_moves import nodes

import mielin_cells as cells
from mielin_cells.core.agent import classes
from mielin_cells.core.settings import RECORD_BYTES_MAX
from mielin_cells.node.node import Node
from mielin_cells.node.reader import load
from mielin_cells.testing.faults import Fault, Faults, FaultyLog, Kind


class Hoarder(cells.Agent):
    pages: cells.Buffer = cells.Buffer()
    count: int = 0

    @cells.handler
    async def keep(self, size: int) -> int:
        self.pages.append(b"x" * size)
        return len(self.pages)

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count


@pytest.mark.parametrize("refused", [1, 3])
async def test_a_large_commit_whose_parts_are_refused_at_first_is_written_when_they_are_taken(refused: int) -> None:
    async with nodes("node-2") as (cluster, running):
        faults = Faults(1, Fault("part", Kind.REFUSE, most=refused))
        log = FaultyLog(cluster.log, faults, "node-1")
        node = running["node-1"] = Node("node-1", log, cluster.wire, classes.get, rng=Random(1), wall=time.time)
        await node.start()
        hoarder = await cluster.on("node-1").spawn(Hoarder, "h")

        large, small = await asyncio.gather(hoarder.keep(2 * RECORD_BYTES_MAX), hoarder.add())

        assert (large, small, await hoarder.add()) == (2 * RECORD_BYTES_MAX, 1, 2)
        assert faults.counts["part", "refuse"] == refused
        (await load(cluster.log, "h")).verify()
        assert (await cluster.migrate(hoarder, to="node-2")).ok
        assert await hoarder.keep(0) == 2 * RECORD_BYTES_MAX
