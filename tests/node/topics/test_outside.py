"""Publishing and reading along from outside of agents."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.errors import BadArguments, InvalidAgentId, MessageTooLarge, TopicInvalid
from mielin_cells.log.message import client_sender
from mielin_cells.log.topics.names import subject_of
from mielin_cells.log.topics.posts import Post, Value, decode_post, encode_post
from mielin_cells.settings import MESSAGE_BYTES_MAX
from mielin_cells.store import topics
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Appended, Conflict, Outcome, Unknown
from mielin_cells.testing.forwarded import ForwardedLog


class Inside(cells.Agent, name="TopicInside"):
    @cells.handler
    async def send(self) -> None:
        await cells.this().cluster.publish("a", 1)


async def read(client: Any, pattern: str, count: int, since: Any = "first") -> list[tuple[str, str, int, Any]]:
    read = []
    async with asyncio.timeout(30):
        async for one in client.follow(pattern, since=since):
            assert not isinstance(one, cells.TopicGap)
            read.append((one[0].topic, one[0].publisher, one[0].n, one[1]))
            if len(read) == count:
                break
    return read


async def test_clients_publish_under_names_and_read_along() -> None:
    async with cells.local() as cluster:
        abouts = [await cluster.publish("orders.eu", {"n": n}, publisher="shop") for n in range(3)]
        assert [(about.topic, about.n) for about in abouts] == [("orders.eu", n + 1) for n in range(3)]
        await cluster.publish("orders.us", "x")
        got = await read(cluster, "orders.*", 4)
        assert got == [
            *(("orders.eu", "client shop", n + 1, {"n": n}) for n in range(3)),
            ("orders.us", "client client", 1, "x"),
        ]
        behind = abouts[-1].offset
        reading = asyncio.create_task(read(cluster, ">", 2, behind))
        await asyncio.sleep(0)
        await cluster.publish("later", 5, publisher="shop")
        assert await reading == [("orders.us", "client client", 1, "x"), ("later", "client shop", 1, 5)]


async def test_many_that_publish_under_one_name_lose_nothing() -> None:
    async with cells.local() as cluster:
        await asyncio.gather(*(cluster.publish("t", n, publisher="p") for n in range(40)))
        got = await read(cluster, "t", 40)
        assert [n for _, _, n, _ in got] == list(range(1, 41))
        assert sorted(value for *_, value in got) == list(range(40))


async def test_what_cannot_be_published_is_refused_by_name() -> None:
    async with cells.local() as cluster:
        for bad in ("", "a..b", "a.*", ">", "a b", "x" * 300, ".".join("a" * 20), 5):
            with pytest.raises(TopicInvalid):
                await cluster.publish(bad, 1)  # type: ignore[arg-type]
        for bad in ("", "a..b", "a.>.b", "a*", "a b"):
            with pytest.raises(TopicInvalid):
                await read(cluster, bad, 1)
        with pytest.raises(BadArguments):
            await cluster.publish("a", object())
        with pytest.raises(MessageTooLarge):
            await cluster.publish("a", b"x" * (MESSAGE_BYTES_MAX + 1))
        with pytest.raises(InvalidAgentId):
            await cluster.publish("a", 1, publisher="")
        inside = await cluster.spawn(Inside, "inside")
        with pytest.raises(cells.UsageError, match=r"cells\.publish"):
            await inside.send()


async def test_reading_begins_at_a_time() -> None:
    async with cells.local() as cluster:
        first = await cluster.publish("t", 1)
        between = datetime.fromtimestamp(first.at, UTC) + timedelta(microseconds=1)
        while True:
            second = await cluster.publish("t", 2)
            if second.at > first.at:
                break
        got = await read(cluster, "t", 1, between)
        assert got[0][2] > 1
        assert await read(cluster, "t", 1, timedelta(hours=1)) == [("t", "client client", 1, 1)]
        for bad in (datetime(2026, 1, 1), -1, "yesterday", timedelta(-1)):  # noqa: DTZ001
            with pytest.raises(cells.UsageError):
                await read(cluster, "t", 1, bad)


class Doubtful(ForwardedLog):
    """Each append lands, or not, and its answer is lost the first time."""

    lands = True
    other = b""

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        if self.lands:
            outcome = await self.log.append(subject, data, expect, owner)
            if isinstance(outcome, Conflict):
                return outcome
        if self.other:
            assert isinstance(await self.log.append(subject, self.other, expect, owner), Appended)
            self.other = b""
        self.lands = not self.lands
        return Unknown("the answer was lost")


@pytest.mark.parametrize("lands", [True, False])
async def test_a_message_whose_answer_was_lost_is_stored_once(lands: bool) -> None:
    substrate = await Embedded.open()
    log = Doubtful(substrate.log)
    log.lands = lands
    about = await topics.publish(log, client_sender("p"), "t", b"\x01", lambda: 1.0, b"n")
    assert about.n == 1
    assert len(await substrate.log.read(subject_of("t", client_sender("p")))) == 1
    await substrate.close()


async def test_another_process_that_takes_the_place_is_not_taken_for_this_one() -> None:
    """The append is in doubt, and the place is another's: the nonce tells them apart, and the message gets the next number."""
    substrate = await Embedded.open()
    sender = client_sender("p")
    other = encode_post(Post(sender, "t", 1, 0, 0.0, 1.0, b"other", [Value(b"\x02")]))
    log = Doubtful(substrate.log)
    log.lands, log.other = False, other
    about = await topics.publish(log, sender, "t", b"\x01", lambda: 1.0, b"mine")
    assert about.n == 2
    there = [
        decode_post(one.data, subject_of("t", sender)) for one in await substrate.log.read(subject_of("t", sender))
    ]
    assert [(post.n, post.values[0].data) for post in there] == [(1, b"\x02"), (2, b"\x01")]
    await substrate.close()


async def test_topics_are_listed() -> None:
    async with cells.local() as cluster:
        assert isinstance(cluster, Client)
        await cluster.publish("a.b", 1, publisher="p")
        await cluster.publish("a.b", 1, publisher="p")
        await cluster.publish("a.c", 1, publisher="q")
        infos = await topics.list_topics(cluster.log, "a.*")
        assert [one[:3] for one in infos] == [("a.b", "client p", 2), ("a.c", "client q", 1)]
        assert [one.topic for one in await topics.list_topics(cluster.log, "*.c")] == ["a.c"]
