"""Supervised loops and back-off: what fails is started again, is counted, and never waits longer than its cap."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine
from contextlib import closing
from typing import Any

import pytest

from mielin_cells.errors import StoreReadOnly
from mielin_cells.membership.heartbeat import Heartbeat, Listener
from mielin_cells.rpc.answers import Beat
from mielin_cells.settings import Settings
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Substrate
from mielin_cells.tasks.supervision import Backoff, Duties, supervised
from mielin_cells.testing.simulator.loop import VirtualLoop


def run_virtually(work: Coroutine[Any, Any, Any]) -> Any:
    with closing(VirtualLoop()) as loop:
        return loop.run_until_complete(work)


def test_a_loop_that_raises_is_started_again_counted_and_logged_once_for_each_kind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs, failures = 0, Counter[str]()

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs < 4:
            raise OSError("full") if runs != 2 else ValueError("odd")

    with caplog.at_level(logging.ERROR):
        run_virtually(supervised("failover", loop, failures=failures))
    assert runs == 4
    assert failures == {"failover": 3}
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert all(record.exc_info for record in caplog.records)


def test_a_cancelled_loop_is_not_started_again() -> None:
    async def story() -> int:
        runs = 0

        async def loop() -> None:
            nonlocal runs
            runs += 1
            await asyncio.Event().wait()

        task = asyncio.ensure_future(supervised("x", loop))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()
        return runs

    assert run_virtually(story()) == 1


def test_a_wait_doubles_up_to_its_cap_and_a_wake_ends_it() -> None:
    async def story() -> None:
        clock, backoff = asyncio.get_running_loop().time, Backoff(1.0, 3.0)
        waited = []
        for _ in range(4):
            began = clock()
            await backoff.wait()
            waited.append(clock() - began)
        assert waited == pytest.approx([1.0, 2.0, 3.0, 3.0])
        backoff.reset()
        assert backoff.delay_s == 1.0
        began = clock()
        asyncio.get_running_loop().call_later(0.25, backoff.wake)
        await backoff.wait()
        assert clock() - began == pytest.approx(0.25)

    run_virtually(story())


def test_a_failing_duty_is_logged_once_and_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    done, failures = list[int](), Counter[str]()

    async def story() -> None:
        duties = Duties("node-1", failures)
        for number in range(5):

            async def fails(number: int = number) -> None:
                if number < 3:
                    raise StoreReadOnly("Nobody writes here.")

            await duties.do("one", fails)
            await duties.do("other", lambda number=number: done.append(number))  # type: ignore[misc]

    with caplog.at_level(logging.WARNING):
        run_virtually(story())
    assert done == [0, 1, 2, 3, 4]
    assert failures == {"one": 3}
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_a_heartbeat_that_fails_in_an_unforeseen_way_beats_again() -> None:
    async def story() -> None:
        store, tries, listener = await Embedded.open(), 0, Listener()
        listener.wants_all = True

        async def connect() -> Substrate:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise OSError("no more files")
            return await Embedded.open()

        heartbeat = Heartbeat(
            "node-1", connect, Settings(heartbeat_s=0.02), listener, lambda stuck_s: (Beat("node-1", 3, stuck_s), False)
        )
        heartbeat.start()
        try:
            async with asyncio.timeout(30):
                while not heartbeat.listener.beats():
                    await asyncio.sleep(0.01)
        finally:
            await heartbeat.stop()
            await store.close()
        [beat] = heartbeat.listener.beats()
        assert (beat.node, beat.incarnation) == ("node-1", 3)
        assert heartbeat.failures.total() == 1

    asyncio.run(story())
