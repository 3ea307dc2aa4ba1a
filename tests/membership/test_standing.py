"""From whom a node may claim (N13, N14): the newest table decides, and each rule that is taken away is missed by its story."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support.failing import Gauge, nodes
from support.waiting import until

from mielin_cells.errors import Fenced, NodeStopping
from mielin_cells.membership import standing, table
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.members import Leads, Serving, Status, Suspected
from mielin_cells.membership.standing import BATCH_AGENTS, Standing
from mielin_cells.membership.table import Members
from mielin_cells.node.failover import Failover
from mielin_cells.substrate.embedded import Embedded


async def suspected_by_mistake(*names: str) -> tuple[Embedded, Members]:
    """Three nodes of which some are suspected, as the members are told that are returned."""
    substrate = await Embedded.open()
    members = Members(substrate.log)
    for name in ("a", "b", "c"):
        await table.enter(members, name, Announcement(), name.encode())
        await members.append(lambda _, name=name: Serving(name, 1))  # type: ignore[misc]
    await members.append(lambda _: Leads("c", 1))
    for name in names:
        await members.append(lambda now, name=name: Suspected(name, 1, now.term))  # type: ignore[misc]
    return substrate, members


async def an_owner_that_has_refuted_its_suspicion_is_not_claimed_from() -> None:
    """The view of the node that claims is older than the refutation."""
    substrate, old = await suspected_by_mistake("a")
    try:
        await Members(substrate.log).append(lambda _: Serving("a", 1))
        assert (was := old.table.get("a")) is not None
        assert was.status is Status.SUSPECTED
        with pytest.raises(Fenced, match="a serves"):
            await Standing("b", old, asyncio.get_running_loop().time).check("a")
    finally:
        await substrate.close()


async def within_a_batch_what_was_read_counts_for_so_many_claims_alone() -> None:
    substrate, members = await suspected_by_mistake("a")
    try:
        mine = Standing("b", members, lambda: 0.0)
        await mine.check("a")
        await Members(substrate.log).append(lambda _: Serving("a", 1))
        for _ in range(BATCH_AGENTS - 1):
            await mine.check("a")
        with pytest.raises(Fenced):
            await mine.check("a")
    finally:
        await substrate.close()


async def who_is_suspected_itself_claims_nothing() -> None:
    """Two nodes that are both suspected by mistake would claim the same agent from each other for ever."""
    substrate, members = await suspected_by_mistake("a", "b")
    try:
        with pytest.raises(NodeStopping, match="has said that it lives"):
            await Standing("b", members, asyncio.get_running_loop().time).check("a")
    finally:
        await substrate.close()


async def the_agents_of_a_node_that_has_left_are_claimed() -> None:
    async with nodes("node-1", "node-2") as (client, running, _keepers, _air):
        gauge = await client.on("node-2").spawn(Gauge, "g")
        assert await gauge.add() == 1
        await running["node-2"].stop()
        await until(lambda: "g" in running["node-1"].activations.live, limit_s=30)
        assert await gauge.add() == 2


def the_view_may_be_old(patch: pytest.MonkeyPatch) -> None:
    async def check(self: Standing, owner: str) -> None:
        standing.check_standing(self._members.table, self._name, owner)

    patch.setattr(Standing, "check", check)


def a_batch_has_no_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(standing, "BATCH_AGENTS", 1 << 30)


def the_suspected_claim(patch: pytest.MonkeyPatch) -> None:
    check = standing.check_standing
    patch.setattr(standing, "check_standing", lambda table, me, owner: check(table, "c", owner))


def who_has_left_is_let_alone(patch: pytest.MonkeyPatch) -> None:
    gone = Failover._list_gone
    patch.setattr(
        Failover, "_list_gone", lambda self, now: [one for one in gone(self, now) if one.status is not Status.LEFT]
    )


STORIES: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[], Awaitable[None]]]] = [
    (the_view_may_be_old, an_owner_that_has_refuted_its_suspicion_is_not_claimed_from),
    (a_batch_has_no_end, within_a_batch_what_was_read_counts_for_so_many_claims_alone),
    (the_suspected_claim, who_is_suspected_itself_claims_nothing),
    (who_has_left_is_let_alone, the_agents_of_a_node_that_has_left_are_claimed),
]


@pytest.mark.parametrize(("remove", "story"), STORIES, ids=[story.__name__ for _, story in STORIES])
async def test_from_whom_a_node_claims(
    remove: Callable[[pytest.MonkeyPatch], None], story: Callable[[], Awaitable[None]]
) -> None:
    await story()
    with pytest.MonkeyPatch.context() as patch:
        remove(patch)
        with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)):
            await story()
