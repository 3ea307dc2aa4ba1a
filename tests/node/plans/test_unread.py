"""While the attributes of agents cannot be read, nothing is done by policies that entries of `mielin.toml` may have changed."""

from __future__ import annotations

import asyncio

import pytest
from support.failing import QUICK, Air, enter, leader_of
from support.nodes import deployment
from support.waiting import until

import mielin_cells as cells
from mielin_cells.errors import StoreUnreachable
from mielin_cells.log.policy import Affinity, Policy
from mielin_cells.log.triggers.values import MigrationPolicy, Thermal
from mielin_cells.membership import whereabouts
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.whereabouts import Whereabouts
from mielin_cells.node.plans import watching
from mielin_cells.policy.evaluation.wishes import Wish
from mielin_cells.policy.placement.values import Need
from mielin_cells.policy.planning.planner import Wished
from mielin_cells.policy.rebalance.values import AgentLoad
from mielin_cells.policy.selectors import Selector
from mielin_cells.store.directory import Directory

LEAVES = MigrationPolicy(cooldown_s=1.0, thermal=Thermal(sustained_s=0.1))
STAYS = Selector(match={"tier": "gold"}, policy=Policy(immovable=True))


class UnreadPot(cells.Agent, policy=Policy(migration=LEAVES)):
    @cells.handler
    async def label(self, tier: str) -> None:
        cells.attributes(tier=tier)


class Fails:
    """Makes reads of directories fail while `is_on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_on, self.tries, refresh = True, 0, Directory.refresh

        async def refuses(directory: Directory) -> float:
            self.tries += 1
            if self.is_on:
                raise StoreUnreachable("The store does not answer.")
            return await refresh(directory)

        monkeypatch.setattr(Directory, "refresh", refuses)


async def test_a_policy_says_that_it_is_not_known_and_a_store_that_fails_is_not_asked_for_every_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fails = Fails(monkeypatch)
    near = Policy(near=(Affinity(where="tier = 'gold'"),))
    async with deployment("n1") as made:
        there = Whereabouts(made.client.log)
        found = [await there.resolve(Need(f"a{n}", "UnreadPot"), (STAYS,)) for n in range(20)]
        assert {one.is_known for one in found} == {False}
        assert fails.tries == 1
        for n in range(20):
            assert await there.places(Need(f"a{n}", "UnreadPot", policy=near)) == {}
        assert fails.tries == 2
        fails.is_on = False
        monkeypatch.setattr(whereabouts, "FRESH_S", 0.0)
        assert (await there.resolve(Need("a", "UnreadPot"), (STAYS,))).is_known
        assert len(await there.places(Need("a", "UnreadPot", policy=near))) == 1
        fails.is_on = True
        by_class = Selector(match={"class": "UnreadPot"}, policy=Policy(immovable=True))
        assert (await there.resolve(Need("a", "UnreadPot"), (by_class,))).is_known, "no attribute is asked for"


async def test_agents_whose_attributes_cannot_be_read_are_neither_planned_nor_rebalanced_nor_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(whereabouts, "FRESH_S", 0.05)
    monkeypatch.setattr(watching, "UNREAD_S", 0.05)
    fails = Fails(monkeypatch)
    async with deployment(settings=QUICK) as made, asyncio.timeout(30):
        air, client = Air(), made.client
        for name in ("n1", "n2"):
            await enter(made, air, name, about=Announcement(selectors=(STAYS,)))
        leading = made.nodes[await leader_of(client)].plans.leading
        names = ("gold", "plain")
        pots = [await client.on("n1").spawn(UnreadPot, name) for name in names]
        await pots[0].label("gold")
        watched = made.nodes["n1"].plans.watching
        wishes = tuple(Wish(name, "test", 1, "", cls="UnreadPot", version=1, epoch=1) for name in names)
        leading.take(Wished(leading._home.clock.now(), "n2", wishes))

        def loads() -> dict[str, list[AgentLoad]]:
            return {"n1": [AgentLoad(name, 1.0, cls="UnreadPot", version=1, epoch=1) for name in names]}

        assert await leading._describe() == ({}, {})
        assert await leading.apply_entries(loads()) == {"gold", "plain"}
        await until(lambda: set(watched._unread) == {"gold", "plain"})
        assert not watched._epochs
        fails.is_on = False
        await until(lambda: set(watched._epochs) == {"plain"} and not watched._unread)
        needs = dict[str, Need]()
        while len(needs) < len(names):  # the leader's own try may have failed just now
            await asyncio.sleep(0.01)
            leading.take(Wished(leading._home.clock.now(), "n2", wishes))
            needs = (await leading._describe())[0]
        assert {name: need.policy.immovable for name, need in needs.items()} == {"gold": True, "plain": False}
        read = loads()
        assert await leading.apply_entries(read) == set()
        assert [one.policy.immovable for one in read["n1"]] == [True, False]
