"""Where new agents go, when many are spawned at once, and while nodes come and go."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.failing import Gauge, die, nodes

import mielin_cells as cells
from mielin_cells.client import placement
from mielin_cells.client.client import Client
from mielin_cells.log.ids import control_subject, node_log_subject
from mielin_cells.membership import selection, table
from mielin_cells.rpc import requests


class Parent(cells.Agent):
    """Spawns as it starts."""

    born: int = 0

    async def on_start(self) -> None:
        this = cells.this()
        await this.cluster.spawn(Gauge, f"child-of-{this.id}")
        self.born += 1

    @cells.handler
    async def children(self) -> int:
        return self.born


@contextmanager
def requests_of(client: Client) -> Iterator[Counter[str]]:
    """What the client asks nodes, by kind."""
    seen, request = Counter[str](), client.wire.request

    async def counted(subject: str, data: bytes, timeout: float) -> bytes:
        seen[type(requests.decode_request(data)).__name__] += 1
        return await request(subject, data, timeout)

    client.wire.request = counted  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        client.wire.request = request  # type: ignore[method-assign]


async def test_a_burst_of_spawns_is_spread_and_asks_the_nodes_a_few_times() -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, running, _, _air):
        with requests_of(client) as seen:
            await asyncio.gather(*(client.spawn(Gauge, f"g{n}") for n in range(600)))
        assert seen["Spawn"] == 600
        assert seen["Ping"] < 200
        assert all(abs(len(node.activations.live) - 200) < 50 for node in running.values())


async def test_nodes_that_have_left_cost_a_spawn_nothing() -> None:
    async with nodes("node-1") as (client, _, _keepers, _air):
        for n in range(100):
            place = await table.enter(client.log, f"old-{n}", table.Announcement(), lambda: b"n" * 12)
            await table.leave(client.log, f"old-{n}", place.incarnation, b"m" * 12)
        with requests_of(client) as seen:
            await client.spawn(Gauge, "g")
        assert seen == {"Ping": 1, "Spawn": 1}


async def test_a_spawn_goes_round_a_node_that_has_just_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "FRESH_S_MIN", 100.0)
    monkeypatch.setattr(placement, "FRESH_S_MAX", 100.0)
    async with nodes("node-1", "node-2") as (client, running, _, air), asyncio.timeout(10):
        await client.spawn(Gauge, "g")  # to node-1, so the next would go to node-2
        die(running["node-2"], air)
        assert await (await client.spawn(Gauge, "h")).where() == "node-1"


async def test_a_frozen_node_holds_up_no_spawn() -> None:
    async with nodes("node-1", "node-2") as (client, _, _keepers, _air):
        request = client.wire.request

        async def frozen(subject: str, data: bytes, timeout: float) -> bytes:
            if subject == control_subject("node-1"):
                await asyncio.sleep(timeout)
                raise cells.errors.WireTimeout("node-1 did not answer.")
            return await request(subject, data, timeout)

        client.wire.request = frozen  # type: ignore[method-assign]
        clock = asyncio.get_running_loop().time
        began = clock()
        assert await (await client.spawn(Gauge, "g")).where() == "node-2"
        assert clock() - began < selection.PING_S
        client.wire.request = request  # type: ignore[method-assign]


async def test_a_node_that_comes_is_waited_for_and_without_any_it_is_said_at_once() -> None:
    async with nodes("node-1") as (client, running, _, air), asyncio.timeout(10):
        die(running["node-1"], air)
        spawning = asyncio.create_task(client.spawn(Gauge, "g"))
        await asyncio.sleep(0.1)
        assert not spawning.done()
        spawning.cancel()
        last = await client.log.last(node_log_subject("node-1"))
        assert last is not None
        await table.leave(client.log, "node-1", running["node-1"].home.incarnation, b"m" * 12)
        with pytest.raises(cells.errors.UnknownNode, match="start one"):
            await client.spawn(Gauge, "h")


async def test_agents_that_spawn_as_they_start_do_not_wait_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "SPAWNS_MAX", 2)
    async with cells.local() as cluster, asyncio.timeout(10):
        parents = await asyncio.gather(*(cluster.spawn(Parent, f"p{n}") for n in range(8)))
        assert await asyncio.gather(*(parent.children() for parent in parents)) == [1] * 8
        assert len(await cluster.agents()) == 16
