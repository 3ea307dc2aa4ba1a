"""Supervised loops and back-off: what fails is started again, is counted, and never waits longer than its cap."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine
from contextlib import closing
from typing import Any

import pytest

from mielin_cells.node.supervision import Backoff, supervised
from mielin_cells.testing.loop import VirtualLoop


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
