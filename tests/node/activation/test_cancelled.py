"""Cancellation in and around turns: by the node that wants to move the agent, and by handlers that cancel what runs them."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from support.logs import HeldLog
from support.moving import nodes
from support.virtual import virtually

import mielin_cells as cells
from mielin_cells.errors import Cancelled, StoreUnreachable
from mielin_cells.log.ids import log_subject
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Outcome

QUICK = cells.Settings(ask_repeat_s=0.2, reconcile_s=600.0, pause_s=0.3)

runs: dict[str, int] = {}
"""Of the agents of this file: not state, so it outlasts a turn that is undone."""


@pytest.fixture(autouse=True)
def _fresh() -> None:
    runs.clear()


class Odd(cells.Agent):
    count: int = 0

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count

    @cells.handler
    async def cancel_itself(self) -> int:
        self.count += 1
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return self.count

    @cells.handler
    async def limit_by_hand(self, seconds: float) -> int:
        """And the limit is not taken back."""
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(seconds, task.cancel)
        self.count += 1
        return self.count

    @cells.handler(cancellable=True)
    async def keep_it(self) -> int:
        self.count += 1
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)
        return self.count

    @cells.handler(cancellable=True)
    async def clean_up_slowly(self) -> int:
        self.count += 1
        runs["slow"] = runs.get("slow", 0) + 1
        if runs["slow"] == 1:
            try:
                await asyncio.sleep(30)
            finally:
                await asyncio.sleep(0.6)  # twice the pause
        return self.count

    @cells.handler
    async def have_limits(self) -> str:
        """Has a time limit that comes to nothing, waits, and puts things in order when it is cancelled."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.sleep(30)
        runs["waits"] = 1
        try:
            await asyncio.sleep(30)
        finally:
            runs["in order"] = 1
        return ""

    @cells.handler(cancellable=True)
    async def never_end(self, seconds: float) -> None:
        """Goes on when it is cancelled, for as long as its time limit lasts."""
        runs["begun"] = runs.get("begun", 0) + 1
        async with asyncio.timeout(seconds) as limit:
            while not limit.expired():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(30)

    @cells.handler
    async def pay(self, seconds: float) -> int:
        return await cells.step("pay", paid, seconds)


async def paid(seconds: float) -> int:
    runs["paid"] = runs.get("paid", 0) + 1
    await asyncio.sleep(seconds)
    return runs["paid"]


class AwayLog(HeldLog):
    """A log whose agents' records cannot be appended for a while."""

    is_away = False

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        if self.is_away and subject == log_subject("o"):
            raise StoreUnreachable("The store is away.", subject=subject)
        return await self.log.append(subject, data, expect, owner)


async def test_a_handler_that_cancels_its_task_without_waiting_is_answered() -> None:
    async with nodes("node-1", "node-2", settings=QUICK) as (client, _):
        odd = await client.on("node-1").spawn(Odd, "o")
        assert await odd.cancel_itself() == 1
        assert await odd.add() == 2
        assert (await client.migrate(odd, to="node-2")).ok


@virtually
async def test_a_cancellation_that_outlives_its_turn_loses_no_commit() -> None:
    """What was sealed must be appended, or never built on: else the log has a digest of what it does not hold."""
    async with nodes("node-1", settings=QUICK) as (client, running):
        odd = await client.on("node-1").spawn(Odd, "o")
        away = running["node-1"].activations.live["o"].writer._log = AwayLog(running["node-1"].home.log)
        assert await odd.add() == 1
        away.is_away = True
        limited = asyncio.ensure_future(odd.limit_by_hand(0.1))
        await asyncio.sleep(0.4)
        away.is_away = False
        assert await limited == 2
        assert await odd.add() == 3
        assert (await load(away.log, "o")).ledger.cursor == running["node-1"].activations.live["o"].fold.ledger.cursor


@virtually
async def test_a_turn_that_keeps_its_cancellation_is_moved_with_its_effect() -> None:
    async with nodes("node-1", "node-2", settings=QUICK) as (client, running):
        odd = await client.on("node-1").spawn(Odd, "o")
        kept = asyncio.ensure_future(odd.keep_it())
        while running["node-1"].activations.live["o"].runner.turn is None:
            await asyncio.sleep(0)
        assert (await client.migrate(odd, to="node-2")).ok
        assert await kept == 1
        assert await odd.add() == 2


@virtually
async def test_a_turn_that_is_cancelled_and_ends_long_after_the_pause_runs_again() -> None:
    """Before, its task ended with it, and nobody went on with the inbox until the next message came."""
    async with nodes("node-1", "node-2", settings=QUICK) as (client, running):
        odd = await client.on("node-1").spawn(Odd, "o")
        slow = asyncio.ensure_future(odd.clean_up_slowly())
        while running["node-1"].activations.live["o"].runner.turn is None:
            await asyncio.sleep(0)
        report = await client.migrate(odd, to="node-2")
        assert not report.ok
        assert await slow == 1
        assert runs["slow"] == 2


async def test_a_handler_that_has_just_been_cancelled_is_not_abandoned_for_an_earlier_time_limit_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Seed 51000702: the pause that had begun with the time limit ended between the cancel and the handler's next step."""
    async with nodes("node-1", settings=QUICK) as (client, running):
        odd, loop = await client.spawn(Odd, "o"), asyncio.get_running_loop()
        asked = asyncio.ensure_future(odd.have_limits())
        while "waits" not in runs:
            await asyncio.sleep(0.001)
        runner = running["node-1"].activations.live["o"].runner
        turn = runner.turn
        assert turn is not None
        loop.call_soon(runner.cancel, turn.sender, turn.n)
        time.sleep(2 * QUICK.pause_s)  # noqa: ASYNC251 - both are due in the same pass of the loop, the cancel first
        assert await odd.add() == 1
        assert runs["in order"] == 1
        assert not [record for record in caplog.records if "is abandoned" in record.getMessage()]
        with pytest.raises(Cancelled):
            await asked


async def test_a_time_limit_of_an_abandoned_handler_does_not_cancel_the_turns_after_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Seed 51000702: it cancelled the task that ran the agent's turns, and a step that had been paid was paid again."""
    async with nodes("node-1", settings=QUICK) as (client, running):
        odd, clock = await client.spawn(Odd, "o"), asyncio.get_running_loop().time
        until = clock() + 1.5
        asked = asyncio.ensure_future(odd.never_end(1.5))
        while "begun" not in runs:
            await asyncio.sleep(0.001)
        runner = running["node-1"].activations.live["o"].runner
        turn = runner.turn
        assert turn is not None
        runner.cancel(turn.sender, turn.n)
        assert await odd.pay(until + 0.1 - clock()) == 1
        assert clock() > until
        assert runs == {"begun": 1, "paid": 1}
        assert [record for record in caplog.records if "It is abandoned" in record.getMessage()]
        assert await odd.add() == 1
        with pytest.raises(Cancelled):
            await asked
