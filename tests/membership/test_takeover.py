"""A takeover: whom it asks, whom it does not wait for, and that its keeper goes on listening meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any, cast

import msgspec
import pytest
from support.failing import LIMIT_S, QUICK, Ear, Gauge, die, leader_of, nodes, speak
from support.waiting import until

import mielin_cells as cells
from mielin_cells.agents.reference import classes
from mielin_cells.agents.reports import NodeInfo
from mielin_cells.errors import PermissionDenied
from mielin_cells.log.ids import MEMBERS, control_subject
from mielin_cells.log.policy import DEFAULT
from mielin_cells.log.records import HandedOff
from mielin_cells.membership import claims
from mielin_cells.membership.members import Member
from mielin_cells.membership.orphans import Orphan
from mielin_cells.membership.takeover import Taken, Takeover
from mielin_cells.membership.vacant import Schedule
from mielin_cells.node.activation.writer import Writer
from mielin_cells.node.node import Node
from mielin_cells.policy.facts import Facts
from mielin_cells.rpc import requests
from mielin_cells.store.reader import Seen, load
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Wire
from mielin_cells.testing.simulator.loop import VirtualLoop


def virtually(work: Coroutine[Any, Any, Any]) -> Any:
    with closing(VirtualLoop()) as loop:
        return loop.run_until_complete(work)


class Nodes:
    """Nodes that claim what they are asked to, each in its way."""

    def __init__(self, classes: dict[str, dict[str, int]]) -> None:
        self.classes = classes
        self.frozen: set[str] = set()
        self.answers: dict[str, Callable[[requests.Claim], cells.CellError | None]] = {}
        self.owned: Counter[str] = Counter()
        self.refused = 0
        self.passing: Counter[str] = Counter()
        """How many requests of a node fail in a passing way."""

    async def request(self, subject: str, data: bytes, timeout: float) -> bytes:
        """As a wire's: the node's answer, or its refusal."""
        name = {control_subject(name): name for name in self.classes}[subject]
        try:
            return requests.encode_result(await self.answer(name, requests.decode_request(data), timeout))
        except cells.errors.NodeStopping as error:
            return requests.encode_error(error)

    async def answer(self, name: str, request: requests.AnyRequest, seconds: float) -> object:
        if name in self.frozen:
            await asyncio.sleep(seconds)
            raise cells.errors.WireTimeout(f"{name} did not answer.")
        await asyncio.sleep(0.01)
        match request:
            case requests.Claims(wishes=wishes):
                if self.passing[name] > 0:
                    self.passing[name] -= 1
                    raise cells.errors.NodeStopping(f"{name} has other things to do.")
                return [self._claim(name, wish) for wish in wishes]
            case _:
                return []

    def _claim(self, name: str, wish: requests.Claim) -> requests.WireError | None:
        cls = wish.agent.split("-")[0]
        if cls not in self.classes[name]:
            self.refused += 1
            return cells.errors.UnknownClass("No such class.", name=cls).to_wire()
        self.owned[name] += 1
        return None

    def takeover(self, agents: list[str], *, told: bool = True) -> Takeover:
        class Given(Takeover):
            async def _find_orphans(self, *_: Any, **__: Any) -> list[Orphan]:
                return [Orphan(agent, "gone", Seen(1, 0), agent.split("-")[0] if told else "") for agent in agents]

        return Given(None, self, asyncio.get_running_loop().time)  # type: ignore[arg-type]

    @property
    def known(self) -> dict[str, Member]:
        return {name: Member(name=name, incarnation=1) for name in (*self.classes, "gone")}

    @property
    def infos(self) -> list[NodeInfo]:
        return [NodeInfo(name=name, incarnation=1, agents=0, classes=known) for name, known in self.classes.items()]

    async def take(self, agents: list[str], *, told: bool = True, copies: Collection[str] = ()) -> Taken:
        return await self.takeover(agents, told=told).take({"gone"}, self.known, self.infos, copies=copies)


@pytest.mark.parametrize("told", [True, False])
def test_nobody_is_asked_again_and_again_for_a_class_that_it_does_not_have(told: bool) -> None:
    async def story() -> None:
        there = Nodes({f"n{n}": {"C": 1} if n < 3 else {"D": 1} for n in range(40)})
        taken = await there.take([f"C-{n}" for n in range(200)], told=told)
        assert taken.claimed == 200
        assert there.owned.keys() == {"n0", "n1", "n2"}
        assert there.refused == 0 if told else there.refused <= 200

    virtually(story())


def test_a_frozen_node_costs_the_others_nothing_and_what_waits_for_it_goes_to_them() -> None:
    async def story() -> None:
        there = Nodes({f"n{n}": {"C": 1} for n in range(3)})
        clock = asyncio.get_running_loop().time
        answer = there.answer

        async def freezes(name: str, request: requests.AnyRequest, seconds: float) -> object:
            result = await answer(name, request, seconds)
            if isinstance(request, requests.ListCopies) and name == "n1":
                there.frozen.add("n1")  # after it has said that it lives
            return result

        there.answer = freezes  # type: ignore[method-assign]
        began = clock()
        taken = await there.take([f"C-{n}" for n in range(900)], copies=there.classes)
        assert taken.claimed == 900
        assert there.owned.total() == 900
        assert clock() - began < claims.CLAIM_S + 2  # one request to it, not one after the other
        assert "n1" not in there.owned

    virtually(story())


def test_a_node_that_does_not_say_which_copies_it_keeps_is_not_waited_for() -> None:
    async def story() -> None:
        there = Nodes({f"n{n}": {"C": 1} for n in range(4)})
        there.frozen = {"n3"}
        infos = [info for info in there.infos if info.name != "n3"]
        clock = asyncio.get_running_loop().time
        began = clock()
        takeover = there.takeover([f"C-{n}" for n in range(100)])
        assert (await takeover.take({"gone"}, there.known, infos, copies=there.classes)).claimed == 100
        assert clock() - began < 1.0

    virtually(story())


def test_a_node_that_failed_in_a_passing_way_is_asked_again() -> None:
    async def story() -> None:
        there = Nodes({"n0": {"C": 1}})
        there.passing["n0"] = 3
        orphans = [f"C-{n}" for n in range(8)]
        assert (await there.take(orphans)).claimed == 8
        there.passing["n0"] = 1000
        taken = await there.take(orphans)
        assert taken.claimed == 0
        assert taken.failed["C-0"] == "n0 has other things to do."
        assert taken.owners == {"gone"}
        there.passing["n0"] = 0
        assert (await there.take(orphans)).claimed == 8

    virtually(story())


def test_an_answer_that_cannot_be_read_is_one_nodes_trouble() -> None:
    async def story() -> None:
        there = Nodes({"n0": {"C": 1}, "n1": {"C": 1}})
        answer = there.answer

        async def newer(name: str, request: requests.AnyRequest, seconds: float) -> object:
            if name == "n0" and isinstance(request, requests.Claims):
                return {"some": "other version"}
            return await answer(name, request, seconds)

        there.answer = newer  # type: ignore[method-assign]
        assert (await there.take([f"C-{n}" for n in range(20)])).claimed == 20
        assert there.owned == {"n1": 20}

    virtually(story())


# ---- the keeper ----------------------------------------------------------------------------------------------


def test_agents_of_departed_nodes_are_looked_for_at_once_then_ever_more_rarely() -> None:
    again, now, looks = Schedule(5.0), 0.0, list[float]()
    while now < 100:
        if again.is_due(now, {"a"} if not looks else set()):
            looks.append(now)
            again.began(now, {"a"})
            again.ended(now, is_over=True)
        now += 1
    assert looks == [0, 5, 15, 35, 75]
    assert again.is_due(now, {"b"})
    again.began(now, {"b"})
    again.ended(now, is_over=False)
    assert not again.is_due(now + 4, {"b"})
    assert again.is_due(now + 5, {"b"})


async def test_a_keeper_goes_on_listening_while_it_takes_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes("node-1", "node-2", "node-3", "node-4") as (client, running, _, air):
        gauge = await client.on("node-2").spawn(Gauge, "g")
        other = await client.on("node-3").spawn(Gauge, "h")
        begun, go, take = asyncio.Event(), asyncio.Event(), Takeover.take

        async def slow(self: Takeover, gone: Collection[str], known: Any, infos: Any, **more: Any) -> Taken:
            begun.set()
            await go.wait()
            return await take(self, gone, known, infos, **more)

        monkeypatch.setattr(Takeover, "take", slow)
        die(running["node-2"], air)
        async with asyncio.timeout(40):
            await begun.wait()
            die(running["node-3"], air)
            while "node node-3" not in caplog.text:
                await asyncio.sleep(0.01)
        go.set()
        assert await gauge.add() == 1
        assert await other.add() == 1


async def test_a_leader_whose_main_loop_does_not_answer_is_followed_by_another() -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, _, _, air):
        stuck = await leader_of(client)
        air.stuck[stuck] = 10 * LIMIT_S
        assert await leader_of(client, stuck) != stuck


async def test_a_leader_that_the_store_refuses_says_so_in_its_beats_until_the_store_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A leader that is heard and can do nothing is followed by another, as one whose loop is held (seed 40001185)."""
    async with nodes("node-1", "node-2", "node-3") as (client, running, _, _air):
        leader = await leader_of(client)
        node, looks = running[leader], running[leader].members.read_to_end

        async def refused() -> Any:
            raise PermissionDenied("The store refuses this.", subject=MEMBERS)

        assert node.failover.refused_s() == 0.0
        monkeypatch.setattr(node.members, "read_to_end", refused)
        await until(lambda: node.failover.refused_s() > LIMIT_S, limit_s=40)
        assert await leader_of(client, leader) != leader
        monkeypatch.setattr(node.members, "read_to_end", looks)
        await until(lambda: node.failover.refused_s() <= 0.0, limit_s=40)


class Slow(cells.Agent):
    """Takes longer to arrive than a node may be silent."""

    count: int = 0

    async def on_arrive(self) -> None:
        if self.count:
            await asyncio.sleep(3 * LIMIT_S)

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count


async def test_a_node_that_restarts_with_slow_agents_is_heard_at_once_and_keeps_them() -> None:
    async with nodes("node-1", "node-2") as (client, running, keepers, air), asyncio.timeout(60):
        agents = [await client.on("node-1").spawn(Slow, f"s{n}") for n in range(3)]
        await asyncio.gather(*(agent.add() for agent in agents))
        await leader_of(client)
        die(running["node-1"], air)
        listener = Ear("node-1", air)
        again = Node(
            "node-1", client.log, client.wire, classes.get, settings=QUICK, rng=Random(7), wall=time.time, cluster=client,
            listener=listener,
        )  # fmt: skip
        is_in = asyncio.Event()

        def entered() -> None:
            is_in.set()
            air.silent.discard("node-1")
            again.home.begin(speak(again, listener, air))

        starting = asyncio.create_task(again.start(entered))
        await is_in.wait()
        info = await client.ping("node-1")
        assert info is not None
        assert info.state == "starting"
        assert (await client.spawn(Gauge, "new")) is not None
        assert (await client.owner("new"))[0] == "node-2"  # not to the one that has enough to do
        assert await asyncio.gather(*(agent.add() for agent in agents)) == [2] * 3
        await starting
        running["node-1"] = again
        info = await client.ping("node-1")
        assert info is not None
        assert info.state == "alive"
        assert again.activations.live.keys() == {"s0", "s1", "s2"}
        assert all(keeper.taken == 0 for keeper in keepers.values())


# ---- local() -------------------------------------------------------------------------------------------------


async def test_a_store_that_is_opened_with_fewer_nodes_has_all_its_agents(tmp_path: Path) -> None:
    path = tmp_path / "cells.db"
    async with cells.local(nodes=3, path=path) as cluster:
        gauges = [await cluster.on(f"node-{n % 3 + 1}").spawn(Gauge, f"g{n}") for n in range(6)]
        assert (await cluster.migrate(gauges[0], to="node-3")).ok
        for gauge in gauges:
            await gauge.add()
    async with cells.local(path=path) as cluster, asyncio.timeout(30):
        assert [await cluster.get(Gauge, f"g{n}").add() for n in range(6)] == [2] * 6
        assert {info.node for info in await cluster.agents()} == {"node-1"}
        assert len(await cluster.agents()) == 6
    async with cells.local(nodes=2, path=path) as cluster, asyncio.timeout(30):
        assert [await cluster.get(Gauge, f"g{n}").add() for n in range(6)] == [3] * 6


async def test_an_agent_that_was_just_handed_to_a_node_that_is_not_there_any_more_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "cells.db"
    async with cells.local(nodes=2, path=path) as cluster:
        gauge = await cluster.on("node-1").spawn(Gauge, "g")
        await gauge.add()
    substrate = await Embedded.open(path)
    try:
        fold = await load(substrate.log, "g")
        writer = Writer(substrate.log, fold, "node-1", 1, Random(0))
        await writer.append(
            lambda head: HandedOff(**head, to="node-2", migration="m-1", seal=None, digest=fold.seal_digest())
        )
    finally:
        await substrate.close()
    async with cells.local(path=path) as cluster, asyncio.timeout(30):
        assert await cluster.get(Gauge, "g").add() == 2


def test_that_nodes_are_full_is_said_of_agents_that_no_node_takes() -> None:
    async def story() -> None:
        there = Nodes({"n1": {"C": 1}, "n2": {"C": 1, "D": 1}})
        infos = [msgspec.structs.replace(info, facts=Facts(slots=0)) for info in there.infos]
        orphans = [Orphan(f"{cls}-1", "gone", Seen(1, 0), cls, 1, policy=DEFAULT) for cls in ("C", "D", "E")]
        nobody: Any = None  # no policy asks where another agent is
        asked = claims.Claims(
            cast(Wire, there), claims.Nodes(infos, {}), there.known, nobody, (), force=False, on_order=False
        )
        failed = await asked.run(orphans)
        assert [orphan.why for orphan in failed] == [
            "no node takes it: n1 takes no more agents: it is full; n2 takes no more agents: it is full",
            "no node takes it: n1 does not know the class D; n2 takes no more agents: it is full",
            "no node that takes agents has E as of version 1 or later",
        ]
        assert not there.owned

    virtually(story())
