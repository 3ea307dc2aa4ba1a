"""What ends in its time, whatever others do: turns, orders, moves, and the block of `local`; and inboxes that hold what they say."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest
from support.moving import nodes
from support.virtual import virtually

import mielin_cells as cells
from mielin_cells.agents.reference import classes
from mielin_cells.client.client import Client
from mielin_cells.errors import AgentTerminated, InboxFull, TurnDeadlineExceeded, WireTimeout
from mielin_cells.log.ids import LOGS
from mielin_cells.log.records import HandedOff, decode_record
from mielin_cells.node.node import Node
from mielin_cells.settings import Settings
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Outcome, Unknown
from mielin_cells.testing.simulator.loop import run

QUICK = Settings(turn_deadline_s=0.4, pause_s=0.2, tries=1)


class Unyielding(cells.Agent):
    n: int = 0
    departs: bool = False

    @cells.handler
    async def stay(self) -> None:
        self.n = 100
        while True:
            with contextlib.suppress(BaseException):  # that is what is wrong with it
                await asyncio.sleep(3600)

    @cells.handler
    async def limited(self) -> int:
        """Its own limit cancels it, which it takes its time over."""
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(3600)
        except TimeoutError:
            await asyncio.sleep(0.3)
        self.n += 1
        return self.n

    @cells.handler
    async def add(self, departs: bool = False) -> int:
        self.n += 1
        self.departs = departs
        return self.n

    @cells.handler
    async def calls(self) -> None:
        await cells.step("stays", _stay, timeout=0.05, retry=cells.Retry(tries=1))

    async def on_depart(self) -> None:
        if self.departs:
            await self.stay()


async def _stay() -> None:
    while True:
        with contextlib.suppress(BaseException):
            await asyncio.sleep(3600)


@virtually
async def test_a_step_whose_call_catches_its_cancellation_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        async with cells.local(settings=QUICK) as cluster:
            agent = await cluster.spawn(Unyielding, "a")
            with pytest.raises(cells.StepFailed, match="stays"):
                await agent.calls()
            assert await agent.add() == 1
    assert [record for record in caplog.records if "the call of step stays was cancelled" in record.getMessage()]
    mine = asyncio.current_task()
    assert not [task for task in asyncio.all_tasks() if task is not mine]


@virtually
async def test_a_turn_that_catches_its_cancellation_is_left_undone_and_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        async with cells.local(settings=QUICK) as cluster:
            agent = await cluster.spawn(Unyielding, "a")
            with pytest.raises(TurnDeadlineExceeded, match="Unyielding.stay"):
                await agent.stay()
            assert await agent.add() == 1
    assert [record.getMessage() for record in caplog.records if "Unyielding.stay was cancelled" in record.getMessage()]


@virtually
async def test_a_time_limit_of_the_handlers_own_is_no_reason_to_leave_it() -> None:
    async with cells.local(settings=Settings(pause_s=0.1)) as cluster:
        agent = await cluster.spawn(Unyielding, "a")
        assert await agent.limited() == 1


async def test_the_block_of_local_ends_though_a_turn_and_a_hook_do_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL):
        async with cells.local(settings=Settings(pause_s=0.2)) as cluster:
            stays, departs = await cluster.spawn(Unyielding, "a"), await cluster.spawn(Unyielding, "b")
            await departs.add(departs=True)
            await stays.stay.tell()
            await asyncio.sleep(0.05)
            began = time.monotonic()
    assert time.monotonic() - began < Settings().turn_deadline_s / 2
    mine = asyncio.current_task()
    assert not [task for task in asyncio.all_tasks() if task is not mine], "nothing goes on behind the block"


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 6, 8, 12])
async def test_a_move_and_the_end_of_its_agent_both_end(after: int) -> None:
    async with cells.local(2) as cluster:
        agent = await cluster.spawn(Unyielding, "a")

        async def ended() -> None:
            for _ in range(after):
                await asyncio.sleep(0)
            await cluster.terminate(agent)

        async with asyncio.timeout(10):
            report, _ = await asyncio.gather(cluster.migrate(agent, to="node-2"), ended(), return_exceptions=True)
        if isinstance(report, BaseException):
            assert isinstance(report, AgentTerminated)
        else:
            assert report.ok or "terminated" in report.reason or "has ended" in report.reason
        with pytest.raises(AgentTerminated):
            await agent.add()


class Unheard:
    """A log whose first `HandedOff` is stored, and its answer lost."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        outcome: Outcome = await self._log.append(subject, data, expect, owner)
        if not self.lost and subject.startswith(LOGS) and isinstance(decode_record(data, subject), HandedOff):
            self.lost += 1
            return Unknown("nobody has heard")
        return outcome


@pytest.mark.parametrize("target_is_lost", [False, True])
@virtually
async def test_a_handover_that_landed_unheard_is_claimed_back_if_its_target_is_lost(target_is_lost: bool) -> None:
    """The claim that meets the handover is refused; the next one, behind it, must not be."""
    settings = Settings(probation_s=0.6, handover_s=0.2, reconcile_s=60.0)
    async with nodes("node-1", "node-2", settings=settings) as (client, running):
        log = running["node-1"].home.log = Unheard(client.log)
        agent = await client.on("node-1").spawn(Unyielding, "a")

        async def dies(step: str) -> None:
            if step == "probe" and target_is_lost:
                running["node-2"].kill()
                raise asyncio.CancelledError

        running["node-2"].home.step = dies
        async with asyncio.timeout(5):
            report = await client.migrate(agent, to="node-2")
        assert log.lost == 1
        assert report.ok is not target_is_lost
        assert await agent.add.options(timeout=5)() == 1
        assert (await client.owner("a"))[0] == ("node-1" if target_is_lost else "node-2")


def test_an_order_to_a_node_that_is_frozen_ends_in_its_time() -> None:
    async def story() -> None:
        store = await Embedded.open(None)
        wall = asyncio.get_running_loop().time
        client = Client(store.log, store.wire, settings=Settings(turn_deadline_s=5.0), rng=Random(1))
        await client.open()
        node = Node("node-1", store.log, store.wire, classes.get, rng=Random(2), wall=wall)
        await node.start()
        agent = await client.spawn(Unyielding, "a")

        async def frozen(subject: str, data: bytes, timeout: float) -> bytes:
            await asyncio.sleep(timeout)
            raise WireTimeout("frozen", subject=subject)

        store.wire.request = frozen  # type: ignore[method-assign]
        orders: list[Callable[[], Awaitable[object]]] = [
            lambda: client.suspend(agent), lambda: client.terminate(agent), lambda: client.show(agent),
            lambda: client.claim(agent, to="node-1"),
        ]  # fmt: skip
        for order in orders:
            began = asyncio.get_running_loop().time()
            with pytest.raises(WireTimeout):
                await order()
            assert asyncio.get_running_loop().time() - began <= 7.0
        node.kill()
        await client.close()
        await store.close()

    run(story())


class Basin(cells.Agent):
    n: int = 0

    @cells.handler
    async def add(self) -> int:
        self.n += 1
        return self.n


class Spring(cells.Agent):
    @cells.handler
    async def flood(self, sink: Basin, count: int) -> None:
        for _ in range(count):
            await sink.add.tell()


SMALL = Settings(inbox_max=200)


async def test_an_inbox_holds_what_it_says_however_many_calls_come_at_once() -> None:
    async with cells.local(settings=SMALL) as cluster:
        sink = await cluster.spawn(Basin, "s")
        await cluster.suspend(sink)
        done = await asyncio.gather(*(sink.add.tell() for _ in range(1000)), return_exceptions=True)
        assert Counter(map(type, done)) == {type(None): 200, InboxFull: 800}
        assert done[:200] == [None] * 200, "in the order of the calls"
        assert (await cluster.show(sink)).waiting == 200
        await cluster.resume(sink)
        assert await eventually(sink.add, 201) == 201


async def test_messages_of_agents_wait_at_the_sender_while_the_receiver_has_no_room() -> None:
    async with cells.local(settings=SMALL) as cluster:
        sink, source = await cluster.spawn(Basin, "s"), await cluster.spawn(Spring, "f")
        await cluster.suspend(sink)
        sent = 0
        for _ in range(40):
            with contextlib.suppress(cells.CellError):
                await source.flood(sink, 20)
                sent += 20
        assert sent <= 3 * 200, "what waits at the sender is bounded as well"
        assert (await cluster.show(sink)).waiting <= 200 + 2 * 20, "one mail of a tenth may be on its way"
        await cluster.resume(sink)
        assert await eventually(sink.add, sent + 1) == sent + 1, "nothing that was committed is lost"


async def eventually(call: Any, wanted: int) -> int:
    """The first result that is at least `wanted`; each call that is too early counts itself, so it is wanted once more."""
    async with asyncio.timeout(10):
        early = 0
        while True:
            try:
                found: int = await call()
            except InboxFull:
                await asyncio.sleep(0.02)
                continue
            if found - early >= wanted:
                return found - early
            early += 1
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("begun", [False, True], ids=["at once", "while the inbox is counted"])
async def test_a_client_that_closes_ends_the_calls_that_wait_for_room(begun: bool) -> None:
    async with cells.local(settings=Settings(inbox_max=100)) as cluster:
        assert isinstance(cluster, Client)
        await cluster.spawn(Unyielding, "u")
        await cluster.suspend("u")
        client = Client(cluster.log, cluster.wire, settings=cluster.settings)
        await client.open()
        asks = [
            asyncio.create_task(client.get(Unyielding, "u").add()) for _ in range(60)
        ]  # more than a tenth of the inbox
        for _ in range(1 + 5 * begun):
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await client.close()
            ends = await asyncio.gather(*asks, return_exceptions=True)
        assert {type(end) for end in ends} == {cells.errors.NotConnected}
