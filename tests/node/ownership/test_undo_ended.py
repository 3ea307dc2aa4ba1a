"""An agent that ends behind an undo, before it has taken its messages again: nothing is lost, and answers stand (seed 55000344)."""

from __future__ import annotations

import asyncio

from support.moving import Counter, nodes

from mielin_cells.log.message import decode_answer, is_client
from mielin_cells.rpc.reminder import read_last_answer
from mielin_cells.store.letters import read_letters


async def test_what_an_ended_agent_was_still_to_take_again_is_a_dead_letter_and_keeps_its_answer() -> None:
    async with nodes("node-1", "node-2") as (client, _):
        counter = await client.on("node-1").spawn(Counter, "c")
        move = await client.migrate(counter, to="node-2")
        assert await counter.add(5) == 5
        await client.suspend(counter)
        undoing = asyncio.create_task(client.rollback(move.migration))
        async with asyncio.timeout(30):
            while (await client.owner("c"))[0] != "node-1":
                await asyncio.sleep(0.01)
        await client.terminate(counter)
        undoing.cancel()
        await asyncio.wait((undoing,))
        fold, letters = await read_letters(client.log, "c")
        assert fold.state.plain["count"] == b"\x00"
        assert [(one.handler, is_client(one.sender)) for one in letters] == [("add", True)]
        answer = decode_answer(await read_last_answer(client.log, "c", letters[0].sender, letters[0].n))
        assert (answer.error, answer.result) == (None, b"\x05")
