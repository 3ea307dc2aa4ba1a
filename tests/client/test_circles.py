"""Agents whose turns ask each other at the same time wait until a deadline, and its error names the circle."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from msgspec.structs import replace

import mielin_cells as cells
from mielin_cells.errors import AskTimeout, HandlerFailed
from mielin_cells.log.commit import AskCall
from mielin_cells.node.activation import turn
from mielin_cells.node.activation.calls import circles
from mielin_cells.rpc import requests
from mielin_cells.rpc.answers import AskStatus

REPEAT_S = 0.05
TIMEOUT_S = 2.0

all_in: asyncio.Barrier


class Crossing(cells.Agent, name="CircleCrossing"):
    count: int = 0

    @cells.handler
    async def go(self, to: list[str]) -> int:
        """Asks them all, once all others are in the middle of their turns."""
        await all_in.wait()
        agents = [cells.this().cluster.get(Crossing, name) for name in to]
        return sum(await asyncio.gather(*(agent.add.options(timeout=TIMEOUT_S)() for agent in agents)))

    @cells.handler
    async def hold(self) -> None:
        await all_in.wait()
        await asyncio.sleep(2 * TIMEOUT_S)

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count


def settings() -> cells.Settings:
    return cells.Settings(ask_repeat_s=REPEAT_S)


@pytest.mark.parametrize("ring", [["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d", "e"]], ids=" ".join)
async def test_a_timeout_names_the_circle_of_turns_that_wait_for_each_other(ring: list[str]) -> None:
    global all_in  # noqa: PLW0603 - handlers have no other way to it
    all_in = asyncio.Barrier(len(ring))
    async with cells.local(nodes=2, settings=settings()) as cluster:
        agents = {name: await cluster.spawn(Crossing, name) for name in ring}
        calls = [agents[name].go([after]) for name, after in zip(ring, [*ring[1:], ring[0]], strict=True)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        first = next(str(error) for error in errors if isinstance(error, HandlerFailed))
        begin = next(k for k in range(len(ring)) if f"({' -> '.join([*ring[k:], *ring[: k + 1]])})" in first)
        assert f"Agent {ring[begin]!r} had no answer" in first
        assert "they wait for each other" in first
        for agent in agents.values():
            assert await agent.add() > 0, "all go on"


async def test_one_of_several_asks_is_on_the_circle() -> None:
    global all_in  # noqa: PLW0603
    all_in = asyncio.Barrier(2)
    async with cells.local(settings=settings()) as cluster:
        a, b, _ = [await cluster.spawn(Crossing, name) for name in ("a", "b", "idle")]
        errors = await asyncio.gather(a.go(["idle", "b"]), b.go(["a"]), return_exceptions=True)
    assert any("(a -> b -> a)" in str(error) or "(b -> a -> b)" in str(error) for error in errors), errors


async def test_an_agent_that_is_only_busy_is_on_no_circle() -> None:
    global all_in  # noqa: PLW0603
    all_in = asyncio.Barrier(2)
    async with cells.local(settings=settings()) as cluster:
        a, b = await cluster.spawn(Crossing, "a"), await cluster.spawn(Crossing, "b")
        held = asyncio.create_task(b.hold())
        with pytest.raises(HandlerFailed, match=r"it is in CircleCrossing\.hold") as raised:
            await a.go(["b"])
        assert AskTimeout.__name__ in str(raised.value)
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held


gate: asyncio.Event


class Asker(cells.Agent, name="CircleAsker"):
    @cells.handler
    async def ask(self, to: str, timeout: float) -> str:
        return await cells.this().cluster.get(Collector, to).collect.options(timeout=timeout)(["c0", "c1", "c2"])

    @cells.handler
    async def pass_by(self, to: str, timeout: float) -> None:
        await cells.this().cluster.get(Collector, to).wait.options(timeout=timeout)()


class Collector(cells.Agent, name="CircleCollector"):
    @cells.handler
    async def collect(self, names: list[str]) -> str:
        agents = [cells.this().cluster.get(Collector, name) for name in names]
        _ = await asyncio.gather(*(agent.wait.options(timeout=30.0)() for agent in agents))
        return "collected"

    @cells.handler
    async def wait(self) -> None:
        await gate.wait()


def never_answered(monkeypatch: pytest.MonkeyPatch, module: object) -> asyncio.Event:
    """Has each reminder sent by the module wait for ever; returns what is set once there is one."""
    is_sent = asyncio.Event()

    async def reminded(*_: object) -> AskStatus:
        is_sent.set()
        await asyncio.Event().wait()
        return AskStatus(None, "")

    monkeypatch.setattr(module, "remind", reminded)
    return is_sent


async def test_a_look_at_other_agents_does_not_make_an_answer_late(monkeypatch: pytest.MonkeyPatch) -> None:
    global gate  # noqa: PLW0603
    gate = asyncio.Event()
    async with cells.local(settings=settings()) as cluster:
        asker = await cluster.spawn(Asker, "a")
        for name in ("b", "c0", "c1", "c2"):
            await cluster.spawn(Collector, name)
        is_looking = never_answered(monkeypatch, circles)
        asked = asyncio.create_task(asker.ask("b", 4.0))
        await is_looking.wait()
        gate.set()
        assert await asked == "collected"


async def test_an_answer_that_comes_during_a_reminder_is_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    global gate  # noqa: PLW0603
    gate = asyncio.Event()
    async with cells.local(settings=settings()) as cluster:
        asker = await cluster.spawn(Asker, "a")
        await cluster.spawn(Collector, "b")
        is_reminded = never_answered(monkeypatch, turn)
        asked = asyncio.create_task(asker.pass_by("b", 1.0))
        await is_reminded.wait()
        gate.set()
        await asked


class Waiting:
    """A node whose agents wait for the others that are given; those without a list are on a node that does not answer."""

    log = wire = None
    reply_to = ""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **waits_for: list[str]) -> None:
        self.asked: list[str] = []
        self._waits_for = waits_for
        monkeypatch.setattr(circles, "remind", self._reminded)

    def start(self, work: Coroutine[Any, Any, Any], /) -> asyncio.Task[Any]:
        return asyncio.create_task(work)

    async def _reminded(self, log: object, wire: object, asked: requests.Remind, left_s: float) -> AskStatus:
        self.asked.append(asked.agent)
        if asked.agent not in self._waits_for:
            await asyncio.sleep(left_s / 2)
            return AskStatus(None, "its node does not answer")
        return AskStatus([], "", self._waits_for[asked.agent])

    async def look(self) -> circles.Circle:
        seconds = 0.4
        home: Any = self
        circle = circles.Circle(home, "a", "b", asyncio.get_running_loop().time() + seconds, seconds)
        await asyncio.sleep(seconds)
        circle.stop()
        return circle


async def test_agents_on_a_frozen_node_do_not_hide_the_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = [f"f{k}" for k in range(12)]
    home = Waiting(monkeypatch, b=[*frozen, "c"], c=["d"], d=["x", "a"])
    assert (await home.look()).way == ["a", "b", "c", "d", "a"]


async def test_of_many_agents_a_few_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    home = Waiting(monkeypatch, b=[f"f{k}" for k in range(100)])
    assert (await home.look()).way == []
    assert len(home.asked) == circles.LOOKED_AT


async def test_a_turn_that_waits_for_many_names_a_few_and_first_who_asks() -> None:
    calls = [AskCall(f"c{k}", 1, "add", b"", "", None) for k in range(20_000)]
    named = circles.awaited(calls, "c19999")
    assert named == ["c19999", *(f"c{k}" for k in range(circles.LOOKED_AT - 1))]
    assert "c3" not in circles.awaited([replace(calls[3], answer=b"answer"), *calls[4:]], "c3")
