"""A subscriber that is slow costs the store nothing while it has no room."""

from __future__ import annotations

import asyncio
from collections import Counter

from support.nodes import deployment

import mielin_cells as cells
from mielin_cells.node.topics.member import TAKEN_MAX
from mielin_cells.node.topics.patterns import CROWDED_S
from mielin_cells.testing.forwarded import ForwardedLog

gate = asyncio.Semaphore(0)


class Quick(cells.Agent):
    got: int = 0

    async def on_start(self) -> None:
        await cells.subscribe("slow.*", self.on_value, since="first")

    @cells.handler
    async def on_value(self, value: int) -> None:
        self.got = value

    @cells.handler(shared=True)
    async def come(self) -> int:
        return self.got


class Sluggish(Quick):
    @cells.handler
    async def on_value(self, value: int) -> None:
        await gate.acquire()
        self.got = value


class Bulk(cells.Agent):
    @cells.handler
    async def say(self, first: int, count: int) -> None:
        for n in range(first, first + count):
            cells.publish("slow.a", n)


class CountingLog(ForwardedLog):
    calls = Counter[str]()

    def called(self, what: str, subject: str) -> None:
        self.calls[what] += 1


async def until(agent: Quick, value: int) -> None:
    while await agent.come() < value:
        await asyncio.sleep(0.01)


async def test_topics_are_not_read_for_a_subscriber_that_has_no_room() -> None:
    """They were read 50 times a second while its handler ran, and a page of 256 entries for each message that it handled."""
    calls = CountingLog.calls
    async with asyncio.timeout(60), deployment() as at:
        await at.start("node-1", log=CountingLog(at.substrate.log))
        bulk = await at.client.spawn(Bulk, "bulk")
        quick, slow = await at.client.spawn(Quick, "quick"), await at.client.spawn(Sluggish, "slow")
        last = 3 * TAKEN_MAX
        for n in range(0, last, 4):
            await bulk.say(n + 1, 4)
        await until(quick, last)
        ledger = at.nodes["node-1"].activations.live["slow"].fold.ledger
        while ledger.numbers["slow"] < TAKEN_MAX:
            await asyncio.sleep(0.01)
        before = calls["scan"]
        for n in range(1, 41):
            gate.release()
            await until(slow, n)
            await asyncio.sleep(2 * CROWDED_S)
        assert calls["scan"] - before <= 4
        for _ in range(last):
            gate.release()
        await until(slow, last)
        assert calls["scan"] - before < 40
