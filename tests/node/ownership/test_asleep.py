"""Agents without work leave memory; a message, a timer or an order brings them back, in the same epoch."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support.nodes import Deployment, deployment
from support.undoing import QUICK
from support.virtual import virtually
from support.waiting import until

import mielin_cells as cells
from mielin_cells.client.operator import Operator
from mielin_cells.errors import FieldRefused
from mielin_cells.log.ids import log_subject
from mielin_cells.node.activation.activation import Activation
from mielin_cells.node.activation.inbox import Inbox
from mielin_cells.node.node import Node
from mielin_cells.node.topics.patterns import Pattern
from mielin_cells.settings import Settings
from mielin_cells.store.reader import load
from mielin_cells.substrate.tail import BufferedTail

SOON = replace(QUICK, idle_s=0.2)
NEVER = replace(QUICK, idle_s=0)


class Lodger(cells.Agent):
    count: int = 0
    heard: list[str] = []

    @cells.handler
    async def add(self, by: int = 1) -> int:
        self.count += by
        return self.count

    @cells.handler
    async def later(self, seconds: float) -> None:
        cells.after(seconds).add(10)

    @cells.handler
    async def tell(self, other: str) -> None:
        await cells.this().cluster.get(Lodger, other).add.tell()

    @cells.handler
    async def hold(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class HookedSleeper(cells.Agent, idle_s=0.2):
    arrivals: int = 0
    departures: int = 0
    refuses: bool = False

    async def on_arrive(self) -> None:
        self.arrivals += 1

    async def on_depart(self) -> None:
        if self.refuses:
            raise OSError("not now")
        self.departures += 1

    @cells.handler
    async def seen(self) -> tuple[int, int]:
        return self.arrivals, self.departures

    @cells.handler
    async def refuse(self, refuses: bool) -> None:
        self.refuses = refuses

    @cells.handler
    async def listen(self) -> None:
        await cells.subscribe("news", self.on_news)

    @cells.handler
    async def on_news(self, value: int) -> None:
        pass


class Waking(cells.Agent, idle_s=0):
    @cells.handler
    async def hi(self) -> str:
        return "hi"


async def asleep(node: Node, agent: str) -> None:
    await until(lambda: agent in node.activations.asleep)
    assert agent not in node.activations.live


async def records(at: Deployment, agent: str) -> int:
    return len(await at.substrate.log.read(log_subject(agent)))


@virtually
async def test_an_agent_without_work_leaves_memory_and_a_message_brings_it_back_in_its_epoch() -> None:
    async with deployment("node-1", settings=SOON) as at:
        agent, node = await at.client.spawn(Lodger, "a"), at.nodes["node-1"]
        assert await agent.add() == 1
        await asleep(node, "a")
        before = await load(at.substrate.log, "a")
        assert await agent.add() == 2
        after = await load(at.substrate.log, "a")
        assert (after.epoch, after.incarnation, after.seq - before.seq) == (
            before.epoch,
            before.incarnation,
            2,
        )  # inbox, commit
        assert "a" in node.activations.live
        assert "a" not in node.activations.asleep


@virtually
async def test_its_log_ends_with_a_snapshot_and_waking_reads_that_alone() -> None:
    async with deployment("node-1", settings=SOON) as at:
        agent, node = await at.client.spawn(Lodger, "a"), at.nodes["node-1"]
        for _ in range(20):
            await agent.add()
        await asleep(node, "a")
        fold = await load(at.substrate.log, "a")
        assert (fold.snap, fold.behind_records) == (fold.seq, 0)
        reads = list[int]()
        read = at.substrate.log.read

        async def counted(subject: str, after: int = 0, limit: int = 1000) -> Any:
            reads.append(1)
            return await read(subject, after, limit)

        at.substrate.log.read = counted  # type: ignore[method-assign]
        assert await agent.add() == 21
        assert reads == []  # `last` gave the snapshot
        await asleep(node, "a")
        assert await agent.add() == 22


@virtually
async def test_an_agent_that_has_done_nothing_more_appends_nothing_when_it_sleeps_again() -> None:
    async with deployment("node-1", settings=SOON) as at:
        await at.client.spawn(Lodger, "a")
        node = at.nodes["node-1"]
        await asleep(node, "a")
        count = await records(at, "a")
        await node.activations.awake("a")
        await asleep(node, "a")
        assert await records(at, "a") == count == 2


async def test_its_next_timer_brings_it_back() -> None:
    async with deployment("node-1", settings=SOON) as at:
        agent, node = await at.client.spawn(Lodger, "a"), at.nodes["node-1"]
        await agent.later(1.0)
        await asleep(node, "a")
        await until(lambda: "a" in node.activations.live)
        async with asyncio.timeout(30):
            while await agent.add(0) != 10:  # what a timer sends goes through the inbox
                await asyncio.sleep(0.01)


async def overslept(at: Deployment) -> tuple[int, int]:
    """Tells an agent something in 200 moments of its leaving: how often it left memory, and how often it slept over the message."""
    agent, node = await at.client.spawn(Lodger, "a"), at.nodes["node-1"]
    left, slept_over = 0, 0

    async def at_once(activation: Activation) -> None:
        """Without a snapshot, during which the message would be taken."""

    node.idling._make_short = at_once  # type: ignore[method-assign]
    for n in range(200):
        activation = await node.activations.awake("a")
        await until(lambda one=activation: one.inbox._read_to >= 0 and one.is_idle)  # type: ignore[misc]
        telling = asyncio.ensure_future(agent.add.tell())
        for _ in range(n % 9):
            await asyncio.sleep(0)
        await node.idling._put_to_sleep(activation)
        sleeper = node.activations.asleep.get("a")
        left += sleeper is not None
        await telling
        last = await at.substrate.log.last("inbox.a")
        if sleeper is not None and not sleeper.is_stirring and last is not None and last.seq > sleeper.cursor:
            slept_over += 1
    assert await agent.add(0) == 200
    return left, slept_over


async def test_a_message_that_comes_in_the_moment_in_which_the_agent_leaves_wakes_it() -> None:
    async with deployment("node-1", settings=NEVER) as at:
        left, slept_over = await overslept(at)
    assert left > 20
    assert slept_over == 0


async def test_without_the_look_at_the_tail_an_agent_sleeps_over_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard of the story above, taken away."""

    def watched(self: BufferedTail, come: Callable[[], None]) -> bool:
        self._come = come
        return True

    monkeypatch.setattr(BufferedTail, "watch", watched)
    monkeypatch.setattr(Inbox, "is_done", property(lambda self: self._read_to >= 0))
    async with deployment("node-1", settings=NEVER) as at:
        _, slept_over = await overslept(at)
    assert slept_over > 0


async def test_what_it_has_sent_is_not_sent_again_when_it_wakes() -> None:
    async with deployment("node-1", settings=SOON) as at:
        agent, other = await at.client.spawn(Lodger, "a"), await at.client.spawn(Lodger, "b")
        await agent.tell("b")
        node = at.nodes["node-1"]
        await asleep(node, "a")
        await asleep(node, "b")
        stored = len(await at.substrate.log.read("inbox.b"))
        await node.activations.awake("a")
        await asleep(node, "a")
        assert len(await at.substrate.log.read("inbox.b")) == stored
        assert await other.add() == 2


async def test_an_agent_in_a_long_turn_stays() -> None:
    async with deployment("node-1", settings=SOON) as at:
        agent, node = await at.client.spawn(Lodger, "a"), at.nodes["node-1"]
        holding = asyncio.ensure_future(agent.hold(1.0))
        await until(lambda: node.activations.live["a"].runner.turn is not None)
        activation = node.activations.live["a"]
        await holding
        assert node.activations.live["a"] is activation


async def test_a_class_says_its_own_time_and_zero_says_never() -> None:
    async with deployment("node-1", settings=replace(NEVER, idle_s=0.2)) as at:
        await at.client.spawn(Waking, "w")
        await at.client.spawn(Lodger, "a")
        node = at.nodes["node-1"]
        await asleep(node, "a")
        assert "w" in node.activations.live
    async with deployment("node-1", settings=NEVER) as at:
        await at.client.spawn(HookedSleeper, "h")
        await at.client.spawn(Lodger, "a")
        node = at.nodes["node-1"]
        await asleep(node, "h")
        assert "a" in node.activations.live
    for wrong in (-1, "soon", True, float("nan")):
        with pytest.raises(FieldRefused, match="idle_s"):
            type("Wrong", (cells.Agent,), {"__module__": __name__}, idle_s=wrong)


async def test_on_depart_runs_before_it_leaves_and_on_arrive_when_it_is_back() -> None:
    async with deployment("node-1", settings=NEVER) as at:
        agent, node = await at.client.spawn(HookedSleeper, "h"), at.nodes["node-1"]
        assert await agent.seen() == (1, 0)
        await asleep(node, "h")
        assert await agent.seen() == (2, 1)


async def test_an_agent_whose_on_depart_raises_stays_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async with deployment("node-1", settings=NEVER) as at:
        agent, node = await at.client.spawn(HookedSleeper, "h"), at.nodes["node-1"]
        with caplog.at_level(logging.WARNING, "mielin_cells.node"):
            await agent.refuse(True)
            activation = node.activations.live["h"]
            since = activation.rested
            await until(lambda: activation.rested[2] > since[2] + 0.5)  # two tries
        assert node.activations.live["h"] is activation
        assert [r.message for r in caplog.records if "stays in memory" in r.message] == [
            "agent h has had nothing to do and stays in memory all the same: OSError: not now; it goes on"
        ]
        await agent.refuse(False)
        await asleep(node, "h")


async def test_an_agent_that_has_to_stay_is_not_sent_to_sleep_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 55000581: each look ran the hooks of every subscriber, and had the node read all of its topics."""
    async with deployment("node-1", settings=NEVER) as at:
        agent, node = await at.client.spawn(HookedSleeper, "h"), at.nodes["node-1"]
        await agent.listen()
        await until(lambda: node.activations.live["h"].is_idle)
        woken, wake = list[Pattern](), Pattern.wake

        def heard(self: Pattern) -> None:
            woken.append(self)
            wake(self)

        monkeypatch.setattr(Pattern, "wake", heard)
        activation = node.activations.live["h"]
        for _ in range(3):
            activation.rested = activation.fold.seq, activation.inbox.arrived_in_all, -math.inf
            await node.idling.round()
        assert woken == []
        assert await agent.seen() == (1, 0)
        assert node.activations.live["h"] is activation


async def test_operators_see_an_agent_that_has_left_memory_and_their_orders_wake_it() -> None:
    async with deployment("node-1", "node-2", settings=SOON) as at:
        agent, node = await at.client.on("node-1").spawn(Lodger, "a"), at.nodes["node-1"]
        operator = Operator(at.client)
        await agent.later(1000)
        await asleep(node, "a")
        (shown,) = await at.client.agents()
        assert (shown.id, shown.node, shown.state, shown.waiting, shown.is_idle) == ("a", "node-1", "Running", 0, True)
        assert [info.agents for info in await at.client.nodes() if info.name == "node-1"] == [1]
        assert "a" in node.activations.asleep  # looking at it has not woken it
        assert len(await operator.timers("a")) == 1
        await asleep(node, "a")
        report = await at.client.migrate("a", to="node-2")
        assert report.ok
        await asleep(at.nodes["node-2"], "a")
        assert await agent.add() == 1
        await asleep(at.nodes["node-2"], "a")
        assert (await at.client.rollback(report.migration)).target == "node-1"
        assert await agent.add() == 2  # the add since the move was taken again
        await asleep(node, "a")
        await at.client.suspend("a")
        assert node.activations.live["a"].fold.status.value == "Suspended"


async def test_another_node_that_claims_it_meanwhile_owns_it_and_it_wakes_nowhere_else() -> None:
    async with deployment("node-1", "node-2", settings=SOON) as at:
        agent = await at.client.on("node-1").spawn(Lodger, "a")
        assert await agent.add() == 1
        node, other = at.nodes["node-1"], at.nodes["node-2"]
        await asleep(node, "a")
        await at.client.claim("a", to="node-2", force=True)
        with pytest.raises(cells.errors.NoSuchAgent):
            await node.activations.awake("a")
        assert not node.activations.owns("a")
        assert await agent.add() == 2
        assert "a" in other.activations.live


async def test_a_restart_claims_an_agent_that_had_left_memory() -> None:
    async with deployment("node-1", settings=SOON) as at:
        agent = await at.client.spawn(Lodger, "a")
        assert await agent.add() == 1
        await asleep(at.nodes["node-1"], "a")
        before = await load(at.substrate.log, "a")
        at.kill("node-1")
        await at.start("node-1")
        assert await agent.add() == 2
        assert (await load(at.substrate.log, "a")).epoch == before.epoch + 1


async def test_a_stopped_node_leaves_no_tail_and_no_timer_of_those_asleep() -> None:
    async with deployment("node-1", settings=SOON) as at:
        agent, node = await at.client.spawn(Lodger, "a"), at.nodes["node-1"]
        await agent.later(1000)
        await asleep(node, "a")
        sleeper = node.activations.asleep["a"]
        await at.nodes.pop("node-1").stop()
        assert node.activations.asleep == {}
        assert sleeper._tail is None
        assert sleeper._alarm is None


async def test_who_waits_for_its_turn_is_not_left_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """An order that came as the agent was about to leave keeps it."""
    async with deployment("node-1", settings=NEVER) as at:
        await at.client.spawn(Lodger, "a")
        node = at.nodes["node-1"]
        activation = node.activations.live["a"]
        stopped = asyncio.Event()
        save = node.idling._save

        async def slowly(one: Activation) -> None:
            await save(one)
            stopped.set()
            await asyncio.sleep(0.05)

        monkeypatch.setattr(node.idling, "_save", slowly)
        leaving = asyncio.ensure_future(node.idling._put_to_sleep(activation))
        await stopped.wait()
        assert await node.orders.obey("a", "suspend", "") == "Suspended"
        await leaving
        assert node.activations.live["a"] is activation


def test_a_node_is_set_to_a_quarter_of_an_hour() -> None:
    assert Settings().idle_s == 900
