"""A stream that is not read to its end: its call is cancelled, unless its reader says that it goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from support.nodes import Deployment, deployment

import mielin_cells as cells
from mielin_cells.errors import Cancelled

begun: list[str] = []
ended: list[str] = []


class EarlyTeller(cells.Agent, name="EarlyTeller"):
    told: list[str] = []

    @cells.handler
    async def tell_for_ever(self, name: str) -> AsyncIterator[int]:
        begun.append(name)
        self.told.append(name)
        number = 0
        try:
            while True:
                yield number
                number += 1
                if number >= 3:
                    await asyncio.Event().wait()
        finally:
            ended.append(name)

    @cells.handler
    async def tell_three(self, name: str) -> AsyncIterator[int]:
        self.told.append(name)
        for number in range(3):
            yield number

    @cells.handler
    async def all_told(self) -> list[str]:
        return self.told


@pytest.fixture
async def at() -> AsyncIterator[Deployment]:
    begun.clear()
    ended.clear()
    async with deployment("node-1") as made:
        await made.client.spawn(EarlyTeller, "t")
        yield made


def teller(at: Deployment) -> EarlyTeller:
    return at.client.get(EarlyTeller, "t")


async def is_over(at: Deployment, name: str, stream_id: str = "") -> None:
    """The handler was cancelled, its turn has no effect, and another reader hears of it."""
    async with asyncio.timeout(10):
        assert await teller(at).all_told() == []
        assert ended == [name]
        if stream_id:
            with pytest.raises(Cancelled):
                _ = [part async for part in teller(at).tell_for_ever.read(stream_id)]


async def test_aclose_cancels_the_call(at: Deployment) -> None:
    stream = teller(at).tell_for_ever("a")
    assert await anext(stream) == 0
    await stream.aclose()
    await stream.aclose()
    assert [part async for part in stream] == []
    await is_over(at, "a", stream.id)


async def test_leaving_the_loop_cancels_the_call(at: Deployment) -> None:
    async for part in teller(at).tell_for_ever("b"):
        if part == 1:
            break
    await is_over(at, "b")


async def test_an_error_in_the_loop_cancels_the_call(at: Deployment) -> None:
    async def read() -> None:
        async for _ in teller(at).tell_for_ever("c"):
            raise ValueError("mine")

    with contextlib.suppress(ValueError):
        await read()
    await is_over(at, "c")


async def test_cancelling_the_reader_cancels_the_call(at: Deployment) -> None:
    stream = teller(at).tell_for_ever("d")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            _ = [part async for part in stream]
    await is_over(at, "d", stream.id)
    assert [part async for part in stream] == []


async def test_close_leaves_the_call_as_it_is(at: Deployment) -> None:
    stream = teller(at).tell_three("e")
    assert await anext(stream) == 0
    stream.close()
    assert [part async for part in teller(at).tell_three.read(stream.id)] == [0, 1, 2]
    assert await teller(at).all_told() == ["e"]


async def test_a_reader_of_somebody_elses_call_cancels_nothing(at: Deployment) -> None:
    stream = teller(at).tell_three("f")
    assert await anext(stream) == 0
    other = teller(at).tell_three.read(stream.id)
    assert await anext(other) == 0
    await other.aclose()
    async for _ in teller(at).tell_three.read(stream.id):
        break
    assert [part async for part in stream] == [1, 2]
    await stream.aclose()
    assert await teller(at).all_told() == ["f"]


async def test_a_stream_that_was_never_begun_or_has_ended_cancels_nothing(at: Deployment) -> None:
    await teller(at).tell_three("never").aclose()
    stream = teller(at).tell_three("g")
    assert [part async for part in stream] == [0, 1, 2]
    await stream.aclose()
    assert await teller(at).all_told() == ["g"]
    assert begun == []


async def test_closing_the_client_cancels_nothing(at: Deployment) -> None:
    stream = teller(at).tell_for_ever("h")
    assert [await anext(stream), await anext(stream), await anext(stream)] == [0, 1, 2]
    await at.client.close()
    del stream
    await asyncio.sleep(0)
    assert at.nodes["node-1"].activations.live["t"].runner.running[0] == "tell_for_ever"
    assert ended == []
