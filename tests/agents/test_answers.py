"""What a handler raises is the answer of who asked, and a reason to run a tell again."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

import pytest
from support.virtual import virtually

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.store.reader import load

QUICK = cells.Settings(retry_first_s=0)
WAIT_S = 60.0

runs: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def no_runs() -> None:
    runs.clear()


class TicketShop(cells.Agent):
    stock: int = 5
    said: list[str] = []

    @cells.handler
    async def add(self, n: int = 0) -> int:
        self.stock += n
        return self.stock

    @cells.handler
    async def fail(self, text: str = "no", wait: bool = False) -> None:
        runs["fail"] += 1
        self.stock = 0
        self.said.append(text)
        if wait:
            await asyncio.sleep(0)
        raise ValueError(text)

    @cells.handler(tries=3)
    async def stubborn(self) -> int:
        runs["stubborn"] += 1
        if runs["stubborn"] < 3:
            raise ValueError("not yet")
        return runs["stubborn"]

    @cells.handler
    async def group(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._boom("tea"))
            tasks.create_task(self._boom("milk"))

    async def _boom(self, what: str) -> None:
        raise KeyError(what)

    @cells.handler
    async def sleeps(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @cells.handler
    async def through(self, other: TicketShop, how: str) -> None:
        if how == "fail":
            await other.fail()
        await cells.this().cluster.show("nobody")

    @cells.handler
    async def leave(self, how: str, wait: bool) -> None:
        if wait:
            await asyncio.sleep(0)
        raise {"GeneratorExit": GeneratorExit, "KeyboardInterrupt": KeyboardInterrupt, "SystemExit": SystemExit}[how]


async def dead(cluster: cells.Cluster, agent: str) -> list[tuple[str, str, int]]:
    assert isinstance(cluster, Client)
    return [(letter.handler, letter.cause, letter.tries) for letter in (await load(cluster.log, agent)).ledger.dead]


async def until_dead(cluster: cells.Cluster, agent: str, count: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while (await cluster.show(agent)).dead < count:
            await asyncio.sleep(0)


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "after a wait"])
async def test_an_error_of_an_asked_handler_is_its_answer_and_the_handler_runs_once(
    wait: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with cells.local(nodes=2) as cluster:
        shop = await cluster.spawn(TicketShop, "s")
        with pytest.raises(
            cells.HandlerFailed, match=r"TicketShop\.fail of agent 's' raised ValueError: why"
        ) as raised:
            await shop.fail("why", wait)
        assert (raised.value.kind, raised.value.cause, raised.value.tries) == ("ValueError", "ValueError: why", 1)
        assert runs["fail"] == 1
        assert await dead(cluster, "s") == []
        assert await shop.add() == 5, "the state is as before"
        await cluster.migrate(shop, to="node-2")
        assert await shop.add() == 5
    ours = [record for record in caplog.records if record.name.startswith("mielin_cells")]
    assert [record for record in ours if record.levelno >= logging.WARNING] == []
    assert caplog.text.count("Traceback") == 1, "the owner's log has it once"
    assert "raise ValueError(text)" in caplog.text


async def test_a_repeated_ask_gets_the_error_that_is_stored_also_elsewhere_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with cells.local(nodes=2, settings=cells.Settings(ask_repeat_s=0.05)) as cluster:
        assert isinstance(cluster, Client)
        shop = await cluster.spawn(TicketShop, "s")
        session, lost = cluster.session("s"), list[dict[int, bytes]]()
        monkeypatch.setattr(session, "receive", lost.append)
        asking = asyncio.create_task(shop.fail())
        async with asyncio.timeout(WAIT_S):
            while not lost:
                await asyncio.sleep(0)
            await cluster.migrate(shop, to="node-2")
            monkeypatch.undo()
            with pytest.raises(cells.HandlerFailed, match="ValueError: no"):
                await asking
        assert runs["fail"] == 1


async def test_more_runs_of_an_ask_are_asked_for() -> None:
    async with cells.local(settings=QUICK) as cluster:
        shop = await cluster.spawn(TicketShop, "s")
        assert await shop.stubborn() == 3
        runs["stubborn"] = -5
        with pytest.raises(cells.HandlerFailed, match=r"not yet \(run 3 times\)"):
            await shop.stubborn()
        assert await dead(cluster, "s") == []


async def test_a_tell_that_raises_is_run_five_times_and_then_a_dead_letter_with_its_traceback_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with cells.local(settings=QUICK) as cluster:
        shop = await cluster.spawn(TicketShop, "s")
        await shop.fail.tell("why")
        await until_dead(cluster, "s", 1)
        assert await dead(cluster, "s") == [("fail", "ValueError: why", 5)]
        assert runs["fail"] == 5
    assert caplog.text.count("Traceback") == 1


async def test_the_exceptions_of_a_group_are_named() -> None:
    async with cells.local() as cluster:
        shop = await cluster.spawn(TicketShop, "s")
        with pytest.raises(cells.HandlerFailed, match=r"KeyError: 'tea'; KeyError: 'milk'") as raised:
            await shop.group()
        assert raised.value.kind == "ExceptionGroup"
        assert raised.value.causes == ["KeyError: 'tea'", "KeyError: 'milk'"]


@virtually
async def test_a_turn_beyond_its_deadline_is_answered_as_that() -> None:
    async with cells.local(settings=cells.Settings(turn_deadline_s=0.05)) as cluster:
        shop = await cluster.spawn(TicketShop, "s")
        with pytest.raises(
            cells.errors.TurnDeadlineExceeded, match=r"TicketShop\.sleeps of agent 's' .* deadline of 0\.05 s"
        ):
            await shop.sleeps(60)
        assert await dead(cluster, "s") == []
        assert await shop.add() == 5


@pytest.mark.parametrize(
    ("how", "cause"), [("fail", "HandlerFailed: TicketShop.fail of agent 'b'"), ("show", "NoSuchAgent")]
)
async def test_an_error_of_an_agent_that_a_handler_asked_is_told_as_the_handlers_own(how: str, cause: str) -> None:
    async with cells.local() as cluster:
        a, b = await cluster.spawn(TicketShop, "a"), await cluster.spawn(TicketShop, "b")
        with pytest.raises(cells.UsageError) as raised:
            await a.through(b, how)
        error: Any = raised.value
        assert cause in (error.cause if how == "fail" else type(error).__name__)
        assert (await dead(cluster, "a"), await dead(cluster, "b")) == ([], [])
        assert runs["fail"] == (how == "fail")


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "after a wait"])
@pytest.mark.parametrize("how", ["GeneratorExit", "KeyboardInterrupt", "SystemExit"])
async def test_a_handler_that_ends_as_a_process_would_has_failed_and_its_agent_goes_on(how: str, wait: bool) -> None:
    async with cells.local(settings=QUICK) as cluster:
        shop = await cluster.spawn(TicketShop, "s")
        with pytest.raises(cells.HandlerFailed, match=how):
            await shop.leave(how, wait)
        await shop.leave.tell(how, wait)
        await until_dead(cluster, "s", 1)
        assert await shop.add(1) == 6
        assert (await cluster.show(shop)).state == "Running"
