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
from support.ids import shown

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


@pytest.mark.parametrize(("kind", "value"), KEPT, ids=shown)
def test_a_value_is_the_same_in_value_and_type_after_it_was_stored(kind: Any, value: Any) -> None:
    got = carried(kind, value)
    assert got == value
    assert type(got) is type(value)


def test_nan_is_kept() -> None:
    assert math.isnan(carried(float, math.nan))


def test_aliases_become_two_values_after_loading() -> None:
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


@pytest.mark.parametrize(("kind", "path"), REFUSED, ids=shown)
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


# ---- what users' types may raise -------------------------------------------------------------------------------


@dataclass
class Picky:
    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise KeyError(f"no {self.n}")


def test_an_exception_of_a_users_type_is_reported_with_its_path() -> None:
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
def test_a_value_that_does_not_fit_a_hooked_type_is_reported_with_its_path(kind: Any, value: Any) -> None:
    with pytest.raises(cells.BadArguments, match=r"Holder\.x: "):
        carried(kind, value)


def test_a_reference_to_a_class_that_is_not_known_here_does_not_load() -> None:
    spec = spec_of(agent_with(Peer))
    state = StoredState()
    state.put({"x": msgspec.msgpack.encode(["Gone", "p"])})
    with pytest.raises(cells.errors.StateUnloadable, match="a reference to a Gone, where a Peer is expected"):
        Cell(spec, state, "a")
