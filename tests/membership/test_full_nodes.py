"""A node that is full claims no agents of nodes that are gone, whatever the table says of it (`agents_max`)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from support.failing import QUICK, Gauge, die, enter, leader_of, watching
from support.waiting import until

import mielin_cells as cells
from mielin_cells.policies import Facts as Said
from mielin_cells.rpc import requests


class Backed(cells.Agent, name="FullBacked", standby=1):
    @cells.handler
    async def add(self) -> int:
        return 1


FOUR = replace(QUICK, agents_max=4)


async def test_more_agents_than_there_is_room_wait_in_their_logs_and_go_on_when_a_node_comes() -> None:
    """The nodes say that they have room, so the leader asks them."""
    async with watching("node-1", "node-2", "node-3", settings=FOUR) as (opened, _, air):
        client, first = opened.client, await leader_of(opened.client)
        dying = next(opened.nodes[name] for name in opened.nodes if name != first)
        kept = [node for node in opened.nodes.values() if node is not dying]
        for node in kept:
            for number in range(3):
                await client.on(node.name).spawn(Gauge, f"{node.name}-{number}")
            node.facts.current = lambda: Said(slots=99)  # type: ignore[method-assign]
        refs = [await client.on(dying.name).spawn(Gauge, f"g{number}") for number in range(4)]
        await until(
            lambda: all((one := node.members.table.get(kept[0].name)) and one.facts.slots == 99 for node in kept)
        )
        die(opened.nodes.pop(dying.name), air)
        await until(lambda: [node.activations.count for node in kept] == [4, 4])
        await until(lambda: kept[0].failover.taken + kept[1].failover.taken >= 2)
        assert [node.activations.count for node in kept] == [4, 4]
        await enter(opened, air, "node-4", FOUR)
        assert await asyncio.gather(*(ref.add() for ref in refs)) == [1] * 4
        assert max(node.activations.count for node in opened.nodes.values()) <= 4


async def test_a_full_node_that_keeps_a_copy_leaves_the_agent_to_one_that_has_room() -> None:
    settings = replace(QUICK, agents_max=2)
    async with watching("node-1", "node-2", "node-3", settings=settings) as (opened, _, air):
        client, first = opened.client, await leader_of(opened.client)
        dying = next(opened.nodes[name] for name in opened.nodes if name != first)
        ref = await client.on(dying.name).spawn(Backed, "backed")
        await until(lambda: any(node.standbys.copies for node in opened.nodes.values()))
        keeper = next(node for node in opened.nodes.values() if node.standbys.copies)
        for number in range(2):
            await client.on(keeper.name).spawn(Gauge, f"there-{number}")
        die(opened.nodes.pop(dying.name), air)
        assert await ref.add() == 1
        assert (await client.owner("backed"))[0] not in (keeper.name, dying.name)
        assert keeper.activations.count == 2


async def test_an_order_and_a_restart_look_at_no_limit() -> None:
    """An operator has decided, or nobody else may have the agents."""
    async with watching("node-1", "node-2", settings=QUICK) as (opened, _, air):
        client = opened.client
        refs = [await client.on("node-1").spawn(Gauge, f"g{number}") for number in range(4)]
        await opened.nodes.pop("node-1").stop()
        await enter(opened, air, "node-1", replace(QUICK, agents_max=2))
        assert await asyncio.gather(*(ref.add() for ref in refs)) == [1] * 4
        node = opened.nodes["node-1"]
        other = await client.on("node-2").spawn(Gauge, "other")
        assert await client.request("node-1", requests.Claim("other", "operator"), 5.0)
        assert await other.add() == 1
        assert node.activations.count == 5
