"""A reserved node is chosen for nothing, and takes agents that are moved to it by name; and what nodes count of turns."""

from __future__ import annotations

import pytest
from support.nodes import Deployment, deployment
from support.waiting import until

import mielin_cells as cells
from mielin_cells.agents.reports import NodeInfo
from mielin_cells.membership.announcement import Announcement

NEW = Announcement(is_reserved=True)


class ReservedMeter(cells.Agent):
    n: int = 0

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.n += n
        return self.n

    @cells.handler(raises=(KeyError,))
    async def fail(self, what: str) -> None:
        raise KeyError(what) if what == "declared" else ValueError(what)


async def info(made: Deployment, name: str) -> NodeInfo:
    found = await made.client.ping(name)
    assert found is not None
    return found


async def test_a_reserved_node_is_not_chosen_and_takes_what_is_moved_to_it_by_name_until_it_is_uncordoned() -> None:
    async with deployment("old") as made:
        client = made.client
        await made.start("new", about=NEW)
        meters = [await client.spawn(ReservedMeter, f"r{n}") for n in range(4)]
        assert {(await client.show(meter)).node for meter in meters} == {"old"}
        with pytest.raises(cells.errors.UnknownNode):  # nobody is chosen, since nobody else is there
            await client.migrate(meters[0])
        with pytest.raises(cells.errors.NodeCordoned):
            await client.on("new").spawn(ReservedMeter, "r9")
        assert (await client.migrate(meters[0], to="new")).ok
        assert await meters[0].add() == 1
        table = {one.name: (one.is_cordoned, one.is_reserved) for one in await client.nodes()}
        assert table == {"old": (False, False), "new": (True, True)}
        made.kill("new")
        await made.start("new", about=NEW)  # it has its agent again, and is still reserved
        assert await meters[0].add() == 2
        assert (await client.migrate(meters[1], to="new")).ok
        await client.uncordon("new")
        await until(lambda: not made.nodes["new"].is_cordoned)
        assert (await (await client.spawn(ReservedMeter, "r5")).add()) == 1
        made.kill("new")
        await made.start("new", about=NEW)
        found = await info(made, "new")
        assert (found.is_cordoned, found.is_reserved) == (False, False)  # what an operator has said stands


async def test_a_cordon_of_a_reserved_node_closes_it() -> None:
    async with deployment("old") as made:
        await made.start("new", about=NEW)
        meter = await made.client.spawn(ReservedMeter, "r")
        await made.client.cordon("new")
        await until(lambda: made.nodes["new"].presence.is_closed)
        with pytest.raises(cells.MigrationRefused, match="cordoned"):
            await made.client.migrate(meter, to="new")


async def test_a_node_counts_the_turns_of_each_class_those_that_fail_and_those_that_end_as_dead_letters() -> None:
    async with deployment("n1") as made:
        meter = await made.client.spawn(ReservedMeter, "counted")
        for _ in range(5):
            await meter.add()
        with pytest.raises(KeyError):
            await meter.fail("declared")
        with pytest.raises(cells.HandlerFailed):
            await meter.fail("not declared")
        found = (await info(made, "n1")).turns["ReservedMeter"]
        assert (found.ended, found.failed, found.buried) == (7, 1, 0)
        assert sum(found.took) == 7
        await meter.fail.tell("not declared")
        await until(lambda: made.nodes["n1"].home.turns["ReservedMeter"].buried)
        assert (await info(made, "n1")).turns["ReservedMeter"].buried == 1
