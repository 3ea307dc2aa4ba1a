"""Values that become their declared type, assignments that are all or nothing, and the comparison itself."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from support.field_types import Leg, agent_with, stored

import mielin_cells as cells
from mielin_cells.agents.live import Cell
from mielin_cells.agents.spec import spec_of
from mielin_cells.agents.values.changes import ValueChangedError
from mielin_cells.agents.values.exact import is_exact


@dataclasses.dataclass
class Shape:
    name: str = ""


@dataclasses.dataclass
class Area:
    side: int = 2

    @functools.cached_property
    def size(self) -> int:
        return self.side**2


# ---- what is normalised, in the turn that sets it ----


class Normalised(cells.Agent):
    f: float = 0.0
    fs: list[float] = []
    area: Area = Area()
    sent: dict[str, int] = {}

    @cells.handler
    async def put(self, f: float) -> str:
        self.f, self.fs, self.area = 1, [1, 2.5], Area(3)
        assert self.area.size == 9
        self.sent = {cells.AgentId("a"): 1}
        return repr(f)

    @cells.handler
    async def look(self) -> str:
        return repr((self.f, self.fs, vars(self.area), list(map(type, self.sent))))


async def test_whole_numbers_and_agent_ids_become_their_declared_type_at_the_end_of_the_turn() -> None:
    async with cells.local() as cluster:
        normal = await cluster.spawn(Normalised, "n")
        assert await normal.put(5) == "5.0"
        assert await normal.look() == "(1.0, [1.0, 2.5], {'side': 3}, [<class 'str'>])"


def test_a_value_that_encoding_normalises_is_stored_normalised() -> None:
    for kind, given, become in (
        (list[float], [1, 2.5], [1.0, 2.5]),
        (float, 1, 1.0),
        (dict[str, float], {"a": 2}, {"a": 2.0}),
    ):
        spec = spec_of(agent_with(kind, "NormalHolder"))
        one, two = stored(spec, x=given), stored(spec, x=become)
        assert one.plain == two.plain
        cell = Cell(spec, one, "a")
        live: Any = cell.agent
        cell.begin()
        live.x = given
        assert cell.end() is None
        cell.begin()
        assert repr(live.x) == repr(become)
        assert cell.end() is None


# ---- all or nothing ----


async def test_an_assignment_or_update_that_is_refused_changes_nothing_of_a_table() -> None:
    class KindHolder(cells.Agent):
        t: cells.Table[str, int] = cells.Table({"a": 1, "b": 2})

        @cells.handler
        async def put(self) -> dict[str, int]:
            bad: Any = {"a": 9, "c": "bad"}
            ways: list[Callable[[], None]] = [
                lambda: setattr(self, "t", bad),
                lambda: self.t.update(bad),
                lambda: self.t.update(**bad),
            ]
            for assign in ways:
                with pytest.raises(cells.errors.StateInvalid, match=r"Holder\.t\["):
                    assign()
            return dict(self.t)

    async with cells.local() as cluster:
        holder = await cluster.spawn(KindHolder, "h")
        assert await holder.put() == {"a": 1, "b": 2}


def test_a_set_cannot_be_a_key() -> None:
    with pytest.raises(cells.FieldRefused, match="a set has no order"):
        spec_of(agent_with(cells.Table[frozenset[int], int]))


# ---- the comparison itself ----


class Liar:
    def __init__(self, n: int) -> None:
        self.n = n

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class Raises(Liar):
    def __eq__(self, other: object) -> bool:
        raise ValueError

    __hash__ = None

    def __repr__(self) -> str:
        raise ValueError


@pytest.mark.parametrize("kind", [Liar, Raises])
def test_the_comparison_asks_no_users_eq(kind: Any) -> None:
    assert is_exact([kind(1)], [kind(1)])
    with pytest.raises(ValueChangedError, match="1 would be loaded as 2"):
        is_exact([kind(1)], [kind(2)])


def test_the_comparison_takes_no_stack() -> None:
    def deep(end: int) -> list[Any]:
        made: list[Any] = [end]
        for _ in range(10_000):
            made = [made]
        return made

    assert is_exact(deep(1), deep(1))
    with pytest.raises(ValueChangedError):
        is_exact(deep(1), deep(2))


def test_attributes_of_every_kind_of_object_are_compared() -> None:
    @dataclasses.dataclass(slots=True)
    class Slots:
        n: str

    kinds: list[Any] = [Leg, Shape, Slots]
    for kind in kinds:
        values = [kind(text) for text in ("a", "a", "b")]
        assert is_exact(values[0], values[1])
        with pytest.raises(ValueChangedError):
            is_exact(values[0], values[2])
    assert is_exact(msgspec.UNSET, msgspec.UNSET)
