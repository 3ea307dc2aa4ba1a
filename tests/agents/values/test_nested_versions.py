"""Data of another version inside a field: it loads whole, or is refused with its place; nothing is dropped and then saved."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypedDict

import msgspec
import pydantic
import pytest
from support.field_types import agent_with, stored

import mielin_cells as cells
from mielin_cells.agents.live import Cell
from mielin_cells.agents.spec import Spec, spec_of
from mielin_cells.agents.step import results_of
from mielin_cells.agents.upgrades import upgrade_state
from mielin_cells.agents.values.wire import encode
from mielin_cells.log.state import StoredState


def made_by(how: str, *names: str) -> Any:
    """A class `Leg` with these fields, each a text with a default."""
    fields = dict.fromkeys(names, str)
    if how == "dataclass":
        return dataclasses.make_dataclass("Leg", [(name, str, dataclasses.field(default="")) for name in names])
    if how == "struct":
        return msgspec.defstruct("Leg", [(name, str, "") for name in names])
    if how == "model":
        return pydantic.create_model("Leg", **dict.fromkeys(names, (str, "")))  # type: ignore[call-overload]
    if how == "typed dict":
        return TypedDict("Leg", fields, total=False)  # type: ignore[operator]
    made = NamedTuple("Leg", [*fields.items()])  # type: ignore[misc]
    made.__new__.__defaults__ = ("",) * len(names)
    made._field_defaults = dict.fromkeys(names, "")
    return made


HOW = ["dataclass", "struct", "model", "typed dict", "named tuple"]
BY_NAME = HOW[:-1]
WHERE = ["field", "list", "dict", "optional", "table"]


def kind_in(where: str, leg: Any) -> Any:
    return {
        "field": leg, "list": list[leg], "dict": dict[str, leg], "optional": leg | None if isinstance(leg, type) else leg,
        "table": cells.Table[str, leg],
    }[where]  # fmt: skip


def value_in(where: str, leg: Any) -> Any:
    return {"list": [leg], "dict": {"a": leg}, "table": {"a": leg}}.get(where, leg)


def written(where: str, old: Any) -> StoredState:
    return stored(spec_of(agent_with(kind_in(where, old), "Trip")), x=value_in(where, old(to="LGA")))


def loaded(state: StoredState, where: str, new: Any) -> Any:
    cell = Cell(spec_of(agent_with(kind_in(where, new), "Trip")), state, "a")
    cell.begin()
    agent: Any = cell.agent
    found = agent.x["a"] if where == "table" else agent.x
    cell.end()
    return found


@pytest.mark.parametrize("how", BY_NAME)
@pytest.mark.parametrize("where", WHERE)
def test_a_nested_field_that_is_renamed_is_refused_with_its_place(how: str, where: str) -> None:
    state = written(where, made_by(how, "to"))
    before = dict(state.plain)
    with pytest.raises(
        cells.errors.StateUnloadable, match=r"Trip\.x.*'to' is stored, and the type does not declare it.*upgrade"
    ):
        loaded(state, where, made_by(how, "towards"))
    assert dict(state.plain) == before


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("where", WHERE)
def test_a_nested_field_with_a_default_may_be_added(how: str, where: str) -> None:
    found = loaded(written(where, made_by(how, "to")), where, made_by(how, "to", "via"))
    assert "LGA" in str(found)


@pytest.mark.parametrize("where", WHERE)
def test_items_of_a_named_tuple_that_are_gone_are_refused(where: str) -> None:
    with pytest.raises(cells.errors.StateUnloadable, match=r"Trip\.x"):
        loaded(written(where, made_by("named tuple", "to", "via")), where, made_by("named tuple", "to"))


def test_a_key_of_another_version_is_refused_and_not_missed() -> None:
    table: Any = cells.Table
    one: Any = made_by("named tuple", "to")
    two: Any = made_by("named tuple", "to", "via")
    state = stored(spec_of(agent_with(table[one, int], "Trip")), x={one("LGA"): 1})
    with pytest.raises(cells.errors.StateUnloadable, match=r"Trip\.x has a key of another version.*LGA"):
        Cell(spec_of(agent_with(table[two, int], "Trip")), state, "a")


def test_sets_within_nested_data_may_come_in_another_order() -> None:
    def of(values: list[str]) -> StoredState:
        state = StoredState()
        state.put({"x": encode([{"names": values}])})
        return state

    class Group(msgspec.Struct):
        names: set[str]

    spec = spec_of(agent_with(list[Group], "Trip"))
    for values in (["a", "b", "c"], ["c", "b", "a"]):
        found: Any = Cell(spec, of(values), "a").agent
        assert found.x == [Group({"a", "b", "c"})]


def upgrading(kind: Any, step: Any) -> Spec:
    made = {"__annotations__": {"x": kind}, "step": cells.upgrade(from_version=1)(step)}
    return spec_of(type("UpgradedTrip", (cells.Agent,), made, version=2))


@pytest.mark.parametrize("how", BY_NAME)
@pytest.mark.parametrize("where", WHERE)
def test_an_upgrade_says_how_and_what_it_forgets_is_refused(how: str, where: str) -> None:
    old, new = made_by(how, "to"), made_by(how, "towards")

    def renamed(leg: dict[str, Any]) -> dict[str, Any]:
        return {"towards": leg["to"]}

    def says_how(cls: Any, old: dict[str, Any]) -> dict[str, Any]:
        x = old["x"]
        found = [renamed(leg) for leg in x] if where == "list" else {"a": renamed(x["a"])} if "a" in x else renamed(x)
        return {"x": found}

    state = written(where, old)
    with pytest.raises(cells.errors.StateUpgradeFailed, match=r"Trip\.x.*'to' is stored"):
        upgrade_state(upgrading(kind_in(where, new), lambda cls, old: old), state, 1)
    spec = upgrading(kind_in(where, new), says_how)
    delta = upgrade_state(spec, state, 1)
    assert delta is not None
    state.apply(delta)
    agent: Any = Cell(spec, state, "a").agent
    assert "LGA" in str(agent.x["a"] if where == "table" else agent.x)


def test_a_model_that_reads_old_data_itself_says_how() -> None:
    class Leg(pydantic.BaseModel):
        towards: str = ""

        @pydantic.model_validator(mode="before")
        @classmethod
        def old(cls, data: Any) -> Any:
            return {"towards": data["to"]} if "to" in data else data

    found = loaded(written("list", made_by("model", "to")), "list", Leg)
    assert found == [Leg(towards="LGA")]


@pytest.mark.parametrize("how", BY_NAME)
def test_an_argument_of_another_version_is_refused_and_not_cut(how: str) -> None:
    def taker(leg: Any) -> Any:
        async def take(self: Any, leg: Any) -> None: ...

        take.__annotations__ = {"leg": leg, "return": None}
        return spec_of(type("LegTaker", (cells.Agent,), {"take": cells.handler(take)})).handlers["take"]

    old, new = made_by(how, "to"), made_by(how, "towards")
    data = taker(old).encode_args((old(to="LGA"),), {})
    with pytest.raises(cells.BadArguments, match="'to' is stored, and the type does not declare it"):
        taker(new).decode_args(data)


@pytest.mark.parametrize("how", BY_NAME)
def test_a_steps_result_of_another_version_is_refused_and_not_cut(how: str) -> None:
    def codec(leg: Any) -> Any:
        def call() -> Any: ...

        call.__annotations__ = {"return": list[leg]}
        return results_of(call)

    old, new = made_by(how, "to"), made_by(how, "towards")
    data = codec(old).encode([old(to="LGA")])
    assert codec(old).load(data) == [old(to="LGA")]
    with pytest.raises(cells.errors.StepInvalid, match="'to' is stored, and the type does not declare it"):
        codec(new).load(data)
