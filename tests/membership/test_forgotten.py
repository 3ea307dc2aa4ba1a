"""Nodes that have left for good are removed from the registry, and their names can be used again."""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest
from support.failing import QUICK, Gauge, die, nodes
from support.waiting import until

from mielin_cells.agents.reference import classes
from mielin_cells.client.client import Client
from mielin_cells.log.ids import node_log_subject
from mielin_cells.membership import leader, table
from mielin_cells.membership.table import Announcement
from mielin_cells.node import failover
from mielin_cells.node.node import Node
from mielin_cells.substrate.embedded import Embedded


def nonce() -> bytes:
    return Random(0).randbytes(12)


async def came_and_went(client: Client, name: str) -> int:
    place = await table.enter(client.log, name, Announcement(), nonce)
    await table.leave(client.log, name, place.incarnation, nonce())
    return place.incarnation


async def until_only(client: Client, *names: str) -> None:
    async with asyncio.timeout(10):
        while await table.list_names(client.log) != list(names):
            await asyncio.sleep(0.01)


async def test_who_has_left_is_forgotten_and_its_name_goes_on_above_its_incarnations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failover, "FORGET_STOPPED_S", 0.05)
    async with nodes("node-1", "node-2") as (client, running, keepers, air):
        for n in range(3):
            await came_and_went(client, f"pod-{n}")
        assert await came_and_went(client, "pod-0") == 2
        await until_only(client, "node-1", "node-2")
        for keeper in keepers.values():
            async with asyncio.timeout(10):
                while keeper._roster.members.keys() != running.keys():
                    await asyncio.sleep(0.01)
            assert not keeper._suspects.announced
            assert not keeper._suspects.empty_since

        assert await came_and_went(client, "pod-0") == 3  # above all that were ever forgotten
        await until_only(client, "node-1", "node-2")

        last = await client.log.last(leader.SUBJECT)
        assert last is not None
        kept = leader.decode_term(last.data)
        assert kept.floor == 3
        die(running[kept.node], air)  # who keeps next knows of it, too
        async with asyncio.timeout(10):
            while (await leader.read_term(client.log, await client.log.last(leader.SUBJECT))).term == kept:
                await asyncio.sleep(0.01)
        assert await came_and_went(client, "pod-1") == 4


async def test_a_node_that_an_operator_has_cordoned_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "FORGET_STOPPED_S", 0.05)
    async with nodes("node-1") as (client, _, _keepers, _air):
        await came_and_went(client, "kept")
        await table.cordon(client.log, "kept", True, nonce)
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
        air.silent.add("node-2")
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
        log = substrate.log
        assert await leader.append_term(log, leader.Term("node-1", 1, 1, nonce()), 0)
        first = await table.enter(log, "pod", Announcement(), nonce)
        await table.leave(log, "pod", first.incarnation, nonce())
        gone = (await table.read_members(log))["pod"]
        last = await log.last(node_log_subject("pod"))
        assert last is not None

        assert not await table.forget(log, "pod", gone, ("node-2", 1), nonce)  # who does not keep forgets nobody
        second = await table.enter(log, "pod", Announcement(), nonce)
        assert not await table.forget(log, "pod", gone, ("node-1", 1), nonce)
        await log.trim(node_log_subject("pod"), last.seq + 1)  # as if it had looked just before
        assert (await table.read_members(log))["pod"].incarnation == second.incarnation == 2
    finally:
        await substrate.close()


async def test_an_agent_of_a_node_that_is_not_in_the_registry_is_taken_over() -> None:
    """What it had sent before it died landed after it was forgotten."""
    async with nodes("node-1", "node-2", "node-3") as (client, running, _, air):
        gauge = await client.on("node-3").spawn(Gauge, "g")
        await gauge.add()
        die(running["node-3"], air)
        last = await client.log.last(node_log_subject("node-3"))
        assert last is not None
        await client.log.trim(node_log_subject("node-3"), last.seq + 1)
        await came_and_went(client, "pod")  # somebody to look for
        assert await gauge.add() == 2
