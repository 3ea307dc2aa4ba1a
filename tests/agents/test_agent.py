"""Agent classes as their authors write them: names, state, defaults, inheritance, hooks; and references, which are values."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import pytest
from support.live_agents import live, reloaded

import mielin_cells as cells
from mielin_cells.agents.reference import classes, make_ref
from mielin_cells.agents.spec import spec_of

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
        ({"needed": 1, "blob": 5}, r"Defaults\.blob: a int is not allowed in a Buffer"),
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
