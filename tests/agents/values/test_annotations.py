"""Annotations that name what is defined later, elsewhere, or for type checkers alone; and a Python that reads them late."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, ClassVar, ForwardRef

import pytest

import mielin_cells as cells
from mielin_cells.agents.spec import spec_of
from mielin_cells.agents.values import annotations as reading

if TYPE_CHECKING:
    from decimal import Decimal


class DayBook(cells.Agent):
    later: list[Entry] = []
    sum: int = 0

    @cells.handler
    async def add(self, entry: Entry) -> list[Entry]:
        self.later.append(entry)
        return self.later


class ForCheckers(cells.Agent):
    price: Decimal


class ForCheckersToo(cells.Agent):
    @cells.handler
    async def pay(self, price: Decimal) -> None: ...


async def test_an_annotation_may_name_what_the_module_defines_later() -> None:
    async with cells.local(nodes=2) as cluster:
        ledger = await cluster.spawn(DayBook, "l")
        assert await ledger.add((1, "a")) == [(1, "a")]
        assert (await cluster.migrate(ledger)).ok
        assert await ledger.add((2, "b")) == [(1, "a"), (2, "b")]


Entry = tuple[int, str]


@pytest.mark.parametrize("cls", [ForCheckers, ForCheckersToo])
def test_a_name_for_type_checkers_alone_is_refused_at_first_use_with_what_to_do(cls: type[cells.Agent]) -> None:
    with pytest.raises(
        cells.FieldRefused, match=r"name 'Decimal' is not defined; import .* outside of `if TYPE_CHECKING:`"
    ):
        spec_of(cls)


def test_a_type_that_a_function_defines_is_refused_at_first_use_with_what_to_do() -> None:
    class Local: ...

    class Keeper(cells.Agent):
        local: Local

    with pytest.raises(cells.FieldRefused, match="name 'Local' is not defined; .*and of functions"):
        spec_of(Keeper)


# ---- a Python that reads annotations when they are asked for, as 3.14 does ---------------------------------------


class Late:
    """Its `annotationlib`: what is not defined yet is a `ForwardRef`."""

    Format = types.SimpleNamespace(FORWARDREF="forward")

    @staticmethod
    def get_annotations(holder: Any, *, format: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, read in vars(holder).get("__lazily__", {}).items():
            try:
                found[name] = read()
            except NameError as error:
                found[name] = ForwardRef(str(error.name))
        return found or dict(vars(holder).get("__annotations__", {}))


def test_annotations_that_are_read_late_are_fields_and_resolved_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "annotationlib", Late)
    names: dict[str, Any] = {}

    def later() -> Any:
        if "NowhereDefined" not in names:
            raise NameError("name 'NowhereDefined' is not defined", name="NowhereDefined")
        return names["NowhereDefined"]

    lazily = {"count": lambda: int, "stamp": later, "shared": lambda: ClassVar[int], "_own": later}
    cls = type("LateAlbum", (cells.Agent,), {"__lazily__": lazily, "count": 3, "shared": 5})
    assert cls.__dict__["shared"] == 5
    with pytest.raises(cells.FieldRefused, match="name 'NowhereDefined' is not defined"):
        spec_of(cls)
    names["NowhereDefined"] = tuple[str, int]
    spec = spec_of(cls)
    assert {name: field.type for name, field in spec.fields.items()} == {"count": int, "stamp": tuple[str, int]}


def test_the_agent_classes_of_this_python_read_the_same_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(spec_of(DayBook).fields)
    monkeypatch.setattr(reading, "annotationlib", Late)
    again = type(
        "DayBookAgain", (cells.Agent,), {"__annotations__": dict(DayBook.__annotations__), "later": [], "sum": 0}
    )
    assert {name: field.type for name, field in spec_of(again).fields.items()} == {
        name: field.type for name, field in before.items()
    }
