"""Kinds of classes and of pydantic models: each is loaded as it was, or refused with its place."""

import collections
import dataclasses
import datetime as dt
import enum
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, NotRequired, Required, TypedDict, TypeVar

import msgspec
import pydantic
import pytest
from support.field_types import Peer, agent_with, stored
from support.ids import shown

import mielin_cells as cells
from mielin_cells.agents.live import Cell
from mielin_cells.agents.reference import make_ref
from mielin_cells.agents.spec import spec_of
from mielin_cells.agents.values.codec import Codec
from mielin_cells.agents.values.exact import is_exact
from mielin_cells.agents.values.models import UNSET, readable
from mielin_cells.errors import FieldRefused

T = TypeVar("T")


@dataclasses.dataclass
class SetLater:
    a: int = 1
    b: int = dataclasses.field(init=False, default=5)


@dataclasses.dataclass
class Initial:
    a: int = 1
    start: dataclasses.InitVar[int] = 3


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: list[int]
    k: ClassVar[int] = 3


@dataclasses.dataclass(slots=True, frozen=True)
class Slots:
    a: int = 0


@dataclasses.dataclass
class Empty:
    pass


@dataclasses.dataclass
class Raises:
    a: int = 0

    def __eq__(self, other: object) -> bool:
        raise ValueError

    __hash__ = None  # type: ignore[assignment]


@dataclasses.dataclass
class BoxData(Generic[T]):
    a: T


class BoxStruct(msgspec.Struct, Generic[T]):
    a: T


class Items(msgspec.Struct, array_like=True, frozen=True):
    a: int = 0
    b: list[int] = []


class Omits(msgspec.Struct, omit_defaults=True, rename="camel"):
    a_b: float = 0
    c: list[int] = []


class Strict(msgspec.Struct, forbid_unknown_fields=True, tag="strict"):
    a: int = 0


class Open(msgspec.Struct, dict=True):
    a: int = 0


class Needs(TypedDict):
    a: Required[int]
    b: NotRequired[list[int]]


class Extra(pydantic.BaseModel, extra="allow"):
    a: int = 0


class Computed(pydantic.BaseModel, frozen=True):
    a: int = 0

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def b(self) -> int:
        return self.a * 2

    @pydantic.field_serializer("a")
    def written(self, value: int) -> str:
        return f"{value}!"


class Counts(pydantic.BaseModel):
    a: int = 0

    @pydantic.field_validator("a", mode="after")
    @classmethod
    def up(cls, value: int) -> int:
        return value + 1


class Loose(pydantic.BaseModel):
    one: int | str | float = 0
    some: Any = None
    times: dict[int, dt.timedelta] = {}
    last: collections.deque[int] = collections.deque()


class Box(pydantic.BaseModel, Generic[T]):
    a: T


class Patch(pydantic.BaseModel):
    name: str | None = None
    age: int | None = None
    inner: "Patch | None" = None
    others: dict[str, list["Patch"]] = {}


def with_attribute(made: Any) -> Any:
    made.more = 5
    return made


KEPT: list[tuple[Any, Any]] = [
    (SetLater, SetLater()),
    (Frozen, Frozen([1])),
    (Slots, Slots(3)),
    (Empty, Empty()),
    (Raises, Raises(2)),
    (list[Raises], [Raises(2)]),
    (BoxData[int], BoxData(3)),
    (BoxStruct[int], BoxStruct(3)),
    (list[BoxStruct[list[int]]], [BoxStruct([3])]),
    (Items, Items(1, [2])),
    (Omits, Omits(0.0)),
    (Omits, Omits(-0.0)),
    (Omits, Omits(1.5, [])),
    (Strict, Strict(2)),
    (Open, Open(2)),
    (Needs, {"a": 1, "b": [1]}),
    (Extra, Extra(a=1, z=[1, 2])),  # type: ignore[call-arg]
    (frozenset[Computed], frozenset({Computed(a=1)})),
    (Loose, Loose(one="5")),
    (Loose, Loose(one=5.0, some=[1], times={1: dt.timedelta(microseconds=1)}, last=collections.deque([1]))),
    (Box[int], Box[int](a=2)),
    (Patch, Patch(name=None)),
    (Patch, Patch(inner=Patch(age=3), others={"a": [Patch(), Patch(name="x")]})),
    (list[Patch], [Patch(), Patch(age=None)]),
    (memoryview, memoryview(b"abc")),
    (dict[frozenset[int], int], {frozenset({1, 2}): 1}),
    (Literal[1, "a"], 1),
    (Mapping[str, int], {"a": 1}),
    (int | float, 1),
    (int | float, 1.0),
    (bool | int, True),
    (dict[int | str, int], {1: 1, "1": 2}),
    (dt.datetime, dt.datetime.max.replace(tzinfo=dt.UTC)),
    (dt.datetime, dt.datetime.min.replace(tzinfo=dt.UTC)),
    (dt.timedelta, dt.timedelta.max),
    (dt.timedelta, dt.timedelta.min),
    (Peer, make_ref(Peer, "p")),
]

REFUSED: list[tuple[Any, Any, str]] = [
    (Omits, Omits(False), r"got `bool` - at `\$\.aB`"),
    (Open, with_attribute(Open()), r"no field of Open would be lost.* - at `\$\.more`"),
    (Empty, with_attribute(Empty()), r"no field of Empty would be lost.* - at `\$\.more`"),
    (Frozen, Frozen((1,)), r"tuple would be loaded as a list.* - at `\$\.a`"),  # type: ignore[arg-type]
    (BoxStruct[int], BoxStruct(True), "got `bool`"),
    (Counts, Counts(a=3), "4 would be loaded as 5"),
    (Extra, Extra(y=(1,)), "tuple would be loaded as a list"),  # type: ignore[call-arg]
    (Loose, Loose(some=(1,)), r"tuple would be loaded as a list.* - at `\$\.some`"),
    (Loose, Loose(some=dt.date(2024, 1, 1)), r"date would be loaded as a str.* - at `\$\.some`"),
    (Loose, Loose(last=collections.deque([1], maxlen=3)), r"maxlen of a deque would be lost.* - at `\$\.last`"),
    (memoryview, memoryview(bytearray(b"abc")), "use bytes"),
    (Literal[1, "a"], True, "got `bool`"),
    (Sequence[int], (1,), "tuple would be loaded as a list; use a list"),
]


@pytest.mark.parametrize(("kind", "value"), KEPT, ids=shown)
def test_a_value_is_loaded_as_it_was(kind: Any, value: Any) -> None:
    spec = spec_of(agent_with(kind, "KindsHolder"))
    live: Any = Cell(spec, stored(spec, x=value), "a").agent
    assert is_exact(value, live.x)
    assert repr(live.x) == repr(value) or isinstance(value, memoryview)


@pytest.mark.parametrize(("kind", "value", "says"), REFUSED, ids=shown)
def test_a_value_that_a_load_would_change_is_refused(kind: Any, value: Any, says: str) -> None:
    spec = spec_of(agent_with(kind, "KindsHolder"))
    with pytest.raises(cells.BadArguments, match=says):
        stored(spec, x=value)


def test_a_class_that_needs_its_init_is_refused() -> None:
    with pytest.raises(cells.FieldRefused, match="InitVar"):
        spec_of(agent_with(Initial, "KindsHolder"))


def test_which_fields_of_a_model_are_set_stays_and_is_not_shown() -> None:
    spec = spec_of(agent_with(Patch, "KindsHolder"))
    given = Patch(name=None, inner=Patch(age=3), others={"a": [Patch(), Patch(name="x")]})
    state = stored(spec, x=given)
    live: Any = Cell(spec, state, "a").agent
    assert live.x.model_dump(exclude_unset=True) == given.model_dump(exclude_unset=True)
    plain = msgspec.msgpack.decode(state.plain["x"])
    assert UNSET in str(plain) or "unset" in str(plain)
    assert "unset" not in str(readable(plain))


class Reaching(cells.Agent):
    one: list[int] = []
    two: list[int] = []
    me: "Reaching | None" = None

    @cells.handler
    async def share(self) -> None:
        self.one = self.two = [1]
        self.me = self

    @cells.handler
    async def push(self) -> tuple[list[int], list[int]]:
        self.one.append(2)
        return self.one, self.two

    @cells.handler
    async def myself(self) -> str:
        return f"{self.me!r} {self.me is self}"


async def test_two_fields_that_were_given_one_list_have_two_from_the_next_turn_on() -> None:
    async with cells.local() as cluster:
        agent = await cluster.spawn(Reaching, "r")
        await agent.share()
        assert await agent.push() == ([1, 2], [1])
        assert await agent.myself() == "<Reaching 'r'> False"


class Pairs(enum.Enum):
    A = (1, 2)


@dataclasses.dataclass
class Early:
    n: int
    seed: dataclasses.InitVar[int]


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        (str | bytes, "these are stored alike: declare one of them"),
        (str | uuid.UUID, "these are stored alike: declare one of them"),
        (list[int] | set[int], "these are stored alike: declare one of them"),
        (Pairs, "give its members values of one of these types"),
        (Early, "make it a field"),
    ],
)
def test_a_type_that_msgspec_refuses_is_refused_with_what_to_declare(kind: Any, remedy: str) -> None:
    with pytest.raises(FieldRefused, match=rf"^Box\.x: .* {remedy}"):
        Codec(kind, "Box.x")
