"""A value is loaded as it was set or sent, to the type; or it is refused there, with its place."""

import collections
import dataclasses
import datetime as dt
import enum
import functools
import math
import zoneinfo
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import pydantic
import pytest
from support.field_types import Leg
from support.ids import shown

import mielin_cells as cells
from mielin_cells.agents.spec import spec_of
from mielin_cells.agents.values.exact import is_exact


@dataclasses.dataclass
class Shape:
    name: str = ""


@dataclasses.dataclass
class Circle(Shape):
    r: float = 0.0


@dataclasses.dataclass
class SameAsShape(Shape):
    pass


@dataclasses.dataclass
class Twice:
    x: int = 1

    def __post_init__(self) -> None:
        self.x *= 2


@dataclasses.dataclass
class Area:
    side: int = 2

    @functools.cached_property
    def size(self) -> int:
        return self.side**2


class Long(Leg):
    by: str = "train"


class Text(str):  # noqa: SLOT000
    pass


class Whole(int):
    pass


class Names(list[str]):
    pass


class Level(enum.IntEnum):
    LOW = 1


class Kind(enum.StrEnum):
    A = "a"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: int


class Options(TypedDict, total=False):
    depth: int


class Base(pydantic.BaseModel):
    n: int = 0


class Derived(Base):
    more: int = 0


class Aliased(pydantic.BaseModel):
    x: int = pydantic.Field(0, alias="X")
    y: int = pydantic.Field(0, validation_alias="Y1", serialization_alias="Y2")
    inner: "Aliased | None" = None


class Hidden(pydantic.BaseModel):
    shown: int = 0
    hidden: int = pydantic.Field(0, exclude=True)


class Secret(pydantic.BaseModel):
    key: pydantic.SecretStr


class Doubles(pydantic.BaseModel):
    n: int = 1

    @pydantic.model_validator(mode="after")
    def double(self) -> "Doubles":
        self.__dict__["n"] = self.n * 2
        return self


class Private(pydantic.BaseModel):
    _n: int = 0


class Strict(pydantic.BaseModel, strict=True):
    at: dt.datetime
    both: tuple[int, int]
    some: set[str]
    data: bytes
    path: Path


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"


class Owner(pydantic.BaseModel):
    pet: Cat | Dog = pydantic.Field(discriminator="kind")
    counts: collections.Counter[str] = pydantic.Field(default_factory=collections.Counter)
    by_kind: collections.defaultdict[str, list[int]] = pydantic.Field(
        default_factory=lambda: collections.defaultdict[str, list[int]](list)
    )


class Root(pydantic.RootModel[list[int]]):
    pass


UTC = dt.UTC
ROME = zoneinfo.ZoneInfo("Europe/Rome")


def with_attribute() -> Shape:
    made = Shape()
    made.extra = 1  # type: ignore[attr-defined]
    return made


def with_private() -> Private:
    made = Private()
    made._n = 5
    return made


def in_itself() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


REFUSED: list[tuple[Any, Any, str]] = [
    (Shape, Circle("c", 2.0), "Circle would be loaded as a Shape"),
    (Shape, SameAsShape("c"), "SameAsShape would be loaded as a Shape"),
    (Shape, with_attribute(), "no field of Shape would be lost.* - at `\\$.*extra`"),
    (list[Shape], [Shape(), Circle()], r"Circle would be loaded .* - at `\$.*\[1\]`"),
    (dict[str, list[Leg]], {"a": [Long("x")]}, r"Long would be loaded .* - at `\$.*\['a'\]\[0\]`"),
    (Twice, Twice(), r"2 would be loaded as 4.* - at `\$.*\.x`"),
    (str, Text("x"), "Text would be loaded as a str"),
    (str, Kind.A, "Kind would be loaded as a str"),
    (int, Whole(5), "Whole would be loaded as a int"),
    (int, Level.LOW, "Level would be loaded as a int"),
    (int, True, "got `bool`"),
    (int, 2**64, "ints beyond 64 bits"),
    (list[int], [1, 2**64], r"ints beyond 64 bits .* - at `\$.*\[1\]`"),
    (list[int], [Level.LOW], "Level would be loaded as a int"),
    (float, 2**53 + 1, "is not equal"),
    (list[str], Names(["a"]), "Names would be loaded as a list"),
    (list[int], (1, 2), "tuple would be loaded as a list"),
    (tuple[int, ...], [1], "list would be loaded as a tuple"),
    (tuple[int, int], Point(1, 2), "Point would be loaded as a tuple"),
    (list[int], in_itself(), "holds itself"),
    (frozenset[int], {1}, "set would be loaded as a frozenset"),
    (dict[str, int], collections.defaultdict(int, a=1), "defaultdict would be loaded as a dict"),
    (dict[str, int], collections.Counter("aab"), "Counter would be loaded as a dict"),
    (dict[str, int], collections.OrderedDict(a=1), "OrderedDict would be loaded as a dict"),
    (list[int], collections.deque([1]), "deque"),
    (bytes, bytearray(b"a"), "bytearray would be loaded as a bytes"),
    (bytearray, b"a", "bytes would be loaded as a bytearray"),
    (Options, {"depth": 1, "more": 2}, "'more' would be lost"),
    (dt.datetime, dt.datetime(2024, 5, 1, tzinfo=ROME), "time zone Europe/Rome would be loaded"),
    (dt.datetime, dt.datetime(2024, 5, 1, tzinfo=dt.timezone(dt.timedelta(hours=2))), "astimezone"),
    (dt.datetime, dt.datetime(2024, 5, 1, tzinfo=zoneinfo.ZoneInfo("UTC")), "time zone UTC"),
    (dt.datetime, dt.datetime(2024, 5, 1, tzinfo=UTC).replace(tzinfo=None, fold=1), "fold"),
    (Base, Derived(), "Derived would be loaded as a Base"),
    (Secret, Secret(key=pydantic.SecretStr("hunter2")), r"in the clear.* - at `\$.*key`"),
    (Doubles, Doubles(), "2 would be loaded as 4"),
    (Private, with_private(), "5 would be loaded as 0"),
    (dict[int, str], {Level.LOW: "a"}, "Level would be loaded as a int"),
]

KEPT: list[tuple[Any, Any]] = [
    (float, math.nan),
    (float, -0.0),
    (list[float], [math.nan, -0.0, math.inf]),
    (set[float], {math.nan, math.nan, 1.0}),
    (dict[float, int], {math.nan: 1}),
    (Decimal, Decimal("-0.00")),
    (Decimal, Decimal("sNaN")),
    (Rights, Rights.READ),
    (dict[Kind, Level], {Kind.A: Level.LOW}),
    (dt.datetime, dt.datetime(2024, 5, 1, 1, 2, 3, 4, tzinfo=UTC)),
    (dt.time, dt.time(1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2)))),
    (dict[tuple[int, str], Point], {(1, "a"): Point(1, 2)}),
    (Shape | None, Shape("a")),
    (Options, {}),
    (Aliased, Aliased.model_validate({"X": 5, "Y1": 6, "inner": {"X": 7}})),
    (Hidden, Hidden(hidden=5)),
    (list[Base | None], [Base(), None]),
    (Strict, Strict(at=dt.datetime(2024, 1, 1, tzinfo=UTC), both=(1, 2), some={"a"}, data=b"\xff", path=Path("/a"))),
    (Owner, Owner(pet=Dog(), counts=collections.Counter("aab"))),
    (Root, Root([1, 2])),
]


def assert_same(value: Any, loaded: Any) -> None:
    assert is_exact(value, loaded)
    if isinstance(value, pydantic.BaseModel):
        assert loaded.model_fields_set == value.model_fields_set


@pytest.mark.parametrize(("kind", "value"), KEPT, ids=shown)
async def test_state_arguments_results_tables_and_steps_are_what_they_were(kind: Any, value: Any) -> None:
    async def nothing() -> Any:
        return value

    nothing.__annotations__["return"] = kind

    class KindHolder(cells.Agent):
        x: kind | None = None
        t: cells.Table[int, kind] = cells.Table()

        @cells.handler
        async def put(self, x: kind) -> kind:
            assert_same(value, x)
            self.x, self.t[1] = value, value
            return value

        @cells.handler
        async def step(self) -> None:
            assert_same(value, await cells.step("a", nothing))

        @cells.handler
        async def look(self) -> bool:
            assert_same(value, self.x)
            assert_same(value, self.t[1])
            return True

    async with cells.local(nodes=2) as cluster:
        holder = await cluster.spawn(KindHolder, "h")
        assert_same(value, await holder.put(value))
        assert await holder.look()
        await holder.step()
        await cluster.migrate(holder)
        assert await holder.look()


@pytest.mark.parametrize(("kind", "value", "says"), REFUSED, ids=shown)
async def test_a_value_that_loading_would_change_is_refused(kind: Any, value: Any, says: str) -> None:
    async def nothing() -> kind:
        return value

    class KindHolder(cells.Agent):
        x: kind | None = None
        n: int = 0
        t: cells.Table[int, kind] = cells.Table()

        @cells.handler
        async def take(self, x: kind) -> None: ...

        @cells.handler(tries=1)
        async def give(self) -> kind:
            self.n += 1
            return value

        @cells.handler(tries=1)
        async def put(self) -> None:
            self.n += 1
            self.x = value

        @cells.handler
        async def put_in(self) -> int:
            with pytest.raises(cells.errors.StateInvalid, match=says):
                self.t[1] = value
            with pytest.raises(cells.errors.StateInvalid, match=says):
                self.t = {1: value}  # type: ignore[assignment]
            return len(self.t)

        @cells.handler
        async def later(self) -> None:
            with pytest.raises(cells.BadArguments, match=says):
                cells.after(1, self.take)(value)

        @cells.handler(tries=1)
        async def step(self) -> None:
            self.n += 1
            await cells.step("a", nothing)

        @cells.handler
        async def look(self) -> bool:
            return self.n == 0 and self.x is None and not self.t

    async with cells.local() as cluster:
        holder = await cluster.spawn(KindHolder, "h")
        for call in (holder.take, holder.take.tell):
            with pytest.raises(cells.BadArguments, match=says):
                await call(value)
        with pytest.raises(cells.BadArguments, match=says):
            await cluster.spawn(KindHolder, "other", x=value)
        with pytest.raises(cells.BadArguments, match=says):
            await holder.give()
        with pytest.raises(cells.errors.StateInvalid, match=says):
            await holder.put()
        with pytest.raises(cells.errors.StepInvalid, match=says):
            await holder.step()
        await holder.later()
        assert await holder.put_in() == 0
        assert await holder.look()


def test_a_default_that_a_load_would_change_is_refused_at_definition() -> None:
    for kind, value in ((dict[str, int], collections.defaultdict(int)), (tuple[int, ...], [1]), (Shape, Circle())):
        cls = type("KindHolder", (cells.Agent,), {"__annotations__": {"x": kind}, "x": value})
        with pytest.raises(cells.FieldRefused, match=r"Holder\.x: its default does not fit"):
            spec_of(cls)
