"""Agent classes as their authors write them: names, state, defaults, inheritance, hooks; and references, which are values."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any, ClassVar

import msgspec
import pytest

import mielin_cells as cells
from mielin_cells.agents.agent import HOOKS
from mielin_cells.agents.live import Cell
from mielin_cells.agents.reference import classes, make_ref
from mielin_cells.agents.spec import spec_of
from mielin_cells.log.state import StoredState


def live(cls: type[cells.Agent], **state: Any) -> tuple[Any, Cell]:
    """A live instance in a turn, without a node."""
    spec, stored = spec_of(cls), StoredState()
    stored.apply(spec.initial(**state))
    cell = Cell(spec, stored, "a")
    cell.begin()
    return cell.agent, cell


def reloaded(cell: Cell, cls: type[cells.Agent]) -> Any:
    return Cell(spec_of(cls), cell._state, "a").agent


# ---- names and versions ----------------------------------------------------------------------------------------


def test_the_name_on_the_wire_is_the_class_name_whatever_module_or_function_it_is_in() -> None:
    class Inner(cells.Agent):
        pass

    class Renamed(cells.Agent, name="shop/till", version=3):
        pass

    assert (spec_of(Inner).name, spec_of(Inner).version) == ("Inner", 1)
    assert (spec_of(Renamed).name, spec_of(Renamed).version) == ("shop/till", 3)
    assert classes["shop/till"] is Renamed


def test_a_derived_class_has_a_name_and_a_version_of_its_own() -> None:
    class Base(cells.Agent, name="base", version=4):
        pass

    class Derived(Base):
        pass

    assert (spec_of(Derived).name, spec_of(Derived).version) == ("Derived", 1)


def test_the_later_of_two_classes_with_one_name_is_the_one_that_is_known() -> None:
    class Twice(cells.Agent):
        x: int = 1

    first = Twice

    class Twice(cells.Agent):  # type: ignore[no-redef] # the point of the test
        x: str = "later"

    assert classes["Twice"] is Twice
    assert first is not Twice
    assert live(first)[0].x == 1


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "2", None])
def test_a_version_is_a_whole_number_from_one(version: Any) -> None:
    with pytest.raises(cells.FieldRefused, match=r"Wrong: version = .* is not a whole number from 1"):
        type("Wrong", (cells.Agent,), {}, version=version)


@pytest.mark.parametrize("name", ["", 3, "a\nb", "\ud800"])
def test_a_name_is_printable_text(name: Any) -> None:
    with pytest.raises(cells.FieldRefused, match="is not printable text"):
        type("Wrong", (cells.Agent,), {}, name=name)
    assert "Wrong" not in classes


# ---- what is state ---------------------------------------------------------------------------------------------


class Kinds(cells.Agent):
    shared: ClassVar[int] = 7
    _secret: Missing = 5  # type: ignore[name-defined] # noqa: F821 - private annotations are not even looked at
    plain = "not state"
    ClassVariety: int = 1
    count: int = 0

    @cells.handler
    async def ping(self) -> None: ...


def test_annotated_names_are_state_and_private_and_class_variables_are_not() -> None:
    assert set(spec_of(Kinds).fields) == {"count", "ClassVariety"}
    agent, cell = live(Kinds)
    agent._secret, agent._cache, agent.count = 6, {}, 2

    delta = cell.end()

    assert delta is not None
    assert set(delta.plain) == {"count"}
    moved = reloaded(cell, Kinds)
    assert (moved.count, moved.plain, moved._secret, moved.shared, hasattr(moved, "_cache")) == (
        2, "not state", 5, 7, False,
    )  # fmt: skip


@pytest.mark.parametrize("kind", [ClassVar[int], ClassVar, "ClassVar[int]", "typing.ClassVar[Missing]"])
def test_a_class_variable_is_known_as_such_also_as_text(kind: Any) -> None:
    cls = type("Holder", (cells.Agent,), {"__annotations__": {"x": kind, "y": int}, "x": 1, "y": 2})
    assert set(spec_of(cls).fields) == {"y"}
    assert cls.__dict__["x"] == 1


@pytest.mark.parametrize("kind", ["dict[str, ClassVarish]", "Literal['ClassVar']"])
def test_a_type_that_only_mentions_class_var_is_state(kind: str) -> None:
    cls = type("Holder", (cells.Agent,), {"__annotations__": {"x": kind}})
    with pytest.raises(cells.FieldRefused, match="annotation cannot be resolved"):
        spec_of(cls)  # neither name is known here: so it was looked at


def test_a_field_may_have_the_name_of_its_type_and_a_class_may_hold_the_types_that_it_uses() -> None:
    class Shop(cells.Agent):
        class Price(float): ...

        int: int = 4
        last: Shop | None = None

    spec = spec_of(Shop)
    assert spec.fields["int"].type is int
    assert live(Shop)[0].int == 4
    with pytest.raises(cells.FieldRefused, match="Price cannot be stored"):
        spec_of(type("Market", (cells.Agent,), {"__annotations__": {"price": Shop.Price}}))


def test_an_agent_class_of_the_same_name_elsewhere_does_not_change_what_an_annotation_means() -> None:
    type("Plain", (cells.Agent,), {})  # an agent class of another module, say
    assert spec_of(UsesPlain).fields["item"].type is Plain


class Plain(msgspec.Struct):
    size: int


class UsesPlain(cells.Agent):
    item: Plain


# ---- defaults --------------------------------------------------------------------------------------------------


class Defaults(cells.Agent):
    needed: int
    names: list[str] = ["first"]
    deep: dict[str, list[int]] = {"a": [1]}
    visits: cells.Table[str, list[int]] = cells.Table({"x": [1]})
    blob: cells.Buffer = cells.Buffer(b"abc")


def test_a_mutable_default_is_copied_for_every_agent() -> None:
    one, _ = live(Defaults, needed=1)
    two, _ = live(Defaults, needed=1)
    one.names.append("second")
    one.deep["a"].append(2)
    one.visits["x"].append(2)
    one.blob.append(b"d")

    assert (two.names, two.deep, two.visits["x"], bytes(two.blob)) == (["first"], {"a": [1]}, [1], b"abc")
    three, _ = live(Defaults, needed=1)
    assert (three.names, three.deep, three.visits["x"], bytes(three.blob)) == (["first"], {"a": [1]}, [1], b"abc")


def test_a_default_that_is_changed_where_it_was_written_does_not_reach_agents() -> None:
    written = ["first"]
    cls = type("Holder", (cells.Agent,), {"__annotations__": {"names": list[str]}, "names": written})
    spec_of(cls)
    written.append("later")
    assert live(cls)[0].names == ["first"]


def test_defaults_do_not_answer_for_references() -> None:
    ref = make_ref(Defaults, "d")
    for name in ("needed", "names", "visits", "blob"):
        with pytest.raises(cells.errors.IsReference, match=f"ask the agent for '{name}'"):
            getattr(ref, name)
        with pytest.raises(cells.errors.IsReference, match=f"{name!r} is set only by the agent"):
            setattr(ref, name, 1)


@pytest.mark.parametrize(
    ("kind", "default"),
    [
        (int, "x"),
        (list[int], ["x"]),
        (int, 2**70),
        (str, "\ud800"),
        (int, None),
        (cells.Table[str, int], cells.Table({"a": "x"})),
        (cells.Table[str, int], 5),
        (cells.Buffer, 5),
        (cells.Buffer, "text"),
    ],
)
def test_a_default_that_does_not_fit_its_type_is_refused_when_the_class_is_used(kind: Any, default: Any) -> None:
    cls = type("Wrong", (cells.Agent,), {"__annotations__": {"x": kind}, "x": default})
    with pytest.raises(cells.FieldRefused, match=r"Wrong\.x: its default does not fit its type") as refused:
        spec_of(cls)
    assert refused.value.path == "Wrong.x"


# ---- creating --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({}, "Defaults: field 'needed' needs a value"),
        ({"needed": 1, "other": 2}, "Defaults: no field 'other'"),
        ({"needed": "x"}, r"Defaults\.needed: Expected `int`, got `str`"),
        ({"needed": 2**70}, r"Defaults\.needed: "),
        ({"needed": 1, "names": ["a", 2]}, r"Defaults\.names: .*\$\[1\]"),
        ({"needed": 1, "names": ["\ud800"]}, r"Defaults\.names: "),
        ({"needed": 1, "visits": {"x": ["y"]}}, r"Defaults\.visits: "),
        ({"needed": 1, "visits": {5: [1]}}, r"Defaults\.visits: "),
        ({"needed": 1, "visits": 5}, r"Defaults\.visits: "),
        ({"needed": 1, "blob": 5}, r"Defaults\.blob: a int is no content of a Buffer"),
        ({"needed": object()}, r"Defaults\.needed: a object cannot be stored"),
    ],
)
async def test_a_spawn_with_wrong_state_is_refused_by_name_and_makes_nothing(state: dict[str, Any], says: str) -> None:
    async with cells.local() as cluster:
        with pytest.raises(cells.BadArguments, match=says):
            await cluster.spawn(Defaults, "d", **state)
        with pytest.raises(cells.NoSuchAgent):
            await cluster.show("d")


def test_agents_are_not_constructed_and_have_no_init() -> None:
    with pytest.raises(cells.UsageError, match=r"await cluster\.spawn\(Kinds, id"):
        Kinds()
    with pytest.raises(cells.FieldRefused, match="defines __init__"):
        type("Wrong", (cells.Agent,), {"__init__": lambda self: None})


# ---- inheritance -----------------------------------------------------------------------------------------------


class Animal(cells.Agent):
    name: str
    legs: int = 4
    tricks: list[str] = []

    @cells.handler
    async def speak(self, times: int = 1) -> str:
        return "..." * times

    @cells.handler
    async def describe(self) -> str:
        return f"{self.name} has {self.legs} legs and says {await self.speak()}"


class Bird(Animal):
    legs = 2
    name = "bird"
    wings: int = 2

    @cells.handler
    async def speak(self, times: int = 2) -> str:
        return "tweet" * times


class Swimmer(cells.Agent):
    depth: float = 1.5
    legs: int = 0

    @cells.handler
    async def dive(self) -> float:
        self.depth *= 2
        return self.depth


class Duck(Bird, Swimmer):
    legs: int


def test_fields_defaults_and_handlers_are_inherited_and_overridden_as_in_any_class() -> None:
    assert set(spec_of(Bird).fields) == {"name", "legs", "tricks", "wings"}
    bird, _ = live(Bird)
    assert (bird.name, bird.legs, bird.wings, bird.tricks) == ("bird", 2, 2, [])
    assert live(Animal, name="x")[0].legs == 4
    with pytest.raises(cells.BadArguments, match="'name' needs a value"):
        spec_of(Animal).initial()


def test_a_class_of_two_agent_classes_has_the_fields_and_defaults_of_both() -> None:
    duck, _ = live(Duck)
    assert (duck.legs, duck.depth, duck.name) == (2, 1.5, "bird")
    assert set(spec_of(Duck).handlers) == {"speak", "describe", "dive"}


async def test_a_derived_agent_answers_by_its_own_handlers() -> None:
    async with cells.local() as cluster:
        duck = await cluster.spawn(Duck, "d", name="Donald", legs=2)
        assert await duck.describe() == "Donald has 2 legs and says tweettweet"
        assert await duck.speak(1) == "tweet"
        assert await duck.dive() == 3.0
        with pytest.raises(cells.errors.WrongClass):
            await cluster.get(Animal, "d").speak()


def test_a_new_default_for_an_inherited_field_keeps_it_state() -> None:
    bird, cell = live(Bird)
    bird.name = "Tweety"
    delta = cell.end()
    assert delta is not None
    assert set(delta.plain) == {"name"}


def test_an_override_of_a_handler_must_be_one() -> None:
    async def speak(self: Any) -> str:
        return ""

    with pytest.raises(cells.FieldRefused, match=r"Cat\.speak takes the place of an inherited handler; decorate it"):
        type("Cat", (Animal,), {"speak": speak})


# ---- hooks and handlers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", ["field", "plain function", "handler"])
def test_a_hook_is_an_async_method_and_nothing_else(hook: str, kind: str) -> None:
    async def right(self: Any) -> bool:
        return True

    handler: Any = cells.handler(right)
    members: dict[str, dict[str, Any]] = {
        "field": {"__annotations__": {hook: bool}, hook: True},
        "plain function": {hook: lambda self: True},
        "handler": {hook: handler},
    }
    with pytest.raises(cells.FieldRefused, match=f"Wrong.{hook} is the name of a hook; write it as `async def {hook}"):
        type("Wrong", (cells.Agent,), members[kind])
    assert spec_of(type("Right", (cells.Agent,), {hook: right})).overrides(hook)


def test_a_handler_is_an_async_method() -> None:
    def plain(self: Any) -> int:
        return 1

    async def stream(self: Any) -> Any:
        yield 1

    async def right(self: Any) -> int:
        return 1

    @functools.wraps(right)
    def around(self: Any) -> Any:
        return right(self)

    wrong: list[tuple[Any, str]] = [
        (plain, "must be `async def`: a caller awaits it"),
        (lambda self: 1, "must be `async def`: a caller awaits it"),
        (5, "must be `async def`: a caller awaits it"),
        (stream, "yields, and an ask has one answer; return a list"),
        (staticmethod(plain), "is a staticmethod, .* write a method with `self`"),
        (classmethod(right), "is a classmethod, .* write a method with `self`"),
        (functools.partial(plain, 1), "is a functools.partial; write a method"),
        (functools.partial(right, 1), "is a functools.partial; write a method"),
        (around, "is wrapped by a plain function; make the decorator's wrapper `async def`"),
        (cells.handler(right), "is a handler already; decorate it once"),
    ]
    for fn, says in wrong:
        with pytest.raises(cells.FieldRefused, match=says):
            cells.handler(fn)


async def test_a_handler_is_a_plain_call_inside_its_turn_and_a_message_outside() -> None:
    agent, _ = live(Animal, name="Tom")
    assert await agent.describe() == "Tom has 4 legs and says ..."
    with pytest.raises(cells.UsageError, match="nobody to tell but itself"):
        await agent.speak.tell()
    with pytest.raises(cells.errors.NotConnected):
        await make_ref(Animal, "Tom").describe()
    with pytest.raises(cells.NotInTurn):
        cells.this()


def test_a_decorator_that_keeps_the_signature_may_stand_below_handler() -> None:
    def logged(fn: Any) -> Any:
        @functools.wraps(fn)
        async def run(*args: Any, **kwargs: Any) -> Any:
            return await fn(*args, **kwargs)

        return run

    class Wrapped(cells.Agent):
        @cells.handler
        @logged
        async def add(self, n: int, to: Wrapped | None = None) -> int:
            return n

    assert list(spec_of(Wrapped).handlers["add"].parameters) == ["n", "to"]


# ---- references ------------------------------------------------------------------------------------------------


def test_a_reference_is_a_value() -> None:
    one, same = make_ref(Animal, "a"), make_ref(Animal, "a")
    other, bird = make_ref(Animal, "b"), make_ref(Bird, "a")
    assert one == same
    assert one != other
    assert one != bird
    assert one != "a"
    assert {one: 1}[same] == 1
    assert len({one, same, other}) == 2
    assert repr(one) == "<Animal 'a'>"


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - its own bytes, in the same process


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_a_reference_is_copied_as_a_value(copied: Any) -> None:
    ref = make_ref(Animal, "a")
    assert copied(ref) == ref
    assert type(copied(ref)) is Animal


def test_a_reference_to_a_live_agent_is_equal_to_it_and_a_copy_of_it_is_a_reference() -> None:
    agent, _ = live(Bird)
    assert agent == make_ref(Bird, "a")
    with pytest.raises(cells.errors.IsReference):
        _ = copy.copy(agent).legs


@pytest.mark.parametrize("wrong", ["", "x" * 129, "a\nb", "\ud800", 5, None])
def test_a_reference_has_a_valid_id(wrong: Any) -> None:
    with pytest.raises(cells.errors.InvalidAgentId):
        make_ref(Animal, wrong)


class Herd(cells.Agent):
    first: Animal | None = None
    all: list[Animal] = []
    by_name: dict[str, Animal] = {}
    pairs: set[tuple[Animal, int]] = set()
    stalls: cells.Table[str, Animal] = cells.Table()

    @cells.handler
    async def take(self, animal: Animal, others: list[Animal]) -> Animal:
        self.first = animal
        self.all = [animal, *others]
        self.by_name = {animal.__dict__["__mielin_id__"]: animal}
        self.pairs = {(animal, 1)}
        self.stalls["x"] = animal
        return animal

    @cells.handler
    async def hear(self) -> list[str]:
        assert self.first is not None
        return [await animal.speak(1) for animal in [self.first, *self.all, self.stalls["x"]]]


async def test_references_are_state_arguments_and_results_and_keep_their_class() -> None:
    async with cells.local(nodes=2) as cluster:
        herd = await cluster.spawn(Herd, "h")
        bird, dog = await cluster.spawn(Bird, "b", name="b"), await cluster.spawn(Animal, "d", name="dog")

        got = await herd.take(bird, [dog])

        assert got == bird
        assert type(got) is Bird
        assert await got.speak(1) == "tweet"
        assert await herd.hear() == ["tweet", "tweet", "...", "tweet"]
        assert (await cluster.migrate(herd)).ok
        assert await herd.hear() == ["tweet", "tweet", "...", "tweet"]


async def test_a_reference_of_another_class_is_refused_at_the_caller() -> None:
    async with cells.local() as cluster:
        herd = await cluster.spawn(Herd, "h")
        with pytest.raises(cells.BadArguments, match="a reference to a Herd, where a Animal is expected"):
            await herd.take(herd, [])  # type: ignore[arg-type]
