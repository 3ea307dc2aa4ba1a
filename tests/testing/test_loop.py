"""Virtual time, and processes that are paused and killed in it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator

import pytest

from mielin_cells.testing.simulator.loop import Deadlock, Killed, Livelock, Process, VirtualLoop, run


def loop_of() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def test_hours_pass_at_once() -> None:
    async def main() -> float:
        await asyncio.sleep(7 * 3600)
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert run(main()) == pytest.approx(7 * 3600)
    assert time.monotonic() - began < 60


def test_timers_fire_in_order_of_time_and_callbacks_in_order_of_call() -> None:
    async def main() -> list[str]:
        seen: list[str] = []
        loop = asyncio.get_running_loop()
        loop.call_later(2, seen.append, "two")
        loop.call_later(1, seen.append, "one")
        cancelled = loop.call_later(1.5, seen.append, "never")
        cancelled.cancel()
        for n in range(3):
            loop.call_soon(seen.append, f"soon {n}")
        loop.call_soon_threadsafe(seen.append, "soon 3")
        await asyncio.sleep(3)
        return seen

    assert run(main()) == ["soon 0", "soon 1", "soon 2", "soon 3", "one", "two"]


def test_timeouts_and_task_groups_work_in_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(1))
            group.create_task(asyncio.sleep(5))
        return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(35)


def test_waiting_for_nothing_is_a_deadlock() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match="nothing can happen"):
        run(main())


def test_spinning_is_a_livelock() -> None:
    async def main() -> None:
        for _ in range(10_000):
            await asyncio.sleep(0)

    with pytest.raises(Livelock):
        run(main(), steps_max=1000)


def test_threads_are_refused() -> None:
    async def main() -> None:
        await asyncio.to_thread(print)

    with pytest.raises(RuntimeError, match="no threads"):
        run(main())


def test_leftover_tasks_are_cancelled() -> None:
    ended: list[str] = []

    async def left() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("left")

    async def main() -> None:
        task = loop_of().create_task(left())
        await asyncio.sleep(0)
        assert not task.done()

    run(main())
    assert ended == ["left"]


def test_an_exception_that_nobody_has_caught_fails_the_run() -> None:
    async def fails() -> None:
        raise ValueError("unseen")

    async def main() -> None:
        task = loop_of().create_task(fails())
        await asyncio.sleep(1)
        assert task.done()

    with pytest.raises(ExceptionGroup) as caught:
        run(main())
    assert [str(e) for e in caught.value.exceptions] == ["unseen"]


def test_an_exception_in_a_callback_fails_the_run() -> None:
    def fails() -> None:
        raise ValueError("in a callback")

    async def main() -> None:
        asyncio.get_running_loop().call_soon(fails)
        await asyncio.sleep(1)

    with pytest.raises(ExceptionGroup):
        run(main())


def test_a_paused_process_takes_no_step_until_it_resumes_and_then_takes_all_of_them_in_order() -> None:
    async def main() -> list[tuple[int, float]]:
        seen: list[tuple[int, float]] = []
        loop = loop_of()
        process = Process(loop, "p")

        async def ticks() -> None:
            for n in range(4):
                seen.append((n, loop.time()))
                await asyncio.sleep(1)

        task = process.start(ticks())
        await asyncio.sleep(1.5)
        assert not task.done()
        process.pause()
        await asyncio.sleep(10)
        assert len(seen) == 2
        process.resume()
        await asyncio.sleep(10)
        return seen

    assert [(n, round(at, 3)) for n, at in run(main())] == [(0, 0), (1, 1), (2, 11.5), (3, 12.5)]


def test_a_killed_process_takes_no_step_not_even_in_finally() -> None:
    steps: list[str] = []

    async def child() -> None:
        try:
            await asyncio.sleep(3)
            steps.append("child")
        finally:
            if loop_of().time() < 50:
                steps.append("child finally")

    async def main() -> None:
        process = Process(loop_of(), "p")

        async def parent() -> None:
            child_task = asyncio.get_running_loop().create_task(child())
            asyncio.get_running_loop().call_later(3, steps.append, "timer")
            await child_task

        task = process.start(parent())
        await asyncio.sleep(1)
        assert len(process.tasks()) == 2
        process.kill()
        task.cancel()
        await asyncio.sleep(100)
        assert not task.done()

    run(main())
    gc.collect()
    assert steps == []


def test_waiting_for_a_killed_process_raises_killed() -> None:
    async def main() -> None:
        process = Process(loop_of(), "p")
        assert await process.run(asyncio.sleep(1, "result")) == "result"
        loop_of().call_later(1, process.kill)
        with pytest.raises(Killed):
            await process.run(asyncio.sleep(10))
        with pytest.raises(Killed):
            await process.run(asyncio.sleep(10))

    run(main())


def test_a_dead_process_with_awaits_in_finally_is_buried_without_a_sound() -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            try:
                await asyncio.sleep(10)
            finally:
                await asyncio.sleep(10)

    async def main() -> None:
        process = Process(loop_of(), "p")
        task = process.start(stubborn())
        await asyncio.sleep(1)
        process.kill()
        assert not task.done()

    run(main())


def test_a_dead_process_with_an_open_generator_is_buried_without_a_sound() -> None:
    """Its generator stands still for ever: in an await, or in one of a `finally`."""

    async def lines() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(5)
            yield 2
        finally:
            for _ in range(100):
                await asyncio.sleep(1)

    async def main(killed_at: float) -> None:
        process = Process(loop_of(), "p")

        async def follow() -> None:
            async for _ in lines():
                pass

        task = process.start(follow())
        await asyncio.sleep(killed_at)
        process.kill()
        assert not task.done()

    for killed_at in (0, 1, 7):
        run(main(killed_at))
        gc.collect()


def test_a_task_that_refuses_to_end_fails_the_run() -> None:
    async def refuses() -> None:
        while loop_of().time() < 100:
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                continue

    async def main() -> None:
        task = loop_of().create_task(refuses())
        await asyncio.sleep(0.1)
        assert not task.done()

    with pytest.raises(RuntimeError, match="do not end"):
        run(main())
