"""Class versions: an older state is upgraded step by step, a newer one refused, and a failed upgrade changes nothing."""

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from support.field_types import ANN, UTC_NOON, Colour, Leg, Peer, Person, Trip, agent_with, stored

import mielin_cells as cells
from mielin_cells.agents.live import Cell
from mielin_cells.agents.reference import make_ref
from mielin_cells.agents.spec import Spec, spec_of
from mielin_cells.agents.upgrades import upgrade_state
from mielin_cells.log.state import StoredState


class Thing1(cells.Agent, name="Thing"):
    count: int = 3
    tags: list[str] = ["a"]
    when: dt.datetime = UTC_NOON
    seen: cells.Table[str, int] = cells.Table({"k": 1, "l": 2})
    blob: cells.Buffer = cells.Buffer(b"abc")
    peer: Peer | None = None


class Thing3(cells.Agent, name="Thing", version=3):
    total: int
    tags: cells.Table[str, int]
    when: dt.datetime
    seen: cells.Table[str, float]
    blob: bytes
    owner: Leg = Leg("nobody")
    peer: Peer | None = None

    @cells.upgrade(from_version=1)
    def _v1(cls, old: dict[str, object]) -> dict[str, object]:
        assert id(cls) == id(Thing3)  # the class, whatever a type checker takes a first parameter for
        return {**{name: value for name, value in old.items() if name != "count"}, "total": old["count"]}

    @cells.upgrade(from_version=2)
    def _v2(cls, old: dict[str, Any]) -> dict[str, object]:
        seen = {key: value / 2 for key, value in old["seen"].items() if key != "l"}
        return {**old, "tags": dict.fromkeys(old["tags"], 1), "seen": seen, "total": old["total"] + 1}


def upgraded(spec: Spec, state: StoredState, version: int) -> Any:
    delta = upgrade_state(spec, state, version)
    assert delta is not None
    state.apply(delta)
    return Cell(spec, state, "a").agent


def test_an_older_state_goes_through_every_upgrade_in_order() -> None:
    old = stored(spec_of(Thing1), peer=make_ref(Peer, "p"))
    thing = upgraded(spec_of(Thing3), old, 1)
    assert (thing.total, dict(thing.tags), dict(thing.seen)) == (4, {"a": 1}, {"k": 0.5})
    assert (thing.blob, thing.when, thing.owner, thing.peer) == (b"abc", UTC_NOON, Leg("nobody"), make_ref(Peer, "p"))
    assert set(old.plain) == {"total", "when", "blob", "owner", "peer"}
    assert set(old.tables) == {"tags", "seen"}
    assert old.buffers == {}


def test_an_upgraded_state_is_the_same_bytes_as_one_that_was_made_so() -> None:
    old = stored(spec_of(Thing1))
    upgraded(spec_of(Thing3), old, 1)
    made = stored(spec_of(Thing3), total=4, tags={"a": 1}, when=UTC_NOON, seen={"k": 0.5}, blob=b"abc")
    assert old.digest() == made.digest()


def test_a_state_of_the_same_version_is_left_alone() -> None:
    assert upgrade_state(spec_of(Thing1), stored(spec_of(Thing1)), 1) is None


def test_a_newer_state_is_refused_with_both_versions() -> None:
    with pytest.raises(cells.errors.StateTooNew, match="Thing version 5; this code has version 3") as refused:
        upgrade_state(spec_of(Thing3), stored(spec_of(Thing1)), 5)
    assert (refused.value.have, refused.value.need) == (5, 3)


def upgrading(fn: Callable[[Any, dict[str, Any]], Any], version: int = 2, step: int = 1) -> Spec:
    members = {"__annotations__": {"total": int}, "up": cells.upgrade(from_version=step)(fn), "__qualname__": "Thing3"}
    return spec_of(type("Thing", (cells.Agent,), members, version=version))


async def coroutine(cls: Any, old: dict[str, Any]) -> dict[str, Any]:
    return old


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (upgrading(lambda cls, old: old, version=3, step=1), "has no upgrade from version 2; write one"),
        (upgrading(lambda cls, old: old, version=2, step=2), "has no upgrade from version 1; write one"),
        (upgrading(lambda cls, old: {"total": old["gone"]}), "from version 1 raised KeyError: 'gone'"),
        (upgrading(lambda cls, old: None), "must return the new state as a dict, not NoneType"),
        (upgrading(lambda cls, old: {"total": "x"}), "does not load: .*Expected `int`, got `str`"),
        (upgrading(lambda cls, old: {"total": 2**70}), "does not load: "),
        (upgrading(lambda cls, old: {}), "does not load: .*'total' needs a value"),
        (upgrading(lambda cls, old: {"total": 1, "more": 2}), "does not load: .*no field 'more'"),
    ],
)
def test_an_upgrade_that_is_missing_raises_or_gives_nonsense_is_reported_and_changes_nothing(
    spec: Spec, says: str
) -> None:
    state = stored(spec_of(Thing1))
    before = state.digest()
    with pytest.raises(cells.errors.StateUpgradeFailed, match=says) as failed:
        upgrade_state(spec, state, 1)
    assert failed.value.have == 1
    assert failed.value.need == spec.version
    assert state.digest() == before


def test_an_upgrade_is_a_plain_function() -> None:
    with pytest.raises(cells.FieldRefused, match="must be a plain `def`"):
        cells.upgrade(from_version=1)(coroutine)  # type: ignore[arg-type]


def test_two_upgrades_from_one_version_are_refused_and_a_derived_class_may_replace_one() -> None:
    def up(cls: Any, old: dict[str, object]) -> dict[str, object]:
        return {"total": 1}

    def other(cls: Any, old: dict[str, object]) -> dict[str, object]:
        return {"total": 2}

    one, two = cells.upgrade(from_version=1)(up), cells.upgrade(from_version=1)(other)
    kinds = {"__annotations__": {"total": int}}
    with pytest.raises(cells.FieldRefused, match="two upgrades from version 1"):
        spec_of(type("Twice", (cells.Agent,), {**kinds, "one": one, "two": two}, version=2))
    base = type("Base", (cells.Agent,), {**kinds, "one": one}, version=2)
    derived = type("Derived", (base,), {"two": two}, version=2)
    assert upgraded(spec_of(base), StoredState(), 1).total == 1
    assert upgraded(spec_of(derived), StoredState(), 1).total == 2


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (Leg, {"to": "A"}, Leg("A")),
        (Leg, Leg("A"), Leg("A")),
        (Trip, Trip([Leg("A")]), Trip([Leg("A")])),
        (Person, ANN, ANN),
        (Colour, Colour.RED, Colour.RED),
        (set[int], {1, 2}, {1, 2}),
        (set[int], [1, 2], {1, 2}),
        (tuple[int, ...], (1, 2), (1, 2)),
        (dt.datetime, UTC_NOON, UTC_NOON),
        (Decimal, Decimal("1.5"), Decimal("1.5")),
        (bytes, b"\xff", b"\xff"),
        (dict[int, str], {1: "a"}, {1: "a"}),
        (Peer, make_ref(Peer, "p"), make_ref(Peer, "p")),
        (Peer, ["Peer", "p"], make_ref(Peer, "p")),
    ],
    ids=str,
)
def test_an_upgrade_may_give_values_as_they_were_stored_or_as_the_new_type(kind: Any, old: Any, new: Any) -> None:
    def up(cls: Any, before: dict[str, object]) -> dict[str, object]:
        return {"x": old}

    members = {"__annotations__": {"x": kind}, "up": cells.upgrade(from_version=1)(up), "__qualname__": "Thing3"}
    spec = spec_of(type("Thing", (cells.Agent,), members, version=2))
    got = upgraded(spec, StoredState(), 1).x
    assert got == new
    assert type(got) is type(new)


def test_a_new_field_with_a_default_needs_no_upgrade_and_a_lost_one_does() -> None:
    state = stored(spec_of(agent_with(int)), x=5)
    members = {"__annotations__": {"x": int, "y": list[int]}, "y": [1], "__module__": agent_with.__module__}
    more = type("Holder", (cells.Agent,), members)
    agent: Any = Cell(spec_of(more), state, "a").agent
    assert (agent.x, agent.y) == (5, [1])
    with pytest.raises(
        cells.errors.StateUnloadable, match=r"stored field 'x' that Peer version 1 lacks; raise the version"
    ):
        Cell(spec_of(Peer), state, "a")
