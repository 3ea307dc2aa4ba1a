"""Where new agents go, when many are spawned at once, and while nodes come and go."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from support.failing import QUICK, Gauge, die, leader_of, nodes
from support.virtual import virtually
from support.waiting import until

import mielin_cells as cells
from mielin_cells.client import placement
from mielin_cells.client.client import Client
from mielin_cells.log.ids import control_subject
from mielin_cells.membership import table
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.members import Left, Table
from mielin_cells.membership.table import Members
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
        assert seen.keys() == {"Spawn"}
        assert all(abs(len(node.activations.live) - 200) < 50 for node in running.values())


async def test_nodes_that_have_left_cost_a_spawn_nothing() -> None:
    async with nodes("node-1") as (client, _, _keepers, _air):
        for n in range(100):
            members = Members(client.log)
            await table.enter(members, f"old-{n}", Announcement(), b"n")
            await table.leave(members, f"old-{n}", 1)
        with requests_of(client) as seen:
            await client.spawn(Gauge, "g")
        assert seen == {"Spawn": 1}


async def test_a_spawn_goes_round_a_node_that_has_just_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "FRESH_S", 100.0)
    async with nodes("node-1", "node-2") as (client, running, _, air), asyncio.timeout(30):
        await client.spawn(Gauge, "g")  # to node-1, so the next would go to node-2
        die(running["node-2"], air)
        assert await (await client.spawn(Gauge, "h")).where() == "node-1"


async def test_a_frozen_node_holds_up_no_spawn_once_it_is_suspected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "FRESH_S", 0.1)
    async with nodes("node-1", "node-2", "node-3") as (client, running, _keepers, air), asyncio.timeout(60):
        await leader_of(client)
        request = client.wire.request
        running["node-1"].presence.say_serving = asyncio.Event().wait  # type: ignore[method-assign,assignment]

        async def frozen(subject: str, data: bytes, timeout: float) -> bytes:
            if subject == control_subject("node-1"):
                await asyncio.sleep(timeout)
                raise cells.errors.WireTimeout("node-1 did not answer.")
            return await request(subject, data, timeout)

        client.wire.request = frozen  # type: ignore[method-assign]
        air.silent.add("node-1")
        gauges = await asyncio.gather(*(client.spawn(Gauge, f"g{n}") for n in range(6)))
        assert "node-1" not in await asyncio.gather(*(gauge.where() for gauge in gauges))
        client.wire.request = request  # type: ignore[method-assign]


async def test_a_node_that_comes_is_waited_for_and_without_any_it_is_said_at_once() -> None:
    async with nodes("node-1") as (client, running, _, air), asyncio.timeout(30):
        die(running["node-1"], air)
        spawning = asyncio.create_task(client.spawn(Gauge, "g"))
        await asyncio.sleep(0.1)
        assert not spawning.done()
        spawning.cancel()
        members = Members(client.log)
        await members.read()
        await members.append(lambda table: Left("node-1", 1) if table.is_current("node-1", 1) else None)
        with pytest.raises(cells.errors.UnknownNode, match="start one"):
            await client.spawn(Gauge, "h")


async def test_that_there_is_no_node_is_not_believed_of_a_replica_that_is_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seed 7084: the log of the members is read from any replica, and one had nothing of it yet."""
    async with nodes("node-1") as (client, _, _, _air), asyncio.timeout(10):
        members, looks = client.members, list[int]()
        read = members.read

        async def behind() -> Table:
            looks.append(members.table.seq)
            return members.table if len(looks) == 1 else await read()

        monkeypatch.setattr(members, "read", behind)
        members.table = Table()
        gauge = await client.spawn(Gauge, "g")
        assert looks[0] == 0
        assert await gauge.where() == "node-1"


async def test_agents_that_spawn_as_they_start_do_not_wait_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "SPAWNS_MAX", 2)
    async with cells.local() as cluster, asyncio.timeout(30):
        parents = await asyncio.gather(*(cluster.spawn(Parent, f"p{n}") for n in range(8)))
        assert await asyncio.gather(*(parent.children() for parent in parents)) == [1] * 8
        assert len(await cluster.agents()) == 16


async def test_that_every_node_is_full_is_said_and_none_is_called_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "NOBODY_S", 0.5)
    monkeypatch.setattr(placement, "FRESH_S", 0.05)
    settings = replace(QUICK, agents_max=2)
    async with nodes("node-1", "node-2", settings=settings) as (client, running, _, _air), asyncio.timeout(30):
        for n in range(4):
            await client.spawn(Gauge, f"g{n}")
        with pytest.raises(cells.errors.NoNodeFits, match="node-[12]"):
            await client.spawn(Gauge, "more")
        await until(lambda: all(member.facts.slots == 0 for member in running["node-1"].activations.members.table))
        with pytest.raises(
            cells.errors.NoNodeFits, match="no node takes it: node-1 takes no more agents: it is full; node-2"
        ):
            await client.spawn(Gauge, "more")
        assert [node.activations.count for node in running.values()] == [2, 2]


@virtually
async def test_that_a_small_node_is_full_and_then_has_room_again_is_told() -> None:
    async with (
        nodes("node-1", settings=replace(QUICK, agents_max=2)) as (client, running, _, _air),
        asyncio.timeout(300),
    ):
        node = running["node-1"]

        async def told(slots: int) -> None:
            await until(lambda: [member.facts.slots for member in node.activations.members.table] == [slots])

        await told(2)
        for left, agent in ((1, "a"), (0, "b")):
            await client.spawn(Gauge, agent)
            await told(left)
        await client.terminate("a")
        await told(1)
        await client.spawn(Gauge, "c")


async def test_a_full_node_refuses_spawns_itself_also_when_it_is_named_and_many_come_at_once() -> None:
    settings = replace(QUICK, agents_max=3)
    async with nodes("node-1", "node-2", settings=settings) as (client, running, _, _air), asyncio.timeout(30):
        spawns = (client.on("node-1").spawn(Gauge, f"g{n}") for n in range(8))
        ends = await asyncio.gather(*spawns, return_exceptions=True)
        refused = [end for end in ends if isinstance(end, cells.errors.NoNodeFits)]
        assert len(refused) == 5
        assert "node-1 has 3 agents, and takes at most 3" in str(refused[0])
        assert running["node-1"].activations.count == 3
