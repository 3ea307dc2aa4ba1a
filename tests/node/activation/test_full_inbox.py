"""What a full inbox means to senders is declared: they are refused, or wait, or the oldest messages make room."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from support.nodes import deployment
from support.waiting import until

import mielin_cells as cells
from mielin_cells.errors import ConfigError, FieldRefused, InboxFull
from mielin_cells.log.commit import ReplayInput
from mielin_cells.log.message import Mail, Message
from mielin_cells.log.undo import _Past
from mielin_cells.store.mail import store_mail
from mielin_cells.store.reader import load

LIMIT = 5
QUICK = cells.Settings(ask_timeout_s=0.5)


gates: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def fresh() -> None:
    gates.clear()


def gate(name: str) -> asyncio.Event:
    return gates.setdefault(name, asyncio.Event())


class Desk(cells.Agent, name="FullDesk", inbox_max=LIMIT):
    said: list[int] = []

    @cells.handler
    async def say(self, n: int) -> int:
        self.said.append(n)
        return n

    @cells.handler
    async def hold(self) -> None:
        gate("in").set()
        await gate("out").wait()

    @cells.handler
    async def all(self) -> list[int]:
        return self.said

    @cells.handler
    async def flood(self, other: Desk, count: int) -> None:
        for n in range(count):
            await other.say.tell(n)


class Patient(Desk, name="FullPatient", when_full="wait"):
    pass


class Spill(Desk, name="FullSpill", when_full="drop_oldest"):
    pass


async def filled(c: cells.Cluster, desk: Desk) -> list[asyncio.Task[int]]:
    """As many asks as may wait, for an agent that runs no turn."""
    await c.suspend(desk)
    asks = [asyncio.create_task(_say(desk, n)) for n in range(LIMIT)]
    await waiting(c, desk, LIMIT)
    return asks


async def _say(desk: Desk, n: int) -> int:
    return await desk.say.options(timeout=10)(n)


async def waiting(c: cells.Cluster, desk: Desk, count: int) -> None:
    while (await c.show(desk)).waiting < count:
        await asyncio.sleep(0.005)


async def letters(c: cells.Cluster, agent: str) -> list[tuple[str, int]]:
    dead = (await load(c.log, agent)).ledger.dead  # type: ignore[attr-defined]
    return [(letter.cause.partition(":")[0], msgspec.msgpack.decode(letter.args)["n"]) for letter in dead]


async def test_by_default_a_full_inbox_refuses_at_the_limit_of_the_class() -> None:
    async with cells.local() as c:
        desk = await c.spawn(Desk, "d")
        asks = await filled(c, desk)
        with pytest.raises(InboxFull, match=f"limit {LIMIT}") as raised:
            await desk.say.tell(9)
        assert raised.value.facts == {"agent": "d", "waiting": LIMIT, "limit": LIMIT}
        await c.resume(desk)
        assert [await ask for ask in asks] == list(range(LIMIT))


async def test_senders_wait_if_the_class_says_so_and_are_served_in_order_once_there_is_room() -> None:
    async with cells.local() as c:
        desk = await c.spawn(Patient, "d")
        asks = await filled(c, desk)
        told = [asyncio.create_task(_tell(desk, LIMIT + n)) for n in range(LIMIT)]
        done, _ = await asyncio.wait(told, timeout=0.1)
        assert not done
        await c.resume(desk)
        await asyncio.gather(*asks, *told)
        assert await desk.all() == list(range(2 * LIMIT))


async def _tell(desk: Desk, n: int) -> None:
    await desk.say.tell(n)


async def test_a_sender_does_not_wait_for_ever() -> None:
    async with cells.local(settings=QUICK) as c:
        desk = await c.spawn(Patient, "d")
        asks = await filled(c, desk)
        with pytest.raises(InboxFull, match=r"waiting for 0\.5 s"):
            await desk.say.tell(9)
        await c.resume(desk)
        await asyncio.gather(*asks)
        assert await desk.all() == list(range(LIMIT))


async def overflow(c: cells.Cluster, first: int = 0) -> tuple[list[Any], int]:
    """More asks at once than may wait: their outcomes, and how many were dropped."""
    desk = c.get(Spill, "d")
    holding = asyncio.create_task(_hold(desk))
    await gate("in").wait()
    asks = [asyncio.create_task(_say(desk, first + n)) for n in range(6 * LIMIT)]
    await waiting(c, desk, 6 * LIMIT)
    gate("out").set()
    await holding
    ends = await asyncio.gather(*asks, return_exceptions=True)
    dropped = [end for end in ends if isinstance(end, InboxFull)]
    assert all("the oldest were dropped" in end.message for end in dropped)
    return ends, len(dropped)


async def _hold(desk: Desk) -> None:
    await desk.hold()


async def test_the_oldest_messages_are_dropped_to_dead_letters_and_their_senders_are_told() -> None:
    async with cells.local() as c:
        desk = await c.spawn(Spill, "d")
        asks = await filled(c, desk)
        await c.resume(desk)
        await asyncio.gather(*asks)
        ends, count = await overflow(c, LIMIT)
        assert count == 5 * LIMIT
        assert ends[-LIMIT:] == list(range(6 * LIMIT, 7 * LIMIT)), "the newest run"
        ran = [LIMIT + n for n, end in enumerate(ends) if not isinstance(end, InboxFull)]
        assert await desk.all() == [*range(LIMIT), *ran]
        dropped = [LIMIT + n for n, end in enumerate(ends) if isinstance(end, InboxFull)]
        assert await letters(c, "d") == [("InboxFull", n) for n in dropped]


async def test_an_inbox_that_drops_refuses_while_its_agent_runs_no_turn() -> None:
    async with cells.local() as c:
        desk = await c.spawn(Spill, "d")
        asks = await filled(c, desk)
        with pytest.raises(InboxFull, match="was not sent"):
            await desk.say.tell(9)
        await c.resume(desk)
        assert [await ask for ask in asks] == list(range(LIMIT))


@pytest.mark.parametrize("is_marked", [True, False], ids=["", "guard taken away"])
async def test_what_was_dropped_stays_dropped_in_a_move_and_after_an_undo(
    is_marked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = _Past.replay

    def unmarked(self: _Past, sender: str, n: int) -> ReplayInput:
        return msgspec.structs.replace(replay(self, sender, n), unrun="")

    if not is_marked:
        monkeypatch.setattr(_Past, "replay", unmarked)
    async with cells.local(nodes=2) as c:
        desk = await c.on("node-1").spawn(Spill, "d")
        move = await c.migrate(desk, to="node-2")
        _, count = await overflow(c)
        before = await desk.all()
        assert (count, len(before)) == (5 * LIMIT, LIMIT)

        report = await c.rollback(move.migration)

        assert report.ok
        assert (await desk.all() == before) is is_marked
        assert len(await letters(c, "d")) == (count if is_marked else 0)


async def test_committed_tells_of_agents_wait_at_their_sender_by_the_receivers_limit() -> None:
    async with deployment("node-1") as d:
        desk, source = await d.client.spawn(Desk, "d"), await d.client.spawn(Desk, "s")
        await d.client.suspend(desk)
        await source.flood(desk, 4 * LIMIT)
        await waiting(d.client, desk, 1)
        assert (await d.client.show(desk)).waiting <= LIMIT + 1
        await d.client.resume(desk)
        while await desk.all() != list(range(4 * LIMIT)):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "options",
    [
        {"inbox_max": 0},
        {"inbox_max": -1},
        {"inbox_max": "5"},
        {"inbox_max": True},
        {"when_full": "drop"},
        {"when_full": 1},
    ],
)
def test_a_class_cannot_declare_what_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(FieldRefused, match="inbox_max|when_full"):
        type("Odd", (cells.Agent,), {"__module__": __name__}, **options)


def test_a_policy_that_is_unknown_is_refused_in_the_settings() -> None:
    with pytest.raises(ConfigError, match='"refuse", "wait" or "drop_oldest"'):
        cells.Settings(when_full="drop")  # type: ignore[arg-type]


async def test_what_is_read_ahead_is_bounded_however_much_an_inbox_holds() -> None:
    """A batch of the store may hold many times what is read ahead: senders that keep no limit must not fill a node's memory."""
    limit, mails, each = 20, 60, 10
    async with deployment("node-1", settings=cells.Settings(inbox_max=limit)) as at:
        desk = await at.client.spawn(Desk, "d")
        at.kill("node-1")
        numbers = iter(range(2, mails * each + 2))
        messages = [[Message(next(numbers), "say", b"\x81\xa1n\x01") for _ in range(each)] for _ in range(mails)]
        for some in ([Message(1, "hold", b"\x80")], *messages):
            await store_mail(at.substrate.log, Mail("d", "FullDesk", "another", 0, some[0].n, "", some))
        node = await at.start("node-1")
        await gate("in").wait()
        inbox = node.activations.live["d"].inbox
        await until(lambda: inbox.waiting > 2 * limit)
        assert inbox.waiting <= 2 * limit + each
        gate("out").set()
        await until(lambda: inbox.are_done)
        assert len(await desk.all()) == mails * each
