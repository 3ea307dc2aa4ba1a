"""`cells.local` on a substrate of the caller's own; `docs/how-to-substrate.md` has one that is written from nothing."""

from __future__ import annotations

import pytest

import mielin_cells as cells
from mielin_cells.substrate.embedded import Embedded


class Stamp(cells.Agent):
    stamps: int = 0

    @cells.handler
    async def press(self) -> int:
        self.stamps += 1
        return self.stamps


async def test_nodes_run_on_the_substrate_that_is_given_and_the_block_closes_it() -> None:
    substrate = await Embedded.open()
    async with cells.local(nodes=2, substrate=substrate) as cluster:
        stamp = await cluster.on("node-1").spawn(Stamp, "stamp")
        assert (await cluster.migrate(stamp, to="node-2")).ok
        assert await stamp.press() == 1
        assert await substrate.log.last("log.stamp") is not None
    with pytest.raises(cells.errors.StoreUnreachable):
        await substrate.log.last("log.stamp")


async def test_a_path_and_a_substrate_are_not_taken_together() -> None:
    substrate = await Embedded.open()
    with pytest.raises(cells.UsageError, match="both"):
        cells.local(path="till.db", substrate=substrate)
    await substrate.close()
