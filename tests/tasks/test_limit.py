"""So much work at the same time, by count and by bytes, and in order."""

from __future__ import annotations

import asyncio

from mielin_cells.tasks.limit import Limit


class Work:
    """Pieces of work that hold bytes, and end when they are told to."""

    def __init__(self, count: int, size: int, patience_s: float = 60.0) -> None:
        self.limit = Limit(count, size, patience_s)
        self.running, self.most, self.most_bytes = dict[str, int](), 0, 0
        self.ends = dict[str, asyncio.Event]()
        self.tasks = dict[str, asyncio.Task[None]]()

    def start(self, name: str, *sizes: int) -> None:
        self.ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._run(name, sizes))

    async def _run(self, name: str, sizes: tuple[int, ...]) -> None:
        async with self.limit.place() as place:
            for size in sizes:
                await place.hold(size)
            self.running[name] = max(sizes, default=0)
            self.most, self.most_bytes = (
                max(self.most, len(self.running)),
                max(self.most_bytes, sum(self.running.values())),
            )
            try:
                await self.ends[name].wait()
            finally:
                del self.running[name]

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await self.tasks[name]
        await turns()


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_so_many_run_at_the_same_time_and_the_next_begins_when_one_ends() -> None:
    work = Work(2, 100)
    for name in "abcd":
        work.start(name)
    await turns()
    assert list(work.running) == ["a", "b"]
    await work.end("b")
    assert list(work.running) == ["a", "c"]
    work.start("e")
    await work.end("a")
    await work.end("c")
    assert list(work.running) == ["d", "e"]


async def test_they_hold_so_many_bytes_together_and_none_is_passed() -> None:
    work = Work(9, 100)
    for name, size in (("a", 60), ("b", 60), ("c", 10)):
        work.start(name, size)
    await turns()
    assert list(work.running) == ["a"]  # the small one does not pass the large one, which would wait for ever
    await work.end("a")
    assert list(work.running) == ["b", "c"]


async def test_one_that_is_larger_than_the_limit_runs_alone() -> None:
    work = Work(9, 100)
    for name, size in (("a", 10), ("b", 500), ("c", 10)):
        work.start(name, size)
    await turns()
    assert list(work.running) == ["a"]
    await work.end("a")
    assert list(work.running) == ["b"]
    await work.end("b")
    assert list(work.running) == ["c"]


async def test_one_that_wants_more_does_not_wait_for_the_others() -> None:
    """Each would wait for what the other has."""
    limit = Limit(9, 100, 60.0)
    async with limit.place() as one, limit.place() as other:
        await one.hold(50)
        await other.hold(50)
        async with asyncio.timeout(30):
            await asyncio.gather(one.hold(80), other.hold(80))
        assert limit.bytes == 160
    assert limit.bytes == 0


async def test_what_is_cancelled_takes_nothing_and_leaves_nothing() -> None:
    work = Work(1, 100)
    for name in "abc":
        work.start(name, 100)
    await turns()
    work.tasks["b"].cancel()
    work.ends["a"].set()  # the place may just have been given to the one that is cancelled
    await turns()
    assert list(work.running) == ["c"]
    work.tasks["c"].cancel()
    await turns()
    work.start("d", 100)
    await turns()
    assert list(work.running) == ["d"]

    wide = Work(9, 100)
    for name in "abc":
        wide.start(name, 100)
    await turns()
    wide.tasks["b"].cancel()
    await wide.end("a")
    assert list(wide.running) == ["c"]
    assert wide.limit.bytes == 100


async def test_one_that_hangs_keeps_its_place_for_a_while_only() -> None:
    work = Work(1, 100, patience_s=0.05)
    work.start("hangs", 100)
    work.start("next", 100)
    await turns()
    assert list(work.running) == ["hangs"]
    async with asyncio.timeout(30):
        while "next" not in work.running:
            await asyncio.sleep(0.01)
    await work.end("hangs")
    await work.end("next")
    assert work.limit.bytes == 0
