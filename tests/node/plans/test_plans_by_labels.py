"""Entries of `mielin.toml` change what plans do with an agent: which nodes it may go to, whether it moves, and when it leaves."""

from __future__ import annotations

import asyncio

from support.failing import QUICK, Air, enter, leader_of
from support.nodes import deployment
from support.waiting import until

import mielin_cells as cells
from mielin_cells.log.policy import Policy
from mielin_cells.log.triggers.values import MigrationPolicy, Thermal
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.selection import need_of
from mielin_cells.node.node import Node
from mielin_cells.policy.facts import Facts
from mielin_cells.policy.selectors import Resolved, Selector

LEAVES = MigrationPolicy(cooldown_s=1.0, thermal=Thermal(sustained_s=0.1))
HOT = Facts(temperature_c=90)


class EntryPot(cells.Agent, policy=Policy(migration=LEAVES)):
    @cells.handler
    async def label(self, tier: str) -> None:
        cells.attributes(tier=tier)

    @cells.handler
    async def where(self) -> str:
        return cells.this().node


class EntryPan(cells.Agent):
    @cells.handler
    async def where(self) -> str:
        return cells.this().node


def at(region: str, *selectors: Selector) -> Announcement:
    return Announcement(labels={"region": region}, selectors=selectors)


async def policy_of(node: Node, agent: str) -> Resolved:
    """The agent's policy, as its node knows it."""
    return await node.activations.spread.resolve(need_of(node.activations.live[agent].fold))


async def test_an_agent_leaves_only_for_a_node_that_an_entry_allows_and_not_at_all_if_an_entry_says_so() -> None:
    in_eu = Selector(match={"class": "EntryPot"}, policy=Policy(require=("node.labels.region == 'eu'",)))
    held = Selector(match={"id": "held", "class": "EntryPot"}, policy=Policy(immovable=True))
    by_attribute = Selector(
        match={"tier": "gold", "class": "EntryPot"}, policy=Policy(require=("node.labels.region == 'ap'",))
    )
    entries = (in_eu, held, by_attribute)
    async with deployment(settings=QUICK) as made:
        air, client = Air(), made.client
        await enter(made, air, "n1", about=at("eu", *entries))
        await enter(made, air, "n2", about=at("us", *entries))
        await enter(made, air, "n3", about=at("ap", *entries))
        leader = made.nodes[await leader_of(client)]
        pots = [await client.on("n1").spawn(EntryPot, name) for name in ("p1", "p2", "held", "gold")]
        await pots[3].label("gold")
        async with asyncio.timeout(10):
            while (await policy_of(made.nodes["n1"], "gold")).policy.require != by_attribute.policy.require:
                await asyncio.sleep(0.01)  # attributes are known a second late
        for name in ("n2", "n3"):
            made.nodes[name].facts._measure = lambda: Facts(temperature_c=20)
        made.nodes["n1"].facts._measure = lambda: HOT
        await until(lambda: made.nodes["n1"].activations.count == 3)
        assert [await pot.where() for pot in pots] == ["n1", "n1", "n1", "n3"]
        await until(lambda: "region" in leader.plans.leading.planner.waits.get("p1", ""))
        await enter(made, air, "n4", about=at("eu", *entries))
        await until(lambda: made.nodes["n1"].activations.count == 1)
        assert [await pot.where() for pot in pots] == ["n4", "n4", "n1", "n3"]


async def test_an_entry_gives_triggers_to_agents_that_have_none_when_the_node_that_brings_it_joins() -> None:
    leaves = Selector(match={"class": "EntryPan"}, policy=Policy(migration=LEAVES))
    async with deployment(settings=QUICK) as made:
        air, client = Air(), made.client
        await enter(made, air, "n1")
        await enter(made, air, "n2")
        await leader_of(client)
        pans = [await client.on("n1").spawn(EntryPan, f"q{n}") for n in range(3)]
        made.nodes["n1"].facts._measure = lambda: HOT
        await until(lambda: made.nodes["n1"].members.table.members["n1"].facts.temperature_c == 90)
        assert [await pan.where() for pan in pans] == ["n1"] * 3, "nothing says that they leave"
        await enter(made, air, "n3", about=at("eu", leaves))
        await until(lambda: made.nodes["n1"].activations.count == 0)


async def test_triggers_of_an_entry_end_when_the_last_node_that_has_it_leaves() -> None:
    leaves = Selector(match={"class": "EntryPan"}, policy=Policy(migration=LEAVES))
    async with deployment(settings=QUICK) as made:
        air, client = Air(), made.client
        await enter(made, air, "n1")
        await enter(made, air, "n2", about=at("eu", leaves))
        await client.on("n1").spawn(EntryPan, "q")
        watching = made.nodes["n1"].plans.watching
        await until(lambda: watching._evaluation.agents == ["q"])
        await made.nodes["n2"].stop()
        await until(lambda: watching._evaluation.agents == [])
