"""One limit for the moves of all nodes together, whoever asks for them (`moves_all`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from support.failing import QUICK, die, enter, leader_of, watching
from support.nodes import Deployment, deployment
from support.waiting import until

import mielin_cells as cells
from mielin_cells.node.moves.bounds import lent
from mielin_cells.node.plans import lender
from mielin_cells.node.plans.lender import Lender
from mielin_cells.policy.planning import lending
from mielin_cells.rpc import plans


class Slow(cells.Agent, name="AllMovesSlow"):
    rest_s: float = 0.02

    @cells.handler
    async def add(self) -> int:
        return 1

    async def on_depart(self) -> None:
        await asyncio.sleep(self.rest_s)


WAIT_S = 1.0


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loans lapse sooner, so a new leader lends sooner."""
    for module in (lending, lender):
        monkeypatch.setattr(module, "LENT_S", WAIT_S)
    monkeypatch.setattr(lender, "CHECK_S", WAIT_S / 5)
    monkeypatch.setattr(lent, "RENEW_S", WAIT_S / 5)


def running(opened: Deployment) -> int:
    return sum(node.migrations.attempts.places.gate.inside for node in opened.nodes.values())


@asynccontextmanager
async def counted(opened: Deployment) -> AsyncIterator[list[int]]:
    most = [0]

    async def look() -> None:
        while True:
            most[0] = max(most[0], running(opened))
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    try:
        yield most
    finally:
        looking.cancel()


async def test_orders_and_drains_of_all_nodes_keep_to_one_limit_together() -> None:
    names = [f"node-{place}" for place in range(1, 5)]
    async with watching(*names, settings=replace(QUICK, moves_all=3)) as (opened, _, _air):
        client = opened.client
        await leader_of(client)
        refs = [await client.on(names[place % 3]).spawn(Slow, f"s{place}") for place in range(24)]
        async with counted(opened) as most:
            orders = [client.migrate(ref, to="node-4") for place, ref in enumerate(refs) if place % 3]
            draining = asyncio.create_task(client.drain("node-1", 60.0))
            reports = await asyncio.gather(*orders)
            drained = await draining
        assert all(report.ok for report in reports)
        assert (drained.moved, drained.left) == (8, 0)
        assert 1 <= most[0] <= 3
        assert await asyncio.gather(*(ref.add() for ref in refs)) == [1] * 24


async def test_a_move_for_which_a_node_has_its_own_place_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[plans.Borrow]()
    monkeypatch.setattr(Lender, "lend", lambda self, request: asked.append(request))
    async with watching("node-1", "node-2", settings=QUICK) as (opened, _, _air):
        client = opened.client
        await leader_of(client)
        refs = [await client.on("node-1").spawn(Slow, f"s{place}", rest_s=0.0) for place in range(40)]
        assert all(report.ok for report in await asyncio.gather(*(client.migrate(ref, to="node-2") for ref in refs)))
        assert asked == []


async def test_a_drain_without_a_place_says_what_it_waits_for_and_ends_at_its_deadline() -> None:
    async with watching("node-1", "node-2", "node-3", settings=replace(QUICK, moves_all=1)) as (opened, _, _air):
        client = opened.client
        await leader_of(client)
        slow = await client.on("node-2").spawn(Slow, "slow", rest_s=3.0)
        await client.on("node-1").spawn(Slow, "other")
        moving = asyncio.create_task(client.migrate(slow, to="node-3"))
        await until(lambda: running(opened) == 1)
        draining = asyncio.create_task(client.drain("node-1", 1.0))
        drains = opened.nodes["node-1"].drains
        await until(lambda: drains.running is not None and any(
            "moves_all = 1" in row.blocker for row in drains.running.progress().rows
        ))  # fmt: skip
        report = await draining
        assert (report.moved, report.left) == (0, 1)
        assert (await moving).ok
        assert (await client.owner("other"))[0] == "node-1"


async def test_places_of_a_dead_node_and_of_a_dead_leader_come_back() -> None:
    names = [f"node-{place}" for place in range(1, 5)]
    async with watching(*names, settings=replace(QUICK, moves_all=1)) as (opened, _, air):
        client = opened.client
        first = await leader_of(client)
        one, two = (name for name in names[:3] if name != first)
        stuck = await client.on(one).spawn(Slow, "stuck", rest_s=4.0)
        moving = asyncio.create_task(client.migrate(stuck, to="node-4"))
        await until(lambda: running(opened) == 1)
        for name in (one, first):
            die(opened.nodes.pop(name), air)
        begun = asyncio.get_running_loop().time()
        ref = await client.on(two).spawn(Slow, "next")
        assert (await client.migrate(ref, to="node-4")).ok
        assert asyncio.get_running_loop().time() - begun >= WAIT_S  # a new leader waits for so long
        moving.cancel()


async def test_where_nobody_leads_each_node_has_its_part() -> None:
    async with deployment("node-1", "node-2", settings=cells.Settings(moves_all=1)) as opened:
        refs = [await opened.client.on("node-1").spawn(Slow, f"s{place}") for place in range(4)]
        async with counted(opened) as most:
            reports = await asyncio.gather(*(opened.client.migrate(ref, to="node-2") for ref in refs))
        assert all(report.ok for report in reports)
        assert most[0] == 1


async def test_a_node_that_has_left_does_not_count_and_a_silent_one_does() -> None:
    async with watching("node-1", "node-2", "node-3", settings=QUICK) as (opened, _, air):
        await leader_of(opened.client)
        assert lent.members_of(opened.nodes["node-1"].members.table) == 3
        await opened.nodes.pop("node-2").stop()
        await until(lambda: lent.members_of(opened.nodes["node-1"].members.table) == 2)
        die(opened.nodes.pop("node-3"), air)
        assert lent.members_of(opened.nodes["node-1"].members.table) == 2


async def test_a_move_that_comes_while_another_uses_what_is_lent_asks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No node has a place of its own, and what is lent is renewed rarely."""
    async with watching("node-1", "node-2", settings=replace(QUICK, moves_all=2)) as (opened, _, _air):
        client, gate = opened.client, opened.nodes["node-1"].migrations.attempts.places.gate
        monkeypatch.setattr(lent, "share_of", lambda limit, nodes: 0)
        await leader_of(client)
        slow, other = [await client.on("node-1").spawn(Slow, name, rest_s=2.0) for name in ("slow", "other")]
        monkeypatch.setattr(lent, "RENEW_S", 1000.0)
        moving = asyncio.create_task(client.migrate(slow, to="node-2"))
        await until(lambda: gate.inside == 1)
        assert (await client.migrate(other, to="node-2")).ok
        assert (await moving).ok


async def test_a_move_that_comes_while_a_loan_is_given_back_gets_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    gives_back, goes_on, lend = asyncio.Event(), asyncio.Event(), Lender.lend

    async def late(self: Lender, request: plans.Borrow) -> plans.Lent:
        if request.want == 0:
            gives_back.set()
            await goes_on.wait()
        return await lend(self, request)

    monkeypatch.setattr(Lender, "lend", late)
    async with watching("node-1", "node-2", settings=replace(QUICK, moves_all=1)) as (opened, _, _air):
        client, gate = opened.client, opened.nodes["node-1"].migrations.attempts.places.gate
        await leader_of(client)
        first, second = [await client.on("node-1").spawn(Slow, name) for name in ("first", "second")]
        assert (await client.migrate(first, to="node-2")).ok
        await gives_back.wait()
        moving = asyncio.create_task(client.migrate(second, to="node-2"))
        await until(lambda: gate.waiting == 1)
        goes_on.set()
        assert (await asyncio.wait_for(moving, 10 * WAIT_S)).ok


async def test_a_move_that_waits_for_a_loan_takes_a_place_that_has_become_the_nodes_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nothing(self: Lender, request: plans.Borrow) -> plans.Lent:
        return plans.Lent(0, 0.0)

    monkeypatch.setattr(Lender, "lend", nothing)
    names = ["node-1", "node-2", "node-3"]
    async with watching(*names, settings=replace(QUICK, moves_all=4)) as (opened, _, _air):
        client = opened.client
        source = await leader_of(client)
        target, leaves = (name for name in names if name != source)
        ref = await client.on(source).spawn(Slow, "waits")
        moving = asyncio.create_task(client.migrate(ref, to=target))
        await until(lambda: opened.nodes[source].migrations.attempts.places.gate.waiting == 1)
        await opened.nodes.pop(leaves).stop()
        assert (await asyncio.wait_for(moving, 10 * WAIT_S)).ok


async def test_a_move_that_waits_for_a_place_of_its_node_is_lent_one_when_these_have_become_fewer() -> None:
    settings = replace(QUICK, moves_all=4, moves_out=1)
    async with watching("node-1", "node-2", settings=settings) as (opened, _, air):
        client, gate = opened.client, opened.nodes["node-1"].migrations.attempts.places.gate
        await leader_of(client)
        slow, other = [await client.on("node-1").spawn(Slow, name, rest_s=2.0) for name in ("slow", "other")]
        first = asyncio.create_task(client.migrate(slow, to="node-2"))
        await until(lambda: gate.inside == 1)
        second = asyncio.create_task(client.migrate(other, to="node-2"))
        await until(lambda: gate.waiting == 1)
        await enter(opened, air, "node-3", settings)
        await until(lambda: opened.nodes["node-1"].migrations.attempts.places.own == 0)
        assert (gate.inside, gate.waiting) == (1, 1)
        assert (await first).ok
        assert (await asyncio.wait_for(second, 10 * WAIT_S)).ok
