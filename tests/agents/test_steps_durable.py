"""Durable steps: a finished call is never made again, whatever happens to the turn that made it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.moving import nodes
from support.nodes import ONCE
from support.step_world import QUICK, Chat, Scripted, anew, is_stopping, script, world
from support.waiting import until

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import Committed, HandedOff, Stepped, decode_record
from mielin_cells.store.reader import load


@pytest.fixture(autouse=True)
def _fresh() -> None:
    anew()


async def records(cluster: Client, agent: str) -> list[Any]:
    entries = await cluster.log.read(log_subject(agent), 0, 1000)
    return [decode_record(entry.data, "here") for entry in entries]


# ---- once ----------------------------------------------------------------------------------------------------------


async def test_a_step_returns_the_result_and_is_a_record_before_the_next_one() -> None:
    async with nodes("node-1") as (cluster, _):
        chat = await cluster.spawn(Chat, "c")
        assert await chat.say(prompts=["a", "b"]) == ["a!", "b!"]
        kinds = [type(record).__name__ for record in await records(cluster, "c")]
        assert [kind for kind in kinds if kind == "Stepped"] == ["Stepped", "Stepped"]
        assert (await load(cluster.log, "c")).turn is None


async def test_a_step_is_recorded_after_all_earlier_turns() -> None:
    async with nodes("node-1") as (cluster, _):
        chat = await cluster.spawn(Chat, "c")
        await asyncio.gather(chat.all(), chat.all(), chat.say(prompts=["a"]))
        before: list[int] = []
        for record in await records(cluster, "c"):
            if isinstance(record, Stepped):
                assert before == list(range(1, record.input))
            elif isinstance(record, Committed):
                before += [taken.n for taken in record.commit.inputs]
        assert len(before) == 3


async def test_a_turn_that_runs_again_repeats_no_finished_step() -> None:
    async with cells.local(settings=QUICK) as cluster:
        chat = await cluster.spawn(Chat, "c")
        assert await chat.say(prompts=["a", "b"], fails=3) == ["a!", "b!"]
        assert (world.runs, world.calls) == (4, ["a", "b"])
        assert await chat.all() == ["a!", "b!"]


async def test_each_outcome_is_written_once() -> None:
    async with nodes("node-1", settings=QUICK) as (cluster, _):
        chat = await cluster.spawn(Chat, "c")
        await chat.say(prompts=["a", "b", "c"], fails=2)
        made = [(r.at, len(r.calls)) for r in await records(cluster, "c") if isinstance(r, Stepped)]
        assert made == [(0, 1), (1, 1), (2, 1)]


async def test_a_run_that_gets_further_writes_only_what_is_new() -> None:
    async def first(self: Scripted) -> list[str]:
        return [await cells.step("one", world.model, "a")]

    async def second(self: Scripted) -> list[str]:
        return [*await first(self), await cells.step("two", world.model, "b")]

    script[:] = [first, second]
    async with nodes("node-1", settings=QUICK) as (cluster, _):
        agent = await cluster.spawn(Scripted, "s", peer=await cluster.spawn(Chat, "c"))
        assert await agent.play() == ["a!", "b!"]
        made = [(r.at, len(r.calls)) for r in await records(cluster, "s") if isinstance(r, Stepped)]
        assert made == [(0, 1), (1, 1)]


async def test_messages_of_one_agent_to_two_others_have_different_keys() -> None:
    async def asks(self: Scripted) -> list[str]:
        world.runs = 2
        other = cells.this().cluster.get(Chat, "d")
        return [*await self.peer.say(prompts=["a"]), *await other.say(prompts=["a"])]

    script[:] = [asks]
    async with cells.local(settings=QUICK) as cluster:
        await cluster.spawn(Chat, "d")
        agent = await cluster.spawn(Scripted, "s", peer=await cluster.spawn(Chat, "c"))
        assert await agent.play() == ["a!", "a!"]
        assert len(set(world.keys)) == 2


async def test_the_next_message_makes_its_own_steps_with_other_keys() -> None:
    async with cells.local(settings=QUICK) as cluster:
        chat, other = await cluster.spawn(Chat, "c"), await cluster.spawn(Chat, "d")
        await chat.say(prompts=["a", "a"])
        await chat.say(prompts=["a"])
        await other.say(prompts=["a"])
        assert world.calls == ["a"] * 4
        assert len(set(world.keys)) == 4


async def test_a_call_that_was_cut_is_made_again_with_the_same_key() -> None:
    async with nodes("node-1", "node-2") as (cluster, running):
        world.gates["a"] = asyncio.Event()
        chat = await cluster.on("node-1").spawn(Chat, "c")
        asked = asyncio.create_task(chat.say(prompts=["a"]))
        await world.begun.wait()
        running["node-1"].kill()
        world.gates["a"].set()
        await cluster.claim(chat, to="node-2")
        assert await asked == ["a!"]
        assert world.nodes == ["node-1", "node-2"]
        assert len(set(world.keys)) == 1


async def test_a_node_that_is_killed_between_steps_loses_none_of_them() -> None:
    async with nodes("node-1", "node-2") as (cluster, running):
        world.gates["b"] = asyncio.Event()
        chat = await cluster.on("node-1").spawn(Chat, "c")
        asked = asyncio.create_task(chat.say(prompts=["a", "b", "c"]))
        await until(lambda: "b" in world.calls, limit_s=30, pause_s=0)
        running["node-1"].kill()
        world.gates["b"].set()
        await cluster.claim(chat, to="node-2")
        assert await asked == ["a!", "b!", "c!"]
        assert Counter(world.calls) == {"a": 1, "b": 2, "c": 1}


async def test_a_file_keeps_the_steps_of_an_open_turn(tmp_path: Path) -> None:
    """A node that stops waits for the call in flight, and no later call is begun."""
    path = tmp_path / "store.db"
    world.outlast.add("a")
    async with cells.local(path=path) as cluster:
        chat = await cluster.spawn(Chat, "c")
        await chat.say.tell(prompts=["a", "b"])
        await world.begun.wait()
    assert world.calls == ["a"]
    async with cells.local(path=path) as cluster:
        assert await cluster.get(Chat, "c").all() == ["a!", "b!"]
    assert world.calls == ["a", "b"]


# ---- moves ---------------------------------------------------------------------------------------------------------


async def test_a_turn_moves_between_two_steps_and_goes_on_at_the_target() -> None:
    async with nodes("node-1", "node-2") as (cluster, _):
        world.outlast.add("a")
        chat = await cluster.on("node-1").spawn(Chat, "c")
        asked = asyncio.create_task(chat.say(prompts=["a", "b"]))
        await world.begun.wait()
        assert (await cluster.migrate(chat, to="node-2")).ok
        assert await asked == ["a!", "b!"]
        assert list(zip(world.calls, world.nodes, strict=True)) == [("a", "node-1"), ("b", "node-2")]
        kinds = [type(record).__name__ for record in await records(cluster, "c")]
        assert [kind for kind in kinds if kind in ("Stepped", "HandedOff")] == ["Stepped", "HandedOff", "Stepped"]
        seals = [record.seal for record in await records(cluster, "c") if isinstance(record, HandedOff)]
        assert all(seal is None or not seal.inputs for seal in seals)


async def test_a_call_longer_than_the_pause_rolls_the_move_back_and_is_paid_once() -> None:
    async with cells.local(nodes=2, recovery=ONCE, settings=cells.Settings(pause_s=0.05)) as cluster:
        world.gates["a"] = asyncio.Event()
        chat = await cluster.spawn(Chat, "c")
        asked = asyncio.create_task(chat.say(prompts=["a", "b"]))
        await world.begun.wait()

        report = await cluster.migrate(chat, to="node-2")

        assert (report.outcome, report.code) == ("rolled_back", "Timeout")
        assert "turn" in report.reason
        world.gates["a"].set()
        assert await asked == ["a!", "b!"]
        assert (world.calls, set(world.nodes)) == (["a", "b"], {"node-1"})


async def test_a_cancellable_turn_is_not_cancelled_in_a_call() -> None:
    async with cells.local(nodes=2) as cluster:
        world.outlast.add("a")
        chat = await cluster.spawn(Chat, "c")
        asked = asyncio.create_task(chat.patient("a"))
        await world.begun.wait()
        assert (await cluster.migrate(chat, to="node-2")).ok
        assert await asked == "a!"
        assert world.calls == ["a"]
        assert (await cluster.show(chat)).node == "node-2"


async def test_a_move_does_not_wait_for_the_next_try_of_a_step() -> None:
    class Waits(cells.Agent):
        @cells.handler
        async def go(self) -> str:
            retry = cells.Retry(first_s=3600, max_s=3600)
            return await cells.step("model", world.model, "a", retry=retry)

    async with cells.local(nodes=2) as cluster:
        world.fails["a"] = 1
        agent = await cluster.spawn(Waits, "w")
        asked = asyncio.create_task(agent.go())
        async with asyncio.timeout(30):
            await world.begun.wait()
            while world.fails["a"]:
                await asyncio.sleep(0)
            assert (await cluster.migrate(agent, to="node-2")).ok
            assert await asked == "a!"
        assert world.nodes == ["node-1", "node-2"]


async def test_a_turn_stops_right_behind_a_step_whatever_else_it_would_wait_for() -> None:
    class LingersOn(cells.Agent):
        @cells.handler
        async def go(self) -> str:
            said = await cells.step("model", world.model, "a")
            if cells.this().node == "node-1":
                await asyncio.Event().wait()
            return said

    async with cells.local(nodes=2, recovery=ONCE) as cluster:
        world.outlast.add("a")
        agent = await cluster.spawn(LingersOn, "l")
        asked = asyncio.create_task(agent.go())
        await world.begun.wait()
        assert (await cluster.migrate(agent, to="node-2")).ok
        assert await asked == "a!"
        assert world.nodes == ["node-1"]


async def test_no_call_is_begun_where_the_intake_is_being_stopped() -> None:
    class Dawdler(cells.Agent):
        @cells.handler(tries=1)
        async def go(self) -> str:
            world.begun.set()
            while cells.this().node == "node-1" and not is_stopping():
                await asyncio.sleep(0)
            async with asyncio.TaskGroup() as group:  # which wraps what ends the turn
                task = group.create_task(cells.step("model", world.model, "a"))
            return task.result()

    async with cells.local(nodes=2, recovery=ONCE) as cluster:
        agent = await cluster.spawn(Dawdler, "s")
        asked = asyncio.create_task(agent.go())
        await world.begun.wait()
        assert (await cluster.migrate(agent, to="node-2")).ok
        assert await asked == "a!"
        assert world.nodes == ["node-2"]


async def test_a_handler_cannot_go_on_after_it_was_stopped_between_steps() -> None:
    class Stubborn(cells.Agent):
        count: int = 0

        @cells.handler
        async def go(self) -> int:
            self.count += 1
            for prompt in ("a", "b"):
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(cells.step("model", world.model, prompt))
                except BaseException:  # noqa: BLE001 - the point of the test
                    self.count += 100
            return self.count

    async with cells.local(nodes=2) as cluster:
        world.outlast.add("a")
        agent = await cluster.spawn(Stubborn, "s")
        asked = asyncio.create_task(agent.go())
        await world.begun.wait()
        assert (await cluster.migrate(agent, to="node-2")).ok
        assert await asked == 1
        assert world.calls == ["a", "b"]


async def test_an_open_turn_is_in_snapshots(tmp_path: Path) -> None:
    path, settings = tmp_path / "store.db", cells.Settings(snapshot_records=3, retention_s=0)
    world.outlast.add("z")
    async with cells.local(path=path, settings=settings) as cluster:
        chat = await cluster.spawn(Chat, "c")
        await chat.say(prompts=["x", "y"])
        await chat.say.tell(prompts=[*"abcdef", "z", "last"])
        await until(lambda: "z" in world.calls, limit_s=30, pause_s=0)
    async with cells.local(path=path, settings=settings) as cluster:
        assert len(await cluster.get(Chat, "c").all()) == 10
    assert world.calls == [*"xyabcdefz", "last"]
