"""Live migration between nodes of one process: it moves under load, and comes back when anything fails."""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest
from support.moving import Counter, nodes
from support.nodes import ONCE
from support.waiting import until

import mielin_cells as cells
from mielin_cells.agents.reference import classes
from mielin_cells.log.lifecycle import Phase
from mielin_cells.node.node import Node
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Log, Outcome, Unknown

trouble: dict[str, str] = {}


class Fussy(cells.Agent):
    count: int = 0

    async def on_arrive(self) -> None:
        if trouble.get("on_arrive") == cells.this().node:
            raise OSError("no socket")

    async def on_depart(self) -> None:
        if trouble.get("on_depart") == cells.this().node:
            raise OSError("busy")

    async def healthy(self) -> bool:
        return trouble.get("healthy") != "no"

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.count += n
        return self.count


async def test_an_agent_moves_under_load_and_nothing_is_lost_or_doubled() -> None:
    async with cells.local(nodes=3) as cluster:
        counter = await cluster.spawn(Counter, "c")

        async def load(count: int) -> None:
            for _ in range(count):
                await counter.add(1)

        loads = [asyncio.create_task(load(150)) for _ in range(4)]
        reports = [await cluster.migrate(counter) for _ in range(30)]
        await asyncio.gather(*loads)

        assert [report.outcome for report in reports] == ["completed"] * 30
        assert sum(report.arrived for report in reports) > 0
        assert await counter.add(0) == 600


async def test_a_report_has_phases_pause_and_bytes() -> None:
    async with cells.local(nodes=2) as cluster:
        counter = await cluster.spawn(Counter, "c")
        report = await cluster.migrate(counter, to="node-2")
        assert [name for name, _ in report.phases] == [
            "PLANNED", "PREPARING", "COPYING", "PAUSED", "HANDING_OVER", "VERIFYING",
        ]  # fmt: skip
        assert report.pause_ms > 0
        assert report.bytes > 0
        assert "pause" in str(report)


async def test_moves_that_cannot_be_are_refused_before_anything_begins() -> None:
    async with nodes("node-1", "poor", known={}) as (cluster, _):
        counter = await cluster.on("node-1").spawn(Counter, "c")
        with pytest.raises(cells.errors.AlreadyThere):
            await cluster.migrate(counter, to="node-1")
        with pytest.raises(cells.errors.UnknownNode, match="node-1, poor"):
            await cluster.migrate(counter, to="node-9")
        with pytest.raises(cells.MigrationRefused, match="does not know the agent class 'Counter'"):
            await cluster.migrate(counter, to="poor")
        with pytest.raises(cells.NoSuchAgent):
            await cluster.migrate("nobody", to="poor")
        assert await counter.add(1) == 1


async def test_a_stopped_target_rolls_back_and_the_agent_runs_on() -> None:
    settings = cells.Settings(prepare_s=0.3)
    async with nodes("node-1", "node-2", settings=settings) as (cluster, running):
        counter = await cluster.on("node-1").spawn(Counter, "c")
        running["node-2"].kill()
        report = await cluster.migrate(counter, to="node-2")
        assert (report.outcome, report.code) == ("rolled_back", "TargetUnreachable")
        assert report.error_type == "TargetUnreachable"
        assert await counter.add(1) == 1


async def test_of_two_moves_at_once_one_wins_and_the_other_is_refused() -> None:
    async with cells.local(nodes=3) as cluster:
        counter = await cluster.spawn(Counter, "c")
        busy = asyncio.create_task(counter.slow(0.2))
        await asyncio.sleep(0)
        results = await asyncio.gather(
            cluster.migrate(counter, to="node-2"), cluster.migrate(counter, to="node-3"), return_exceptions=True
        )
        await busy
        kinds = sorted(type(result).__name__ for result in results)
        assert kinds == ["MigrationInProgress", "MigrationReport"]
        assert await counter.add(1) == 1


@pytest.mark.parametrize("hook", ["on_arrive", "healthy", "on_depart"])
async def test_a_failing_hook_brings_the_agent_back(hook: str) -> None:
    trouble.clear()
    async with cells.local(nodes=2, recovery=ONCE) as cluster:
        agent = await cluster.spawn(Fussy, "f")
        await agent.add(1)
        trouble[hook] = {"on_arrive": "node-2", "healthy": "no", "on_depart": "node-1"}[hook]

        report = await cluster.migrate(agent, to="node-2")

        assert report.outcome == "rolled_back"
        assert await agent.add(1) == 2
        assert (await cluster.show(agent)).node == "node-1"
        trouble.clear()
        assert (await cluster.migrate(agent, to="node-2")).ok
        assert await agent.add(1) == 3


async def test_a_turn_that_does_not_end_fails_the_move_and_goes_on() -> None:
    async with cells.local(nodes=2, recovery=ONCE, settings=cells.Settings(pause_s=0.05)) as cluster:
        counter = await cluster.spawn(Counter, "c")
        asked = asyncio.create_task(counter.slow(0.3))
        while not (await cluster.agents()):
            pass
        await asyncio.sleep(0.01)
        report = await cluster.migrate(counter, to="node-2")
        assert (report.outcome, report.code) == ("rolled_back", "Timeout")
        assert await asked == "node-1"


async def test_a_cancellable_turn_is_run_again_on_the_target() -> None:
    async with cells.local(nodes=2) as cluster:
        counter = await cluster.spawn(Counter, "c")
        asked = asyncio.create_task(counter.patient(30))
        await asyncio.sleep(0.01)
        assert (await cluster.migrate(counter, to="node-2")).ok
        assert await asked == "node-2"


async def test_an_abort_before_the_handover_leaves_the_agent_where_it_is() -> None:
    async with cells.local(nodes=2) as cluster:
        counter = await cluster.spawn(Counter, "c")
        busy = asyncio.create_task(counter.slow(0.3))
        await asyncio.sleep(0.01)
        moving = asyncio.create_task(cluster.migrate(counter, to="node-2"))
        await asyncio.sleep(0.02)
        assert (await cluster.abort(counter)).startswith("m-")
        report = await moving
        assert (report.outcome, report.code) == ("rolled_back", "Cancelled")
        assert await busy == "node-1"
        with pytest.raises(cells.errors.NoSuchMigration):
            await cluster.abort(counter)


async def test_an_agent_can_move_itself() -> None:
    async with cells.local(nodes=2) as cluster:
        counter = await cluster.spawn(Counter, "c")
        await counter.leave("node-2")
        async with asyncio.timeout(30):
            while (await cluster.show(counter)).node != "node-2":
                await asyncio.sleep(0)


class LosesAnswers:
    """A log whose answers to the next handovers are lost, the append itself landing or not."""

    def __init__(self, inner: Log, lands: bool) -> None:
        self.inner = inner
        self.lands = lands
        self.lost = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        if b"HandedOff" in data and not self.lost:
            self.lost += 1
            if self.lands:
                await self.inner.append(subject, data, expect, owner)
            return Unknown("the answer was lost")
        return await self.inner.append(subject, data, expect, owner)


@pytest.mark.parametrize("lands", [True, False])
async def test_a_handover_in_doubt_is_settled_by_a_claim_and_has_one_owner(lands: bool) -> None:
    async with nodes("node-2") as (cluster, running):
        faulty = LosesAnswers(cluster.log, lands)
        node = Node("node-1", faulty, cluster.wire, classes.get, recovery=ONCE, rng=Random(1), wall=time.time)  # type: ignore[arg-type]
        await node.start()
        running["node-1"] = node
        counter = await cluster.on("node-1").spawn(Counter, "c")
        await counter.add(5)

        report = await cluster.migrate(counter, to="node-2")

        assert faulty.lost == 1
        assert report.outcome == ("completed" if lands else "rolled_back")
        assert await counter.add(1) == 6
        fold = await load(cluster.log, "c")
        assert (fold.owner, fold.phase) == ("node-2" if lands else "node-1", Phase.RUN)


async def test_a_live_owner_that_is_claimed_away_is_fenced_and_loses_nothing() -> None:
    async with nodes("node-1", "node-2") as (cluster, running):
        counter = await cluster.on("node-1").spawn(Counter, "c")
        await counter.add(5)
        zombie = running["node-1"].activations.live["c"]

        await cluster.claim(counter, to="node-2")

        assert await counter.add(1) == 6
        zombie.touch()
        with pytest.raises(cells.errors.Fenced):
            await zombie.flush()
        assert "c" not in running["node-1"].activations.live
        assert await counter.add(1) == 7


async def test_a_node_that_restarts_in_probation_finishes_the_move() -> None:
    async with nodes("node-1", "node-2") as (cluster, running):
        counter = await cluster.on("node-1").spawn(Counter, "c")
        await counter.add(5)
        target = running["node-2"]
        moving = asyncio.create_task(cluster.migrate(counter, to="node-2"))
        await until(lambda: "c" in target.copies.by_agent, limit_s=30, pause_s=0)
        target.kill()
        again = Node("node-2", cluster.log, cluster.wire, classes.get, rng=Random(2), wall=time.time)
        await again.start()
        running["node-2"] = again
        report = await moving
        assert report.outcome in ("completed", "rolled_back")
        assert await counter.add(1) == 6
