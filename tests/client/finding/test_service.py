"""Calls to any one of the agents that a search finds: on the embedded store and on a server."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from support.nodes import Deployment, deployment
from support.virtual import virtually

import mielin_cells as cells
from mielin_cells.agents.services.circuit import FAILURES_MAX
from mielin_cells.errors import NoneAvailable
from mielin_cells.substrate.jetstream import JetStream
from mielin_cells.substrate.jetstream.server import Server
from mielin_cells.substrate.ports import Substrate

QUICK = cells.Settings(reconcile_s=0.5, probation_s=1.0, ask_timeout_s=30.0)
_numbers = itertools.count()

may_end = asyncio.Event()
"""Whether the workers end what they do."""


@pytest.fixture(autouse=True)
def _all_may_end() -> None:
    may_end.set()


class Worker(cells.Agent, name="ServiceWorker"):
    done: int = 0

    async def on_start(self) -> None:
        cells.attributes(kind="fast" if cells.this().id < "w2" else "slow")

    @cells.handler
    async def work(self, fails: bool = False) -> str:
        self.done += 1
        await may_end.wait()
        if fails:
            raise ValueError("no")
        return cells.this().id


@pytest.fixture(params=["embedded", "server"])
async def opened(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Deployment]:
    on = None
    if request.param == "server":
        on = await JetStream.open(server.url, deployment=f"service{next(_numbers)}", shards=2)
    async with four_workers(QUICK, on) as made:
        yield made


@asynccontextmanager
async def four_workers(settings: cells.Settings, on: Substrate | None) -> AsyncIterator[Deployment]:
    async with deployment("node-1", "node-2", settings=settings, on=on) as made:
        for n in range(4):
            await made.client.on(f"node-{n % 2 + 1}").spawn(Worker, f"w{n}")
        async with asyncio.timeout(30):
            while await made.client.find(Worker, where="exists(kind)").count() < 4:
                await asyncio.sleep(0.01)
        yield made


async def call(workers: Any, times: int, key: str = "") -> list[str]:
    return [await workers.call(lambda worker: worker.work(), key) for _ in range(times)]


async def test_calls_go_round(opened: Deployment) -> None:
    cluster = opened.client
    assert await call(cluster.service(Worker), 8) == ["w0", "w1", "w2", "w3"] * 2
    assert await call(cluster.service(Worker, where='kind == "slow"'), 4) == ["w2", "w3"] * 2
    assert (await cluster.service(Worker).pick()) == cluster.get(Worker, "w0")


async def test_a_key_goes_to_one_agent_as_long_as_it_is_there(opened: Deployment) -> None:
    cluster = opened.client
    workers = cluster.service(Worker, choose="by_key")
    by_key = {f"k{n}": (await call(workers, 1, f"k{n}"))[0] for n in range(40)}
    assert set(by_key.values()) == {"w0", "w1", "w2", "w3"}
    assert {key: (await call(cluster.service(Worker, choose="by_key"), 1, key))[0] for key in by_key} == by_key
    await cluster.terminate("w1")
    again = {key: (await call(workers, 1, key))[0] for key in by_key}
    assert all(again[key] == agent for key, agent in by_key.items() if agent != "w1")
    assert "w1" not in again.values()


async def test_the_nearest_are_those_of_the_node(opened: Deployment) -> None:
    near = opened.client.service(Worker, choose="nearest", near="node-2")
    assert await call(near, 4) == ["w1", "w3", "w1", "w3"]


async def test_the_one_with_the_fewest_messages_is_called(opened: Deployment) -> None:
    cluster = opened.client
    may_end.clear()
    for agent in ("w0", "w1", "w3"):
        for _ in range(3):
            await cluster.get(Worker, agent).work.tell()
    workers = cluster.service(Worker, choose="least_waiting")
    assert [await workers.pick() for _ in range(3)] == [cluster.get(Worker, "w2")] * 3
    may_end.set()
    assert len(await call(workers, 1)) == 1


@virtually
async def test_an_agent_that_does_not_answer_is_left_out_and_comes_back() -> None:
    async with four_workers(replace(QUICK, ask_timeout_s=0.3), None) as opened:
        cluster = opened.client
        workers = cluster.service(Worker, where='kind == "fast"')
        assert await call(workers, 2) == ["w0", "w1"]
        await cluster.suspend("w1")
        lost = 0
        async with asyncio.timeout(30):
            while workers.left_out != ["w1"]:
                try:
                    await call(workers, 1)
                except cells.AskTimeout:
                    lost += 1
        assert lost == FAILURES_MAX
        assert await call(workers, 5) == ["w0"] * 5
        await cluster.suspend("w0")
        with pytest.raises(NoneAvailable, match="can be called") as none:
            async with asyncio.timeout(30):
                while True:
                    try:
                        await call(workers, 1)
                    except cells.AskTimeout:
                        lost += 1
        assert none.value.failing == ["w0", "w1"]
        for agent in ("w0", "w1"):
            await cluster.resume(agent)
        async with asyncio.timeout(30):
            while workers.left_out:
                with suppress(NoneAvailable):
                    await call(workers, 1)
                await asyncio.sleep(0.05)
        assert Counter(await call(workers, 4)) == {"w0": 2, "w1": 2}


async def test_what_a_handler_raises_is_an_answer_and_what_has_ended_is_passed_over(opened: Deployment) -> None:
    cluster = opened.client
    workers = cluster.service(Worker)
    for _ in range(4 * FAILURES_MAX):
        with pytest.raises(cells.HandlerFailed):
            await workers.call(lambda worker: worker.work(True))
    assert workers.left_out == []
    await cluster.terminate("w1")
    assert sorted(await call(workers, 6)) == ["w0", "w0", "w2", "w2", "w3", "w3"]
    for n in (0, 2, 3):
        await cluster.terminate(f"w{n}")
    with pytest.raises((NoneAvailable, cells.AgentTerminated)):
        await call(workers, 1)
    with pytest.raises(NoneAvailable):
        await call(cluster.service(Worker, where="exists(kind)"), 1)


async def test_misuse_is_refused(opened: Deployment) -> None:
    cluster = opened.client
    with pytest.raises(cells.UsageError, match="no way to choose"):
        cluster.service(Worker, choose="any")  # type: ignore[arg-type]
    with pytest.raises(cells.UsageError, match="near="):
        cluster.service(Worker, near="node-1")
    with pytest.raises(cells.UsageError, match="give a key"):
        await cluster.service(Worker, choose="by_key").pick()
    with pytest.raises(cells.UsageError, match="only there"):
        await cluster.service(Worker).pick("k")
