"""What a target has copied is verified while the source serves; what differs is read again, whatever the source does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from support.nodes import deployment

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.log.delta import StateDelta
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import HandedOff, decode_record
from mielin_cells.node.moves.target import Copy
from mielin_cells.node.node import Node
from mielin_cells.rpc import requests

TIMEOUT_S = 10.0
SETTINGS = cells.Settings(probation_s=2 * TIMEOUT_S)
"""A handover that only its deadline settles is too late for these tests."""


class Pantry(cells.Agent):
    total: int = 0
    stock: bytes = b"right"

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.total += n
        return self.total


@asynccontextmanager
async def two_nodes() -> AsyncIterator[tuple[Client, Node, Node]]:
    async with deployment("node-1", "node-2", settings=SETTINGS, recovery=None) as made, asyncio.timeout(TIMEOUT_S):
        yield made.client, made.nodes["node-1"], made.nodes["node-2"]


def damaged(copy: Copy) -> Fold:
    """Its state is not what the log says any more."""
    fold = copy._fold
    assert fold is not None
    fold.state.apply(StateDelta(plain={"stock": b"wrong"}))
    return fold


async def handed_over(client: Client, after: int) -> None:
    async for batch in client.log.tail(log_subject("p"), after):
        if any(isinstance(decode_record(entry.data, "p"), HandedOff) for entry in batch):
            return


async def test_a_copy_that_differs_is_read_again_while_the_source_serves() -> None:
    async with two_nodes() as (client, source, target):
        pantry = await client.on("node-1").spawn(Pantry, "p")
        fold = source.activations.running("p").fold
        wish = requests.Prepare("p", "m-1.1", "node-1", "Pantry", 1, 10, fold.epoch)
        assert target.copies.prepare(wish).reasons == []
        copy = target.copies.by_agent["p"]
        await copy.reach(fold.seq)
        before = damaged(copy)
        answered: list[bool] = []

        async def at_target(step: str) -> None:
            asked = asyncio.create_task(copy.reach(before.seq))
            await asyncio.sleep(0)
            answered.append(asked.done())

        target.home.step = at_target
        await pantry.add(5)
        await copy.reach(fold.seq)

        assert answered == [False]
        assert copy._fold is not None
        assert copy._fold is not before
        assert copy._fold.state.digest() == fold.state.digest()
        assert await pantry.add() == 6


async def test_a_handover_that_lands_while_the_copy_is_read_again_is_accepted() -> None:
    async with two_nodes() as (client, source, target):
        pantry = await client.on("node-1").spawn(Pantry, "p")
        reads_again = asyncio.Event()
        handed: list[asyncio.Task[None]] = []

        async def at_source(step: str) -> None:
            if step == "pause":
                target.home.step = at_target
                damaged(target.copies.by_agent["p"])
                handed.append(asyncio.create_task(handed_over(client, source.activations.running("p").fold.seq)))
                await pantry.add(5)
                await reads_again.wait()

        async def at_target(step: str) -> None:
            if step == "copy":
                reads_again.set()
                await handed[0]

        source.home.step = at_source
        report = await client.migrate(pantry)

        assert (report.outcome, report.attempts) == ("completed", 1)
        assert await pantry.add() == 6
