"""Waits and undo: what somebody was told stands, and an open wait is open again under the same token (rules 17 and T5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from support.waiters import Applicant, next_token, settles, tokens

import mielin_cells as cells
from mielin_cells.log.undo import Undoing
from mielin_cells.log.waits.kept import Waits


@pytest_asyncio.fixture
async def cluster() -> AsyncIterator[cells.Cluster]:
    tokens.clear()
    async with cells.local(nodes=2) as made:
        yield made


async def moved(cluster: cells.Cluster) -> tuple[Applicant, str]:
    """An agent, and the migration to undo."""
    desk = await cluster.on("node-1").spawn(Applicant, "desk")
    await desk.note("before")
    return desk, (await cluster.migrate(desk, to="node-2")).migration


async def begun(cluster: cells.Cluster, migration: str) -> asyncio.Task[Any]:
    """An undo, which is over once the messages are taken again: here, once the turn that waits has ended."""
    undone = asyncio.create_task(cluster.rollback(migration))
    async with asyncio.timeout(60):
        while (await cluster.show("desk")).node != "node-1":
            await asyncio.sleep(0.005)
    return undone


async def test_an_undo_keeps_the_outcome_of_a_turn_that_was_committed(cluster: cells.Cluster) -> None:
    desk, migration = await moved(cluster)
    order = asyncio.create_task(desk.order("tea"))
    assert (await cluster.resolve(await next_token(0), True)).accepted
    assert await order == "tea: yes"
    later = await desk.begin("milk")
    assert (await cluster.resolve(later, 5)).accepted
    await settles(desk.look, ["before", "tea: yes", "milk 5"])
    await cluster.rollback(migration)
    await settles(desk.look, ["before", "tea: yes", "milk 5"])
    assert len(tokens) == 1, "its step was not made again"
    for token, stands in ((tokens[0], True), (later, 5)):
        told = await cluster.reject(token, "changed my mind")
        assert (told.accepted, told.value) == (False, stands)
    assert (await cluster.show(desk)).waits == []


async def test_an_undo_drops_an_open_turn_and_its_wait_is_open_again(cluster: cells.Cluster) -> None:
    desk, migration = await moved(cluster)
    order = asyncio.create_task(desk.order.options(timeout=30)("tea"))
    token = await next_token(0)
    undone = await begun(cluster, migration)
    assert (await cluster.resolve(token, True)).accepted
    assert await order == "tea: yes"
    await undone
    assert tokens == [token]


async def test_an_undo_keeps_an_outcome_whose_turn_was_not_committed(cluster: cells.Cluster) -> None:
    desk, migration = await moved(cluster)
    both = asyncio.create_task(desk.both.options(timeout=30)())
    second = await next_token(1)
    assert (await cluster.resolve(second, 2)).accepted
    undone = await begun(cluster, migration)
    assert (await cluster.reject(second, "no")).value == 2
    assert (await cluster.resolve(tokens[0], 1)).accepted
    assert await both == [1, 2]
    await undone


async def test_a_wait_with_then_that_was_open_is_open_again(cluster: cells.Cluster) -> None:
    desk = await cluster.on("node-1").spawn(Applicant, "desk")
    early = await desk.begin("early")
    migration = (await cluster.migrate(desk, to="node-2")).migration
    late = await desk.begin("late")
    assert (await cluster.resolve(early, 1)).accepted
    await settles(desk.look, ["early 1"])
    await cluster.rollback(migration)
    assert (await cluster.resolve(late, 2)).accepted
    await settles(desk.look, ["early 1", "late 2"])
    assert not (await cluster.resolve(early, 3)).accepted


async def test_without_its_outcomes_an_undone_agent_would_take_another_one(
    cluster: cells.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard of this page, taken away: somebody was told that yes stands, and the agent has no."""
    fields: Callable[..., dict[str, Any]] = Undoing.fields
    monkeypatch.setattr(Undoing, "fields", lambda self, now: {**fields(self, now), "waits": Waits()})
    desk, migration = await moved(cluster)
    order = asyncio.create_task(desk.order("tea"))
    assert (await cluster.resolve(await next_token(0), True)).accepted
    assert await order == "tea: yes"
    undone = await begun(cluster, migration)
    told = await cluster.reject(tokens[0], "no")
    await undone
    assert (told.accepted, told.outcome) == (True, "rejected")
    await settles(desk.look, ["before", "tea: no"])
