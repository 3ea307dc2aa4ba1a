"""An ask that is not answered yet: its owner is reminded by the wire, and nothing is stored again without need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from support.moving import nodes

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.errors import SessionExpired
from mielin_cells.log.ids import inbox_subject
from mielin_cells.node.node import Node
from mielin_cells.rpc import requests
from mielin_cells.rpc.reminder import remind
from mielin_cells.rpc.serve import Handlers
from mielin_cells.substrate.ports import Entry, Tail

QUICK = cells.Settings(ask_repeat_s=0.02, reconcile_s=600.0)
REMINDERS = 3


class Carillon(cells.Agent):
    rung: int = 0

    @cells.handler
    async def ring(self) -> int:
        self.rung += 1
        return self.rung

    @cells.handler
    async def ring_later(self) -> int:
        await gate.wait()
        self.rung += 1
        return self.rung

    @cells.handler
    async def ring_other(self, to: Carillon) -> int:
        return await to.ring_later()


gate = asyncio.Event()


@asynccontextmanager
async def belfry(*names: str) -> AsyncIterator[tuple[Client, dict[str, Node], Carillon]]:
    global gate  # noqa: PLW0603 - an event belongs to the loop of its test
    gate = asyncio.Event()
    async with nodes(*names, settings=QUICK) as (client, running):
        yield client, running, await client.on("node-1").spawn(Carillon, "b")


async def mails(client: Client, agent: str = "b") -> int:
    return len(await client.log.read(inbox_subject(agent)))


@asynccontextmanager
async def counted(node: Node, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[], asyncio.Future[None]]]:
    """What it gives waits until the node has been reminded some times more."""
    remind, seen, due = node.server.handlers[requests.Remind], 0, list[tuple[int, asyncio.Future[None]]]()

    def watched(request: requests.Remind) -> object:
        nonlocal seen
        result = remind(request)
        seen += 1
        for at, future in due:
            if seen >= at and not future.done():
                future.set_result(None)
        return result

    def more() -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        due.append((seen + REMINDERS, future))
        return future

    with monkeypatch.context() as patched:
        handlers: Handlers = {**node.server.handlers, requests.Remind: watched}
        patched.setattr(node.server, "handlers", handlers)
        yield more


async def test_an_ask_whose_turn_takes_long_is_stored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with belfry("node-1") as (client, running, bell):
        async with counted(running["node-1"], monkeypatch) as more:
            asked = asyncio.create_task(bell.ring_later())
            behind = asyncio.create_task(bell.ring())
            await asyncio.sleep(0)
            await more()
            assert await mails(client) <= 2  # both, in one entry or in two
        gate.set()
        assert (await asked, await behind) == (1, 2)


async def test_an_answer_that_was_lost_comes_again_and_nothing_runs_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    async with belfry("node-1") as (client, _, bell):
        lost, replied = list[bytes](), client._replied

        def deaf(data: bytes) -> None:
            lost.append(data)
            if len(lost) > 1:
                replied(data)

        assert client._subscription is not None
        client._subscription.close()
        client._subscription = await client.wire.subscribe(client.reply_to, deaf)
        assert await bell.ring() == 1
        assert len(lost) == 2
        assert await mails(client) == 1
        assert await bell.ring() == 2


async def test_an_agents_ask_is_stored_once_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with belfry("node-1", "node-2") as (client, running, _):
        other = await client.on("node-2").spawn(Carillon, "c")
        async with counted(running["node-2"], monkeypatch) as more:
            asked = asyncio.create_task(client.get(Carillon, "b").ring_other(other))
            await more()
            assert await mails(client, "c") == 1
        gate.set()
        assert await asked == 1


async def test_an_ask_that_its_owner_missed_is_stored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with belfry("node-1") as (client, running, bell):
        assert await bell.ring() == 1
        log, heard = running["node-1"].home.log, list[_Deaf]()
        tail = log.tail

        def deaf(subject: str, after: int = 0) -> Tail:
            heard.append(_Deaf(tail(subject, after)))
            return heard[-1]

        running["node-1"].activations.drop(running["node-1"].activations.live["b"])
        with monkeypatch.context() as patched:
            patched.setattr(log, "tail", deaf)
            await running["node-1"].adoption.take_named("b")
            assert await bell.ring() == 2
        assert [one.missed for one in heard] == [1]
        assert await mails(client) == 3


class _Deaf:
    """A tail that misses the first batch."""

    def __init__(self, inner: Tail) -> None:
        self.inner = inner
        self.missed = 0

    def __aiter__(self) -> AsyncIterator[list[Entry]]:
        return self

    async def __anext__(self) -> list[Entry]:
        batch = await anext(self.inner)
        if not self.missed:
            self.missed = 1
            batch = await anext(self.inner)
        return batch

    def watch(self, come: Callable[[], None]) -> bool:
        return self.inner.watch(come)

    def close(self) -> None:
        self.inner.close()


async def test_while_no_owner_can_be_asked_an_ask_is_stored_once_more_and_not_for_ever() -> None:
    async with belfry("node-1", "node-2") as (client, running, bell):
        assert await bell.ring() == 1
        running["node-1"]._close_all()
        running["node-1"].kill()
        session = client.session("b")
        asked = asyncio.create_task(bell.ring())
        async with asyncio.timeout(60):
            while not any(one.is_repeated and one.is_stored for one in session._open.values()):
                await asyncio.sleep(0)
        for _ in range(REMINDERS):
            await session._repeat(list(session._open.values()), False)
        assert await mails(client) == 3
        await client.claim(bell, "node-2")
        assert await asked == 2


async def test_a_reminder_of_a_forgotten_session_is_answered_with_its_expiry() -> None:
    async with belfry("node-1") as (client, running, bell):
        assert await bell.ring() == 1
        session = client.session("b")
        ledger = running["node-1"].activations.live["b"].fold.ledger
        ledger.horizon = session.start
        del ledger.peers[session.sender]
        heard = asyncio.get_running_loop().create_future()
        await client.wire.subscribe("reply.test", heard.set_result)
        reminder = requests.Remind("b", session.sender, session.start, "reply.test", [9])
        assert (await remind(client.log, client.wire, reminder)).missing == []
        assert SessionExpired.__name__.encode() in await heard
