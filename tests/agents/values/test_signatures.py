"""What handlers take and give: signatures, arguments and results."""

import datetime as dt
import threading
import uuid
from typing import Any

import msgspec
import pytest
from support.field_types import (
    ANN,
    UTC_NOON,
    Leg,
    Person,
    Point,
    Trip,
)

import mielin_cells as cells
from mielin_cells.agents.spec import spec_of

# ---- handlers: signatures --------------------------------------------------------------------------------------


async def star(self: Any, *args: int) -> int:
    return 1


async def stars(self: Any, **kwargs: int) -> int:
    return 1


async def untyped(self: Any, n) -> int:  # type: ignore[no-untyped-def]
    return 1


async def positional(self: Any, n: int, /) -> int:
    return 1


async def unanswered(self: Any, n: int):  # type: ignore[no-untyped-def]
    return 1


async def takes_any(self: Any, n: list[Any]) -> int:
    return 1


async def gives_any(self: Any) -> Any:
    return 1


async def gives_bare(self: Any) -> list:  # type: ignore[type-arg]
    return []


async def wrong_default(self: Any, n: int = "x") -> int:  # type: ignore[assignment]
    return 1


async def no_default(self: Any, n: int = None) -> int:  # type: ignore[assignment] # noqa: RUF013 - what is refused
    return 1


async def lock_default(self: Any, n: int = threading.Event()) -> int:  # type: ignore[assignment]
    return 1


async def selfless() -> int:
    return 1


async def only_star(*args: int) -> int:
    return 1


async def unresolved(self: Any, n: "Missing") -> int:  # type: ignore[name-defined] # noqa: F821 - what is refused
    return 1


async def table(self: Any, n: cells.Table[str, int]) -> int:
    return 1


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (star, r"Wrong\.star: messages carry names; \*args cannot be sent"),
        (stars, r"Wrong\.stars: messages carry names; \*kwargs cannot be sent"),
        (untyped, r"Wrong\.untyped: parameter 'n' has no type"),
        (positional, r"Wrong\.positional: messages carry names; remove the `/` behind 'n'"),
        (unanswered, r"Wrong\.unanswered: say what it returns"),
        (takes_any, r"Wrong\.takes_any\(n\): a type without a declared content"),
        (gives_any, r"Wrong\.gives_any -> result: a type without a declared content"),
        (gives_bare, r"Wrong\.gives_bare -> result: a type without a declared content"),
        (wrong_default, r"Wrong\.wrong_default\(n\): its default does not fit its type"),
        (no_default, r"Wrong\.no_default\(n\): its default does not fit its type"),
        (lock_default, r"Wrong\.lock_default\(n\): its default does not fit its type: a Event cannot be stored"),
        (selfless, r"Wrong\.selfless: a handler is a method; its first parameter is `self`"),
        (only_star, r"Wrong\.only_star: a handler is a method"),
        (unresolved, r"Wrong\.unresolved: an annotation cannot be resolved: name 'Missing'"),
        (table, r"Wrong\.table\(n\): Table cannot be stored"),
    ],
)
def test_a_signature_that_no_message_can_carry_is_refused_when_the_class_is_used(fn: Any, says: str) -> None:
    cls = type("Wrong", (cells.Agent,), {fn.__name__: cells.handler(fn)})
    with pytest.raises(cells.FieldRefused, match=says):
        spec_of(cls)


class Taker(cells.Agent):
    calls: int = 0

    @cells.handler
    async def mixed(self, a: int, b: list[int] = [], *, c: str, d: int = 4) -> tuple[int, list[int], str, int]:  # noqa: B006
        self.calls += 1
        b.append(a)
        return a, b, c, d

    @cells.handler
    async def typed(self, trip: Trip, who: Person, when: dt.datetime, ids: set[uuid.UUID], p: Point) -> str:
        self.calls += 1
        return f"{type(trip.legs[0]).__name__} {who.boss} {when:%H} {type(next(iter(ids))).__name__} {p.x}"

    @cells.handler
    async def lies(self) -> int:
        self.calls += 1
        return "text"  # type: ignore[return-value]

    @cells.handler
    async def huge(self) -> int:
        self.calls += 1
        return 2**70

    @cells.handler
    async def seen(self) -> int:
        return self.calls


async def test_arguments_are_given_by_position_name_or_default_and_fresh_each_time() -> None:
    async with cells.local() as cluster:
        taker = await cluster.spawn(Taker, "t")
        assert await taker.mixed(1, c="x") == (1, [1], "x", 4)
        assert await taker.mixed(1, c="x") == (1, [1], "x", 4)  # the default list was a copy
        assert await taker.mixed(b=[5], a=2, d=0, c="y") == (2, [5, 2], "y", 0)
        ids = {uuid.UUID(int=1)}
        assert await taker.typed(Trip([Leg("LGA")]), ANN, UTC_NOON, ids, p=Point(3)) == (
            f"Leg {ANN.boss} 12 UUID 3"
        )  # fmt: skip


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {"c": "x"}, "a"),
        ((1,), {}, "c"),
        ((1, [], "x"), {}, "positional"),
        ((1,), {"c": "x", "e": 1}, "e"),
        ((1,), {"a": 1, "c": "x"}, "a"),
        (("one",), {"c": "x"}, "Expected `int`, got `str`"),
        ((1, ["one"]), {"c": "x"}, r"Expected `int`, got `str` - at `\$\.b\[0\]`"),
        ((1.5,), {"c": "x"}, "Expected `int`, got `float`"),
        ((2**70,), {"c": "x"}, "ints"),
        ((1,), {"c": "\ud800"}, "surrogates"),
        ((1,), {"c": None}, "Expected `str`, got `None`"),
        ((object(),), {"c": "x"}, "a object cannot be stored"),
        ((threading.Lock(),), {"c": "x"}, "cannot be stored"),
    ],
)
async def test_wrong_arguments_are_refused_at_the_caller_before_anything_is_sent(
    args: tuple[Any, ...], kwargs: dict[str, Any], says: str
) -> None:
    async with cells.local() as cluster:
        taker: Any = await cluster.spawn(Taker, "t")
        with pytest.raises(cells.BadArguments, match=rf"Taker\.mixed: .*{says}"):
            await taker.mixed(*args, **kwargs)
        with pytest.raises(cells.BadArguments, match=r"Taker\.mixed: "):
            await taker.mixed.tell(*args, **kwargs)
        with pytest.raises(cells.BadArguments, match=r"Taker\.mixed: "):  # nobody is looked for either
            await cluster.get(Taker, "nobody").mixed(*args, **kwargs)
        assert await taker.seen() == 0


@pytest.mark.parametrize("name", ["lies", "huge"])
async def test_a_result_of_a_wrong_type_fails_the_turn_and_the_state_is_as_before(name: str) -> None:
    async with cells.local() as cluster:
        taker = await cluster.spawn(Taker, "t")
        with pytest.raises(
            cells.BadArguments, match=rf"Taker\.{name} returned a value that does not fit its declared result"
        ):
            await getattr(taker, name)()
        assert await taker.seen() == 0
        await getattr(taker, name).tell()  # nobody waits for this result
        assert await taker.seen() == 1


def test_a_message_with_other_names_does_not_fit() -> None:
    handler = spec_of(Taker).handlers["mixed"]
    for plain in ({"a": 1}, {"a": 1, "c": "x", "e": 1}, {"a": "x", "c": "x"}, [1, 2], None):
        with pytest.raises(cells.BadArguments, match="the message does not fit its signature"):
            handler.decode_args(msgspec.msgpack.encode(plain))
    for data in (b"", b"\xc1", b"\x81", b"\x91" * 200_000):
        with pytest.raises(cells.BadArguments):
            handler.decode_args(data)
        with pytest.raises(cells.BadArguments, match="does not fit its declared result"):
            handler.decode_result(data)
