"""After an undo a turn runs again that had given an ask up: it gives it up again, whatever the receiver says now (seed 1928746)."""

from __future__ import annotations

import asyncio
import contextlib

from support.moving import nodes

import mielin_cells as cells
from mielin_cells.store.reader import load


class Slow(cells.Agent, name="GivenUpSlow"):
    @cells.handler
    async def linger(self) -> None:
        await asyncio.Event().wait()

    @cells.handler
    async def say(self) -> int:
        return 1


class Hasty(cells.Agent, name="GivenUpHasty"):
    said: list[str] = []

    @cells.handler
    async def hurry(self, to: Slow) -> int:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await to.linger()
        self.said.append("gave up")
        return len(self.said)

    @cells.handler
    async def ask(self, to: Slow) -> int:
        return await to.say()

    @cells.handler
    async def all(self) -> list[str]:
        return self.said


async def test_a_turn_that_had_given_an_ask_up_comes_out_the_same_after_an_undo() -> None:
    async with nodes("node-1", "node-2") as (client, _):
        slow = await client.on("node-1").spawn(Slow, "slow")
        hasty = await client.on("node-1").spawn(Hasty, "hasty")
        move = await client.migrate(hasty, to="node-2")
        assert await hasty.hurry(slow) == 1
        assert await hasty.ask(slow) == 1  # its low closes the ask that was given up
        report = await client.rollback(move.migration)
        assert report.ok
        async with asyncio.timeout(60):
            while (await load(client.log, "hasty")).ledger.replays:
                await asyncio.sleep(0.01)
        assert await hasty.all() == ["gave up"]
        assert (await load(client.log, "hasty")).ledger.dead == []
