"""Calls under one key run once, whoever makes them, through restarts, moves and undos (rule T3)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.nodes import Deployment, deployment
from support.waiting import until

import mielin_cells as cells
from mielin_cells.agents.reference import make_ref
from mielin_cells.client.client import Client
from mielin_cells.errors import FieldRefused, KeyConflict
from mielin_cells.log.keys.kept import Keyed, Keys
from mielin_cells.log.ledger import Ledger
from mielin_cells.log.message import Message, Terms
from mielin_cells.settings import KEYS_MAX
from mielin_cells.store.reader import load

gates: dict[str, asyncio.Event] = {}
broken: set[str] = set()
tries: list[str] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    gates.clear()
    broken.clear()
    tries.clear()


def gate(name: str) -> asyncio.Event:
    return gates.setdefault(name, asyncio.Event())


class Safe(cells.Agent, name="KeyedSafe"):
    said: list[str] = []

    @cells.handler
    async def say(self, what: str) -> int:
        self.said.append(what)
        return len(self.said)

    @cells.handler
    async def shout(self, what: str) -> int:
        self.said.append(what.upper())
        return len(self.said)

    @cells.handler(raises=(ValueError,))
    async def refuse(self, what: str) -> int:
        tries.append(what)
        raise ValueError(what)

    @cells.handler
    async def flaky(self, what: str) -> int:
        tries.append(what)
        if what in broken:
            raise OSError(what)
        self.said.append(what)
        return len(self.said)

    @cells.handler
    async def hold(self, what: str) -> int:
        gate("in").set()
        await gate("out").wait()
        self.said.append(what)
        return len(self.said)

    @cells.handler
    async def count(self) -> AsyncIterator[int]:
        yield 1

    @cells.handler
    async def pass_on(self, other: Safe, what: str) -> int:
        await other.say.options(key="a").tell(what)
        return await other.say.options(key="a")(what)

    @cells.handler
    async def all(self) -> list[str]:
        return self.said


class Small(Safe, name="KeyedSmall", keys_bytes=200):
    pass


class Brief(Safe, name="KeyedBrief", keys_s=0):
    pass


@asynccontextmanager
async def another(d: Deployment) -> AsyncIterator[Client]:
    """Another client, as of another process, or of the same one started again."""
    client = Client(d.substrate.log, d.substrate.wire, settings=d.settings)
    await client.open()
    try:
        yield client
    finally:
        await client.close()


async def test_a_call_under_a_known_key_gets_the_answer_of_the_first_whoever_makes_it() -> None:
    async with deployment("node-1") as d:
        safe = await d.client.spawn(Safe, "s")
        assert await safe.say.options(key="a")("x") == 1
        assert await safe.say("y") == 2
        assert await safe.say.options(key="a")("x") == 1
        async with another(d) as other:
            assert await other.get(Safe, "s").say.options(key="a")("x") == 1
            assert await other.get(Safe, "s").say.options(key="b")("x") == 3
        assert await safe.all() == ["x", "y", "x"]


async def test_a_key_outlives_every_process(tmp_path: Path) -> None:
    path = tmp_path / "cells.db"
    for _ in range(2):
        async with cells.local(1, path) as c:
            safe = await c.spawn(Safe, "s")
            assert await safe.say.options(key="a")("x") == 1
            assert await safe.all() == ["x"]


async def test_another_call_under_the_key_is_refused_and_a_told_one_is_a_dead_letter() -> None:
    async with deployment("node-1") as d:
        safe = await d.client.spawn(Safe, "s")
        await safe.say.options(key="a")("x")
        with pytest.raises(KeyConflict, match="under the key 'a'") as raised:
            await safe.say.options(key="a")("y")
        assert raised.value.facts == {"agent": "s", "handler": "say", "key": "a"}
        with pytest.raises(KeyConflict):
            await safe.shout.options(key="a")("x")
        await safe.say.options(key="a").tell("y")
        assert await safe.all() == ["x"]
        dead = (await load(d.substrate.log, "s")).ledger.dead
        assert [letter.cause.partition(":")[0] for letter in dead] == ["KeyConflict"]


async def test_a_told_call_keeps_its_result_for_an_ask_under_the_same_key() -> None:
    async with deployment("node-1") as d:
        safe = await d.client.spawn(Safe, "s")
        await safe.say.options(key="a").tell("x")
        await safe.say.options(key="a").tell("x")
        assert await safe.say.options(key="a")("x") == 1
        assert await safe.all() == ["x"]


async def test_an_error_is_an_answer_that_is_kept_and_a_dead_letter_keeps_nothing() -> None:
    async with deployment("node-1", settings=cells.Settings(tries=1)) as d:
        safe = await d.client.spawn(Safe, "s")
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                await safe.refuse.options(key="a")("no")
        assert tries == ["no"]
        broken.add("b")
        await safe.flaky.options(key="b").tell("b")
        await until(lambda: tries == ["no", "b"])
        broken.clear()
        assert await safe.flaky.options(key="b")("b") == 1, "the first took no effect"
        assert await safe.flaky.options(key="b")("b") == 1


async def test_a_call_that_comes_while_the_first_runs_waits_for_its_answer() -> None:
    async with deployment("node-1") as d, another(d) as other:
        safe = await d.client.spawn(Safe, "s")
        first = asyncio.create_task(_hold(safe))
        await gate("in").wait()
        second = asyncio.create_task(_hold(other.get(Safe, "s")))
        while (await d.client.show(safe)).waiting < 1:
            await asyncio.sleep(0.005)
        gate("out").set()
        assert [await first, await second] == [1, 1]
        assert await safe.all() == ["x"]


async def _hold(safe: Safe) -> int:
    return await safe.hold.options(key="a")("x")


async def test_of_a_failed_tell_and_another_call_under_its_key_one_runs_to_its_end() -> None:
    async with deployment("node-1", settings=cells.Settings(retry_first_s=0.2)) as d, another(d) as other:
        safe = await d.client.spawn(Safe, "s")
        broken.add("x")
        await safe.flaky.options(key="a").tell("x")
        await until(lambda: tries == ["x"])
        broken.clear()
        assert await other.get(Safe, "s").flaky.options(key="a")("x") == 1
        assert await safe.say("after") == 2, "behind the tell, which did not run again"
        assert tries == ["x", "x"]
        assert await safe.all() == ["x", "after"]


async def test_keys_go_with_the_agent_and_with_what_an_agent_sends() -> None:
    async with deployment("node-1", "node-2") as d:
        safe, sender = await d.client.on("node-1").spawn(Safe, "s"), await d.client.spawn(Safe, "t")
        assert await sender.pass_on(safe, "x") == 1
        await d.client.migrate(safe, to="node-2")
        assert await safe.say.options(key="a")("x") == 1
        d.kill("node-2")
        await d.client.claim(safe, to="node-1")
        assert await safe.say.options(key="a")("x") == 1
        assert await safe.all() == ["x"]


async def test_after_an_undo_the_call_that_ran_runs_and_those_that_got_its_answer_do_not() -> None:
    async with deployment("node-1", "node-2") as d:
        safe = await d.client.on("node-1").spawn(Safe, "s")
        move = await d.client.migrate(safe, to="node-2")
        assert [await safe.say.options(key="a")("x") for _ in range(3)] == [1, 1, 1]
        with pytest.raises(KeyConflict):
            await safe.say.options(key="a")("y")

        report = await d.client.rollback(move.migration)

        assert (report.ok, report.replayed) == (True, 4)
        assert await safe.all() == ["x"]
        assert await safe.say.options(key="a")("x") == 1


async def test_a_class_says_how_much_is_kept_and_the_oldest_goes_first() -> None:
    async with deployment("node-1", "node-2") as d:
        small = await d.client.on("node-1").spawn(Small, "s")
        for n in range(5):
            assert await small.say.options(key=f"k{n}")("x") == n + 1
        fold = await load(d.substrate.log, "s")
        assert fold.ledger.keys is not None
        assert [*fold.ledger.keys.kept] == ["k3", "k4"]
        await d.client.migrate(small, to="node-2")
        assert await small.say.options(key="k4")("x") == 5
        assert await small.say.options(key="k0")("x") == 6, "it was dropped, and runs again"


async def test_a_class_that_keeps_keys_for_no_time_drops_them_with_the_next_commit() -> None:
    async with deployment("node-1") as d:
        brief = await d.client.spawn(Brief, "s")
        assert await brief.say.options(key="a")("x") == 1
        assert await brief.say("y") == 2
        assert await brief.say.options(key="a")("x") == 3


def test_what_is_kept_is_bounded_in_number_and_bytes_and_one_ledger_is_as_another_that_reads() -> None:
    keys = Keys({})
    for n in range(KEYS_MAX + 10):
        Keys.with_one(keys, Keyed(f"k{n}", b"", 0.0, b"x"))
    assert keys.drop_excess(0.0, 1.0, 1 << 30) == 10
    assert next(iter(keys.kept)) == "k10"
    assert keys.drop_excess(0.0, 1.0, 1000) == KEYS_MAX - len(keys.kept)
    assert keys.size_bytes == sum(one.size_bytes for one in keys.kept.values()) <= 1000
    assert keys.drop_excess(1e9, 1.0, 1000) > 0
    assert (keys.kept, keys.size_bytes) == ({}, 0)


def test_a_ledgers_digest_and_size_tell_its_keys() -> None:
    one, other = Ledger(), Ledger()
    assert one.digest() == other.digest()
    one.take("a", 1, 0, 0, b"x", (), Keyed("k", b"", 0.0, b"x"))
    other.take("a", 1, 0, 0, b"x")
    assert one.digest() != other.digest()
    assert one.size_bytes > other.size_bytes
    assert one.copy().digest() == one.digest()
    call = Message(1, "say", b"", terms=Terms(0.0, "k"))
    assert one.why_unrun("b", call, 0.0, False, False) == "conflict"
    assert one.why_unrun("b", call, 0.0, True, False) == "", "what has begun goes on"


@pytest.mark.parametrize("key", ["", "x" * 129, "a\nb", 1, b"a"])
def test_a_key_that_cannot_be_is_refused_before_anything_is_sent(key: Any) -> None:
    with pytest.raises(cells.UsageError, match="key that is not allowed"):
        make_ref(Safe, "s").say.options(key=key)


def test_a_stream_takes_no_key() -> None:
    with pytest.raises(cells.UsageError, match="takes no key"):
        make_ref(Safe, "s").count.options(key="a")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "options", [{"keys_s": -1}, {"keys_s": "1"}, {"keys_s": float("nan")}, {"keys_bytes": 0}, {"keys_bytes": 1.5}]
)
def test_a_class_cannot_keep_keys_in_ways_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(FieldRefused, match="keys_"):
        type("Odd", (cells.Agent,), {"__module__": __name__}, **options)
