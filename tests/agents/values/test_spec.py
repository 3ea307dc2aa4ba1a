"""What an agent class means: which types can be state, and what handlers take and give."""

import collections
import datetime as dt
import math
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import pytest
from support.field_types import (
    ANN,
    UTC_NOON,
    Colour,
    Json,
    Labelled,
    Leg,
    Level,
    Options,
    OtherPeer,
    Peer,
    Person,
    Point,
    Tagged,
    Tree,
    Trip,
    UserId,
    agent_with,
    stored,
)

import mielin_cells as cells
from mielin_cells.agents.live import Cell
from mielin_cells.agents.reference import make_ref
from mielin_cells.agents.spec import spec_of
from mielin_cells.log.state import StoredState

T = TypeVar("T")


def carried(kind: Any, value: Any) -> Any:
    """The value after it was stored and loaded again, as by a move."""
    spec = spec_of(agent_with(kind))
    moved: Any = Cell(spec, stored(spec, x=value), "a").agent
    return moved.x


# ---- types that can be state -----------------------------------------------------------------------------------

KEPT: list[tuple[Any, Any]] = [
    (bool, True),
    (int, -(2**63)),
    (int, 2**64 - 1),
    (float, -math.inf),
    (float, 1e308),
    (str, "héllo \N{SNOWMAN} \0"),
    (bytes, bytes(range(256))),
    (bytearray, bytearray(b"abc")),
    (None, None),
    (int | None, None),
    (int | str | None, "x"),
    (list[int] | dict[str, int], {"a": 1}),
    (Literal["a", 1], 1),
    (Colour, Colour.BLUE),
    (Level, Level.LOW),
    (UserId, UserId("u")),
    (Annotated[int, msgspec.Meta(ge=0)], 3),
    (Decimal, Decimal("1.10")),
    (uuid.UUID, uuid.UUID(int=7)),
    (dt.datetime, UTC_NOON),
    (dt.datetime, UTC_NOON.replace(tzinfo=None, microsecond=5)),
    (dt.date, dt.date(2013, 1, 31)),
    (dt.time, dt.time(12, 30)),
    (dt.timedelta, dt.timedelta(days=-1, microseconds=5)),
    (list[list[int]], [[1], [], [2, 3]]),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (set[str], {"a", "b"}),
    (frozenset[int], frozenset({1, 2})),
    (dict[int, list[set[str]]], {1: [{"a"}]}),
    (dict[tuple[int, int], str], {(1, 2): "a"}),
    (dict[uuid.UUID, int], {uuid.UUID(int=7): 1}),
    (dict[dt.date, int], {dt.date(2013, 1, 31): 1}),
    (Point, Point(1, 2.0)),
    (Options, {"depth": 1, "names": ["a"]}),
    (Leg, Leg("LGA", 5)),
    (Trip, Trip([Leg("LGA")], Colour.BLUE, {"a": {1}})),
    (Tagged | Labelled, Labelled("x")),
    (list[Tagged | Labelled | None], [Tagged(1), None]),
    (Tree, Tree([Tree(), Tree([Tree()])])),
    (Person, ANN),
    (list[Person], [ANN]),
    (dict[str, Person | None], {"a": ANN, "b": None}),
    (cells.AgentId, cells.AgentId("a")),
    (Peer, make_ref(Peer, "p")),
    (Peer | None, None),
    (dict[str, list[tuple[Peer, int]]], {"a": [(make_ref(Peer, "p"), 1)]}),
    (dict[Peer, int], {make_ref(Peer, "p"): 1}),
    (frozenset[Peer], frozenset({make_ref(Peer, "p")})),
]


@pytest.mark.parametrize(("kind", "value"), KEPT, ids=lambda v: str(sorted(v) if isinstance(v, set) else v)[:40])
def test_a_value_is_the_same_in_value_and_type_after_it_was_stored(kind: Any, value: Any) -> None:
    got = carried(kind, value)
    assert got == value
    assert type(got) is type(value)


def test_nan_is_kept() -> None:
    assert math.isnan(carried(float, math.nan))


def test_what_aliases_shared_is_two_values_after_loading() -> None:
    shared = [1]
    one, two = carried(tuple[list[int], list[int]], (shared, shared))
    one.append(2)
    assert two == [1]


# ---- types that cannot -----------------------------------------------------------------------------------------


class Custom:
    pass


class Box(Generic[T]):
    pass


@dataclass
class Guarded:
    legs: list[Leg]
    lock: threading.Event


class Loose(msgspec.Struct):
    options: dict[str, Any]


Bare = collections.namedtuple("Bare", "a b")  # without types

REFUSED: list[tuple[Any, str]] = [
    (Any, "Holder.x"),
    (list, "Holder.x"),
    (dict, "Holder.x"),
    (set, "Holder.x"),
    (frozenset, "Holder.x"),
    (tuple, "Holder.x"),
    (object, "Holder.x"),
    (list[Any], "Holder.x"),
    (dict[str, list[Any]], "Holder.x"),
    (list[int] | None | Any, "Holder.x"),
    (collections.deque[int], "Holder.x"),
    (collections.defaultdict[str, int], "Holder.x"),
    (collections.OrderedDict[str, int], "Holder.x"),
    (Peer | OtherPeer, "Holder.x"),
    (list[Peer | OtherPeer], "Holder.x"),
    (Peer | str, "Holder.x"),
    (Callable[[int], int], "Holder.x"),
    (Callable, "Holder.x"),
    (Awaitable[int], "Holder.x"),
    (Iterable[int], "Holder.x"),
    (type[int], "Holder.x"),
    (type(threading.Lock()), "Holder.x"),
    (Exception, "Holder.x"),
    (complex, "Holder.x"),
    (Custom, "Holder.x"),
    (list[Custom], "Holder.x"),
    (Box[int], "Holder.x"),
    (T, "Holder.x"),
    (Guarded, "Holder.x.lock"),
    (list[Guarded], "Holder.x.lock"),
    (Loose, "Holder.x.options"),
    (Bare, "Holder.x.a"),
    (Json, "Holder.x"),
    (cells.Table, "Holder.x"),
    (cells.Table[str, Any], "Holder.x[value]"),
    (cells.Table[Any, int], "Holder.x[key]"),
    (cells.Table[str, Guarded], "Holder.x[value].lock"),
    (cells.Table[str, int] | None, "Holder.x"),
    (list[cells.Buffer], "Holder.x"),
    ("Missing", "Holder"),
    ("dt.missing", "Holder"),
    ("list[", "Holder"),
    ("1/0", "Holder"),
]


@pytest.mark.parametrize(("kind", "path"), REFUSED, ids=lambda v: str(v)[:40])
def test_a_type_that_cannot_be_stored_is_refused_when_the_class_is_first_used(kind: Any, path: str) -> None:
    cls = agent_with(kind)  # the definition alone is no use yet: what it names may be defined later
    with pytest.raises(cells.FieldRefused) as refused:
        spec_of(cls)
    assert refused.value.path == path
    assert refused.value.message.startswith(f"{path}: ")


async def test_a_refused_class_is_refused_at_spawn_and_by_a_reference() -> None:
    cls = agent_with(list[Any], "Sloppy")
    async with cells.local() as cluster:
        with pytest.raises(cells.FieldRefused, match=r"Sloppy\.x"):
            await cluster.spawn(cls, "s", x=[1])
        with pytest.raises(cells.NoSuchAgent):
            await cluster.show("s")


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
        with pytest.raises(cells.BadArguments, match=rf"Taker\.{name} returned what it does not declare"):
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


# ---- what users' types may raise -------------------------------------------------------------------------------


@dataclass
class Picky:
    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise KeyError(f"no {self.n}")


def test_whatever_a_users_type_raises_is_reported_with_its_path() -> None:
    bad = Picky(1)
    bad.n = -1
    spec = spec_of(agent_with(list[Picky]))
    with pytest.raises(cells.BadArguments, match=r"Holder\.x: .*no -1"):
        spec.initial(x=[bad])
    state = stored(spec, x=[Picky(1)])
    state.put({"x": msgspec.msgpack.encode([{"n": -1}])})
    with pytest.raises(cells.errors.StateUnloadable, match=r"Holder\.x: .*no -1") as unloadable:
        Cell(spec, state, "a")
    assert (unloadable.value.agent, unloadable.value.path) == ("a", "Holder.x")


@pytest.mark.parametrize(("kind", "value"), [(cells.AgentId, ""), (Person, {"name": "x", "age": -1}), (Peer, "p")])
def test_what_does_not_fit_a_hooked_type_is_reported_with_its_path(kind: Any, value: Any) -> None:
    with pytest.raises(cells.BadArguments, match=r"Holder\.x: "):
        carried(kind, value)


def test_a_reference_to_a_class_that_is_not_known_here_does_not_load() -> None:
    spec = spec_of(agent_with(Peer))
    state = StoredState()
    state.put({"x": msgspec.msgpack.encode(["Gone", "p"])})
    with pytest.raises(cells.errors.StateUnloadable, match="a reference to a Gone, where a Peer is expected"):
        Cell(spec, state, "a")
