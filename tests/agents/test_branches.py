"""Calls of one turn at the same time: whatever comes first in one run comes first in every other (rule T6).

Each handler of `HOLDS` is run three times with other delays: the first run ends in the middle, the second at its end, and the third
is answered.  What the second does must be what the third does.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import uvloop

import mielin_cells as cells
from mielin_cells.errors import NonDeterministicTurn
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import Asked, Committed, Stepped, decode_record

QUICK = cells.Settings(ask_timeout_s=20, retry_first_s=0)
NO_RETRY = cells.Retry(tries=1)
SEEDS = 6


class Echo(cells.Agent, name="BranchEcho"):
    heard: list[str] = []

    @cells.handler
    async def say(self, what: str) -> str:
        if World.rng.random() < 0.5:
            await asyncio.sleep(World.rng.random() * 0.003)
        self.heard.append(what)
        return f"{what}!"

    @cells.handler
    async def all(self) -> list[str]:
        return self.heard


class Ended(Exception):
    """A run is to end here."""


class World:
    rng = random.Random(0)
    called: list[str] = []
    runs: list[list[Any]] = []
    records_end = True
    ends_at = 0
    """The first run ends after so many notes."""


async def outside(what: str, delay: float) -> str:
    World.called.append(what)
    await asyncio.sleep(World.rng.random() * delay)
    if what.startswith("fail") and World.rng.random() < 0.6:
        raise ValueError(what)
    return f"{what}?{World.rng.randrange(10**6)}"


class Turns:
    """What a handler under test calls: steps and asks, mixed, and notes of what it has seen."""

    def __init__(self, echo: Echo) -> None:
        self.echo = echo
        self.trace: list[Any] = []

    async def call(self, name: str, body: object = None, delay: float = 0.002) -> str:
        what = f"{name} {body}"
        self.check()
        if hash_of(what) % 2 or name == "fail":
            return await cells.step(name, outside, what, delay, retry=NO_RETRY)
        return await self.echo.say(what)

    def note(self, *what: Any) -> None:
        self.trace.append(what)
        self.check()

    def check(self) -> None:
        """The first run ends here, if it is to, and calls nothing more in other branches."""
        if len(World.runs) == 1 and len(self.trace) > World.ends_at:
            raise Ended


def hash_of(text: str) -> int:
    return sum(text.encode())


script: list[Callable[[Turns], Awaitable[Any]]] = []


class Player(cells.Agent, name="BranchPlayer"):
    echo: Echo
    result: str = ""

    @cells.handler(tries=3)
    async def play(self) -> str:
        turns = Turns(self.echo)
        World.runs.append(turns.trace)
        self.result = repr(await script[0](turns))
        turns.check()
        if World.records_end:
            await cells.step("end", len, self.result)  # behind all that the run was given
        turns.trace.append(("end", self.result))
        if len(World.runs) < 3:
            raise Ended
        return self.result


# ---- handlers ------------------------------------------------------------------------------------------------


async def leg(t: Turns, who: object, n: int = 2, name: str = "x") -> list[str]:
    out = []
    for k in range(n):
        out.append(await t.call(name, (who, k)))
        t.note(who, k, out[-1])
    return out


async def gather(t: Turns) -> Any:
    return await asyncio.gather(*(leg(t, k) for k in range(3)))


async def completed_tasks(t: Turns) -> Any:
    for f in asyncio.as_completed([asyncio.create_task(leg(t, k)) for k in range(3)]):
        t.note("next", await f)
        await t.call("after", len(t.trace))


async def completed_done(t: Turns) -> Any:
    tasks = [asyncio.create_task(leg(t, k, 1)) for k in range(6)]
    await asyncio.gather(*tasks)
    return [await t.call("after", await f) for f in asyncio.as_completed(tasks)]


async def first(t: Turns) -> Any:
    todo = {asyncio.create_task(leg(t, k)) for k in range(4)}
    while todo:
        done, todo = await asyncio.wait(todo, return_when=asyncio.FIRST_COMPLETED)
        t.note("done", len(done))
        for one in done:
            await t.call("after", one.result())
        if len(todo) == 1:
            todo.pop().cancel()


async def group(t: Turns) -> Any:
    async def clean(k: int) -> None:
        try:
            await leg(t, k, 3)
        except asyncio.CancelledError:
            t.note(k, "cancelled")
            await t.call("clean", k)
            raise

    try:
        async with asyncio.TaskGroup() as g:
            for k in range(3):
                g.create_task(clean(k))
            g.create_task(leg(t, "f", 1, name="fail"))
    except* cells.StepFailed:
        t.note("failed")
        await t.call("undo")


async def nested(t: Turns) -> Any:
    async def inner(k: int) -> Any:
        async with asyncio.TaskGroup() as g:
            a = g.create_task(leg(t, (k, "a"), 1, name="fail"))
            b = g.create_task(leg(t, (k, "b")))
        return a.result(), b.result()

    return len(await asyncio.gather(inner(0), inner(1), gather(t), return_exceptions=True))


async def lock(t: Turns) -> Any:
    guard = asyncio.Lock()

    async def use(k: int) -> None:
        await t.call("before", k)
        async with guard:
            await leg(t, k)

    await asyncio.gather(*(use(k) for k in range(3)))


async def queue(t: Turns) -> Any:
    q: asyncio.Queue[Any] = asyncio.Queue(1)

    async def put(k: int) -> None:
        for v in await leg(t, k):
            await q.put((k, v))

    async def take() -> None:
        for _ in range(6):
            await t.call("took", await q.get())

    await asyncio.gather(take(), *(put(k) for k in range(3)))


async def event(t: Turns) -> Any:
    opens, few = asyncio.Event(), asyncio.Semaphore(2)

    async def wait(k: int) -> None:
        await opens.wait()
        async with few:
            await leg(t, k)

    async def fire() -> None:
        await t.call("y")
        opens.set()

    await asyncio.gather(fire(), *(wait(k) for k in range(3)))


async def deep(t: Turns) -> Any:
    f: Any = asyncio.gather(leg(t, 0, 1), leg(t, 1, 1))
    for _ in range(6):
        f = asyncio.gather(f)
    done, _ = await asyncio.wait(
        [asyncio.ensure_future(f), asyncio.create_task(leg(t, 2, 1)), asyncio.create_task(leg(t, 3, 1))],
        return_when=asyncio.FIRST_COMPLETED,
    )
    return await t.call("after", len(done))


async def sleeps(t: Turns) -> Any:
    async def nap(k: int) -> str:
        await asyncio.sleep(0.0007 * k)
        t.note("woke", k)
        return await t.call("woke", k)

    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(leg(t, "a")), *(asyncio.create_task(nap(k)) for k in (1, 2))]
    for f in asyncio.as_completed(tasks):
        await t.call("after", repr(await f))


async def timeout(t: Turns) -> Any:
    try:
        async with asyncio.timeout(0.001):
            await leg(t, "a")
    except TimeoutError:
        await t.call("late")


async def wait_for(t: Turns) -> Any:
    try:
        await asyncio.wait_for(leg(t, "a"), 0.001)
    except TimeoutError:
        await t.call("late")


async def wait_timeout(t: Turns) -> Any:
    done, todo = await asyncio.wait([asyncio.create_task(leg(t, k)) for k in range(3)], timeout=0.001)
    for one in done:
        one.result()  # a run that is to end in it ends here
    return await t.call("after", (len(done), len(todo)))


async def before_and_after(t: Turns) -> Any:
    one = await t.call("one"), await t.call("two")
    both = await asyncio.gather(leg(t, 0), leg(t, 1))
    return one, both, await t.call("three"), await t.call("four")


HOLDS = [
    gather, completed_tasks, completed_done, first, group, nested, lock, queue, event, deep, sleeps, timeout, wait_for, wait_timeout,
    before_and_after,
]  # fmt: skip


def test_runs_are_alike_in_uvloop() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for handler in HOLDS:
            runner.run(test_runs_are_alike_whatever_comes_first(handler, 1))


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("handler", HOLDS, ids=lambda handler: handler.__name__)
async def test_runs_are_alike_whatever_comes_first(handler: Any, seed: int) -> None:
    World.rng, World.called, World.runs = random.Random(seed), [], []
    World.ends_at = World.rng.randrange(4)
    script[:] = [handler]
    async with cells.local(settings=QUICK) as c:
        echo = await c.spawn(Echo, "echo")
        player = await c.spawn(Player, "p", echo=echo)
        result = await player.play()
        _, second, third = World.runs
        assert second == third
        assert third[-1] == ("end", result)
        heard = Counter(await echo.all())
        assert all(count == 1 for count in heard.values()), heard
        assert all(count <= 3 for count in Counter(World.called).values())


# ---- what is recorded ----------------------------------------------------------------------------------------


async def records_of(c: Any, agent: str) -> list[Any]:
    return [decode_record(entry.data, agent) for entry in await c.log.read(log_subject(agent), 0, 500)]


async def test_a_fan_out_of_asks_is_one_record_and_the_commit() -> None:
    async def fan_out(t: Turns) -> Any:
        return await asyncio.gather(*(t.echo.say(f"{k}") for k in range(10)))

    World.runs = [[], []]
    script[:] = [fan_out]
    async with cells.local(settings=QUICK) as c:
        echo = await c.spawn(Echo, "echo")
        assert "9!" in await (await c.spawn(Player, "p", echo=echo)).play()
        kinds = [record for record in await records_of(c, "p") if isinstance(record, (Asked, Stepped))]
        assert [len(record.outs) for record in kinds if isinstance(record, Asked)] == [10]
        assert len(kinds) == 3, "two are of the step at the end"


async def test_a_turn_of_one_branch_writes_the_records_that_it_wrote() -> None:
    async def plain(t: Turns) -> Any:
        await t.echo.say("a")
        await t.echo.say("b")
        await asyncio.sleep(0.001)
        await cells.step("s", len, "x")
        await cells.step("t", len, "x")

    World.runs = [[], []]
    script[:] = [plain]
    async with cells.local(settings=QUICK) as c:
        echo = await c.spawn(Echo, "echo")
        await (await c.spawn(Player, "p", echo=echo)).play()
        records = await records_of(c, "p")
        names = [type(record).__name__ for record in records if isinstance(record, (Asked, Stepped))]
        assert names == ["Asked", "Asked", *["Stepped"] * 4], "one more, before the step that follows an ask"
        calls = [call for record in records for call in getattr(record, "calls", [])]
        assert calls
        assert all(call.branch is None for call in calls)


async def test_calls_run_at_the_same_time() -> None:
    async def waits(t: Turns) -> Any:
        both = asyncio.Barrier(3)

        async def meet(n: int) -> int:
            await both.wait()
            return n

        return await asyncio.gather(*(cells.step("meet", meet, n) for n in range(3)))

    World.runs = [[], []]
    script[:] = [waits]
    async with cells.local(settings=QUICK) as c:
        player = await c.spawn(Player, "p", echo=await c.spawn(Echo, "echo"))
        assert await asyncio.wait_for(player.play(), 30) == "[0, 1, 2]"


# ---- what differs is found there and then ----------------------------------------------------------------------


async def test_a_run_that_calls_something_else_fails_there_and_then() -> None:
    async def one(t: Turns) -> Any:
        await asyncio.gather(t.echo.say("a"), cells.step("s", len, "x"))
        raise Ended

    async def other(t: Turns) -> Any:
        await asyncio.gather(t.echo.say("b"), cells.step("s", len, "x"))

    await _refused(one, other, r"came to echo\.say where it had come to echo\.say")


async def test_a_run_in_which_a_recorded_call_does_not_come_fails_there_and_then() -> None:
    async def one(t: Turns) -> Any:
        await asyncio.gather(t.echo.say("a"), t.echo.say("b"))
        raise Ended

    async def other(t: Turns) -> Any:
        await asyncio.gather(t.echo.say("a"), asyncio.Event().wait())

    await _refused(one, other, r"came to a state in which nothing goes on where it had come to echo\.say")


async def test_a_run_without_branches_where_there_were_some_fails() -> None:
    async def one(t: Turns) -> Any:
        await asyncio.gather(t.echo.say("a"), t.echo.say("b"))
        raise Ended

    async def other(t: Turns) -> Any:
        await t.echo.say("a")

    await _refused(one, other, r"where it had come to echo\.say")


async def _refused(one: Any, other: Any, said: str) -> None:
    async def either(t: Turns) -> Any:
        await (one if len(World.runs) == 1 else other)(t)

    World.runs, World.ends_at = [], 99
    script[:] = [either]
    async with cells.local(settings=QUICK) as c:
        echo = await c.spawn(Echo, "echo")
        player = await c.spawn(Player, "p", echo=echo)
        with pytest.raises(NonDeterministicTurn, match=said):
            await asyncio.wait_for(player.play(), 30)
        assert Counter(await echo.all()).most_common(1)[0][1] == 1
        World.runs = [[], []]

        async def fine(t: Turns) -> str:
            return "fine"

        script[:] = [fine]
        assert await player.play() == "'fine'", "the agent goes on"


# ---- the end of a turn -----------------------------------------------------------------------------------------


async def test_what_still_runs_when_the_handler_returns_is_cancelled_and_its_asks_arrive() -> None:
    ended: list[str] = []

    async def leaves(t: Turns) -> Any:
        async def ask() -> None:
            try:
                await t.echo.say("left")
                await asyncio.sleep(100)
            finally:
                ended.append("cancelled")

        task = asyncio.create_task(ask())
        await t.echo.say("first")
        await asyncio.sleep(0)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 0.2)
        return "done"

    World.runs = [[], []]
    script[:] = [leaves]
    async with cells.local(settings=QUICK) as c:
        echo = await c.spawn(Echo, "echo")
        assert await (await c.spawn(Player, "p", echo=echo)).play() == "'done'"
        await asyncio.sleep(0)
        assert ended == ["cancelled"]
        assert sorted(await echo.all()) == ["first", "left"]


async def test_tasks_of_a_handler_that_calls_nothing_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "records_end", False)
    left: list[asyncio.Task[str]] = []

    async def background() -> str:
        await asyncio.sleep(0.01)
        return "ran on"

    async def plain(t: Turns) -> str:
        left.append(asyncio.create_task(background()))
        await asyncio.sleep(0.001)
        return "done"

    World.runs = [[], []]
    script[:] = [plain]
    async with cells.local(settings=QUICK) as c:
        player = await c.spawn(Player, "p", echo=await c.spawn(Echo, "echo"))
        assert await player.play() == "'done'"
        assert await asyncio.wait_for(left[0], 30) == "ran on"
        assert not any(record.commit.ended for record in await records_of(c, "p") if isinstance(record, Committed))


async def test_a_branch_that_sleeps_while_the_turn_is_stopped_goes_on_to_its_next_call() -> None:
    """The agent moves after a step, while another branch waits for a timer: the timer fires, and the call behind it stops the turn."""
    begun = asyncio.Event()

    async def brief(n: int) -> int:
        World.called.append(f"{n}")
        begun.set()
        await asyncio.sleep(0.01)
        return n

    async def sleeps_on(t: Turns) -> Any:
        async def late() -> int:
            await asyncio.sleep(0.3)
            return await cells.step("late", brief, 2)

        return await asyncio.gather(cells.step("early", brief, 1), late())

    World.called, World.runs = [], [[], []]
    script[:] = [sleeps_on]
    async with cells.local(nodes=2, settings=QUICK) as c:
        echo = await c.on("node-1").spawn(Echo, "echo")
        player = await c.on("node-1").spawn(Player, "p", echo=echo)
        play = asyncio.create_task(player.play())
        await begun.wait()
        assert (await c.migrate(player, "node-2")).outcome == "completed"
        assert await asyncio.wait_for(play, 30) == "[1, 2]"
        assert World.called == ["1", "2"]


async def test_an_agent_moves_between_steps_of_branches() -> None:
    moved = asyncio.Event()

    async def slow(n: int) -> int:
        World.called.append(f"{n}")
        if n == 0:
            moved.set()
        await asyncio.sleep(0.02)
        return n

    async def steps(t: Turns) -> Any:
        async def line(start: int) -> list[int]:
            return [await cells.step("slow", slow, n) for n in range(start, start + 20, 2)]

        return await asyncio.gather(line(0), line(1))

    World.called, World.runs = [], [[], []]
    script[:] = [steps]
    async with cells.local(nodes=2, settings=QUICK) as c:
        echo = await c.on("node-1").spawn(Echo, "echo")
        player = await c.on("node-1").spawn(Player, "p", echo=echo)
        play = asyncio.create_task(player.play())
        await moved.wait()
        report = await c.migrate(player, "node-2")
        assert report.outcome == "completed"
        assert not play.done()
        assert await play == repr([list(range(0, 20, 2)), list(range(1, 20, 2))])
        assert max(Counter(World.called).values()) == 1, "no finished step is called again"
