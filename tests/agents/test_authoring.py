"""Agents of awkward authors, from end to end: whatever a handler or a hook raises, the agent goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.store.reader import load

QUICK = cells.Settings(retry_first_s=0, tries=2, ask_timeout_s=20)


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class NoException(BaseException):
    pass


class Closed(cells.UsageError):
    """An exception of a user's, with a signature of its own."""

    def __init__(self, shop: str) -> None:
        super().__init__(f"{shop} is closed.", shop=shop)


RAISED: dict[str, Callable[[], BaseException]] = {
    "half a character": lambda: ValueError("\ud800"),
    "very long": lambda: ValueError("x" * 2_000_000),
    "without text": Unreadable,
    "no Exception": NoException,
    "cancelled": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(2),
    "StopIteration": StopIteration,
    "group": lambda: ExceptionGroup("several", [ValueError("\ud800")]),
    "odd facts": lambda: cells.UsageError("\udfff no", big=2**70, mixed=[1, {}, "\ud800"], thing=object()),
    "a user's": lambda: Closed("bakery"),
}


class Rash(cells.Agent):
    count: int = 0
    names: list[str] = []

    @cells.handler
    async def fail(self, how: str, wait: bool) -> None:
        self.count += 100
        self.names.append(how)
        if wait:
            await asyncio.sleep(0)
        raise RAISED[how]()

    @cells.handler
    async def wait_for_a_cancelled_task(self) -> None:
        self.count += 100
        task = asyncio.create_task(asyncio.sleep(3600))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    @cells.handler
    async def add(self) -> tuple[int, list[str]]:
        self.count += 1
        return self.count, self.names


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "after a wait"])
@pytest.mark.parametrize("how", RAISED)
async def test_any_exception_of_a_handler_reaches_its_caller_and_the_agent_keeps_running_also_after_a_move(
    how: str, wait: bool
) -> None:
    async with cells.local(nodes=2, settings=QUICK) as cluster:
        agent = await cluster.spawn(Rash, "r")

        with pytest.raises(cells.UsageError) as raised:
            await agent.fail(how, wait)

        assert isinstance(raised.value, cells.HandlerFailed) is (how != "odd facts"), "whose class is not declared"
        assert await agent.add() == (1, [])
        assert (await cluster.migrate(agent)).ok
        assert await agent.add() == (2, [])
        assert (await cluster.show(agent)).dead == 0
        await agent.fail.tell(how, wait)
        assert await agent.add() == (3, [])
        assert isinstance(cluster, Client)
        (letter,) = (await load(cluster.log, "r")).ledger.dead
        assert (letter.handler, letter.tries > 0, len(letter.cause) < 10_000) == ("fail", True, True)


async def test_a_handler_that_waits_for_a_cancelled_task_has_failed_and_was_not_stopped() -> None:
    async with cells.local(settings=QUICK) as cluster:
        agent = await cluster.spawn(Rash, "r")

        with pytest.raises(cells.HandlerFailed, match="CancelledError") as raised:
            await agent.wait_for_a_cancelled_task()

        assert raised.value.tries == 1
        assert await agent.add() == (1, [])


async def test_dead_letters_of_any_cause_load_again(tmp_path: Path) -> None:
    async with cells.local(path=tmp_path / "store.db", settings=QUICK) as cluster:
        agent = await cluster.spawn(Rash, "r")
        for how in RAISED:
            await agent.fail.tell(how, True)
        assert await agent.add() == (1, [])
    async with cells.local(path=tmp_path / "store.db", settings=QUICK) as cluster:
        assert await cluster.get(Rash, "r").add() == (2, [])
        assert (await cluster.show("r")).dead == len(RAISED)


arrivals: dict[str, BaseException | None] = {}


class Moody(cells.Agent):
    arrived: int = 0

    async def on_arrive(self) -> None:
        self.arrived += 1
        if (error := arrivals.get(cells.this().node)) is not None:
            raise error

    @cells.handler
    async def ping(self) -> int:
        return self.arrived


@pytest.mark.parametrize("how", ["cancelled", "no Exception", "StopIteration"])
async def test_any_exception_of_on_arrive_puts_the_agent_in_error_until_it_is_resumed(how: str) -> None:
    arrivals.clear()
    arrivals["node-1"] = RAISED[how]()
    async with cells.local(settings=QUICK) as cluster:
        agent = await cluster.spawn(Moody, "m")
        assert (await cluster.show(agent)).state == "Error"

        arrivals.clear()
        await cluster.resume(agent)

        assert await agent.ping() == 1


@pytest.mark.parametrize("how", RAISED)
async def test_any_exception_of_on_arrive_at_the_target_leaves_the_agent_running_at_the_source(how: str) -> None:
    arrivals.clear()
    arrivals["node-2"] = RAISED[how]()
    once = RecoveryConfig(max_retries=0)
    async with cells.local(nodes=2, settings=QUICK, recovery=once) as cluster:
        agent = await cluster.spawn(Moody, "m")

        report = await cluster.migrate(agent, to="node-2")

        assert report.outcome == "rolled_back"
        assert report.reason
        assert (await cluster.show(agent)).node == "node-1"
        assert await agent.ping() >= 1
