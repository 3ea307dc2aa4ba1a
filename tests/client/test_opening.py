"""Clusters that are opened and left: in another task, in another loop, from threads; and calls after the end."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
from typing import Any

import pytest

import mielin_cells as cells


class Abacus(cells.Agent):
    count: int = 0

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.count += n
        return self.count

    @cells.handler
    async def hang(self) -> None:
        await asyncio.sleep(60)

    @cells.handler
    async def from_thread(self, other: Abacus, how: str) -> int:
        loop = asyncio.get_running_loop()

        def run() -> int:
            if how == "its own loop":
                return asyncio.run(_of(other.add()))
            if how == "this loop":
                return asyncio.run_coroutine_threadsafe(_of(other.add()), loop).result(10)
            cells.this().migrate()
            return 0

        return await asyncio.to_thread(run)


async def _left(opening: Any) -> None:
    await opening.__aexit__(None, None, None)


async def _of(call: Any) -> int:
    return int(await call)


async def test_after_the_block_every_call_says_at_once_that_the_cluster_is_closed() -> None:
    async with cells.local() as cluster:
        tally = await cluster.spawn(Abacus, "t")
        await tally.add()
        waiting = asyncio.create_task(_of(tally.hang()))
        await asyncio.sleep(0.01)
    calls: list[Any] = [
        tally.add, tally.add.tell, cluster.get(Abacus, "t").add, cluster.agents, cluster.nodes,
        lambda: cluster.spawn(Abacus, "u"), lambda: cluster.show("t"), lambda: cluster.migrate("t"),
        lambda: cluster.terminate("t"), lambda: cluster.suspend(tally), lambda: cluster.claim("t", "node-1"),
        lambda: cluster.drain("node-1"), lambda: cluster.cordon("node-1"), lambda: cluster.rollback("m-1"),
        lambda: cluster.abort("t"), lambda: cluster.standby("t"),
    ]  # fmt: skip
    async with asyncio.timeout(30):
        with pytest.raises(cells.errors.NotConnected, match="may still take effect"):
            await waiting
        for call in calls:
            with pytest.raises(cells.errors.NotConnected, match="its `async with` block has ended"):
                await call()


async def test_a_block_may_be_entered_in_one_task_and_left_in_another_as_a_notebook_does() -> None:
    opening = cells.local()
    cluster = await asyncio.create_task(opening.__aenter__())
    tally = await asyncio.create_task(cluster.spawn(Abacus, "t"))
    assert await asyncio.create_task(_of(tally.add())) == 1
    await asyncio.create_task(_left(opening))
    with pytest.raises(cells.errors.NotConnected):
        await tally.add()
    await opening.__aexit__(None, None, None)  # once more does nothing

    async def two_cells() -> None:
        other = cells.local()
        await other.__aenter__()
        context = contextvars.copy_context()
        await asyncio.create_task(_left(other), context=context)

    await two_cells()


def test_the_package_is_imported_without_what_is_needed_only_once_a_cluster_is_open() -> None:
    heavy = {"asyncio", "logging", "nats", "pydantic", "psutil", "sqlite3", "ssl", "mielin_cells.node.node"}
    code = "import sys, mielin_cells; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy & set(done.stdout.split()) == set()


async def test_a_cluster_stays_open_though_nobody_keeps_what_opened_it() -> None:
    cluster = await cells.local().__aenter__()
    gc.collect()
    abacus = await cluster.spawn(Abacus, "t")
    await asyncio.sleep(0.01)
    gc.collect()
    await asyncio.sleep(0.01)
    assert await abacus.add() == 1
    opening: Any = cluster
    await opening.opening.__aexit__(None, None, None)
    with pytest.raises(cells.errors.NotConnected):
        await abacus.add()


async def test_a_cluster_that_is_not_open_says_how_to_open_it() -> None:
    opening: Any = cells.local()
    for name in ("spawn", "get", "on", "nodes"):
        with pytest.raises(AttributeError, match=r"write `async with cells\.local\(\) as cluster`"):
            getattr(opening, name)
    async with opening:
        with pytest.raises(cells.UsageError, match="is open already"):
            await opening.__aenter__()


def test_a_cluster_is_not_used_or_left_in_another_event_loop() -> None:
    kept: dict[str, Any] = {}

    async def enter() -> None:
        kept["opening"] = cells.local()
        kept["cluster"] = await kept["opening"].__aenter__()
        kept["tally"] = await kept["cluster"].spawn(Abacus, "t")

    async def use() -> None:
        for call in (kept["tally"].add, kept["cluster"].nodes, lambda: kept["cluster"].spawn(Abacus, "u")):
            with pytest.raises(cells.UsageError, match="another event loop"):
                await call()
        with pytest.raises(cells.UsageError, match="leave the block in the loop that it was entered in"):
            await kept["opening"].__aexit__(None, None, None)

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(enter())
        asyncio.run(use())
        assert loop.run_until_complete(_of(kept["tally"].add())) == 1
        loop.run_until_complete(kept["opening"].__aexit__(None, None, None))
    finally:
        loop.close()


async def test_threads_ask_through_the_loop_of_the_cluster_and_not_through_one_of_their_own() -> None:
    loop = asyncio.get_running_loop()
    async with cells.local() as cluster:
        tally = await cluster.spawn(Abacus, "t")

        def asked() -> int:  # the first call to the agent: a session begins in the thread
            return asyncio.run_coroutine_threadsafe(_of(tally.add()), loop).result(10)

        assert await asyncio.to_thread(asked) == 1
        with pytest.raises(cells.UsageError, match="nothing was sent. From a thread: asyncio.run_coroutine_threadsafe"):
            await asyncio.to_thread(lambda: asyncio.run(_of(tally.add())))
        with pytest.raises(cells.UsageError, match="nothing was sent"):
            await asyncio.to_thread(lambda: asyncio.run(tally.add.tell()))
        assert await tally.add() == 2


async def test_a_turn_asks_from_a_thread_through_its_loop_and_an_own_loop_breaks_nothing() -> None:
    async with cells.local(settings=cells.Settings(tries=1, turn_deadline_s=5)) as cluster:
        one, two = await cluster.spawn(Abacus, "one"), await cluster.spawn(Abacus, "two")
        assert await one.from_thread(two, "this loop") == 1
        with pytest.raises(cells.UsageError, match="from another thread.*run_coroutine_threadsafe"):
            await one.from_thread(two, "its own loop")
        with pytest.raises(cells.UsageError, match="from another thread"):
            await one.from_thread(two, "an order")
        assert await one.from_thread(two, "this loop") == 2
        assert await two.add() == 3
        assert await one.add() == 1
