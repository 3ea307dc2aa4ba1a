"""Policies in `mielin.toml`, by labels, and policies of single agents: they decide where agents run as those of classes do."""

from __future__ import annotations

import asyncio

import pytest
from support.failing import QUICK, Air, die, enter
from support.nodes import deployment

import mielin_cells as cells
from mielin_cells.client.policies.why import why
from mielin_cells.log.policy import Policy
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.members import AnyRecord, Forgotten, Joined, Left, Suspected, Table, selectors_of
from mielin_cells.membership.selection import Spread
from mielin_cells.policy.selectors import Selector

IN_EU = Policy(require=("node.labels.region == 'eu'",))


class LabelledDesk(cells.Agent):
    count: int = 0

    @cells.handler
    async def tag(self, tier: str) -> None:
        cells.attributes(tier=tier)

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count

    @cells.handler
    async def where(self) -> str:
        return cells.this().node


def at(region: str, *selectors: Selector) -> Announcement:
    return Announcement(labels={"region": region}, selectors=selectors)


async def test_a_policy_of_one_agent_goes_before_its_classs() -> None:
    async with deployment() as made:
        await made.start("n1", about=at("us"))
        await made.start("n2", about=at("eu"))
        client = made.client
        desks = [await client.with_policy(IN_EU).spawn(LabelledDesk, f"d{n}") for n in range(4)]
        assert {await desk.where() for desk in desks} == {"n2"}
        assert (await client.show("d0")).policy == IN_EU
        with pytest.raises(cells.MigrationRefused, match="does not hold"):
            await client.migrate("d0", to="n1")
        assert (await (await client.spawn(LabelledDesk, "plain")).where()) == "n1"
        with pytest.raises(cells.UsageError, match="column 1"):
            client.with_policy(Policy(require=("nod.cpu",)))
        with pytest.raises(cells.errors.NoNodeFits, match="cannot run on n1"):
            await client.on("n1").with_policy(IN_EU).spawn(LabelledDesk, "e")


async def test_an_entry_by_class_decides_at_once_and_by_attributes_once_they_are_written() -> None:
    by_class = Selector(match={"class": "LabelledDesk"}, policy=Policy(require=("node.labels.region != 'ap'",)))
    by_tier = Selector(match={"class": "LabelledDesk", "tier": "gold"}, policy=IN_EU)
    async with deployment() as made:
        client = made.client
        await made.start("n1", about=at("ap", by_class, by_tier))
        await made.start("n2", about=at("us"))
        desk = await client.spawn(LabelledDesk, "d")
        assert await desk.where() == "n2"
        assert (await why(client, "d")).source == ["its log", "mielin.toml, [[policies]] for class = 'LabelledDesk'"]
        await desk.tag("gold")
        async with asyncio.timeout(30):
            while (await why(client, "d")).policy != IN_EU:
                await asyncio.sleep(0.01)
        report = await client.drain("n2", deadline_s=0.5)
        assert "region == 'eu' does not hold" in dict(report.blocked)["d"]
        await client.uncordon("n2")
        await made.start("n3", about=at("eu"))
        assert (await client.migrate(desk)).target == "n3"


async def test_a_takeover_obeys_entries_for_agents_without_a_policy_of_their_own() -> None:
    entry = Selector(match={"class": "LabelledDesk"}, policy=IN_EU)
    async with deployment(settings=QUICK) as made, asyncio.timeout(60):
        air, client = Air(), made.client
        for name, region in (("n1", "us"), ("n2", "eu"), ("n3", "us"), ("n4", "eu")):
            await enter(made, air, name, about=at(region, entry))
        desks = [await client.on("n2").spawn(LabelledDesk, f"d{n}") for n in range(12)]
        await asyncio.gather(*(desk.add() for desk in desks))
        die(made.nodes["n2"], air)
        assert await asyncio.gather(*(desk.add() for desk in desks)) == [2] * 12
        assert {await desk.where() for desk in desks} == {"n4"}


# ---- which entries count -----------------------------------------------------------------------------------------

IMMOVABLE = Selector(match={"class": "LabelledDesk"}, policy=Policy(immovable=True))


def table_of(*records: AnyRecord) -> Table:
    table = Table()
    for record in records:
        table.apply(table.seq + 1, record)
    return table


def joined(name: str, incarnation: int = 1, *selectors: Selector) -> Joined:
    return Joined(name, incarnation, b"", Announcement(selectors=selectors))


@pytest.mark.parametrize("gone", [joined("a", 2), Left("a", 1), Left("a", 1, 9)])
def test_entries_that_go_away_with_their_last_node_change_which_count(gone: AnyRecord) -> None:
    table = table_of(joined("a", 1, IMMOVABLE), joined("b"))
    assert (selectors_of(table), table.selectors_seq) == ((IMMOVABLE,), 1)
    table.apply(3, gone)
    assert (selectors_of(table), table.selectors_seq) == ((), 3)


def test_entries_that_go_away_between_two_images_change_which_count() -> None:
    table, other = (
        table_of(joined("a", 1, IMMOVABLE), joined("b")),
        table_of(joined("a", 1, IMMOVABLE), joined("b"), Left("a", 1)),
    )
    table.apply(9, other.image())
    assert (selectors_of(table), table.selectors_seq) == ((), 9)


def test_what_changes_no_entry_has_no_policy_read_anew() -> None:
    table = table_of(joined("a", 1, IMMOVABLE), joined("b", 1, IMMOVABLE))
    assert table.selectors_seq == 1, "b says the same"
    records: list[AnyRecord] = [
        table.image(),
        table.image(),
        Left("a", 1),
        Forgotten("a", 1, 9),
        joined("c"),
        joined("b", 2, IMMOVABLE),
        Left("c", 1),
    ]
    for seq, record in enumerate(records, 3):
        table.apply(seq, record)
        assert table.selectors_seq == 1, record
    new = Table()
    new.apply(20, table.image())
    assert new.selectors_seq == 20, "who begins with an image has read none before"


def test_entries_of_a_node_that_is_silent_count_until_it_is_gone() -> None:
    """Else an agent that comes meanwhile would be read without them, and not again: the node's return changes no entry."""
    table = table_of(joined("a", 1, IMMOVABLE), joined("b"), Suspected("a", 1, 9))
    assert Spread().follow(table, None).selectors == (IMMOVABLE,)
    table.apply(4, Left("a", 1, 9))
    assert Spread().follow(table, None).selectors == ()
