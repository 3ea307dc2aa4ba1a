"""Nodes that have left for good are removed from the registry, and their names can be used again."""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest
from support.failing import QUICK, Gauge, die, leader_of, nodes
from support.waiting import until

from mielin_cells.agents.reference import classes
from mielin_cells.client.client import Client
from mielin_cells.membership import table
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.members import Forgotten, Left
from mielin_cells.membership.table import Members
from mielin_cells.node import failover
from mielin_cells.node.node import Node
from mielin_cells.substrate.embedded import Embedded


async def came_and_went(client: Client, name: str) -> int:
    members = Members(client.log)
    entered = await table.enter(members, name, Announcement(), Random(name).randbytes(12))
    await table.leave(members, name, entered.incarnation)
    return entered.incarnation


async def until_only(client: Client, *names: str) -> None:
    async with asyncio.timeout(60):
        while await table.list_names(client.log) != list(names):
            await asyncio.sleep(0.01)


async def test_who_has_left_is_forgotten_and_its_name_goes_on_above_its_incarnations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failover, "FORGET_STOPPED_S", 0.05)
    async with nodes("node-1", "node-2", "node-3") as (client, running, _, air):
        for n in range(3):
            await came_and_went(client, f"pod-{n}")
        assert await came_and_went(client, "pod-0") == 2
        await until_only(client, "node-1", "node-2", "node-3")
        await until(lambda: all(node.members.table.members.keys() == running.keys() for node in running.values()))
        assert await came_and_went(client, "pod-0") == 3  # above all that were ever forgotten
        await until_only(client, "node-1", "node-2", "node-3")

        leader = await leader_of(client)
        die(running[leader], air)
        await leader_of(client, leader)  # who leads next knows of it, too
        assert await came_and_went(client, "pod-1") == 4


async def test_a_node_that_an_operator_has_cordoned_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "FORGET_STOPPED_S", 0.05)
    async with nodes("node-1") as (client, _, _keepers, _air):
        await came_and_went(client, "kept")
        await table.cordon(client.log, "kept", True)
        await came_and_went(client, "pod")
        await until_only(client, "kept", "node-1")


async def test_a_node_that_was_silent_for_long_is_given_up_and_stops_if_it_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failover, "FORGET_SILENT_S", 0.05)
    async with nodes("node-1", "node-2") as (client, running, _, air):
        gauge = await client.on("node-2").spawn(Gauge, "g")
        given_up = list[int]()
        running["node-2"]._replaced = given_up.append
        running["node-2"].presence.say_serving = asyncio.Event().wait  # type: ignore[method-assign,assignment]
        air.silent.add("node-2")  # as one that is stopped: nobody hears it, and it refutes nothing
        await until(lambda: given_up)
        assert running["node-2"].is_stopping
        assert await gauge.add() == 1
        assert await gauge.where() == "node-1"
        again = Node(
            "node-2",
            client.log,
            client.wire,
            classes.get,
            settings=QUICK,
            rng=Random(7),
            wall=time.time,
            cluster=client,
        )
        await again.start()
        running["node-2"] = again
        assert again.home.incarnation == 2
        assert await client.on("node-2").spawn(Gauge, "h") is not None


async def test_one_that_enters_while_it_is_forgotten_stays() -> None:
    substrate = await Embedded.open()
    try:
        members, leader = Members(substrate.log), Members(substrate.log)
        await table.enter(members, "pod", Announcement(), b"1")
        await table.leave(members, "pod", 1)
        await leader.read_to_end()
        await table.enter(members, "pod", Announcement(), b"2")
        assert not await leader.try_append(Forgotten("pod", 1, 0))  # it had not read of the second
        assert leader.table.members["pod"].incarnation == 2
        assert (await table.read_members(substrate.log)).members["pod"].incarnation == 2
    finally:
        await substrate.close()


async def test_an_agent_of_a_node_that_is_not_in_the_table_is_taken_over() -> None:
    """What it had sent before it died landed after it was forgotten."""
    async with nodes("node-1", "node-2", "node-3") as (client, running, _, air):
        gauge = await client.on("node-3").spawn(Gauge, "g")
        await gauge.add()
        die(running["node-3"], air)
        members = Members(client.log)
        await members.append(lambda table: Left("node-3", 1) if table.is_current("node-3", 1) else None)
        await members.append(lambda table: Forgotten("node-3", 1, table.term) if table.get("node-3") else None)
        await came_and_went(client, "pod")  # somebody to look for
        assert await gauge.add() == 2
