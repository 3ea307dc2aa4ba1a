"""Nodes that die or fall silent: their agents are claimed by others, and a node that was only stopped gives way."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support.failing import LIMIT_S, QUICK, Gauge, die, enter, nodes, watching
from support.processes import deployment, wait_for
from support.waiting import until

import mielin_cells as cells
from mielin_cells.agents.reference import classes
from mielin_cells.agents.reports import NodeInfo
from mielin_cells.client.client import Client
from mielin_cells.membership.detector import find_silent
from mielin_cells.membership.leader import SUBJECT
from mielin_cells.membership.selection import Spread
from mielin_cells.node.failover import Failover
from mielin_cells.node.node import Node
from mielin_cells.rpc.answers import Beat
from mielin_cells.store.reader import load
from mielin_cells.substrate.embedded import Embedded

# ---- decisions -----------------------------------------------------------------------------------------------


def beats(**ages: float) -> list[Beat]:
    return [Beat(name.replace("_", "-"), 1, 0.0, age) for name, age in ages.items()]


@pytest.mark.parametrize(
    ("heard", "listening_s", "wanted"),
    [
        (beats(node_1=0.1, node_2=0.1, node_3=0.1), 100, set()),
        (beats(node_1=0.1, node_2=2.6, node_3=0.1), 100, {"node-2"}),
        (beats(node_1=0.1, node_2=2.5, node_3=0.1), 100, set()),
        (beats(node_1=0.1, node_3=0.1), 100, {"node-2"}),
        (beats(node_1=0.1), 2.0, set()),  # has not listened for long enough
        (beats(node_1=9.0, node_2=9.0, node_3=9.0), 100, set()),  # hears nothing, not even itself
        (beats(node_2=0.1), 100, set()),
        (beats(node_1=0.1, node_2=2.6, node_3=2.6), 2.55, {"node-2", "node-3"}),
    ],
)
def test_which_members_are_silent(heard: list[Beat], listening_s: float, wanted: set[str]) -> None:
    assert find_silent("node-1", ["node-1", "node-2", "node-3"], heard, listening_s, 2.5) == wanted


def test_orphans_are_spread_by_load() -> None:
    infos = [NodeInfo(name=name, incarnation=1, agents=agents) for name, agents in (("a", 3), ("b", 0), ("c", 1))]
    spread = Spread(infos)
    assert [spread.choose(()) for _ in range(5)] == ["b", "b", "c", "b", "c"]
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


async def test_a_node_is_known_as_soon_as_it_is_heard_and_its_death_is_not_found_later_than_anothers() -> None:
    never = replace(QUICK, reconcile_s=1000.0)
    async with watching("node-1", settings=never) as (opened, keepers, air):
        client, running, reads = opened.client, opened.nodes, list[str]()
        log, subjects = running["node-1"].home.log, running["node-1"].home.log.subjects

        async def counted(prefix: str) -> list[tuple[str, int]]:
            reads.append(prefix)
            return await subjects(prefix)

        log.subjects = counted  # type: ignore[method-assign]
        async with asyncio.timeout(10):
            while await client.log.last(SUBJECT) is None:  # it has looked who is there, and keeps
                await asyncio.sleep(0.01)
        await enter(opened, air, "node-2", never)
        gauge = await client.on("node-2").spawn(Gauge, "g")
        assert await gauge.add() == 1
        air.last["nobody"] = running["node-1"].activations.clock()
        before = len(reads)
        for _ in range(10):
            await keepers["node-1"].look()
        assert len(reads) - before <= len(running)  # no keeper asks for a name that is nobody's again and again

        die(running["node-2"], air)

        assert await gauge.add() == 2
        assert await gauge.where() == "node-1"


async def test_when_the_keeper_itself_dies_another_is_elected_and_goes_on() -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, running, _, air):
        gauges = [await client.on(f"node-{n % 3 + 1}").spawn(Gauge, f"g{n}") for n in range(9)]
        async with asyncio.timeout(10):
            while (last := await client.log.last(SUBJECT)) is None:
                await asyncio.sleep(0.01)
        keeper = next(name for name in running if name.encode() in last.data)
        die(running[keeper], air)
        assert await asyncio.gather(*(gauge.add() for gauge in gauges)) == [1] * 9
        after = await client.log.last(SUBJECT)
        assert after is not None
        assert keeper.encode() not in after.data
        assert keeper not in [await gauge.where() for gauge in gauges]


async def test_a_node_that_is_cut_off_suspects_nobody_and_one_that_was_only_silent_gives_way() -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, running, _, air):
        gauge = await client.on("node-2").spawn(Gauge, "g")
        other = await client.on("node-1").spawn(Gauge, "o")
        await gauge.add()
        air.silent.add("node-2")  # it lives, and nobody hears it
        async with asyncio.timeout(10):
            while (await client.owner("g"))[0] == "node-2":
                await asyncio.sleep(0.01)
        assert await gauge.add() == 2
        await until(lambda: "g" not in running["node-2"].activations.live)
        assert await gauge.where() != "node-2"
        air.silent.discard("node-2")
        assert await other.add() == 1
        assert await client.on("node-2").spawn(Gauge, "again") is not None  # it has rejoined


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


async def test_a_node_that_has_just_begun_has_time_to_be_heard() -> None:
    substrate, now = await Embedded.open(), 0.0
    client = Client(substrate.log, substrate.wire, settings=QUICK, rng=Random(0))
    await client.open()
    made = [
        Node(
            n,
            substrate.log,
            substrate.wire,
            classes.get,
            settings=QUICK,
            wall=time.time,
            clock=lambda: now,
            cluster=client,
        )
        for n in ("n1", "n2")
    ]
    await made[0].start()
    keeper = Failover(made[0].activations, lambda: [Beat("n1", 1, 0.0, 0.0)])

    async def passes(seconds: float) -> None:
        nonlocal now
        until = now + seconds
        while now < until:
            now += LIMIT_S / 8
            await keeper.look()

    await passes(5 * LIMIT_S)
    await made[1].start()
    await client.on("n2").spawn(Gauge, "g")
    await passes(QUICK.reconcile_s + LIMIT_S / 8)  # the keeper knows of it by now
    assert keeper.taken == 0
    await passes(LIMIT_S / 2)
    assert keeper.taken == 0
    await passes(LIMIT_S + QUICK.reconcile_s)
    await until(lambda: keeper.taken)
    assert keeper.taken == 1
    for node in made:
        await node.stop()
    await client.close()
    await substrate.close()


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
