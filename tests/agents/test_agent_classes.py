"""Agent classes that derive from others; their hooks and handlers; and references, which are values."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
from support.live_agents import live

import mielin_cells as cells
from mielin_cells.agents.agent import HOOKS
from mielin_cells.agents.reference import make_ref
from mielin_cells.agents.spec import spec_of

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

    async def right(self: Any) -> int:
        return 1

    @functools.wraps(right)
    def around(self: Any) -> Any:
        return right(self)

    wrong: list[tuple[Any, str]] = [
        (plain, "must be `async def`: a caller awaits it"),
        (lambda self: 1, "must be `async def`: a caller awaits it"),
        (5, "must be `async def`: a caller awaits it"),
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
    with pytest.raises(cells.UsageError, match="cannot tell itself with .tell"):
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
