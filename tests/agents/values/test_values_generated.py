"""Generated types and values, right and nearly right ones: each arrives as it was, to the type, or is refused and changes nothing.

`MIELIN_VALUES_EXAMPLES=20000` looks longer, at other examples each time.
"""

import asyncio
import collections
import dataclasses
import datetime as dt
import enum
import functools
import os
import struct
import zoneinfo
from decimal import Decimal
from typing import Any, Literal, NamedTuple, TypedDict, Union
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.field_types import stored

import mielin_cells as cells
from mielin_cells.agents.live import Cell
from mielin_cells.agents.spec import spec_of
from mielin_cells.agents.step import results_of

MORE = os.environ.get("MIELIN_VALUES_EXAMPLES")
EXAMPLES = settings(
    max_examples=int(MORE or 250), derandomize=MORE is None, database=None, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)  # fmt: skip


pytestmark = pytest.mark.timeout(60 if MORE is None else 3600)


# ---- types, each with values of it and values that are nearly of it ----


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Flags(enum.Flag):
    A = 1
    B = 2


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Listing(list[Any]):
    pass


class Mapping(dict[Any, Any]):
    pass


class Point(NamedTuple):
    x: Any
    y: int = 0


class Options(TypedDict, total=False):
    depth: int


class Liar(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


UTC = dt.UTC
ints = st.integers(-(2**63), 2**64 - 1)
floats = st.floats() | st.sampled_from([-0.0, float("nan"), float("-inf")])
texts = st.text(max_size=4)
naive = st.datetimes()
LEAVES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, ints), (bool, st.booleans()), (float, floats), (str, texts), (bytes, st.binary(max_size=4)),
    (bytearray, st.binary(max_size=4).map(bytearray)), (Decimal, st.decimals()), (UUID, st.uuids()), (dt.date, st.dates()),
    (dt.datetime, naive | st.datetimes(timezones=st.just(UTC))), (dt.time, st.times()), (dt.timedelta, st.timedeltas()),
    (Colour, st.sampled_from(Colour)), (Level, st.sampled_from(Level)), (Flags, st.sampled_from([Flags.A, Flags.B])),
    (Literal["a", 1], st.sampled_from(["a", 1])), (cells.AgentId, st.just(cells.AgentId("a"))),
]  # fmt: skip
WILD: st.SearchStrategy[Any] = st.one_of(
    *[values for _, values in LEAVES],
    st.sampled_from(
        [
            2**64, -(2**63) - 1, Text("a"), Whole(1), Liar("b"), None, "\ud800", Flags.A | Flags.B, object(), memoryview(b"a"),
            Listing([1]), Mapping(a=1), (1, 2), [1], {1}, frozenset({1}), {"a": 1}, collections.Counter("a"), collections.deque([1]),
            collections.OrderedDict(a=1), collections.defaultdict(int, a=1), Point(1), {"depth": 1, "more": 2}, 1j,
            dt.datetime(2024, 10, 27, 2, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Rome"), fold=1),
            dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2), "X")), dt.time(1, tzinfo=UTC, fold=1),
        ]
    ),
)  # fmt: skip
LIST: Any = list  # type checkers do not look for types in variables
TUPLE: Any = tuple
DICT: Any = dict
SET: Any = set
FROZEN: Any = frozenset
NAMED: Any = NamedTuple
HASHABLE = [0, 1, 3, 4, 7, 8, 9, 12, 13, 16]
Typed = tuple[Any, st.SearchStrategy[Any]]


def _or_none(kind: Any) -> Any:
    return Union[kind, None]  # noqa: UP007 - `|` does not know all of them


def listed(item: Typed) -> Typed:
    return LIST[item[0]], st.lists(item[1], max_size=3)


def tupled(item: Typed) -> Typed:
    return TUPLE[item[0], ...], st.lists(item[1], max_size=3).map(tuple)


def paired(item: Typed) -> Typed:
    return TUPLE[item[0], int], st.tuples(item[1], ints)


def optional(item: Typed) -> Typed:
    return _or_none(item[0]), st.none() | item[1]


def by_text(item: Typed) -> Typed:
    return DICT[str, item[0]], st.dictionaries(texts, item[1], max_size=3)


def named(item: Typed) -> Typed:
    kind: Any = NAMED("Named", [("x", item[0]), ("y", int)])
    return kind, st.builds(kind, item[1], ints)


def as_dataclass(item: Typed) -> Typed:
    kind: Any = dataclasses.make_dataclass(
        "Data", [("x", item[0]), ("n", int, dataclasses.field(default=0))], slots=True
    )
    other: Any = dataclasses.make_dataclass("Derived", [("more", int, dataclasses.field(default=0))], bases=(kind,))
    return kind, st.builds(kind, item[1]) | st.builds(other, item[1])


def twice(item: Typed) -> Typed:
    def again(self: Any) -> None:
        self.n += 1

    kind: Any = dataclasses.make_dataclass("Twice", [("x", item[0]), ("n", int, 0)], namespace={"__post_init__": again})
    return kind, st.builds(kind, item[1])


def as_struct(item: Typed) -> Typed:
    kind: Any = msgspec.defstruct("Struct", [("x", item[0]), ("n", int, 0)], rename="camel", omit_defaults=True)
    other: Any = msgspec.defstruct("Longer", [("more", int, 0)], bases=(kind,))
    return kind, st.builds(kind, item[1], ints) | st.builds(other, item[1])


def as_model(item: Typed) -> Typed:
    fields: Any = {
        "x": (item[0], pydantic.Field(alias="X")), "n": (int, pydantic.Field(0, exclude=True)), "m": (list[int], []),
    }  # fmt: skip
    kind: Any = pydantic.create_model("Model", **fields)
    other: Any = pydantic.create_model("Derived", __base__=kind, more=(int, 0))
    made = [item[1].map(functools.partial(_model, of)) for of in (kind, other)]
    return kind, st.one_of(*made).filter(lambda found: found is not None)


def _model(kind: Any, x: Any) -> Any:
    try:
        return kind(X=x, n=3)
    except ValueError:
        return None


MAKE = [listed, tupled, paired, optional, by_text, named, as_dataclass, twice, as_struct, as_model]


@st.composite
def typed_values(draw: st.DrawFn) -> tuple[Any, Any]:
    """A type, and a value that is of it or nearly so."""
    at = draw(st.integers(0, len(LEAVES)))
    if at == len(LEAVES):
        leaf = LEAVES[draw(st.sampled_from(HASHABLE))]
        of = draw(st.sampled_from(["set", "frozenset", "dict", "tuples"]))
        kinds: dict[str, Typed] = {
            "set": (SET[leaf[0]], st.sets(leaf[1], max_size=3)),
            "frozenset": (FROZEN[leaf[0]], st.frozensets(leaf[1], max_size=3)),
            "dict": (DICT[leaf[0], int], st.dictionaries(leaf[1], ints, max_size=3)),
            "tuples": (DICT[TUPLE[leaf[0], int], str], st.dictionaries(st.tuples(leaf[1], ints), texts, max_size=3)),
        }
        item = kinds[of]
    else:
        item = LEAVES[at]
    if draw(st.integers(0, 3)) == 0:
        item = item[0], item[1] | WILD
    for make in draw(st.lists(st.sampled_from(MAKE), max_size=3)):
        try:
            item = make(item)
        except Exception:  # noqa: BLE001 - pydantic or msgspec does not know such a type
            break
    kind, values = item
    return kind, draw(values | WILD if draw(st.integers(0, 5)) == 0 else values)


# ---- an oracle of its own ----


def form(value: Any, whole: bool = True) -> Any:
    """What a value is, in plain tuples with names of types.  Whole numbers and floats that are equal are alike."""
    kind = type(value)
    if kind is bool or value is None:
        return kind.__name__, value
    if kind is int:
        try:
            return "number", struct.pack("d", float(value)) if float(value) == value else value
        except OverflowError:
            return "number", value
    if kind is float:
        return "number", struct.pack("d", value)
    if kind in (str, cells.AgentId):
        return "str", str(value)
    if isinstance(value, enum.Enum):
        return kind, value.name
    if isinstance(value, (dt.datetime, dt.time)):
        return kind, value.replace(tzinfo=None).isoformat(), value.fold, repr(value.tzinfo)
    if isinstance(value, memoryview):
        return kind, value.tobytes()
    if kind in (list, tuple) or isinstance(value, tuple):
        return kind, tuple(map(form, value))
    if kind is dict:
        return kind, tuple((form(key), form(item)) for key, item in value.items())
    if kind in (set, frozenset):
        return kind, tuple(sorted(map(repr, map(form, value))))
    if dataclasses.is_dataclass(value):
        return kind, tuple(form(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, msgspec.Struct):
        return kind, tuple(map(form, msgspec.structs.astuple(value)))
    if isinstance(value, pydantic.BaseModel):
        return kind, form(dict(value)), frozenset(value.model_fields_set)
    return kind, repr(value)


def agent_of(kind: Any) -> Any:
    async def take(self: Any, x: Any, n: int = 0) -> Any: ...

    take.__annotations__ = {"x": kind, "n": int, "return": kind}
    made: dict[str, Any] = {
        "__annotations__": {"x": _or_none(kind), "n": int, "t": cells.Table[int, kind]}, "x": None, "n": 0, "t": cells.Table(),
        "take": cells.handler(take),
    }  # fmt: skip
    return type("GeneratedHolder", (cells.Agent,), made)


def result_of(kind: Any) -> Any:
    def call() -> Any: ...

    call.__annotations__ = {"return": kind}
    return results_of(call)


@EXAMPLES
@given(typed_values())
def test_a_value_arrives_as_it_was_or_is_refused(case: tuple[Any, Any]) -> None:
    kind, value = case
    try:
        spec = spec_of(agent_of(kind))
    except cells.FieldRefused:
        return
    before = form(value)
    handler, step = spec.handlers["take"], result_of(kind)
    ways: list[tuple[type[cells.CellError], Any]] = [
        (cells.BadArguments, lambda: handler.decode_args(handler.encode_args((value,), {}))["x"]),
        (cells.BadArguments, lambda: handler.decode_args(handler.encode_args((), {"x": value, "n": 5}))["x"]),
        (cells.BadArguments, lambda: handler.decode_result(handler.encode_result(value))),
        (cells.errors.StepInvalid, lambda: step.load(step.encode(value))),
        (cells.BadArguments, lambda: _spawned(spec, value)),
    ]
    outcomes: list[bool] = []
    says_where: list[bool] = []
    for refusal, way in ways:
        try:
            outcomes.append(form(way()) == before)
        except refusal as error:
            outcomes.append(False)
            says_where.append("GeneratedHolder" in error.message or "call()" in error.message)
        else:
            assert outcomes[-1], f"{kind}: {value!r} became {way()!r}"
        assert form(value) == before
    assert all(says_where)
    outcomes.append(_set(spec, value))
    outcomes.append(_put(spec, value))
    if value is not None:  # the field may be None, whatever its type
        assert len(set(outcomes)) == 1, f"{kind}: {value!r} is taken by some ways and refused by others: {outcomes}"


def _spawned(spec: Any, value: Any) -> Any:
    live: Any = Cell(spec, stored(spec, x=value), "a").agent
    return live.x


def _set(spec: Any, value: Any) -> bool:
    """By a turn: the live value is then what a load gives; or all is as before."""
    state = stored(spec)
    cell, before = Cell(spec, state, "a"), dict(state.plain)
    live: Any = cell.agent
    cell.begin()
    live.x, live.n = value, 7
    try:
        cell.end()
    except cells.errors.StateInvalid:
        cell.undo()
        assert (dict(state.plain), live.n, live.x) == (before, 0, None)
        return False
    loaded: Any = Cell(spec, state, "a").agent
    cell.begin()
    assert form(live.x) == form(loaded.x) == form(value)
    assert type(live.x) is type(loaded.x)
    assert cell.end() is None
    return True


def _put(spec: Any, value: Any) -> bool:
    state = stored(spec)
    cell = Cell(spec, state, "a")
    live: Any = cell.agent
    cell.begin()
    try:
        live.t[5] = value
    except cells.errors.StateInvalid:
        assert len(live.t) == 0
        assert cell.end() is None
        return False
    assert cell.end() is not None
    assert form(live.t[5]) == form(value)
    return True


@settings(EXAMPLES, max_examples=max(10, int(MORE or 0) // 100))
@given(typed_values())
def test_a_value_arrives_as_it_was_through_a_deployment(case: tuple[Any, Any]) -> None:
    kind, value = case
    try:
        cls = agent_of(kind)
        spec_of(cls)
    except cells.FieldRefused:
        return
    asyncio.run(_through(cls, kind, value))


async def _through(cls: Any, kind: Any, value: Any) -> None:
    got: list[Any] = []

    async def put(self: Any, x: Any) -> Any:
        got.append(x)
        self.x = x
        return x

    async def look(self: Any) -> Any:
        return self.x

    put.__annotations__ = {"x": kind, "return": kind}
    look.__annotations__ = {"return": _or_none(kind)}
    cls = type("GeneratedMover", (cls,), {"put": cells.handler(put), "look": cells.handler(look)})
    async with cells.local(nodes=2) as cluster:
        agent = await cluster.spawn(cls, "a")
        try:
            answer = await agent.put(value)
        except cells.BadArguments:
            assert (got, await agent.look()) == ([], None)
            return
        await cluster.migrate(agent)
        assert form(answer) == form(await agent.look()) == form(got[0]) == form(value)
