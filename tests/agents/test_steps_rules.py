"""What a step may do and return: one sequence a turn, results that load again, and clear refusals."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import decimal
import functools
import itertools
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.step_world import QUICK, Chat, Scripted, anew, played, script, world
from support.virtual import virtually

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.log.ids import log_subject
from mielin_cells.store.reader import load


@pytest.fixture(autouse=True)
def _fresh() -> None:
    anew()


# ---- one sequence --------------------------------------------------------------------------------------------------


async def _mixed(self: Scripted) -> list[str]:
    first = await cells.step("one", world.model, "a")
    asked = await self.peer.all()
    return [first, *asked, await cells.step("two", world.model, "b")]


async def _other_name(self: Scripted) -> list[str]:
    return [await cells.step("another", world.model, "a")]


async def _ask_first(self: Scripted) -> list[str]:
    return await self.peer.all()


async def _swallows(self: Scripted) -> list[str]:
    try:
        await cells.step("another", world.model, "a")
    except cells.errors.NonDeterministicTurn:
        return ["went on"]
    return []


async def _fewer(self: Scripted) -> list[str]:
    return [await cells.step("one", world.model, "a")]


async def _together(self: Scripted) -> list[str]:
    async def branch(name: str) -> list[str]:
        return [await cells.step(name, world.model, f"{name}{n}") for n in range(3)]

    return list(itertools.chain(*await asyncio.gather(branch("x"), branch("y"))))


async def test_asks_and_steps_are_given_back_in_their_order() -> None:
    assert await played(_mixed) == ["a!", "b!"]
    assert world.calls == ["a", "b"]


@pytest.mark.parametrize("other", [_other_name, _ask_first, _swallows])
async def test_a_run_that_comes_to_something_else_fails_by_name(other: Any) -> None:
    with pytest.raises(cells.errors.NonDeterministicTurn, match="step 'one'") as raised:
        await played(_mixed, other)
    assert raised.value.asks == ["step 'one'", "peer.all", "step 'two'"]


async def test_a_step_where_an_ask_was_fails_by_name() -> None:
    with pytest.raises(cells.errors.NonDeterministicTurn, match=r"step 'one' where it had come to peer\.all"):
        await played(_ask_first, _mixed)


async def test_a_run_may_end_earlier() -> None:
    assert await played(_mixed, _fewer) == ["a!"]


async def test_steps_of_many_tasks_come_back_in_the_order_in_which_they_ended() -> None:
    assert await played(_together) == ["x0!", "x1!", "x2!", "y0!", "y1!", "y2!"]
    assert world.calls == ["x0", "y0", "x1", "y1", "x2", "y2"]


# ---- what a step may not -------------------------------------------------------------------------------------------


async def _nested(self: Scripted) -> list[str]:
    async def outer() -> str:
        return await cells.step("inner", world.model, "a")

    return [await cells.step("outer", outer, retry=cells.Retry(tries=1))]


async def _asks_within(self: Scripted) -> list[str]:
    return await cells.step("asks", self.peer.all, retry=cells.Retry(tries=1))


async def _tells_within(self: Scripted) -> list[str]:
    async def tells() -> None:
        await asyncio.create_task(self.peer.say.tell(prompts=[]))

    await cells.step("tells", tells, retry=cells.Retry(tries=1))
    return []


@pytest.mark.parametrize("what", [_nested, _asks_within, _tells_within])
async def test_a_call_cannot_use_the_turn(what: Any) -> None:
    with pytest.raises(cells.StepFailed, match="used the agent's turn"):
        await played(what)


async def _goes_on(self: Scripted) -> list[str]:
    world.gates["a"] = asyncio.Event()
    try:
        async with asyncio.timeout(0.01):
            await cells.step("cut", world.model, "a")
    except TimeoutError:
        await cells.step("next", world.model, "b")
    return []


@virtually
async def test_a_step_that_its_handler_cancels_was_not_made() -> None:
    """The timer is a call too: the next run is told that it fired, and does not begin the step."""
    assert await played(_goes_on) == []
    assert world.calls == ["a", "b"]


async def test_a_step_that_outlives_its_turn_is_not_recorded() -> None:
    left: list[asyncio.Task[str]] = []

    async def leaves(self: Scripted) -> list[str]:
        world.runs = 2
        world.gates["a"] = asyncio.Event()
        left.append(asyncio.create_task(cells.step("left", world.model, "a")))
        await world.begun.wait()
        return ["done"]

    async with cells.local(settings=QUICK) as cluster:
        script[:] = [leaves]
        agent = await cluster.spawn(Scripted, "s", peer=await cluster.spawn(Chat, "peer"))
        assert await agent.play() == ["done"]
        world.gates["a"].set()
        with pytest.raises(asyncio.CancelledError):
            await left[0]
        assert isinstance(cluster, Client)
        fold = await load(cluster.log, "s")
        assert fold.turn is None
        assert not [e for e in await cluster.log.read(log_subject("s"), 0, 100) if b"Stepped" in e.data]


@pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", 7])
async def test_a_step_needs_a_name(name: Any) -> None:
    async def nameless(self: Scripted) -> list[str]:
        return [await cells.step(name, world.model, "a")]

    with pytest.raises(cells.UsageError, match="no name of 1 to 128"):
        await played(nameless)


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": -1}, {"timeout": float("nan")}, {"timeout": "5"}, {"timeout": True}, {"retry": 3}],
    ids=str,
)
async def test_options_that_cannot_be_are_refused_before_the_call(options: dict[str, Any]) -> None:
    async def hurried(self: Scripted) -> list[str]:
        return [await cells.step("x", world.model, "a", **options)]

    world.calls.clear()
    with pytest.raises(cells.UsageError, match="cannot be|and not 3"):
        await played(hurried)
    assert not world.calls


async def test_a_step_is_given_a_function_and_not_what_it_returned() -> None:
    async def called(self: Scripted) -> list[str]:
        return [await cells.step("x", world.model("a"))]  # type: ignore[call-overload]

    with pytest.raises(cells.UsageError, match="was given a coroutine; give the function"):
        await played(called)


async def test_steps_belong_into_handlers() -> None:
    with pytest.raises(cells.NotInTurn, match="Step 'x'"):
        await cells.step("x", world.model, "a")

    class Hooked(cells.Agent):
        async def on_arrive(self) -> None:
            await cells.step("x", world.model, "a")

        @cells.handler
        async def key(self) -> str:
            return cells.this().idempotency_key

    async with cells.local() as cluster:
        agent = await cluster.spawn(Hooked, "h")
        shown = await cluster.show(agent)
        assert shown.state == "Error"
        assert "cannot make step 'x'" in str(shown)
    assert world.calls == []

    async def reads(self: Scripted) -> list[str]:
        return [cells.this().idempotency_key]

    with pytest.raises(cells.NotInTurn, match="inside the call of a step"):
        await played(reads)


# ---- results -------------------------------------------------------------------------------------------------------


class Answer(msgspec.Struct):
    text: str
    tokens: int = 0


@dataclass
class Point:
    x: int


def a_struct() -> Answer:
    return Answer("hi", 3)


async def a_tuple() -> tuple[int, set[str]]:
    return 1, {"a"}


def a_promise() -> Awaitable[Point]:
    return _point()


async def _point() -> Point:
    return Point(4)


def unsaid():  # type: ignore[no-untyped-def]
    return (1, {"k": (2, b"x")})


async def any_json() -> dict[str, Any]:
    return {"choices": [1, None, "a", [2]]}


async def nothing() -> None:
    pass


class Tool:
    def __call__(self, n: int) -> Point:
        return Point(n)

    async def method(self) -> Point:
        return Point(9)


RESULTS: dict[str, tuple[Callable[[], Any], Any]] = {
    "struct": (a_struct, Answer("hi", 3)),
    "tuple": (a_tuple, (1, {"a"})),
    "promise": (a_promise, Point(4)),
    "plain data": (unsaid, (1, {"k": (2, b"x")})),
    "any json": (any_json, {"choices": [1, None, "a", [2]]}),
    "nothing": (nothing, None),
    "partial": (functools.partial(Tool(), 5), Point(5)),
    "method": (Tool().method, Point(9)),
    "lambda": (lambda: Tool()(4).x, 4),
    "time": (lambda: datetime.timedelta(days=1, microseconds=1), datetime.timedelta(days=1, microseconds=1)),
    "day": (lambda: {datetime.date(2024, 1, 1): 1}, {datetime.date(2024, 1, 1): 1}),
    "id": (lambda: uuid.UUID(int=7), uuid.UUID(int=7)),
    "price": (lambda: [decimal.Decimal("1.10"), {2}, 2**70], [decimal.Decimal("1.10"), {2}, 2**70]),
    "class": (functools.partial(Answer, "x"), Answer("x")),
}


@pytest.mark.parametrize("kind", RESULTS)
async def test_the_first_run_gets_what_a_run_again_gets(kind: str) -> None:
    call, wanted = RESULTS[kind]
    got: list[Any] = []

    async def keeps(self: Scripted) -> list[str]:
        got.append(await cells.step("x", call))
        return []

    await played(keeps)
    assert got == [wanted, wanted]
    assert got[0] is None or type(got[0]) is type(wanted)


class Foreign:
    pass


async def a_foreign() -> Foreign:
    world.calls.append("foreign")
    return Foreign()


async def many_foreign() -> dict[str, list[Foreign]]:
    return {}


async def unknown() -> Nowhere:  # type: ignore[name-defined]  # noqa: F821 - the point
    raise AssertionError


@pytest.mark.parametrize("call", [a_foreign, many_foreign, unknown])
async def test_a_result_that_cannot_be_kept_is_refused_before_the_call(call: Any) -> None:
    async def refused(self: Scripted) -> list[str]:
        await cells.step("x", call)
        return []

    with pytest.raises(cells.FieldRefused, match=call.__name__):
        await played(refused)
    assert world.calls == []


async def lies() -> int:
    return "text"  # type: ignore[return-value]


async def unplain():  # type: ignore[no-untyped-def]
    return Foreign()


def unplain_at_once():  # type: ignore[no-untyped-def]
    return Foreign()


async def large() -> bytes:
    return bytes(600_000)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lies, cells.errors.StepInvalid),
        (unplain, cells.errors.StepInvalid),
        (unplain_at_once, cells.errors.StepInvalid),
        (lambda: Point(4), cells.errors.StepInvalid),
        (large, cells.errors.MessageTooLarge),
    ],
)
async def test_a_result_that_would_not_load_again_fails_the_turn_whatever_the_handler_does(
    call: Any, error: type[cells.CellError]
) -> None:
    async def swallows(self: Scripted) -> list[str]:
        world.runs = 2
        with contextlib.suppress(cells.CellError):
            await cells.step("x", call)
        return ["went on"]

    with pytest.raises(error, match=call.__name__):
        await played(swallows)


async def half_mib() -> bytes:
    return bytes(500_000)


async def test_results_larger_than_a_record_are_kept_and_all_of_a_turn_have_a_limit(tmp_path: Path) -> None:
    class Hoards(cells.Agent):
        @cells.handler
        async def go(self, count: int) -> int:
            got = [await cells.step("half", half_mib) for _ in range(count)]
            world.runs += 1
            if world.runs == 1:
                raise OSError("run again")
            return sum(map(len, got))

    async with cells.local(path=tmp_path / "store.db", settings=QUICK) as cluster:
        agent = await cluster.spawn(Hoards, "h")
        assert await agent.go(6) == 3_000_000
        with pytest.raises(cells.errors.MessageTooLarge, match="outcomes of a turn"):
            await agent.go(17)
        assert await agent.go(1) == 500_000
