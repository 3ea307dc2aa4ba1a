"""Searches among 10,000 agents: paged, complete, and in bounded memory."""

from __future__ import annotations

import tracemalloc
from random import Random

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.log.attributes.entries import Listing, encode_listing
from mielin_cells.log.delta import StateDelta
from mielin_cells.log.ids import attributes_subject, log_subject
from mielin_cells.log.records import Created, encode_record
from mielin_cells.store.directory import Directory
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Log

COUNT = 10_000
PAGE = 250
PAGE_BYTES = 8_000
"""Of an agent of one page, and all that is made on the way to it."""
LISTED_BYTES = 1_000
"""Of an agent in the directory."""


class Grain(cells.Agent, name="FindGrain"):
    """Nobody runs these."""


async def write(log: Log) -> None:
    """What owners have written of their agents, in any order."""
    order = [*range(COUNT)]
    Random(1).shuffle(order)
    for n in order:
        agent = f"g{n:05}"
        record = Created(
            agent=agent, epoch=1, node="node-1", incarnation=1, nonce=b"n", prev=0, snap=0, cls="FindGrain", version=1,
            state=StateDelta(), at=0.0,
        )  # fmt: skip
        await log.append(log_subject(agent), encode_record(record), 0, "node-1")
        values = {"load": n, "region": ("eu", "us", "ch")[n % 3], "vip": n % 100 == 0}
        await log.append(attributes_subject(agent), encode_listing(Listing(agent, "FindGrain", 1, 1, 0.0, values)), 0)


async def test_10000_agents_are_found_page_by_page_in_bounded_memory() -> None:
    substrate = await Embedded.open()
    client = Client(substrate.log, substrate.wire)
    await client.open()
    await write(substrate.log)
    tracemalloc.start()
    try:
        directory = Directory(substrate.log)
        await directory.refresh()
        assert len(directory) == COUNT
        assert tracemalloc.get_traced_memory()[0] < COUNT * LISTED_BYTES
        search = client.find(Grain, where='region == "eu" and load >= 100')
        ids, after, more, before = list[str](), "", True, 0
        while more:
            page = await search.page(after, PAGE)
            if not ids:  # the first one made what stays: the client's own directory, and its index of regions
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
            assert 0 < len(page.items) <= PAGE
            ids += [one.id for one in page.items]
            after, more = page.next, bool(page.next)
        assert ids == [f"g{n:05}" for n in range(102, COUNT, 3)]
        assert tracemalloc.get_traced_memory()[1] - before < PAGE * PAGE_BYTES
        assert await client.find(Grain, where="vip").count() == COUNT // 100
        assert [one.id async for one in client.find(Grain, where="load < 2 or load = 9999")] == [
            "g00000",
            "g00001",
            "g09999",
        ]
        assert await client.find(Grain, where="vip", node="node-2").count() == 0
        assert await client.find(Grain, where="vip", node="node-1").count() == COUNT // 100
    finally:
        tracemalloc.stop()
        await client.close()
        await substrate.close()
