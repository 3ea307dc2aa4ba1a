"""The leader learns how a planned move ends, whatever its source answers meanwhile."""

from __future__ import annotations

import asyncio

import pytest
from support.failing import leader_of, nodes
from support.waiting import until

import mielin_cells as cells
from mielin_cells.errors import CellError, MigrationRefused, StoreCorrupt
from mielin_cells.log.ids import MEMBERS
from mielin_cells.membership.members import PlanEnded, Planned, decode_record
from mielin_cells.node.moves.recovery import Recovery
from mielin_cells.node.plans.performing import UNKNOWN, Result
from mielin_cells.policy.planning.plan import Plan, PlannedMove
from mielin_cells.policy.planning.planner import Event
from mielin_cells.rpc import requests


class PerformedKettle(cells.Agent):
    @cells.handler
    async def where(self) -> str:
        return cells.this().node


@pytest.mark.parametrize(
    "error", [StoreCorrupt("The store refuses."), MigrationRefused("It may not.")], ids=["store", "refusal"]
)
async def test_a_move_that_has_begun_counts_as_open_until_the_logs_say_its_end(
    error: CellError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 7003: a source whose store refused it for a moment answered so, and the plan ended while the move went on."""
    async with nodes("node-1", "node-2", "node-3") as (client, running, _, _air):
        leader = await leader_of(client)
        source, target = sorted(set(running) - {leader})
        kettle = await client.on(source).spawn(PerformedKettle, "k")
        goes_on, errors = asyncio.Event(), list[str]()

        async def slow(step: str) -> None:
            if step == "prepare":
                await goes_on.wait()

        for node in running.values():
            node.home.step = slow
        migrations = running[source].migrations
        find = migrations._running

        def asked(request: requests.Migrate) -> Recovery | None:
            if request.agent in migrations.open and not goes_on.is_set():
                errors.append(error.code)
                raise error
            return find(request)

        monkeypatch.setattr(migrations, "_running", asked)
        node = running[leader]
        await node.home.clock.refresh()
        now, move = node.home.clock.now(), PlannedMove("k", "m-0000000000000009", 1, source, target, 100, "test")
        while not await node.members.try_append(
            Planned(*node.members.table.leader, node.members.table.term, "policy", now, now + 120.0, (move,))
        ):
            pass
        await until(lambda: len(errors) >= 3)
        assert node.members.table.plans.open, "the move has begun, and has not ended"
        goes_on.set()
        await until(lambda: not node.members.table.plans.open)
        said = [decode_record(entry.data, "members") for entry in await client.log.read(MEMBERS, 0, 10_000)]
        [end] = [record for record in said if isinstance(record, PlanEnded)]
        assert (end.moved, end.failed, end.dropped) == (1, (), 0)
        assert await kettle.where() == target


@pytest.mark.parametrize("outcome", ["rolled_back", UNKNOWN])
async def test_a_move_whose_end_nobody_knows_does_not_end_its_plan(
    outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 52000319: a leader that stopped counted the moves that it no longer waited for as failed, and ended their plan."""
    async with nodes("node-1") as (_client, running, _, _air):
        leading, events = running["node-1"].plans.leading, list[Event]()

        async def performed(*_: object) -> Result:
            return Result(outcome, "its plan has ended")

        monkeypatch.setattr("mielin_cells.node.plans.leading.perform", performed)
        monkeypatch.setattr(type(leading.planner), "on", lambda _, event: events.append(event))
        move = PlannedMove("k", "m-0000000000000009", 1, "node-1", "node-2", 100, "test")
        await leading._perform(leading.planner, Plan(1, 1, "policy", 0.0, 120.0, (move,)), move)
        assert len(events) == (outcome != UNKNOWN)
