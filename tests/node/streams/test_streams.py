"""Streams of calls, with real nodes on one store: they go on while the agent moves, and after its node has died."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Literal

import pytest
from support.nodes import Deployment, deployment

import mielin_cells as cells
from mielin_cells.client.stream import StreamReader
from mielin_cells.errors import (
    BadArguments,
    CellError,
    HandlerFailed,
    MessageTooLarge,
    NonDeterministicTurn,
    NoSuchCall,
    NotInTurn,
    PermissionDenied,
    StoreBusy,
    StreamGap,
    StreamRestarted,
    UsageError,
)
from mielin_cells.log.ids import stream_subject
from mielin_cells.log.streams.entries import Ended, decode_stream_entry
from mielin_cells.node.streams.writer import StreamWriter
from mielin_cells.settings import Settings
from mielin_cells.store.known import _is_owed, is_stored
from mielin_cells.store.reader import load

gates: dict[str, asyncio.Event] = {}
calls: list[str] = []


async def letters(text: str) -> str:
    """A step that is held behind its second part until its gate opens, in its first call."""
    calls.append(text)
    for at, letter in enumerate(text):
        if at == 2 and len(calls) == 1:
            await gates["step"].wait()
        await cells.emit(f"{letter}{len(calls)}")
    return text


async def fails_once(text: str) -> str:
    calls.append(text)
    await cells.emit(f"{text}{len(calls)}")
    if len(calls) == 1:
        raise OSError("the line went down")
    return text


class Teller(cells.Agent):
    said: list[str] = []

    @cells.handler
    async def say(self, text: str) -> AsyncIterator[str]:
        """Waits at its gate behind the second part."""
        for at, word in enumerate(text.split()):
            if at == 2 and "say" in gates:
                await gates["say"].wait()
            yield word
        self.said.append(text)

    @cells.handler
    async def spell(self, text: str) -> AsyncIterator[str]:
        yield "["
        self.said.append(await cells.step("letters", letters, text))
        yield "]"

    @cells.handler
    async def stutter(self, text: str) -> AsyncIterator[str]:
        yield await cells.step("once", fails_once, text, retry=cells.Retry(tries=3, first_s=0.001))

    @cells.handler
    async def count(self, to: int, fails: bool = False) -> AsyncIterator[int]:
        for n in range(to):
            yield n
        if fails:
            raise ValueError("at the end")

    @cells.handler
    async def chance(self) -> AsyncIterator[int]:
        calls.append("chance")
        yield len(calls)
        await gates["chance"].wait()

    @cells.handler
    async def wrong(self) -> AsyncIterator[int]:
        yield "one"  # type: ignore[misc]

    @cells.handler
    async def large(self) -> AsyncIterator[bytes]:
        yield bytes(600 * 1024)

    @cells.handler
    async def emits(self) -> int:
        await cells.step("emits", cells.emit, 1)
        return 1

    @cells.handler
    async def own(self) -> list[int]:
        return [n async for n in self.count(3)]

    @cells.handler
    async def listens(self, other: Teller) -> list[int]:
        return [n async for n in other.count(3)]

    @cells.handler
    async def tells(self, other: Teller) -> None:
        await other.count.tell(3)

    @cells.handler
    async def all_said(self) -> list[str]:
        return self.said


@pytest.fixture(autouse=True)
def fresh() -> None:
    gates.clear()
    calls.clear()


async def teller(at: Deployment) -> Teller:
    return await at.client.on("node-1").spawn(Teller, "t")


async def last_entry(at: Deployment, stream: cells.Stream[str]) -> object:
    sender = at.client.session("t").sender
    last = await at.substrate.log.last(stream_subject("t", sender))
    assert last is not None
    return decode_stream_entry(last.data, "here")


async def test_the_parts_come_in_order_and_the_turn_is_committed() -> None:
    async with deployment("node-1") as at:
        agent = await teller(at)
        assert [part async for part in agent.say("one two three")] == ["one", "two", "three"]
        assert [part async for part in agent.count(0)] == []
        assert [part async for part in agent.count(5000)] == list(range(5000))
        assert await agent.all_said() == ["one two three"]


async def test_a_stream_goes_on_while_the_agent_moves() -> None:
    async with deployment("node-1", "node-2") as at:
        agent, gates["say"] = await teller(at), asyncio.Event()
        stream = agent.say("a b c d")
        assert [await anext(stream), await anext(stream)] == ["a", "b"]
        moving = asyncio.ensure_future(at.client.migrate(agent, to="node-2"))
        await asyncio.sleep(0)
        gates["say"].set()
        assert [part async for part in stream] == ["c", "d"]
        (await moving).check()
        assert (await at.client.show(agent)).node == "node-2"
        assert await agent.all_said() == ["a b c d"]


async def test_a_stream_goes_on_at_the_next_owner_and_no_part_comes_twice() -> None:
    async with deployment("node-1", "node-2") as at:
        agent, gates["say"] = await teller(at), asyncio.Event()
        stream = agent.say("a b c d")
        assert [await anext(stream), await anext(stream)] == ["a", "b"]
        at.kill("node-1")
        gates["say"].set()
        await at.client.claim(agent, to="node-2")
        assert [part async for part in stream] == ["c", "d"]
        assert await agent.all_said() == ["a b c d"]


async def test_two_readers_have_the_same_parts_and_one_comes_back() -> None:
    async with deployment("node-1") as at:
        agent = await teller(at)
        stream = agent.say("a b c d")
        assert await anext(stream) == "a"
        other = agent.say.read(stream.id)
        assert [await anext(other), await anext(other), await anext(other)] == ["a", "b", "c"]
        back = agent.say.read(stream.id, after=other.position)
        assert [part async for part in back] == ["d"]
        assert [part async for part in stream] == ["b", "c", "d"]
        assert [part async for part in agent.say.read(stream.id)] == ["a", "b", "c", "d"]


async def test_the_parts_of_a_step_that_is_run_again_are_replaced() -> None:
    async with deployment("node-1", "node-2") as at:
        agent, gates["step"] = await teller(at), asyncio.Event()
        stream = agent.spell("xyz")
        assert [await anext(stream) for _ in range(3)] == ["[", "x1", "y1"]
        at.kill("node-1")
        await at.client.claim(agent, to="node-2")
        with pytest.raises(StreamRestarted) as restarted:
            await anext(stream)
        assert restarted.value.offset == 1
        assert [part async for part in stream] == ["x2", "y2", "z2", "]"]
        assert await agent.all_said() == ["xyz"]


async def test_the_parts_of_a_call_that_failed_are_replaced() -> None:
    async with deployment("node-1") as at:
        agent, restarts = await teller(at), list[int]()
        stream = agent.stutter("p").on_restart(restarts.append)
        assert [part async for part in stream] in (["p1", "p2", "p"], ["p2", "p"])
        assert restarts in ([0], [])
        assert [part async for part in agent.stutter.read(stream.id)] == ["p2", "p"]


async def test_what_a_failed_turn_has_sent_is_given_out_before_its_error() -> None:
    async with deployment("node-1") as at:
        agent, parts = await teller(at), list[int]()
        stream = agent.count(3, fails=True)
        with pytest.raises(HandlerFailed, match="at the end"):
            async for part in stream:
                parts.append(part)
        assert parts == [0, 1, 2]
        with pytest.raises(HandlerFailed, match="at the end"):
            _ = [part async for part in agent.count.read(stream.id)]


async def test_a_run_that_yields_other_parts_than_before_is_refused() -> None:
    async with deployment("node-1", "node-2") as at:
        agent, gates["chance"] = await teller(at), asyncio.Event()
        stream = agent.chance()
        assert await anext(stream) == 1
        at.kill("node-1")
        gates["chance"].set()
        await at.client.claim(agent, to="node-2")
        with pytest.raises(NonDeterministicTurn):
            await anext(stream)


async def test_a_new_owner_appends_the_end_that_the_former_one_owed() -> None:
    async with deployment("node-1", "node-2") as at:
        agent, node = await teller(at), at.nodes["node-1"]
        activation = node.activations.live["t"]
        ends = activation.ends
        assert ends is not None
        ends.committed = lambda answers: None  # type: ignore[method-assign] # as if it died between the commit and the end
        stream = agent.say("a b")
        assert [await anext(stream), await anext(stream)] == ["a", "b"]
        await activation.flush()
        assert not isinstance(await last_entry(at, stream), Ended)
        at.kill("node-1")
        await at.client.claim(agent, to="node-2")
        assert [part async for part in agent.say.read(stream.id)] == ["a", "b"]
        assert isinstance(await last_entry(at, stream), Ended)


async def test_ended_streams_are_removed_and_a_late_reader_is_told() -> None:
    async with deployment("node-1", settings=Settings(stream_keep_s=0.0)) as at:
        agent = await teller(at)
        stream = agent.count(3)
        assert [part async for part in stream] == [0, 1, 2]
        subject = stream_subject("t", at.client.session("t").sender)
        while len(await at.substrate.log.read(subject)) > 1:
            await asyncio.sleep(0.001)
        assert isinstance(await last_entry(at, stream), Ended)  # type: ignore[arg-type]
        with pytest.raises(StreamGap, match="removed"):
            _ = [part async for part in agent.count.read(stream.id)]
        assert [part async for part in agent.count(2)] == [0, 1]


async def test_a_tell_runs_the_handler_and_nobody_hears_the_parts() -> None:
    async with deployment("node-1") as at:
        agent = await teller(at)
        await agent.say.tell("quietly now")
        assert await agent.all_said() == ["quietly now"]
        assert await at.substrate.log.last(stream_subject("t", at.client.session("t").sender)) is None


async def test_inside_the_agent_the_handler_is_a_plain_generator() -> None:
    async with deployment("node-1") as at:
        assert await (await teller(at)).own() == [0, 1, 2]


async def test_what_cannot_be_sent_fails_the_turn_with_a_named_error() -> None:
    async with deployment("node-1") as at:
        agent = await teller(at)
        with pytest.raises(BadArguments, match="yielded a value"):
            _ = [part async for part in agent.wrong()]
        with pytest.raises(MessageTooLarge, match="Yield smaller parts"):
            _ = [part async for part in agent.large()]
        with pytest.raises(cells.StepFailed, match="does not yield"):
            await agent.emits()
        with pytest.raises(UsageError, match="a turn that runs again"):
            await agent.listens(await at.client.on("node-1").spawn(Teller, "u"))


@pytest.mark.parametrize("error", [StoreBusy, PermissionDenied])
async def test_a_store_that_fails_an_emitted_part_is_no_outcome_of_the_step_and_the_turn_runs_again(
    monkeypatch: pytest.MonkeyPatch, error: type[CellError]
) -> None:
    """An entry of an earlier owner took the place: only a new run reads the stream again, so no further call of the step would do."""
    restart, failures = StreamWriter.restart, list[StreamWriter]()

    async def busy(self: StreamWriter, at: int, attempt: int) -> None:
        if not failures or failures[0] is self:
            failures.append(self)
            raise error("to be read again", agent="t")
        await restart(self, at, attempt)

    monkeypatch.setattr(StreamWriter, "restart", busy)
    async with deployment("node-1") as at:
        agent = await teller(at)
        stream = agent.stutter("p")
        with contextlib.suppress(StreamRestarted):
            _ = [part async for part in stream]
        _ = [part async for part in stream]
        assert [part async for part in agent.stutter.read(stream.id)] == ["p2", "p"]
    assert len(failures) == 1


async def test_emit_outside_a_turn_and_wrong_ids_are_refused() -> None:
    async with deployment("node-1") as at:
        agent = await teller(at)
        with pytest.raises(NotInTurn):
            await cells.emit(1)
        with pytest.raises(UsageError, match="not sent yet"):
            _ = agent.count(1).id
        for name, after in (("x", ""), ("1.", ""), ("1.a", "1.2"), ("1.a", "a.b.c")):
            with pytest.raises(UsageError):
                agent.count.read(name, after=after)


async def test_a_call_that_nobody_has_made_is_named_and_not_waited_for() -> None:
    """Reading it ended with a time-out after 30 s, as if it were slow."""
    async with deployment("node-1", settings=Settings(ask_repeat_s=0.05)) as at:
        agent = await teller(at)
        stream = agent.count(1)
        assert [part async for part in stream] == [0]
        number, _, sender = stream.id.partition(".")
        for wrong in (f"{int(number) + 1}.{sender}", f"{number}.{sender}x", f"{number}.t", "1.nobody"):
            for after in ("", "1.1.0"):
                with pytest.raises(NoSuchCall, match="has no call " + re.escape(wrong)):
                    await anext(agent.count.read(wrong, after=after))


@pytest.mark.parametrize("priority", ["normal", "high"])
async def test_a_call_that_waits_behind_another_is_waited_for(priority: Literal["normal", "high"]) -> None:
    async with deployment("node-1", settings=Settings(ask_repeat_s=0.02)) as at:
        gates["say"] = asyncio.Event()
        agent = await teller(at)
        first, second = agent.say("a b c"), agent.count.options(priority=priority)(2)
        assert await anext(first) == "a"
        await second.start()
        reader = agent.count.read(second.id)
        task = asyncio.ensure_future(anext(reader))
        assert isinstance(reader, StreamReader)
        while not reader._is_known and not task.done():
            await asyncio.sleep(0.01)
        gates["say"].set()
        assert await task == 0
        assert await anext(reader) == 1


async def test_a_call_that_an_agent_has_made_is_known_before_it_is_delivered() -> None:
    async with deployment("node-1") as at:
        agent, other = await teller(at), await at.client.spawn(Teller, "other")
        await other.tells(agent)
        log, fold = at.substrate.log, await load(at.substrate.log, "t")
        owed = [
            (sender, n) for sender in ("other", "t", "nobody") for n in (1, 2) if await _is_owed(log, "t", sender, n)
        ]
        assert owed == [("other", 1)]
        assert await is_stored(log, fold, "other", 1)


def test_a_shared_handler_does_not_yield() -> None:
    async def read(self: Teller) -> AsyncIterator[int]:
        yield 1

    with pytest.raises(cells.FieldRefused, match="is shared and yields"):
        cells.handler(shared=True)(read)  # type: ignore[arg-type]
