"""Topics when things go wrong: failing handlers, suspended agents, removed messages, undo, and calls that cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import pytest

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.errors import MessageTooLarge, NotInTurn, TopicInvalid
from mielin_cells.log.message import client_sender
from mielin_cells.log.topics.names import subject_of
from mielin_cells.node.topics.publishing import TRIM_EVERY
from mielin_cells.settings import MESSAGE_BYTES_MAX
from mielin_cells.store.letters import read_letters


class Source(cells.Agent, name="StorySource"):
    count: int = 0

    @cells.handler
    async def say(self, topic: str, fails: bool = False, size: int = 0) -> int:
        self.count += 1
        cells.publish(topic, b"x" * size if size else self.count)
        if fails:
            raise ValueError("no")
        return self.count

    @cells.handler
    async def say_many(self, topic: str, count: int) -> None:
        for _ in range(count):
            self.count += 1
            cells.publish(topic, self.count)


class Sink(cells.Agent, name="StorySink"):
    got: list[int] = []
    gaps: list[cells.TopicGap] = []

    @cells.handler
    async def follow(self, pattern: str, first: bool = False, fails: bool = False) -> None:
        await cells.subscribe(pattern, self.on_value, since="first" if first else "now", on_gap=self.on_gap)
        if fails:
            raise ValueError("no")

    @cells.handler
    async def follow_blindly(self, pattern: str) -> None:
        await cells.subscribe(pattern, self.on_value)

    @cells.handler
    async def leave(self, pattern: str) -> bool:
        return cells.unsubscribe(pattern, self.on_value)

    @cells.handler
    async def fail_at(self, pattern: str) -> None:
        await cells.subscribe(pattern, self.on_bad)

    @cells.handler(tries=2)
    async def on_bad(self, value: int) -> None:
        raise ValueError(f"never {value}")

    @cells.handler
    async def on_value(self, value: int) -> None:
        self.got.append(value)

    @cells.handler
    async def on_gap(self, gap: cells.TopicGap) -> None:
        self.gaps.append(gap)

    @cells.handler
    async def odd(self, what: str) -> None:
        match what:
            case "no parameter":
                await cells.subscribe("a", self.leave_all)
            case "two parameters":
                await cells.subscribe("a", self.two)
            case "another's":
                await cells.subscribe("a", cells.this().cluster.get(Sink, "other").on_value)
            case "no handler":
                await cells.subscribe("a", print)  # type: ignore[arg-type]
            case "a naive time":
                await cells.subscribe("a", self.on_value, since=datetime(2026, 1, 1))  # noqa: DTZ001
            case "a wildcard":
                cells.publish("a.*", 1)
            case _:
                await cells.subscribe(what, self.on_value)

    @cells.handler
    async def leave_all(self) -> None: ...

    @cells.handler
    async def two(self, a: int, b: int) -> None: ...

    @cells.handler
    async def show(self) -> list[int]:
        return self.got

    @cells.handler
    async def told(self) -> list[cells.TopicGap]:
        return self.gaps


async def until(what: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    async with asyncio.timeout(60):
        while await what() != wanted:
            await asyncio.sleep(0.01)


async def causes(cluster: Any, agent: str) -> list[str]:
    return [letter.cause for letter in (await read_letters(cluster.log, agent))[1]]


async def test_a_subscriber_that_always_raises_has_dead_letters_and_disturbs_nobody() -> None:
    async with cells.local(nodes=2) as cluster:
        source = await cluster.spawn(Source, "source")
        bad, good = await cluster.spawn(Sink, "bad"), await cluster.spawn(Sink, "good")
        await bad.fail_at("t")
        await bad.follow("u")
        await good.follow(">")
        for _ in range(5):
            await source.say("t")
        await source.say("u")
        await until(good.show, [1, 2, 3, 4, 5, 6])
        await until(bad.show, [6])

        async def letters() -> int:
            return len(await causes(cluster, "bad"))

        await until(letters, 5)
        assert all("ValueError: never" in cause for cause in await causes(cluster, "bad"))


async def test_a_message_of_another_type_is_a_dead_letter() -> None:
    async with cells.local() as cluster:
        sink = await cluster.spawn(Sink, "sink")
        await sink.follow("t")
        await cluster.publish("t", "no number")
        await cluster.publish("t", 2)
        await until(sink.show, [2])
        assert "BadArguments" in (await causes(cluster, "sink"))[0]


async def test_a_suspended_subscriber_goes_on_where_it_was() -> None:
    async with cells.local() as cluster:
        source, sink = await cluster.spawn(Source, "source"), await cluster.spawn(Sink, "sink")
        await sink.follow("t")
        await source.say("t")
        await until(sink.show, [1])
        await cluster.suspend(sink)
        for _ in range(3):
            await source.say("t")
        assert (await cluster.show(sink)).waiting == 0, "it takes nothing ahead"
        await cluster.resume(sink)
        await until(sink.show, [1, 2, 3, 4])


@pytest.mark.parametrize("blindly", [False, True])
async def test_what_was_removed_before_it_was_read_is_told(blindly: bool) -> None:
    async with cells.local() as cluster:
        assert isinstance(cluster, Client)
        source, sink = await cluster.spawn(Source, "source"), await cluster.spawn(Sink, "sink")
        await (sink.follow_blindly if blindly else sink.follow)("t")
        await source.say("t")
        await until(sink.show, [1])
        await cluster.suspend(sink)
        for _ in range(4):
            await source.say("t")
        subject = subject_of("t", "source")
        async with asyncio.timeout(30):
            while len(entries := await cluster.log.read(subject)) < 5:
                await asyncio.sleep(0.01)
        await cluster.log.trim(subject, entries[-1].seq)
        await cluster.resume(sink)
        await until(sink.show, [1, 5])
        if blindly:
            assert (await causes(cluster, "sink")) == [
                "TopicGap: messages 2 to 4 of source to topic t were removed before they were read."
            ]
        else:
            await until(sink.told, [cells.TopicGap("t", "t", "source", 2, 4)])


async def test_a_publisher_removes_its_old_messages_and_never_the_last_one() -> None:
    async with cells.local(settings=cells.Settings(topic_keep=10)) as cluster:
        assert isinstance(cluster, Client)
        source, sink = await cluster.spawn(Source, "source"), await cluster.spawn(Sink, "sink")
        for _ in range(TRIM_EVERY + 5):
            await source.say("t")
        subject = subject_of("t", "source")
        async with asyncio.timeout(30):
            while len(entries := await cluster.log.read(subject)) > 40:
                await asyncio.sleep(0.01)
        assert entries
        await sink.follow("t", first=True)
        await source.say("t")
        async with asyncio.timeout(30):
            while not (got := await sink.show()) or got[-1] < TRIM_EVERY + 6:
                await asyncio.sleep(0.01)
        assert got == list(range(got[0], TRIM_EVERY + 7))
        await until(sink.told, [cells.TopicGap("t", "t", "source", 1, got[0] - 1)])


async def test_a_turn_that_fails_publishes_and_subscribes_nothing() -> None:
    async with cells.local() as cluster:
        source, sink = await cluster.spawn(Source, "source"), await cluster.spawn(Sink, "sink")
        await sink.follow("t")
        with pytest.raises(cells.HandlerFailed):
            await source.say("t", True)
        with pytest.raises(cells.HandlerFailed):
            await sink.follow("u", fails=True)
        with pytest.raises(MessageTooLarge):
            await source.say("t", size=MESSAGE_BYTES_MAX + 1)
        await source.say("u")
        await source.say("t")
        await until(sink.show, [2])
        assert await sink.leave("u") is False
        assert await sink.leave("t") is True
        assert await sink.leave("t") is False
        await source.say("t")
        await sink.follow("t")
        await source.say("t")
        await until(sink.show, [2, 4])


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("no parameter", cells.UsageError), ("two parameters", cells.UsageError), ("another's", cells.UsageError),
        ("no handler", cells.UsageError), ("a naive time", cells.UsageError), ("a wildcard", TopicInvalid), ("a..b", TopicInvalid),
    ],
)  # fmt: skip
async def test_what_cannot_be_subscribed_is_refused_by_name(what: str, error: type[Exception]) -> None:
    async with cells.local() as cluster:
        sink = await cluster.spawn(Sink, "sink")
        with pytest.raises(error):
            await sink.odd(what)
        assert await sink.show() == []


async def test_outside_a_turn_there_is_nothing_to_subscribe() -> None:
    with pytest.raises(NotInTurn):
        cells.publish("a", 1)
    with pytest.raises(NotInTurn):
        await cells.subscribe("a", print)  # type: ignore[arg-type]


async def test_an_undo_gives_the_handler_what_it_had_and_publishes_nothing_twice() -> None:
    async with cells.local(nodes=2) as cluster:
        source, sink = await cluster.spawn(Source, "source"), await cluster.spawn(Sink, "sink")
        await sink.follow("t")
        await source.say("t")
        await until(sink.show, [1])
        moves = [await cluster.migrate("source"), await cluster.migrate("sink")]
        for _ in range(3):
            await source.say("t")
        await until(sink.show, [1, 2, 3, 4])
        for move in moves:
            await cluster.rollback(move.migration)
        await until(sink.show, [1, 2, 3, 4])
        await source.say("t")
        await until(sink.show, [1, 2, 3, 4, 5])
        subject = subject_of("t", "source")
        assert isinstance(cluster, Client)
        assert len(await cluster.log.read(subject)) == 5


@pytest.mark.parametrize("again", ["t", "*"])
@pytest.mark.parametrize("first", [True, False])
async def test_a_subscription_that_was_made_behind_the_end_of_another_goes_on_where_it_was_after_an_undo(
    again: str, first: bool
) -> None:
    """The end, taken again after the undo, took the positions of all subscriptions of the handler with it."""
    async with cells.local(nodes=2) as cluster:
        source, sink = await cluster.spawn(Source, "source"), await cluster.spawn(Sink, "sink")
        await source.say("t")
        move = await cluster.migrate("sink")
        had = [1] if first else []
        await sink.follow("t", first)
        await until(sink.show, had)
        assert await sink.leave("t")
        await sink.follow(again, first)
        had *= 2
        await until(sink.show, had)
        await source.say("t")
        await until(sink.show, [*had, 2])
        await cluster.suspend("sink")
        await source.say("t")
        await cluster.rollback(move.migration)
        await cluster.resume("sink")
        await until(sink.show, [*had, 2, 3])
        await source.say("t")
        await until(sink.show, [*had, 2, 3, 4])


async def test_an_agent_that_ends_has_published_all_that_it_committed() -> None:
    async with cells.local() as cluster:
        source, sink = await cluster.spawn(Source, "source"), await cluster.spawn(Sink, "sink")
        await sink.follow("t")
        await source.say_many("t", 2000)
        await cluster.terminate("source")
        await until(sink.show, list(range(1, 2001)))
        await cluster.publish("t", 7)
        assert subject_of("t", client_sender("client")) != subject_of("t", "client")
