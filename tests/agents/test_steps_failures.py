"""Durable steps that fail: which calls are made again, and what a turn gets in the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.step_world import NO_WAIT, QUICK, Chat, anew, world
from support.virtual import virtually

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.store.reader import load


@pytest.fixture(autouse=True)
def _fresh() -> None:
    anew()


# ---- failures ------------------------------------------------------------------------------------------------------


class Careful(cells.Agent):
    @cells.handler
    async def go(self, tries: int) -> tuple[str, int]:
        world.runs += 1
        try:
            await cells.step("model", world.model, "a", retry=cells.Retry(tries=tries, first_s=0))
        except cells.StepFailed as error:
            if world.runs == 1:
                raise OSError("run again") from error
            return error.cause, error.tries
        return "", 0

    @cells.handler
    async def falls(self) -> None:
        world.runs += 1
        await cells.step("model", world.model, "a", retry=NO_WAIT)

    @cells.handler
    async def picky(self) -> None:
        await cells.step("model", world.model, "a", retry=cells.Retry(first_s=0, on=(TimeoutError,)))

    @cells.handler
    async def limited(self) -> str:
        async def hangs() -> None:
            world.calls.append("hangs")
            await asyncio.Event().wait()

        try:
            await cells.step("hangs", hangs, timeout=0.01, retry=cells.Retry(tries=2, first_s=0))
        except cells.StepFailed as error:
            return str(error.cause)
        return ""


async def test_a_call_that_raises_is_made_again_by_the_policy() -> None:
    async with cells.local(settings=QUICK) as cluster:
        world.fails["a"] = 2
        chat = await cluster.spawn(Chat, "c")
        assert await chat.say(prompts=["a"]) == ["a!"]
        assert (world.runs, world.calls) == (1, ["a"] * 3)
        assert len(set(world.keys)) == 1


async def test_a_failure_is_an_outcome_that_a_turn_run_again_gets_too() -> None:
    async with cells.local(settings=QUICK) as cluster:
        world.fails["a"] = 9
        agent = await cluster.spawn(Careful, "c")
        assert await agent.go(2) == ("ConnectionError: a busy", 2)
        assert (world.runs, len(world.calls)) == (2, 2)


async def test_a_failure_that_nobody_catches_closes_the_message_at_once() -> None:
    async with cells.local(settings=QUICK) as cluster:
        world.fails["a"] = 9
        agent = await cluster.spawn(Careful, "c")
        with pytest.raises(cells.StepFailed, match="ConnectionError: a busy") as raised:
            await agent.falls()
        assert (raised.value.step, raised.value.tries) == ("model", 3)
        assert (world.runs, len(world.calls)) == (1, 3)
        assert await agent.go(1) == ("ConnectionError: a busy", 1)


async def test_only_what_the_policy_names_is_tried_again() -> None:
    async with cells.local(settings=QUICK) as cluster:
        world.fails["a"] = 1
        agent = await cluster.spawn(Careful, "c")
        with pytest.raises(cells.StepFailed):
            await agent.picky()
        assert world.calls == ["a"]


@virtually
async def test_a_call_has_a_limit_of_its_own_and_the_turns_deadline_rests_meanwhile() -> None:
    async with cells.local(settings=QUICK) as cluster:
        agent = await cluster.spawn(Careful, "c")
        assert (await agent.limited()).startswith("TimeoutError")
        assert world.calls == ["hangs"] * 2
    async with cells.local(settings=cells.Settings(turn_deadline_s=0.02, retry_first_s=0)) as cluster:
        world.gates["a"] = asyncio.Event()
        chat = await cluster.spawn(Chat, "c")
        asyncio.get_running_loop().call_later(0.1, world.gates["a"].set)
        assert await chat.say(prompts=["x", "a"]) == ["x!", "a!"]
        assert (world.runs, world.calls) == (1, ["hangs", "hangs", "x", "a"])
        world.gates["b"] = asyncio.Event()
        asyncio.get_running_loop().call_later(0.1, world.gates["b"].set)
        assert await chat.say(prompts=["b"]) == ["b!"]
        assert world.runs == 2


@virtually
async def test_the_turns_deadline_begins_anew_behind_a_step() -> None:
    class Hangs(cells.Agent):
        @cells.handler(tries=1)
        async def go(self) -> str:
            await asyncio.sleep(0)
            said = await cells.step("model", world.model, "a")
            await asyncio.Event().wait()
            return said

    async with cells.local(settings=cells.Settings(turn_deadline_s=0.05)) as cluster:
        world.gates["a"] = asyncio.Event()
        agent = await cluster.spawn(Hangs, "h")
        asyncio.get_running_loop().call_later(0.2, world.gates["a"].set)
        with pytest.raises(cells.errors.TurnDeadlineExceeded, match=r"Hangs.go of agent 'h' .* deadline of 0.05 s"):
            await agent.go()
        await agent.go.tell()
        asyncio.get_running_loop().call_later(0.2, world.gates["a"].set)
        async with asyncio.timeout(30):
            while not (await cluster.show(agent)).dead:
                await asyncio.sleep(0.01)
        fold = await load(cluster.log, "h") if isinstance(cluster, Client) else None
        assert fold is not None
        assert fold.ledger.dead[0].asks == ["step 'model'"], (
            "the call was not cut, though it took longer than the turn may"
        )


@pytest.mark.parametrize("bad", ["OSError", OSError, (1,), [OSError]], ids=repr)
def test_retries_are_declared_by_exception_classes(bad: Any) -> None:
    with pytest.raises(cells.ConfigError, match="a tuple of exception classes"):
        cells.Retry(on=bad)


@pytest.mark.parametrize(
    "bad", [{"tries": 0}, {"tries": 1.5}, {"tries": True}, {"first_s": -1}, {"max_s": float("nan")}], ids=str
)
def test_a_policy_that_cannot_be_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(cells.ConfigError, match=rf"Retry\({next(iter(bad))}="):
        cells.Retry(**bad)


def test_waits_double_up_to_the_longest() -> None:
    retry = cells.Retry(tries=10, first_s=1, max_s=30)
    assert [retry.wait_s(n) for n in (1, 2, 3, 6, 10_000)] == [1, 2, 4, 30, 30]
