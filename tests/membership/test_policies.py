"""Policies decide where agents run, whoever places them: spawns, moves, drains, and takeovers of nodes that are gone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.failing import QUICK, Air, die, enter
from support.nodes import Deployment, deployment
from support.waiting import until

import mielin_cells as cells
from mielin_cells.log.fold import Fold
from mielin_cells.log.policy import Affinity, Policy, Preference
from mielin_cells.membership.announcement import Announcement
from mielin_cells.node.ownership.claims import Claims
from mielin_cells.store.reader import load

IN_EU = Policy(require=("node.labels.region == 'eu'",))


class EuLedger(cells.Agent, policy=IN_EU):
    count: int = 0

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count

    @cells.handler
    async def where(self) -> str:
        return cells.this().node


class EuClerk(cells.Agent, policy=Policy(near=(Affinity(agent="book", required=True),))):
    @cells.handler
    async def where(self) -> str:
        return cells.this().node


class EuReplica(cells.Agent, policy=Policy(spread=("zone",))):
    @cells.handler
    async def where(self) -> str:
        return cells.this().node


class EuPillar(cells.Agent, policy=Policy(immovable=True)):
    @cells.handler
    async def where(self) -> str:
        return cells.this().node


class EuGuest(cells.Agent, policy=Policy(prefer=(Preference("node.labels.region == 'us'", 2.0),))):
    @cells.handler
    async def where(self) -> str:
        return cells.this().node


def at(region: str, zone: str = "") -> Announcement:
    return Announcement(labels={"region": region, **({"zone": zone} if zone else {})})


@asynccontextmanager
async def placed(**regions: str) -> AsyncIterator[Deployment]:
    async with deployment() as made:
        for name, region in regions.items():
            await made.start(name, about=at(region))
        yield made


async def test_a_spawn_goes_where_the_policy_allows_and_nowhere_else() -> None:
    async with placed(n1="us", n2="eu", n3="us") as made:
        ledgers = [await made.client.spawn(EuLedger, f"s{n}") for n in range(6)]
        assert {await ledger.where() for ledger in ledgers} == {"n2"}
    async with placed(n1="us") as made:
        with pytest.raises(cells.errors.NoNodeFits, match=r"n1.*region == 'eu'.*does not hold.*\"us\""):
            await made.client.spawn(EuLedger, "s")
        with pytest.raises(cells.errors.NoSuchAgent):
            await made.client.show("s")


async def test_preferences_choose_among_those_that_are_allowed() -> None:
    async with placed(n1="eu", n2="us", n3="eu") as made:
        guests = [await made.client.spawn(EuGuest, f"g{n}") for n in range(2)]
        assert [await guest.where() for guest in guests] == ["n2", "n2"]


async def test_a_move_goes_where_the_policy_allows_and_nowhere_else() -> None:
    async with placed(n1="eu", n2="us", n3="eu", n4="us") as made:
        client = made.client
        ledger = await client.on("n1").spawn(EuLedger, "s")
        with pytest.raises(cells.MigrationRefused, match="region == 'eu' does not hold"):
            await client.migrate(ledger, to="n2")
        assert await ledger.where() == "n1"
        assert (await client.migrate(ledger)).target == "n3"
        made.kill("n1")
        assert await ledger.where() == "n3"


async def test_a_drain_leaves_what_no_other_node_may_take_and_says_which_rule_keeps_it() -> None:
    async with placed(n1="eu", n2="us") as made:
        client = made.client
        await client.on("n1").spawn(EuLedger, "s")
        await client.on("n1").spawn(EuPillar, "p")
        await client.on("n1").spawn(EuGuest, "g")
        report = await client.drain("n1", deadline_s=2.0)
        blocked = dict(report.blocked)
        assert report.moved == 1
        assert "region == 'eu' does not hold" in blocked["s"]
        assert "immovable" in blocked["p"]
        await client.uncordon("n1")
        assert (await client.migrate("p", to="n2")).ok  # somebody wants it


async def test_an_agent_that_must_be_near_another_follows_it() -> None:
    async with placed(n1="eu", n2="eu", n3="eu") as made:
        client = made.client
        book = await client.on("n3").spawn(EuLedger, "book")
        await asyncio.gather(*(client.on("n3").spawn(EuGuest, f"g{n}") for n in range(5)))
        clerk = await client.spawn(EuClerk, "clerk")
        assert await clerk.where() == await book.where() == "n3"
        with pytest.raises(cells.MigrationRefused, match="near agent book: 0 of 1 are there"):
            await client.migrate(clerk, to="n1")


async def test_agents_of_a_class_are_spread_over_a_label() -> None:
    async with deployment() as made:
        for name, zone in (("n1", "a"), ("n2", "a"), ("n3", "a"), ("n4", "b")):
            await made.start(name, about=at("eu", zone))
        there = [await (await made.client.spawn(EuReplica, f"r{n}")).where() for n in range(8)]
        assert Counter(there)["n4"] == 4


@asynccontextmanager
async def watched(**regions: str) -> AsyncIterator[tuple[Deployment, Air]]:
    async with deployment(settings=QUICK) as made:
        air = Air()
        for name, region in regions.items():
            await enter(made, air, name, about=at(region))
        yield made, air


async def test_the_agents_of_a_dead_node_go_where_their_policies_allow() -> None:
    async with watched(n1="us", n2="eu", n3="us", n4="eu") as (made, air), asyncio.timeout(60):
        client = made.client
        ledgers = [await client.on("n2").spawn(EuLedger, f"s{n}") for n in range(20)]
        guests = [await client.on("n2").spawn(EuGuest, f"g{n}") for n in range(10)]
        await asyncio.gather(*(ledger.add() for ledger in ledgers))
        die(made.nodes["n2"], air)
        assert await asyncio.gather(*(ledger.add() for ledger in ledgers)) == [2] * 20
        assert {await ledger.where() for ledger in ledgers} == {"n4"}
        assert {await guest.where() for guest in guests} <= {"n1", "n3"}


async def test_an_agent_that_no_node_may_take_waits_for_one_that_may() -> None:
    async with watched(n1="us", n2="eu", n3="us") as (made, air), asyncio.timeout(60):
        client = made.client
        ledger = await client.on("n2").spawn(EuLedger, "s")
        guest = await client.on("n2").spawn(EuGuest, "g")
        assert await ledger.add() == 1
        die(made.nodes["n2"], air)
        assert await guest.where() in ("n1", "n3")
        leader = made.nodes["n1"].failover if made.nodes["n1"].leads else made.nodes["n3"].failover
        await until(lambda: leader.taken >= 1)
        assert (await load(client.log, "s")).owner == "n2"
        await enter(made, air, "n5", about=at("eu"))
        assert await ledger.add() == 2
        assert await ledger.where() == "n5"


async def test_without_the_refusal_a_takeover_gives_agents_to_nodes_that_their_policies_exclude(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P1 taken away: the leader does not know the policies of the agents that it offers, and nobody tells it."""

    async def never(self: Claims, fold: Fold) -> bool:
        return False

    monkeypatch.setattr(Claims, "_is_placed_by_policy", never)
    async with watched(n1="us", n2="eu", n3="us", n4="eu") as (made, air), asyncio.timeout(60):
        client = made.client
        ledgers = [await client.on("n2").spawn(EuLedger, f"s{n}") for n in range(20)]
        await asyncio.gather(*(ledger.add() for ledger in ledgers))
        die(made.nodes["n2"], air)
        assert await asyncio.gather(*(ledger.add() for ledger in ledgers)) == [2] * 20
        assert {await ledger.where() for ledger in ledgers} & {"n1", "n3"}
