"""Streams that other systems write, read on a real server: in batches, and one by one where the stream allows no direct gets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import count, pairwise
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.api import StreamConfig
from support.nats_servers import WAIT_S, opened, raw_client

from mielin_cells.errors import NoSuchStream
from mielin_cells.log.topics.outside import Foreign
from mielin_cells.store.outside import read_page
from mielin_cells.substrate.jetstream.outside.outside import OutsideStreams
from mielin_cells.substrate.jetstream.server import Server

_numbers = count()


class Stream:
    """A stream of another program, with subjects of its own."""

    def __init__(self, client: Client, name: str) -> None:
        self.client, self.name, self.js = client, name, client.jetstream()

    async def put(self, subject: str, *bodies: bytes, headers: dict[str, str] | None = None) -> int:
        seq = 0
        for body in bodies:
            seq = (await self.js.publish(f"{self.name}.{subject}", body, headers=headers)).seq
        return seq

    async def make(self, **config: Any) -> None:
        await self.js.add_stream(StreamConfig(name=self.name, subjects=[f"{self.name}.>"], **config))


@pytest.fixture(params=[True, False], ids=["direct", "by its leader"])
async def foreign(server: Server, request: pytest.FixtureRequest) -> AsyncIterator[tuple[OutsideStreams, Stream]]:
    number = next(_numbers)
    async with raw_client(server.url) as client, opened(server.url, deployment=f"outside{number}") as substrate:
        stream = Stream(client, f"FOREIGN{number}")
        await stream.make(allow_direct=request.param)
        yield substrate.log.outside, stream


async def test_messages_come_in_order_with_their_positions_times_and_ids(
    foreign: tuple[OutsideStreams, Stream],
) -> None:
    outside, stream = foreign
    began = time.time()
    await stream.put("a", b"1", headers={"Nats-Msg-Id": "one", "Other": "x"})
    await stream.put("b", b"2")
    await stream.put("a", b"", b"4")
    found = await outside.read(stream.name, f"{stream.name}.>", 0, 10)
    assert [(one.subject.removeprefix(stream.name), one.seq, one.data, one.id) for one in found] == [
        (".a", 1, b"1", "one"), (".b", 2, b"2", ""), (".a", 3, b"", ""), (".a", 4, b"4", ""),
    ]  # fmt: skip
    assert all(began - 1 < one.at < time.time() + 1 for one in found)
    assert [one.seq for one in await outside.read(stream.name, f"{stream.name}.a", 1, 1)] == [3]
    assert [one.seq for one in await outside.read(stream.name, f"{stream.name}.a", 1, 1, is_settled=True)] == [3]
    assert await outside.read(stream.name, f"{stream.name}.*", 4, 10) == []
    assert await outside.read(stream.name, "else.>", 0, 10, is_settled=True) == []


async def test_headers_of_its_publisher_are_no_words_of_the_server(foreign: tuple[OutsideStreams, Stream]) -> None:
    """A stream may hold what another one has republished, or a message with a status of its own."""
    outside, stream = foreign
    await stream.put("a", b"0")
    strange = {
        "Status": "404",
        "Nats-Sequence": "77",
        "Nats-Last-Sequence": "76",
        "Nats-Subject": "else",
        "Nats-Time-Stamp": "x",
    }
    await stream.put("a", b"1", headers=strange)
    await stream.put("a", b"2")
    found = await outside.read(stream.name, f"{stream.name}.>", 0, 10)
    assert [(one.seq, one.data) for one in found] == [(1, b"0"), (2, b"1"), (3, b"2")]
    assert {one.subject for one in found} == {f"{stream.name}.a"}
    assert all(one.at > 1e9 for one in found)


async def test_the_extent_says_what_is_gone_and_which_stream_it_is(foreign: tuple[OutsideStreams, Stream]) -> None:
    outside, stream = foreign
    empty = await outside.extent(stream.name)
    assert (empty.first, empty.last) == (1, 0)
    await stream.put("a", b"1", b"2", b"3")
    await stream.js.purge_stream(stream.name, seq=3)
    assert (await outside.extent(stream.name))[1:] == (3, 3)
    await stream.js.purge_stream(stream.name)
    purged = await outside.extent(stream.name)
    assert purged == (empty.made, 4, 3)
    await stream.js.delete_stream(stream.name)
    for again in (outside.extent(stream.name), outside.read(stream.name, ">", 0, 10)):
        with pytest.raises(NoSuchStream, match=f"no stream {stream.name}"):
            await again
    await stream.make()
    anew = await outside.extent(stream.name)
    assert anew[1:] == (1, 0)
    assert anew.made != empty.made


async def test_a_time_is_found_by_halving(foreign: tuple[OutsideStreams, Stream]) -> None:
    outside, stream = foreign
    for n in range(20):
        await stream.put("a", b"%d" % n)
    await stream.js.delete_msg(stream.name, 7)
    await stream.js.purge_stream(stream.name, seq=4)
    found = await outside.read(stream.name, ">", 0, 100)
    extent = await outside.extent(stream.name)
    assert await outside.find(stream.name, extent, found[0].at - 5) == 3
    assert await outside.find(stream.name, extent, found[-1].at + 5) == 20
    for before, one in pairwise(found):
        begin = await outside.find(stream.name, extent, one.at)
        assert before.seq <= begin < one.seq


async def test_a_hint_costs_one_message_and_leaves_nothing_with_the_server(
    foreign: tuple[OutsideStreams, Stream],
) -> None:
    outside, stream = foreign
    hints: list[int] = []
    hint = await outside.watch(stream.name, f"{stream.name}.a", lambda: hints.append(1))
    assert hint is not None
    heard = outside._connection._nc.stats["in_msgs"]
    await stream.put("b", b"x")
    await stream.put("a", *[b"%d" % n for n in range(50)])
    async with asyncio.timeout(WAIT_S):
        while not hints:
            await asyncio.sleep(0.001)
    await outside.extent(stream.name)
    assert len(hints) == 1
    assert outside._connection._nc.stats["in_msgs"] - heard == 2, "one hint, and the answer about the extent"
    assert await outside.watch(stream.name, ">", lambda: None) is not None, "the stream's own subjects are heard"
    assert await outside.watch(stream.name, "*.a", lambda: None) is not None
    info = await stream.js.stream_info(stream.name)
    assert (info.state.consumer_count, info.state.messages) == (0, 51), "nothing is made and nothing is written"


async def test_what_would_be_heard_with_everybody_is_not_listened_to(server: Server) -> None:
    async with raw_client(server.url) as client, opened(server.url, deployment="outsidemirror") as substrate:
        stream = Stream(client, "FOREIGNORIGIN")
        await stream.make()
        await stream.js.add_stream(StreamConfig(name="FOREIGNMIRROR", mirror={"name": "FOREIGNORIGIN"}))  # type: ignore[arg-type]
        outside = substrate.log.outside
        await outside.extent("FOREIGNMIRROR")
        assert await outside.watch("FOREIGNMIRROR", ">", lambda: None) is None


async def test_a_page_holds_nothing_of_a_stream_that_was_made_anew_while_it_was_read(
    foreign: tuple[OutsideStreams, Stream],
) -> None:
    """Positions count again: who has just subscribed to the new stream must not take the old one's messages for its."""
    outside, stream = foreign
    await stream.put("a", b"1", b"2")
    made, read = (await outside.extent(stream.name)).made, outside.read

    async def reading(*args: Any, **options: Any) -> list[Foreign]:
        found = await read(*args, **options)
        await stream.js.delete_stream(stream.name)
        await stream.make()
        return found

    outside.read = reading  # type: ignore[method-assign]
    page = await read_page(outside, f"{stream.name} >", 0, made)
    assert (page.extent.made != made, page.messages, page.passed) == (True, [], 0)
    outside.read = read  # type: ignore[method-assign]
    await stream.put("a", b"3")
    page = await read_page(outside, f"{stream.name} >", 0, page.extent.made)
    assert [one.data for one in page.messages] == [b"3"]
