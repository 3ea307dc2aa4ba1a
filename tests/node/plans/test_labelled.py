"""Triggers that entries of `mielin.toml` give agents by their attributes follow the attributes."""

from __future__ import annotations

import asyncio

from support.failing import QUICK, Air, enter, leader_of
from support.nodes import deployment
from support.waiting import until

import mielin_cells as cells
from mielin_cells.client.plans.rebalance import rebalance
from mielin_cells.log.ids import MEMBERS
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.members import Planned, decode_record
from mielin_cells.node.node import Node
from mielin_cells.policies import Facts, MigrationPolicy, Policy, Thermal
from mielin_cells.policy.selectors import Selector
from mielin_cells.rpc import plans

HOT = Selector(
    match={"class": "PlanLodger", "tier": "gold"},
    policy=Policy(
        migration=MigrationPolicy(thermal=Thermal(sustained_s=0), cooldown_s=1), require=("node.labels.zone == 'a'",)
    ),
)


class Lodger(cells.Agent, name="PlanLodger"):
    n: int = 0

    @cells.handler
    async def tag(self, tier: str | None) -> None:
        cells.attributes(tier=tier)

    @cells.handler
    async def add(self) -> int:
        self.n += 1
        return self.n


def at(zone: str, *selectors: Selector) -> Announcement:
    return Announcement(labels={"zone": zone}, selectors=selectors, classes={"PlanLodger": 1})


def measures(node: Node, facts: Facts) -> None:
    node.facts._measure = lambda: facts


async def test_an_entry_gives_agents_triggers_as_long_as_its_labels_match() -> None:
    async with deployment(settings=QUICK) as made, asyncio.timeout(30):
        air, client = Air(), made.client
        for name, zone in (("n1", "a"), ("n2", "b"), ("n3", "a")):
            await enter(made, air, name, about=at(zone))
        await leader_of(client)
        lodgers = {name: await client.on("n1").spawn(Lodger, name) for name in ("gold", "plain", "was")}
        await lodgers["gold"].tag("gold")
        await lodgers["was"].tag("gold")
        measures(made.nodes["n1"], Facts(temperature_c=90))
        await enter(made, air, "n4", about=at("b", HOT))
        await until(lambda: made.nodes["n3"].activations.count == 2)
        assert made.nodes["n1"].activations.owns("plain"), "no entry matches it"
        await lodgers["was"].tag(None)
        watched = made.nodes["n3"].plans.watching
        await until(lambda: set(watched._epochs) == {"gold"})
        measures(made.nodes["n1"], Facts(temperature_c=30))
        measures(made.nodes["n3"], Facts(temperature_c=90))
        await until(lambda: made.nodes["n1"].activations.owns("gold"))
        assert made.nodes["n3"].activations.owns("was")
        assert [await lodger.add() for lodger in lodgers.values()] == [1, 1, 1]
        records = [decode_record(entry.data, "members") for entry in await client.log.read(MEMBERS, 0, 10_000)]
        moves = [move for record in records if isinstance(record, Planned) for move in record.moves]
        assert {move.target for move in moves} == {"n1", "n3"}, "the entry's condition counts for the target"


async def test_a_rebalancing_leaves_agents_where_an_entry_says_that_they_are_immovable() -> None:
    entry = Selector(match={"class": "PlanLodger"}, policy=Policy(immovable=True))
    async with deployment(settings=QUICK) as made, asyncio.timeout(30):
        air, client = Air(), made.client
        for name in ("n1", "n2"):
            await enter(made, air, name, about=at("a", entry))
        await leader_of(client)
        for n in range(8):
            await client.on("n1").spawn(Lodger, f"l{n}")
        report = await rebalance(client, is_dry=True)
        assert (report.state, report.proposal.moves) == (plans.STALLED, [])
