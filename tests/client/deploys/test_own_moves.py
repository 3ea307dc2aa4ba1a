"""An undo of a deploy takes an agent back to before the deploy's own first move, and no further (D4)."""

from __future__ import annotations

import asyncio

import pytest
from support.nodes import deployment

import mielin_cells as cells
from mielin_cells.client.deploys.driver import Driver
from mielin_cells.client.deploys.moving import Moving
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import HandedOff, Undone, decode_record
from mielin_cells.membership.announcement import Announcement
from mielin_cells.migration.journal import migration_of
from mielin_cells.policy.deploys.events import Began, Failed
from mielin_cells.policy.deploys.machine import Phase
from mielin_cells.store.deploys import Deploys


class OwnMovesTill(cells.Agent):
    n: int = 0

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.n += n
        return self.n

    @cells.handler
    async def where(self) -> str:
        return cells.this().node


async def undo_a_deploy() -> tuple[Undone, list[HandedOff]]:
    """A deploy that moves an agent which an operator had moved before, and is undone: the record of the undo, and the handovers."""
    async with deployment("old-1", "old-2") as made, asyncio.timeout(30):
        await made.start("new", about=Announcement(is_reserved=True))
        till = await made.client.on("old-1").spawn(OwnMovesTill, "t")
        assert (await made.client.migrate("t", to="old-2")).ok
        assert await till.add(10) == 10
        deploys = Deploys(made.substrate.log)
        began = Began(
            deploy="d-own", app="new.py", old=["old-1", "old-2"], new=["new"], stages=[100], watch_s=30.0, rewinds=True
        )
        assert await deploys.append(began) == ""
        going = asyncio.create_task(Driver(made.client, deploys, lambda event: None).run())
        while deploys.deploy is None or deploys.deploy.phase is not Phase.WATCHING:
            await asyncio.sleep(0.01)
        assert await till.where() == "new"
        operator = Deploys(made.substrate.log)
        await operator.read_to_end()
        assert await operator.append(Failed(deploy="d-own", why="by a test")) == ""
        assert (await going).phase is Phase.UNDONE
        assert await till.add(0) == 10
        records = [decode_record(one.data, "t") for one in await made.substrate.log.read(log_subject("t"), 0, 1000)]
        [undone] = [one for one in records if isinstance(one, Undone)]
        return undone, [one for one in records if isinstance(one, HandedOff)]


async def test_an_agent_goes_back_to_before_the_deploys_first_move_and_keeps_an_operators_move() -> None:
    undone, (by_operator, by_deploy) = await undo_a_deploy()
    assert by_deploy.migration.startswith("m-own")
    assert undone.migration == migration_of(by_deploy.migration) != migration_of(by_operator.migration)


async def test_without_that_rule_an_agent_loses_what_it_did_before_the_deploy(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_of_all(self: Moving, fold: Fold) -> str:
        done = [(seq, attempt) for attempt, seq in fold.handed.items() if fold.outcomes.get(attempt) == "completed"]
        return migration_of(min(done)[1]) if done else ""

    monkeypatch.setattr(Moving, "_first_move", first_of_all)
    undone, (by_operator, _) = await undo_a_deploy()
    assert undone.migration == migration_of(by_operator.migration), "and what it did since runs again, in the old code"
