"""Timers: part of the commit, moving with the agent, fired once and not early."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from support.nodes import deployment
from support.undoing import QUICK, nodes
from support.virtual import virtually

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.log.ids import log_subject
from mielin_cells.log.message import decode_mail
from mielin_cells.store.reader import load

rung: list[tuple[str, float]] = []


class Bell(cells.Agent):
    rings: list[str] = []

    async def on_arrive(self) -> None:
        cells.every(1000).ring("patrol")

    @cells.handler
    async def ring(self, what: str) -> None:
        self.rings.append(what)
        rung.append((what, time.monotonic()))

    @cells.handler
    async def set(self, seconds: float, what: str, id: str | None = None) -> str:
        return cells.after(seconds, self.ring, id=id)(what)

    @cells.handler
    async def set_and_fail(self, seconds: float) -> None:
        cells.after(seconds).ring("never")
        raise OSError("after all not")

    @cells.handler
    async def repeat(self, seconds: float, catch_up: cells.CatchUp = "one") -> str:
        return cells.every(seconds, self.ring, id="repeat", catch_up=catch_up)("tick")

    @cells.handler
    async def stop(self, id: str) -> bool:
        return cells.cancel(id)

    @cells.handler
    async def wrong(self, what: str) -> None:
        match what:
            case "handler":
                cells.after(1).nothing()
            case "args":
                cells.after(1).ring(1, 2, 3)
            case "time":
                cells.after(-1).ring("x")
            case "period":
                cells.every(0).ring("x")
            case "flood":
                cells.every(1e-9, catch_up="all").ring("x")
            case _:
                cells.every(1, catch_up="some").ring("x")  # type: ignore[call-overload]  # wrong on purpose

    @cells.handler
    async def all(self) -> list[str]:
        return self.rings


async def until(bell: Bell, wanted: list[str]) -> None:
    async with asyncio.timeout(30):
        while await bell.all() != wanted:
            await asyncio.sleep(0.01)


async def test_a_timer_fires_once_and_not_early() -> None:
    rung.clear()
    async with cells.local(nodes=1) as cluster:
        bell = await cluster.spawn(Bell, "b")
        at = time.monotonic()
        await bell.set(0.1, "second")
        await bell.set(0.02, "first")
        await until(bell, ["first", "second"])
        assert [what for what, _ in rung] == ["first", "second"]
        assert rung[0][1] - at >= 0.02
        assert rung[1][1] - at >= 0.1
        await bell.set(0, "now")
        await until(bell, ["first", "second", "now"])


@virtually
async def test_a_timer_belongs_to_its_turn_and_can_be_cancelled_or_replaced() -> None:
    async with cells.local(nodes=1, settings=QUICK) as cluster:
        bell = await cluster.spawn(Bell, "b")
        with pytest.raises(cells.HandlerFailed):
            await bell.set_and_fail(0)
        name = await bell.set(0.05, "cancelled")
        assert await bell.stop(name) is True
        assert await bell.stop(name) is False
        assert await bell.set(0.04, "replaced", "x") == "x"
        await bell.set(0.06, "instead", "x")
        await bell.set(0.1, "last")
        await until(bell, ["instead", "last"])
        for what, error in (
            ("handler", cells.errors.NoSuchHandler), ("args", cells.BadArguments), ("time", cells.UsageError),
            ("period", cells.UsageError), ("flood", cells.UsageError), ("catch_up", cells.UsageError),
        ):  # fmt: skip
            with pytest.raises(error):
                await bell.wrong(what)
        with pytest.raises(cells.NotInTurn):
            cells.after(1)


async def test_timers_move_with_their_agent() -> None:
    async with cells.local(nodes=3) as cluster:
        bell = await cluster.spawn(Bell, "b")
        for number in range(20):
            await bell.set(0.01 * number, str(number))
        for _ in range(8):
            assert (await cluster.migrate(bell)).ok
        await until(bell, [str(number) for number in range(20)])
        assert isinstance(cluster, Client)
        fold = await load(cluster.log, "b")
        assert list(fold.ledger.timers) == ["on_arrive.0"]  # set anew at each arrival, in the place of the one before


async def test_timers_that_were_due_while_nobody_ran_the_agent_fire_when_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with cells.local(path=path) as cluster:
        bell = await cluster.spawn(Bell, "b")
        await bell.set(0.05, "late")
        await bell.set(60, "much later")
    await asyncio.sleep(0.06)
    async with cells.local(path=path) as cluster:
        bell = cluster.get(Bell, "b")
        await until(bell, ["late"])
        await cluster.suspend(bell)
        assert (await cluster.show(bell)).state == "Suspended"
    async with cells.local(path=path) as cluster:
        await cluster.resume("b")
        assert await cluster.get(Bell, "b").all() == ["late"]


@pytest.mark.parametrize(("catch_up", "least"), [("one", 1), ("all", 5), ("none", 0)])
@virtually
async def test_timer_times_missed_while_suspended_are_caught_up_by_choice(catch_up: cells.CatchUp, least: int) -> None:
    async with nodes({"node-1": 1}) as (client, running):
        running["node-1"].activations._classes = {"Bell": Bell}.get
        bell = await client.on("node-1").spawn(Bell, "b")
        await client.suspend(bell)
        activation = running["node-1"].activations.live["b"]
        await client.resume(bell)
        await bell.repeat(0.1, catch_up)
        await client.suspend(bell)
        before = len(activation.cell.agent.__dict__["rings"])
        due = activation.fold.ledger.timers["repeat"].due
        await asyncio.sleep(0.55)
        await client.resume(bell)
        await bell.stop("repeat")
        rings = (await bell.all())[before:]
        assert len(rings) in range(least, least + 2)
        assert due > 0


async def test_each_message_of_a_timer_is_in_the_inbox_once_though_owners_die() -> None:
    async with nodes({"node-1": 1, "node-2": 1}) as (client, running):
        for node in running.values():
            node.activations._classes = {"Bell": Bell}.get
        bell = await client.on("node-1").spawn(Bell, "b")
        for number in range(30):
            await bell.set(0.01 * number, str(number))
        for number in range(10):
            await client.claim(bell, f"node-{number % 2 + 1}")
            await asyncio.sleep(0.02)
        async with asyncio.timeout(30):
            while len(await bell.all()) < 30:
                await asyncio.sleep(0.01)
        assert sorted(await bell.all(), key=int) == [str(number) for number in range(30)]
        numbers = set[int]()
        for entry in await client.log.read("inbox.b", 0, 10_000):
            mail = decode_mail(entry.data, "here")
            if mail.sender == "b":
                numbers.update(message.n for message in mail.messages)
        assert numbers == set(range(1, 31))
        assert len(await client.log.read(log_subject("b"), 0, 10_000)) > 30


async def test_an_undo_takes_timers_back_and_none_of_them_fires_twice() -> None:
    async with nodes({"node-1": 1, "node-2": 1}) as (client, running):
        for node in running.values():
            node.activations._classes = {"Bell": Bell}.get
        bell = await client.on("node-1").spawn(Bell, "b")
        await bell.set(0.02, "before, fires behind")
        kept = await bell.set(60, "cancelled behind")
        move = await client.migrate(bell, to="node-2")
        await until(bell, ["before, fires behind"])
        await bell.stop(kept)
        await bell.set(0, "behind, fires behind")
        await until(bell, ["before, fires behind", "behind, fires behind"])
        later = await bell.set(60, "behind, still to come")
        before = (await load(client.log, "b")).ledger.timers

        report = await client.rollback(move.migration, to="node-1")

        assert report.ok
        assert await bell.all() == ["before, fires behind", "behind, fires behind"]
        timers = (await load(client.log, "b")).ledger.timers
        assert sorted(timers) == sorted([later, "on_arrive.0"])
        assert timers[later] == before[later]


@pytest.mark.parametrize("catch_up", ["one", "all"])
async def test_an_undo_makes_up_for_no_time_that_a_timer_has_fired_for_or_was_cancelled_at(
    catch_up: cells.CatchUp,
) -> None:
    async with nodes({"node-1": 1, "node-2": 1}) as (client, running):
        for node in running.values():
            node.activations._classes = {"Bell": Bell}.get
        bell = await client.on("node-1").spawn(Bell, "b")
        await bell.repeat(0.02, catch_up)
        await bell.set(0.05, "cancelled", id="once")
        move = await client.migrate(bell, to="node-2")
        await bell.stop("once")
        while len(await bell.all()) < 4:
            await asyncio.sleep(0.01)
        await bell.stop("repeat")
        rings = await bell.all()
        await asyncio.sleep(0.1)  # times that pass while there is no timer

        assert (await client.rollback(move.migration, to="node-1")).ok
        assert await bell.all() == rings
        assert sorted((await load(client.log, "b")).ledger.timers) == ["on_arrive.0"]
        await bell.set(0, "after all")  # timers fire again behind the undo
        await until(bell, [*rings, "after all"])


async def test_a_timer_that_is_put_off_again_and_again_takes_the_memory_of_one() -> None:
    """Each time left an entry that stayed until the time at which the timer would have been due."""
    rung.clear()
    async with deployment("node-1") as at:
        bell = await at.client.spawn(Bell, "b")
        for _ in range(300):
            assert await bell.set(1000, "late", "off") == "off"
        timers = at.nodes["node-1"].activations.live["b"].timers
        assert len(timers._heap) < 100
        assert await bell.set(0.001, "soon")
        assert await bell.set(0.002, "off", "off")
        while len(rung) < 2:
            await asyncio.sleep(0.01)
        assert [what for what, _ in rung] == ["soon", "off"]
        assert await bell.stop("off") is False
