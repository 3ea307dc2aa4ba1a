"""One agent that cannot run, for whatever reason, keeps no node from starting and no other agent from running."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

import mielin_cells as cells
from mielin_cells.core.agent import classes
from mielin_cells.core.calls import current
from mielin_cells.core.ids import log_subject
from mielin_cells.node import adoption, claims, drain
from mielin_cells.node.client import Client
from mielin_cells.node.node import Node
from mielin_cells.substrate.embedded import Embedded

QUICK = cells.Settings(reconcile_s=0.2, ask_repeat_s=0.1, pause_s=0.3, turn_deadline_s=20.0)


class Sound(cells.Agent):
    count: int = 0

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count


def bad_class(what: str) -> type[cells.Agent] | None:
    """The class that a node has after its restart, for the agents that were made of another of that name."""
    if what == "its class is gone":
        return None

    class Bad(cells.Agent, version=2):
        count: int = 0

        @cells.upgrade(from_version=1)
        def _v1(cls, old: dict[str, Any]) -> dict[str, Any]:
            if what == "its upgrade raises":
                raise ValueError("no such field")
            if what == "its upgrade ends the process":
                sys.exit("not in my process")
            return old

        async def on_arrive(self) -> None:
            if what == "its hook raises":
                raise ValueError("no way in")
            if what == "its hook ends the process":
                sys.exit("not in my process")
            if what == "its hook is cancelled":
                raise asyncio.CancelledError
            if what == "its hook hangs":
                await asyncio.Event().wait()

        async def on_depart(self) -> None:
            if what == "its farewell ends the process":
                sys.exit("not in my process")

        @cells.handler
        async def add(self) -> int:
            self.count += 1
            return self.count

    return Bad


def good_class() -> type[cells.Agent]:
    class Bad(cells.Agent):
        count: int = 0

        @cells.handler
        async def add(self) -> int:
            self.count += 1
            return self.count

    return Bad


TROUBLES = (
    "its class is gone", "its upgrade raises", "its upgrade ends the process", "its hook raises", "its hook ends the process",
    "its hook is cancelled", "its hook hangs", "its farewell ends the process", "its log is rubbish", "taking it raises",
)  # fmt: skip


class Deployment:
    def __init__(self, substrate: Embedded, client: Client) -> None:
        self.substrate = substrate
        self.client = client

    async def start(self, name: str, bad: type[cells.Agent] | None) -> Node:
        known = {**classes, "Bad": bad}
        node = Node(
            name, self.substrate.log, self.substrate.wire, known.get, settings=QUICK, rng=Random(name), wall=time.time,
            recovery=cells.RecoveryConfig(max_retries=0),
        )  # fmt: skip
        node.home.cluster = self.client
        await node.start()
        return node


@asynccontextmanager
async def deployment() -> AsyncIterator[Deployment]:
    substrate = await Embedded.open()
    client = Client(substrate.log, substrate.wire, settings=QUICK, rng=Random(0), wall=time.time)
    await client.open()
    token = current.set(client)
    try:
        yield Deployment(substrate, client)
    finally:
        current.reset(token)
        await client.close()
        await substrate.close()


@pytest.mark.parametrize("what", TROUBLES)
async def test_a_node_starts_serves_drains_and_stops_with_an_agent_that_cannot_run(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption, "SLOW_S", 0.05)
    async with deployment() as at, asyncio.timeout(15):
        good = good_class()
        before = await at.start("node-1", good)
        sound = [await at.client.on("node-1").spawn(Sound, f"s{n}") for n in range(3)]
        bad = [await at.client.on("node-1").spawn(good, f"{n}-bad") for n in range(2)]
        for agent in (*sound, *bad):
            assert await agent.add() == 1  # type: ignore[attr-defined]
        before._close_all()
        before.kill()
        if what == "its log is rubbish":
            last = await at.substrate.log.last(log_subject("0-bad"))
            assert last is not None
            await at.substrate.log.append(log_subject("0-bad"), b"rubbish", last.seq)
        if what == "taking it raises":
            take = claims.take

            async def raises(node: Node, fold: Any, cause: str) -> Any:
                if fold.cls == "Bad":
                    raise KeyError("a bug")
                return await take(node, fold, cause)

            monkeypatch.setattr(claims, "take", raises)

        node = await at.start("node-1", bad_class(what))
        assert [await agent.add() for agent in sound] == [2] * 3
        await node.reconcile()
        assert {f"s{n}" for n in range(3)} <= node.hosts.keys()

        other = await at.start("node-2", bad_class(what))
        emptying = drain.Drain(node, 1.0, is_patient=False)
        await emptying.run()
        assert {f"s{n}" for n in range(3)} <= other.hosts.keys()
        assert [await agent.add() for agent in sound] == [3] * 3
        for one in (node, other):
            await one.stop(0.3)


async def test_what_failed_in_a_way_nobody_foresaw_is_not_tried_again_in_every_round(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with deployment() as at, asyncio.timeout(15):
        good, tries = good_class(), 0
        before = await at.start("node-1", good)
        await at.client.on("node-1").spawn(good, "bad")
        before._close_all()
        before.kill()

        async def raises(node: Node, fold: Any, cause: str) -> Any:
            nonlocal tries
            tries += 1
            raise KeyError("a bug")

        with monkeypatch.context() as patched:
            patched.setattr(claims, "take", raises)
            node = await at.start("node-1", good)
            for _ in range(10):
                await node.reconcile(every=True)
            assert tries == 1
            assert "KeyError" in node.troubled["bad"].error
            assert len([record for record in caplog.records if record.exc_info]) == 1
        await at.client.resume("bad")
        assert await at.client.get(good, "bad").add() == 1  # type: ignore[attr-defined]
        await node.stop()
