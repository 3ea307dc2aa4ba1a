"""What an author writes is kept, or refused where it is written: attributes, plain base classes, defaults, names of fields."""

from __future__ import annotations

import abc
import collections
import dataclasses
import fractions
import functools
import pathlib
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import msgspec
import pydantic
import pytest

import mielin_cells as cells
from mielin_cells.agents.spec import spec_of

T = TypeVar("T")
U = TypeVar("U")


class Tagged:
    label: str = "none"
    tags: list[str] = []
    limit: ClassVar[int] = 3
    _cache: int = 0

    @cells.handler  # type: ignore[type-var]
    async def tag(self, tag: str) -> list[str]:
        self.tags.append(tag)
        return self.tags


class Named(Protocol):
    name: str


class Parcel(Tagged, Named, abc.ABC, cells.Agent):
    name: str = "parcel"
    weight: int = 0
    MAX = 10

    @functools.cached_property
    def heavy(self) -> bool:
        return self.weight > 5

    @property
    def total(self) -> int:
        return self.weight

    @total.setter
    def total(self, value: int) -> None:
        self.weight = value

    @cells.handler
    async def relabel(self, label: str) -> None:
        self.label, self.total, self._note = label, 7, "may be lost"
        assert self.heavy

    @cells.handler
    async def set(self, name: str) -> None:
        self.weight = 9
        setattr(self, name, 5)

    @cells.handler
    async def look(self) -> tuple[str, list[str], int]:
        return self.label, self.tags, self.weight


class Letter(Parcel):
    tags = ["letter"]


async def test_fields_of_a_plain_base_class_are_state() -> None:
    assert set(spec_of(Parcel).fields) == {"label", "tags", "name", "weight"}
    async with cells.local(nodes=2) as cluster:
        parcel = await cluster.spawn(Parcel, "p", label="given")  # type: ignore[call-arg] # checkers do not look so far
        letter = await cluster.spawn(Letter, "l")
        assert await parcel.tag("a") == ["a"]
        assert await letter.tag("b") == ["letter", "b"]
        assert await parcel.look() == ("given", ["a"], 0)
        await parcel.relabel("b")
        await cluster.migrate(parcel)
        assert await parcel.look() == ("b", ["a"], 7)


@pytest.mark.parametrize("name", ["foo", "MAX", "limit"])
async def test_a_public_attribute_without_a_type_is_refused_by_the_turn_that_sets_it(name: str) -> None:
    async with cells.local() as cluster:
        parcel = await cluster.spawn(Parcel, "p")
        with pytest.raises(cells.errors.StateInvalid, match=rf"Parcel\.{name}, which is no state field.*`_{name}`"):
            await parcel.set(name)
        assert await parcel.look() == ("none", [], 0)
        await parcel.relabel("x")
        with pytest.raises(cells.errors.StateInvalid, match=rf"Parcel\.{name}"):
            await parcel.set(name)


class SetsOnArrival(cells.Agent):
    async def on_arrive(self) -> None:
        self.client = object()

    @cells.handler
    async def ping(self) -> None: ...


async def test_a_hook_that_sets_one_fails() -> None:
    async with cells.local() as cluster:
        agent = await cluster.spawn(SetsOnArrival, "s")
        shown = await cluster.show(agent)
        assert "SetsOnArrival.client" in shown.error
        assert shown.code == "StateInvalid"


@dataclasses.dataclass
class Changes:
    n: int = 0


class Struct(msgspec.Struct):
    n: int = 0


class Model(pydantic.BaseModel):
    n: int = 0


SHARED: list[Any] = [
    [], {}, set(), bytearray(), collections.deque[int](), collections.defaultdict[str, int](int), Changes(), Struct(), Model(),
    cells.Table[str, int](), cells.Buffer(),
]  # fmt: skip


@pytest.mark.parametrize("value", SHARED, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("where", ["the class", "a plain base"])
def test_a_public_class_attribute_that_can_change_has_a_type(value: Any, where: str) -> None:
    own = {"items": value}
    with pytest.raises(cells.FieldRefused, match=r"Sharer\.items has no type.*items: .* = "):
        if where == "the class":
            type("Sharer", (cells.Agent,), own)
        else:
            type("Sharer", (type("Mixin", (), own), cells.Agent), {})


def test_a_plain_base_with_an_init_is_refused_because_it_would_never_run() -> None:
    class Opens:
        def __init__(self) -> None:
            self.client = 1

    with pytest.raises(cells.FieldRefused, match="would never run"):
        type("Sharer", (Opens, cells.Agent), {})


@pytest.mark.parametrize(
    "default", [dataclasses.field(default_factory=list), msgspec.field(default_factory=list), pydantic.Field([])]
)
def test_a_default_of_another_library_is_refused_with_what_to_write(default: Any) -> None:
    cls = type("Sharer", (cells.Agent,), {"__annotations__": {"xs": list[int]}, "xs": default})
    with pytest.raises(cells.FieldRefused, match=r"Sharer\.xs: .*write the value itself, as `= \[\]`"):
        spec_of(cls)


class Box(cells.Agent, Generic[T]):
    n: int = 0


class IntBox(Box[int]):
    pass


class GivenShelf(cells.Agent, Generic[T]):
    top: T
    rest: list[T] = []
    found: T | None = None
    by_name: cells.Table[str, T] = cells.Table()

    @cells.handler
    async def put(self, name: str, item: T) -> list[T]:
        self.by_name[name] = self.top = self.found = item
        self.rest = [*self.rest, item]
        return self.rest


class GivenPair(GivenShelf[U], Generic[T, U]):
    other: T

    @cells.handler
    async def look(self) -> T:
        return self.other


class GivenBooks(GivenPair[int, tuple[str, int]]):
    pass


async def test_a_class_that_is_derived_from_a_generic_one_has_the_types_that_it_gives() -> None:
    async with cells.local(nodes=2) as cluster:
        books = await cluster.spawn(GivenBooks, "books", top=("a", 1), other=3)
        assert await books.put("b", ("b", 2)) == [("b", 2)]
        with pytest.raises(cells.BadArguments, match=r"GivenBooks\.put: Expected `array`, got `str` - at `\$\.item`"):
            await books.put("c", "c")  # type: ignore[arg-type]
        await cluster.migrate(books)
        assert (await books.put("c", ("c", 3)), await books.look()) == ([("b", 2), ("c", 3)], 3)
    with pytest.raises(cells.FieldRefused, match=r"GivenShelf\.\w+.*: a type without a declared content"):
        spec_of(GivenShelf)


class Shape(cells.Agent):
    @abc.abstractmethod
    async def area(self) -> int: ...


class Unfinished(cells.Agent, abc.ABC):
    @abc.abstractmethod
    async def area(self) -> int: ...


async def test_spawning_a_class_that_is_not_an_agent_says_what_to_write() -> None:
    cases: list[tuple[Any, str]] = [
        (Box[int], "derive a class: `class Name"),
        (int, "is not an agent class; define `class Name"),
        (cells.Agent, "is not an agent class"),
        (Unfinished, "Unfinished is abstract: area is not defined"),
        (3, "is not an agent class"),
    ]
    async with cells.local() as cluster:
        for cls, says in cases:
            with pytest.raises(cells.UsageError, match=says):
                await cluster.spawn(cls, "a")
        await cluster.spawn(IntBox, "a")
        with pytest.raises(cells.UsageError, match="given by name"):
            await cluster.spawn(IntBox, "b", 5)  # type: ignore[call-arg]


def test_an_agent_is_no_dataclass() -> None:
    cls: Any = dataclasses.dataclass(type("Sharer", (cells.Agent,), {"__annotations__": {"x": int}, "x": 1}))
    with pytest.raises(cells.FieldRefused, match="no dataclass; remove the decorator"):
        spec_of(cls)


NAMES = [
    "id", "node", "make", "self", "cls", "state", "args", "kwargs", "name", "version", "type", "timeout", "cluster", "caller", "agent",
    "cell", "on", "spec", "handler", "tell", "ask", "unnamed", "request", "field", "fields", "default", "value", "values", "keys",
]  # fmt: skip


async def test_a_field_may_have_any_name() -> None:
    async def look(self: Any) -> list[int]:
        for name in NAMES:
            setattr(self, name, getattr(self, name) + 1)
        return [getattr(self, name) for name in NAMES]

    look.__annotations__ = {"return": list[int]}
    made = {**dict.fromkeys(NAMES, 0), "look": cells.handler(look), "__annotations__": dict.fromkeys(NAMES, int)}
    cls: Any = type("ManyNames", (cells.Agent,), made)
    async with cells.local(nodes=2) as cluster:
        given = {name: at for at, name in enumerate(NAMES)}
        one = await cluster.spawn(cls, "one", **given)
        two = await cluster.on("node-2").spawn(cls, "two", **given)
        assert await one.look() == await two.look() == [at + 1 for at in range(len(NAMES))]
        await cluster.migrate(one)
        assert await one.look() == [at + 2 for at in range(len(NAMES))]


async def test_a_parameter_of_a_handler_may_have_any_name() -> None:
    names = [name for name in NAMES if name != "self"]
    parameters = ", ".join(f"{name}: int = 0" for name in names)
    space: dict[str, Any] = {}
    exec(f"async def put(self, {parameters}) -> list[int]:\n    return [{', '.join(names)}]", space)  # noqa: S102
    cls: Any = type("ManyParameters", (cells.Agent,), {"put": cells.handler(space["put"])})
    async with cells.local() as cluster:
        agent = await cluster.spawn(cls, "a")
        assert await agent.put(**{name: at for at, name in enumerate(names)}) == [*range(len(names))]


class Computing(cells.Agent):
    n: int = 2

    @functools.cached_property
    def square(self) -> int:
        return self.n**2

    @cells.handler
    async def fail(self) -> None:
        self.n = 10
        raise ValueError(self.square)

    @cells.handler
    async def look(self) -> int:
        return self.square


async def test_a_cached_property_is_computed_again_after_its_state_is_undone() -> None:
    async with cells.local() as cluster:
        agent = await cluster.spawn(Computing, "a")
        with pytest.raises(cells.HandlerFailed):
            await agent.fail()
        assert await agent.look() == 4


@pytest.mark.parametrize(
    ("kind", "instead"),
    [
        (pathlib.Path, "keep it as str"),
        (fractions.Fraction, "keep its parts"),
        (collections.OrderedDict[str, int], "declare a dict"),
        (collections.deque[int], "declare a list"),
        (object, "declare a dataclass or plain data of it, or keep it in a `_private` attribute"),
    ],
)
def test_a_type_that_cannot_be_stored_is_refused_with_what_to_declare(kind: Any, instead: str) -> None:
    cls = type("OddlyDeclared", (cells.Agent,), {"__annotations__": {"x": list[kind]}})
    with pytest.raises(cells.FieldRefused, match=rf"OddlyDeclared\.x: .* cannot be stored; {instead}"):
        spec_of(cls)
