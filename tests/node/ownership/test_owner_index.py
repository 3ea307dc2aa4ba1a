"""What nodes write makes the store's index of owners: each agent is found under the node that its log names."""

from __future__ import annotations

import asyncio

from support.failing import die, nodes

import mielin_cells as cells
from mielin_cells.log.ids import log_subject


class Newsstand(cells.Agent):
    sold: int = 0

    @cells.handler
    async def sell(self) -> int:
        self.sold += 1
        return self.sold


async def test_each_change_of_owner_is_in_the_index() -> None:
    async with nodes("node-1", "node-2") as (client, running, _, air):
        owned = client.log.owned
        for name in ("moves", "stays", "ends"):
            stand = await client.on("node-1").spawn(Newsstand, name)
            assert await stand.sell() == 1
        moves, stays, ends = (log_subject(name) for name in ("moves", "stays", "ends"))
        assert (await owned("node-1"), await owned("node-2")) == ([ends, moves, stays], [])

        assert (await client.migrate("moves", to="node-2")).ok
        assert (await owned("node-1"), await owned("node-2")) == ([ends, stays], [moves])
        await client.terminate("ends")
        assert (await owned("node-1"), await owned("")) == ([stays], [ends])

        die(running["node-1"], air)
        async with asyncio.timeout(30):
            while await owned("node-2") != [moves, stays]:
                await asyncio.sleep(0.01)
        assert await client.get(Newsstand, "stays").sell() == 2
        assert await owned("node-2") == [moves, stays]
