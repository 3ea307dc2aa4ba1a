"""Nodes that die or fall silent: their agents are claimed by others, and a node that was only stopped gives way."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.failing import LIMIT_S, QUICK, Gauge, die, leader_of, nodes, watching
from support.processes import deployment, wait_for
from support.waiting import until

import mielin_cells as cells
from mielin_cells.agents.reports import NodeInfo
from mielin_cells.membership.members import Status
from mielin_cells.membership.selection import Spread
from mielin_cells.store.reader import load

# ---- decisions -----------------------------------------------------------------------------------------------


def test_orphans_are_spread_by_load() -> None:
    infos = [NodeInfo(name=name, incarnation=1, agents=agents) for name, agents in (("a", 3), ("b", 0), ("c", 1))]
    spread = Spread(infos)
    assert [spread.choose() for _ in range(5)] == ["b", "b", "c", "b", "c"]
    assert spread.choose(("a", "b", "c")) is None
    spread.gives_back("b")
    assert spread.choose(()) == "b"


# ---- nodes of one process ------------------------------------------------------------------------------------


async def test_the_agents_of_a_dead_node_are_spread_over_the_others_and_lose_nothing() -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, running, keepers, air):
        gauges = [await client.on("node-2").spawn(Gauge, f"g{n}") for n in range(40)]
        await asyncio.gather(*(gauge.add(5) for gauge in gauges))
        die(running["node-2"], air)
        assert await asyncio.gather(*(gauge.add() for gauge in gauges)) == [6] * 40
        where = [await gauge.where() for gauge in gauges]
        assert {where.count("node-1"), where.count("node-3")} == {20}
        assert sum(keeper.taken for keeper in keepers.values()) == 40
        fold = await load(client.log, "g0")
        assert fold.epoch == 2


async def test_nodes_that_are_idle_read_nothing_and_append_nothing() -> None:
    """The leader alone asks now and then whether the store still answers."""
    never = replace(QUICK, reconcile_s=1000.0)
    async with watching("node-1", "node-2", "node-3", "node-4", settings=never) as (opened, _, _air):
        client, calls = opened.client, list[str]()
        await leader_of(client)
        await until(lambda: all(node.members.table.leader[0] for node in opened.nodes.values()))
        await asyncio.sleep(2 * LIMIT_S)
        log = client.log
        for name in ("last", "lasts", "read", "settled", "append", "subjects", "position", "owned"):
            call = getattr(log, name)

            def counted(*args: Any, call: Any = call, name: str = name, **more: Any) -> Any:
                calls.append(name)
                return call(*args, **more)

            setattr(log, name, counted)
        await asyncio.sleep(5 * LIMIT_S)
        assert calls == []


async def test_only_the_leader_and_two_deputies_listen_to_all_nodes() -> None:
    async with nodes(*(f"node-{n}" for n in range(1, 7))) as (client, running, _, _air):
        leader = await leader_of(client)
        watchers = running[leader].members.table.watchers
        assert len(watchers) == 3

        def listening() -> set[str]:
            return {name for name, node in running.items() if node.failover._listener.ears.all_since is not None}

        await until(lambda: listening() == set(watchers))
        others = [node for name, node in running.items() if name not in watchers]
        await asyncio.sleep(4 * QUICK.heartbeat_s)
        for node in others:
            assert {beat.node for beat in node.failover._listener.beats()} == {leader}


async def test_when_the_leader_itself_dies_another_is_elected_and_goes_on() -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, running, _, air):
        gauges = [await client.on(f"node-{n % 3 + 1}").spawn(Gauge, f"g{n}") for n in range(9)]
        leader = await leader_of(client)
        die(running[leader], air)
        assert await asyncio.gather(*(gauge.add() for gauge in gauges)) == [1] * 9
        assert await leader_of(client) != leader
        assert leader not in [await gauge.where() for gauge in gauges]


async def test_when_leader_and_both_deputies_die_at_once_another_node_leads_and_takes_over() -> None:
    names = [f"node-{n}" for n in range(1, 7)]
    async with nodes(*names) as (client, running, _, air), asyncio.timeout(30):
        gauges = [await client.on(name).spawn(Gauge, f"g-{name}") for name in names]
        leader = await leader_of(client)
        dead = running[leader].members.table.watchers
        for name in dead:
            die(running[name], air)
        assert await leader_of(client, *dead) not in dead
        assert await asyncio.gather(*(gauge.add() for gauge in gauges)) == [1] * 6
        assert not {await gauge.where() for gauge in gauges} & set(dead)


async def test_the_last_of_two_nodes_doubts_the_other_first_and_then_takes_over() -> None:
    async with nodes("node-1", "node-2") as (client, running, keepers, air):
        gauge = await client.on("node-2").spawn(Gauge, "g")
        await leader_of(client)
        die(running["node-2"], air)
        assert await gauge.add() == 1
        await leader_of(client, "node-2")
        assert running["node-1"].members.table.members["node-2"].status is Status.DOUBTED
        assert keepers["node-1"].taken == 1


async def test_a_leader_that_does_not_hear_one_node_takes_nothing_from_it_while_a_deputy_does() -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, running, keepers, air):
        leader = await leader_of(client)
        other = next(name for name in running if name != leader)
        gauge = await client.on(other).spawn(Gauge, "g")
        air.deaf_to.add((leader, other))
        await until(lambda: other in (keepers[leader].watch.silent or ()), limit_s=20)
        await asyncio.sleep(4 * LIMIT_S)
        assert running[leader].members.table.members[other].status is Status.SERVING
        assert await gauge.where() == other


async def test_a_node_that_lives_and_is_not_heard_says_so_and_serves_again() -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, running, _, air):
        await leader_of(client)
        gauge = await client.on("node-2").spawn(Gauge, "g")
        await gauge.add()
        suspected = list[int]()
        table = running["node-3"].members.table

        def note() -> bool:
            member = table.members["node-2"]
            if member.status in (Status.SUSPECTED, Status.DOUBTED) and member.seq not in suspected:
                suspected.append(member.seq)
            return bool(suspected) and member.status is Status.SERVING

        air.silent.add("node-2")
        await until(note, pause_s=0.0)
        assert await gauge.add() == 2
        assert not running["node-2"].is_stopping
        assert await client.on("node-2").spawn(Gauge, "again") is not None


async def test_an_error_that_no_retry_mends_does_not_end_failover(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, running, keepers, air):
        gauge = await client.on("node-2").spawn(Gauge, "g")
        failed = set[str]()
        for name, keeper in keepers.items():
            look = keeper.look

            async def once(name: str = name, look: Callable[[], Coroutine[Any, Any, None]] = look) -> None:
                if name not in failed:
                    failed.add(name)
                    raise cells.errors.JetStreamDisabled("The account's JetStream was switched off for a moment.")
                await look()

            monkeypatch.setattr(keeper, "look", once)
        await until(lambda: failed == running.keys())
        assert all(node.failures.total() == 1 for node in running.values())
        die(running["node-2"], air)
        assert await gauge.add() == 1
        assert await gauge.where() != "node-2"


async def test_an_unreachable_store_is_logged_once_and_so_is_its_return(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "mielin_cells.failover")
    async with nodes("node-1", "node-2") as (_, _, keepers, _):
        keeper, looks = keepers["node-1"], 0

        async def away() -> None:
            nonlocal looks
            looks += 1
            raise cells.errors.StoreUnreachable("away", url="nats://host")

        with monkeypatch.context() as patched:
            patched.setattr(keeper, "look", away)
            await until(lambda: looks >= 5)
        await until(lambda: "node-1: failover works again" in caplog.text)
    assert caplog.text.count("failover waits for the store") == 1
    assert caplog.text.count("failover works again") == 1


async def test_a_node_that_hears_nobody_takes_nothing() -> None:
    async with nodes("node-1", "node-2") as (client, running, keepers, air):
        gauge = await client.on("node-2").spawn(Gauge, "g")
        air.deaf.update(running)
        await asyncio.sleep(4 * LIMIT_S)
        assert keepers["node-1"].taken == keepers["node-2"].taken == 0
        assert await gauge.where() == "node-2"


async def test_an_agent_in_mid_move_is_claimed_when_both_ends_are_gone() -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, running, _, air):
        gauge = await client.on("node-1").spawn(Gauge, "g")
        await gauge.add(3)
        reached = asyncio.Event()

        async def stop_here(step: str) -> None:
            if step == "probe":
                reached.set()
                await asyncio.sleep(3600)

        running["node-2"].home.step = stop_here
        moving = asyncio.create_task(client.migrate(gauge, to="node-2"))
        await reached.wait()
        die(running["node-1"], air)
        die(running["node-2"], air)
        assert await gauge.add() == 4
        assert await gauge.where() == "node-3"
        assert (await moving).outcome == "rolled_back"


# ---- processes -----------------------------------------------------------------------------------------------


def test_kill_9_of_a_node_process_costs_its_agents_a_moment(tmp_path: Path) -> None:
    with deployment(tmp_path, 2) as up:
        third = up.node("third")
        for n in range(4):
            up.value("spawn", "Counter", f"c{n}", "--on", "third")
        assert up.value("ask", "c0", "add", "5") == 5
        third.process.kill()
        assert up.value("ask", "c0", "add") == 6
        wait_for(
            lambda: all(info["node"] in ("node-1", "node-2") for info in up.value("agents")),
            "the failover of all agents",
        )
        where = [info["node"] for info in up.value("agents")]
        assert {where.count("node-1"), where.count("node-2")} == {2}


def test_a_process_that_was_stopped_past_every_deadline_gives_way_when_it_goes_on(tmp_path: Path) -> None:
    with deployment(tmp_path, 2) as up:
        third = up.node("third")
        up.value("spawn", "Counter", "anna", "--on", "third")
        assert up.value("ask", "anna", "add", "5") == 5
        third.signal(signal.SIGSTOP)
        assert up.value("ask", "anna", "add") == 6
        third.signal(signal.SIGCONT)
        assert up.value("ask", "anna", "add") == 7
        wait_for(
            lambda: "third" in [node["name"] for node in up.value("nodes") if node["state"] == "alive"], "its return"
        )
        up.value("migrate", "anna", "--to", "third")
        assert up.value("ask", "anna", "add") == 8
