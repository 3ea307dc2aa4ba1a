"""Agents subscribe to a stream that another system writes to the same NATS server, and every message comes to them once."""

from __future__ import annotations

import asyncio
import json
import logging
import operator
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import msgspec
import pytest
from nats.aio.client import Client as Nats
from nats.js.api import StreamConfig
from support.nats_servers import opened, raw_client
from support.nodes import Deployment, deployment

import mielin_cells as cells
from mielin_cells.agents.reference import agent_id
from mielin_cells.client.client import Client
from mielin_cells.errors import NoSuchStream, TopicInvalid, UsageError
from mielin_cells.log.commit import DeadLetter
from mielin_cells.log.topics.outside import Page
from mielin_cells.node.topics.patterns import Pattern
from mielin_cells.settings import MESSAGE_BYTES_MAX
from mielin_cells.store.outside import read_page
from mielin_cells.store.reader import load
from mielin_cells.substrate.jetstream.server import Server
from mielin_cells.substrate.ports import Outside

_numbers = count()


class ForeignClerk(cells.Agent, name="ForeignClerk"):
    """Writes down what comes."""

    seen: list[tuple[int, int]] = []
    gaps: list[cells.TopicGap] = []
    ids: list[str] = []
    bodies: list[bytes] = []

    @cells.handler
    async def follow(self, stream: str, pattern: str, since: int | str | float = "now") -> None:
        begin: Any = timedelta(seconds=since) if isinstance(since, float) else since
        await cells.subscribe(pattern, self.on_order, since=begin, on_gap=self.on_gap, stream=stream)

    @cells.handler
    async def follow_all(self, stream: str, pattern: str, raw: bool = False) -> None:
        await cells.subscribe(pattern, self.on_body if raw else self.on_order, since="first", stream=stream)

    @cells.handler
    async def leave(self, stream: str, pattern: str) -> bool:
        return cells.unsubscribe(pattern, self.on_order, stream=stream)

    @cells.handler
    async def on_order(self, order: int, about: cells.Published) -> None:
        assert about.publisher.startswith("stream ")
        assert about.n == about.offset
        self.seen.append((about.n, order))
        self.ids.append(about.id)

    @cells.handler
    async def on_body(self, body: bytes) -> None:
        self.bodies.append(body)

    @cells.handler
    async def on_gap(self, gap: cells.TopicGap) -> None:
        self.gaps.append(gap)

    @cells.handler
    async def show(self) -> list[tuple[int, int]]:
        return self.seen

    @cells.handler
    async def lost(self) -> list[cells.TopicGap]:
        return self.gaps

    @cells.handler
    async def raw(self) -> tuple[list[bytes], list[str]]:
        return self.bodies, self.ids


class Scene(NamedTuple):
    there: Deployment
    client: Client
    nats: Nats
    stream: str

    async def put(self, *values: Any, subject: str = "new", id: str = "") -> None:
        headers = {"Nats-Msg-Id": id} if id else None
        for value in values:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            await self.nats.jetstream().publish(f"{self.stream}.{subject}", body, headers=headers)

    async def make(self, **config: Any) -> None:
        made = StreamConfig(name=self.stream, subjects=[f"{self.stream}.>"], **config)
        await self.nats.jetstream().add_stream(made)

    @property
    def all(self) -> str:
        return f"{self.stream}.>"


@pytest.fixture
async def scene(server: Server) -> AsyncIterator[Scene]:
    name = f"orders{next(_numbers)}"
    async with (
        raw_client(server.url) as nats,
        opened(server.url, deployment=name) as substrate,
        deployment("n1", "n2", on=substrate) as there,
    ):
        made = Scene(there, there.client, nats, f"ORDERS{name}")
        await made.make(allow_direct=True)
        yield made


async def letters_of(scene: Scene, agent: cells.Agent) -> list[DeadLetter]:
    return (await load(scene.there.substrate.log, agent_id(agent))).ledger.dead


async def until(look: Callable[[], Awaitable[Any]], holds: Callable[[Any], bool]) -> Any:
    async with asyncio.timeout(60):
        while not holds(found := await look()):
            await asyncio.sleep(0.01)
    return found


async def test_each_message_comes_once_in_order_while_the_agent_moves_and_its_node_dies(scene: Scene) -> None:
    clerk = await scene.client.on("n1").spawn(ForeignClerk, "clerk")
    await scene.put(-1)
    await clerk.follow(scene.stream, scene.all)
    await clerk.follow(scene.stream, f"{scene.stream}.new")
    await scene.put(*range(20))
    await until(clerk.show, lambda seen: len(seen) >= 10)
    await scene.client.migrate(clerk, to="n2")
    await scene.put(*range(20, 40))
    await until(clerk.show, lambda seen: len(seen) >= 30)
    scene.there.kill("n2")
    await scene.put(*range(40, 60))
    await scene.there.start("n2")
    seen = await until(clerk.show, lambda seen: len(seen) >= 60)
    assert seen == [(n + 2, n) for n in range(60)]
    assert await clerk.leave(scene.stream, scene.all)
    assert await clerk.leave(scene.stream, f"{scene.stream}.new")
    assert not await clerk.leave(scene.stream, scene.all)
    state = (await scene.nats.jetstream().stream_info(scene.stream)).state
    assert (state.messages, state.consumer_count) == (61, 0), "nothing was written to it, and no consumer was made"


@pytest.mark.parametrize("direct", [True, False])
async def test_a_subscription_begins_where_it_is_told(scene: Scene, direct: bool) -> None:
    if not direct:
        await scene.nats.jetstream().delete_stream(scene.stream)
        await scene.make()
    await scene.put(*range(5))
    await scene.nats.jetstream().purge_stream(scene.stream, seq=2)
    begins: dict[int | str | float, list[int]] = {"first": [1, 2, 3, 4], 3: [3, 4], "now": [], 3600.0: [1, 2, 3, 4]}
    clerks = {since: await scene.client.spawn(ForeignClerk, f"c{since}") for since in begins}
    for since, clerk in clerks.items():
        await clerk.follow(scene.stream, scene.all, since)
    await scene.put(5)
    for since, clerk in clerks.items():
        seen = await until(clerk.show, lambda seen: bool(seen) and seen[-1] == (6, 5))
        assert [order for _, order in seen] == [*begins[since], 5]
        assert await clerk.lost() == []


async def test_what_was_trimmed_before_it_was_read_is_told_with_its_positions(scene: Scene) -> None:
    clerk = await scene.client.on("n1").spawn(ForeignClerk, "clerk")
    silent = await scene.client.on("n1").spawn(ForeignClerk, "silent")
    await clerk.follow(scene.stream, scene.all)
    await silent.follow_all(scene.stream, scene.all)
    await scene.put(1)
    for one in (clerk, silent):
        await until(one.show, lambda seen: len(seen) == 1)
        await scene.client.suspend(one)
    await scene.put(2, 3, 4, 5)
    await scene.nats.jetstream().purge_stream(scene.stream, seq=4)
    for one in (clerk, silent):
        await scene.client.resume(one)
        assert await until(one.show, lambda seen: len(seen) == 3) == [(1, 1), (4, 4), (5, 5)]
    (gap,) = await until(clerk.lost, bool)
    assert (gap.first, gap.last, gap.publisher) == (2, 3, f"stream {scene.stream}")
    (letter,) = await letters_of(scene, silent)
    assert "positions 2 to 3" in letter.cause
    assert scene.stream in letter.cause


async def test_a_stream_that_is_deleted_is_named_and_read_from_its_beginning_once_it_is_back(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    clerk = await scene.client.on("n1").spawn(ForeignClerk, "clerk")
    await clerk.follow(scene.stream, scene.all)
    await scene.put(1, 2, 3)
    await until(clerk.show, lambda seen: len(seen) == 3)
    with caplog.at_level(logging.WARNING):
        await scene.nats.jetstream().delete_stream(scene.stream)
        other = await scene.client.spawn(ForeignClerk, "other")
        with pytest.raises(NoSuchStream, match=scene.stream):
            await other.follow(scene.stream, scene.all)
        async with asyncio.timeout(60):
            while not (said := [line for line in caplog.messages if f"no stream {scene.stream}" in line]):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        await scene.make()
        await scene.put(*range(10, 15))
        seen = await until(clerk.show, lambda seen: len(seen) == 8)
    assert seen == [(1, 1), (2, 2), (3, 3), *((n + 1, n + 10) for n in range(5))]
    (gap,) = await until(clerk.lost, bool)
    assert (gap.first, gap.last) == (4, 0)
    assert len(said) == 1, "named once, and not at each try"


async def test_bodies_are_json_or_msgpack_or_named(scene: Scene) -> None:
    clerk = await scene.client.spawn(ForeignClerk, "clerk")
    raw = await scene.client.spawn(ForeignClerk, "raw")
    await clerk.follow_all(scene.stream, scene.all)
    await raw.follow_all(scene.stream, scene.all, raw=True)
    odd = [
        b"hello", b"\xff\xfe", b"[" * 5000, b'{"a": 1', msgspec.msgpack.encode({"a": 1})[:-1], b"1e999999", b"\x07",
        b'"\\ud800"', str(2**80).encode(),
    ]  # fmt: skip
    for body in odd:
        await scene.put(body)
    await scene.put(
        7, msgspec.msgpack.encode(1 << 40), b'{"not": "a number"}', b"x" * (MESSAGE_BYTES_MAX + 1), b"", 8, id=""
    )
    seen = await until(clerk.show, lambda seen: bool(seen) and seen[-1][1] == 8)
    assert [order for _, order in seen] == [7, 1 << 40, 8]
    letters = await until(lambda: letters_of(scene, clerk), lambda found: len(found) == len(odd) + 3)
    causes = [letter.cause for letter in letters]
    assert sum("neither JSON nor msgpack" in cause for cause in causes) >= len(odd) - 2
    assert (
        sum("MessageTooLarge" in cause and f"{len(odd) + 4} of stream {scene.stream}" in cause for cause in causes) == 1
    )
    bodies, _ = await until(raw.raw, lambda found: len(found[0]) == len(odd) + 5)
    assert bodies[: len(odd)] == odd
    assert bodies[-2:] == [b"", b"8"]


async def test_the_ids_of_its_publisher_are_told(scene: Scene) -> None:
    clerk = await scene.client.spawn(ForeignClerk, "clerk")
    await clerk.follow(scene.stream, scene.all)
    await scene.put(1, 1, id="order-1")  # the server drops the repetition
    await scene.put(2)
    await until(clerk.show, lambda seen: len(seen) == 2)
    assert (await clerk.raw())[1] == ["order-1", ""]


async def test_what_is_no_stream_or_cannot_be_read_is_refused(scene: Scene) -> None:
    clerk = await scene.client.spawn(ForeignClerk, "clerk")
    for stream, pattern in (("a.b", ">"), ("", ">"), ("A", "a..b"), ("A B", ">"), ("A", "B >")):
        with pytest.raises(TopicInvalid):
            await clerk.follow(stream, pattern)
    with pytest.raises(NoSuchStream):
        await clerk.follow("NONE", ">")
    async with cells.local() as cluster:
        alone = await cluster.spawn(ForeignClerk, "alone")
        with pytest.raises(UsageError, match="connect one to NATS"):
            await alone.follow("ORDERS", ">")
        with pytest.raises(UsageError, match="connect one to NATS"):
            await anext(aiter(cluster.follow(">", stream="ORDERS")))


async def test_it_is_read_along_from_outside(scene: Scene) -> None:
    await scene.put(1, 2)
    got: list[Any] = []

    async def read() -> None:
        async for one in scene.client.follow(f"{scene.stream}.*", since="first", stream=scene.stream):
            assert isinstance(one, tuple)
            about, value = one
            got.append((about.n, about.topic, value))

    reading = asyncio.create_task(read())
    try:
        await until(_of(got), lambda found: len(found) == 2)
        await scene.put(b"text")
        await until(_of(got), lambda found: len(found) == 3)
        await scene.nats.jetstream().delete_stream(scene.stream)
        with pytest.raises(NoSuchStream):
            await reading
    finally:
        reading.cancel()
    assert got == [(n, f"{scene.stream}.new", value) for n, value in ((1, 1), (2, 2), (3, b"text"))]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Until it is set, messages that are read of all subjects of a stream do not arrive."""
    arrives = asyncio.Event()

    async def late(outside: Outside, pattern: str, after: int, made: int) -> Page:
        page = await read_page(outside, pattern, after, made)
        if pattern.endswith(".>") and page.messages:
            await arrives.wait()
        return page

    monkeypatch.setattr("mielin_cells.node.topics.outside.read_page", late)
    return arrives


async def test_a_handler_gets_once_what_one_of_its_patterns_reads_while_another_finds_the_stream_made_anew(
    scene: Scene, held: asyncio.Event
) -> None:
    clerk = await scene.client.on("n1").spawn(ForeignClerk, "clerk")
    await clerk.follow(scene.stream, f"{scene.stream}.new")
    await clerk.follow(scene.stream, scene.all)
    await scene.put(1)
    await until(clerk.show, lambda seen: len(seen) == 1)
    await scene.nats.jetstream().delete_stream(scene.stream)
    await scene.make(allow_direct=True)
    await scene.put(2)
    await until(clerk.show, lambda seen: len(seen) == 2)
    held.set()
    await until(clerk.lost, lambda gaps: len(gaps) == 2)
    await scene.put(3)
    seen = await until(clerk.show, lambda seen: (2, 3) in seen)
    assert seen == [(1, 1), (1, 2), (2, 3)]


async def test_a_page_of_the_stream_before_is_not_given_to_who_has_come_since(
    scene: Scene, held: asyncio.Event
) -> None:
    first = await scene.client.on("n1").spawn(ForeignClerk, "first")
    await first.follow(scene.stream, scene.all)
    await first.follow(scene.stream, f"{scene.stream}.new")
    await scene.put(1)
    await until(first.show, lambda seen: len(seen) == 1)
    await scene.nats.jetstream().delete_stream(scene.stream)
    await scene.make(allow_direct=True)
    await scene.put(2, 3)
    await until(first.show, lambda seen: len(seen) == 3)
    second = await scene.client.on("n1").spawn(ForeignClerk, "second")
    await second.follow(scene.stream, scene.all)
    held.set()
    await scene.put(4)
    assert await until(second.show, lambda seen: (3, 4) in seen) == [(3, 4)]
    assert await second.lost() == []


def _of(got: list[Any]) -> Callable[[], Awaitable[list[Any]]]:
    async def look() -> list[Any]:
        return got

    return look


async def test_messages_of_other_subjects_are_no_gap_after_a_restart(scene: Scene) -> None:
    """What was passed over is trimmed long before the next message comes that is wanted."""
    clerk = await scene.client.on("n1").spawn(ForeignClerk, "clerk")
    await clerk.follow(scene.stream, f"{scene.stream}.rare")
    jetstream = scene.nats.jetstream()
    for _ in range(3):
        await scene.put(*range(50), subject="often")
        before = (await load(scene.there.substrate.log, "clerk")).seq
        last = (await jetstream.stream_info(scene.stream)).state.last_seq
        pattern = _pattern(scene)
        await until(_position(pattern), partial(operator.eq, last))
        await jetstream.purge_stream(scene.stream, seq=last)
        pattern.wake()
        await until(partial(_end, scene), partial(operator.lt, before))
    scene.there.kill("n1")
    await scene.put(7, subject="rare")
    await scene.there.start("n1")
    assert [order for _, order in await until(clerk.show, bool)] == [7]
    assert await clerk.lost() == []


async def _end(scene: Scene) -> int:
    return (await load(scene.there.substrate.log, "clerk")).seq


def _pattern(scene: Scene) -> Pattern:
    reader = scene.there.nodes["n1"].home.topics
    assert reader is not None
    return next(iter(reader._patterns.values()))


def _position(pattern: Pattern) -> Callable[[], Awaitable[int]]:
    async def look() -> int:
        pattern.wake()
        return max((member.position[0] for member in pattern.members), default=0)

    return look
