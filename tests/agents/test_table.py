"""`Table` against a plain dict, and what it does at the edges of a turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mielin_cells.agents.table import BoundTable, Table
from mielin_cells.agents.values.codec import Codec
from mielin_cells.errors import NotInTurn, StateInvalid, StateUnloadable
from mielin_cells.log.delta import StateDelta, TableDelta
from mielin_cells.log.state import StoredState

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
K = TypeVar("K")
V = TypeVar("V")


@dataclass
class Field(Generic[K, V]):
    """A table in a stored state, with the turn protocol as the class machinery follows it."""

    table: BoundTable[K, V]
    state: StoredState
    turn: list[bool]
    decoded: list[bytes] = field(default_factory=list)

    def end(self) -> TableDelta | None:
        delta = self.table._delta()
        if delta is not None:
            self.state.apply(StateDelta(tables={"t": delta}))
        self.table._forget()
        return delta


def bound(key: type[K], value: Any, state: StoredState | None = None) -> Field[K, Any]:
    if state is None:
        state = StoredState()
        state.apply(StateDelta(tables={"t": TableDelta({}, [])}))
    turn, decoded = [True], list[bytes]()
    keys, values = Codec(key, "A.t[key]"), Codec(value, "A.t[value]")
    decode = values.decode

    def decode_value(data: bytes) -> Any:
        decoded.append(data)
        return decode(data)

    values.decode = decode_value
    table: BoundTable[K, Any] = BoundTable(state.tables["t"], keys, values, "A.t", lambda: turn[0])
    return Field(table, state, turn, decoded)


# ---- as a dict ----

KEYS = st.integers(0, 12)
OPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["set", "append", "delete", "pop", "setdefault", "get", "clear", "popitem", "scan", "end", "undo"]
        ),
        KEYS,
        st.lists(st.integers(0, 3), max_size=2),
    ),
    max_size=30,
)


@QUICK
@given(OPS)
def test_a_table_does_what_a_dict_does(ops: list[tuple[str, int, list[int]]]) -> None:
    it: Field[int, list[int]] = bound(int, list[int])
    table, model, committed = it.table, dict[int, list[int]](), dict[int, list[int]]()
    for op, key, value in ops:
        apply_op(op, key, value, table, model)
        if op == "end":
            it.end()
            committed = {k: list(v) for k, v in model.items()}
        elif op == "undo":
            table._forget()
            model = {k: list(v) for k, v in committed.items()}
        assert len(table) == len(model)
        assert (key in table) == (key in model)
    assert dict(table.items()) == model
    assert table == model
    it.end()
    again = bound(int, list[int], StoredState.decode_small(it.state.encode_small()))
    assert dict(again.table) == model
    assert list(again.table) == list(table), "the order follows from the keys alone"
    assert again.state.digest() == it.state.digest()


def apply_op(op: str, key: int, value: list[int], table: Table[int, list[int]], model: dict[int, list[int]]) -> None:
    match op:
        case "set":
            table[key], model[key] = list(value), list(value)
        case "append" if key in model:
            table[key].append(key)
            model[key].append(key)
        case "delete" if key in model:
            del table[key], model[key]
        case "pop":
            assert table.pop(key, None) == model.pop(key, None)
        case "setdefault":
            table.setdefault(key, []).extend(value)
            model.setdefault(key, []).extend(value)
        case "get":
            assert table.get(key) == model.get(key)
        case "clear":
            table.clear()
            model.clear()
        case "popitem" if model:
            taken, what = table.popitem()
            assert model.pop(taken) == what
        case "scan":
            for each in table.values():
                each.append(9)
            for each in model.values():
                each.append(9)
        case _:
            pass


def test_a_missing_key_raises_key_error() -> None:
    table = bound(str, int).table
    with pytest.raises(KeyError):
        table["a"]
    with pytest.raises(KeyError):
        del table["a"]
    with pytest.raises(KeyError):
        table.popitem()
    assert table.get("a") is None


# ---- what a turn changed ----


def test_a_value_changed_in_place_counts() -> None:
    it = bound(str, list[int])
    it.table["k"] = [1]
    it.end()
    it.table["k"].append(2)
    for value in it.table.values():
        value.append(3)
    delta = it.end()
    assert delta is not None
    assert [msgspec.msgpack.decode(data) for data in delta.sets.values()] == [[1, 2, 3]]
    assert it.table["k"] == [1, 2, 3]


def test_an_assigned_value_may_be_changed_until_the_turn_ends() -> None:
    it = bound(str, list[int])
    mine = [1]
    it.table["k"] = mine
    mine.append(2)
    assert it.table["k"] is mine
    it.end()
    mine.append(3)
    it.end()
    assert it.table["k"] == [1, 2]


def test_a_turn_that_only_reads_or_restores_changes_nothing() -> None:
    it = bound(str, list[int])
    it.table["k"] = [1]
    it.end()
    it.table["k"].append(2)
    it.table["k"].pop()
    it.table["new"] = []
    del it.table["new"]
    it.table["k"] = [1]
    assert it.end() is None


def test_an_undone_turn_leaves_no_trace() -> None:
    it = bound(str, list[int])
    it.table["k"] = [1]
    it.end()
    digest = it.state.digest()
    it.table["k"].append(2)
    it.table["l"] = []
    it.table._forget()
    assert dict(it.table) == {"k": [1]}
    assert len(it.table) == 1
    assert it.state.digest() == digest


def test_a_turn_costs_the_keys_it_touches() -> None:
    it = bound(int, list[int])
    it.table.update({n: [n] for n in range(1000)})
    it.end()
    it.decoded.clear()
    it.table[7].append(8)
    assert 8 in it.table
    assert len(it.table) == 1000
    delta = it.end()
    assert delta is not None
    assert len(delta.sets) == 1
    assert it.decoded == [b"\x91\x07"]  # read; what is stored is known to load, by the types of its parts


# ---- values and keys that would not load ----


def test_a_bad_value_fails_where_it_is_assigned_and_leaves_the_old_one() -> None:
    it = bound(str, int)
    it.table["k"] = 1
    for bad in ("x", object(), 1 << 70, None):
        with pytest.raises(StateInvalid, match=r"A\.t\['k'\]") as caught:
            it.table["k"] = bad
        assert caught.value.path == "A.t['k']"
        with pytest.raises(StateInvalid):
            it.table["l"] = bad
    assert dict(it.table) == {"k": 1}


@pytest.mark.parametrize("spoil", [lambda v: v.append("x"), lambda v: v.append(object()), lambda v: v.append(v)])
def test_a_value_spoilt_in_place_fails_at_the_end_of_the_turn(spoil: Callable[[list[Any]], None]) -> None:
    it = bound(str, list[int])
    it.table["k"] = [1]
    it.end()
    digest = it.state.digest()
    spoil(it.table["k"])
    with pytest.raises(StateInvalid, match=r"A\.t\['k'\]"):
        it.table._delta()
    it.table._forget()
    assert it.table["k"] == [1]
    assert it.state.digest() == digest


def test_a_key_of_another_type_is_not_there_and_cannot_be_set() -> None:
    table: Table[Any, int] = bound(int, int).table
    for bad in ("x", object(), None, [1]):
        assert bad not in table
        assert table.get(bad) is None
        with pytest.raises(StateInvalid) as caught:
            table[bad] = 1
        assert caught.value.path.startswith("A.t[")
    assert len(table) == 0


def test_keys_that_load_as_equal_are_one_key() -> None:
    table = bound(float, str).table
    table[1] = "int"
    table[1.0] = "float"
    assert dict(table) == {1.0: "float"}
    assert 1 in table


def test_a_stored_value_of_another_type_is_unloadable_and_named() -> None:
    it = bound(str, int)
    it.table["k"] = 1
    it.end()
    with pytest.raises(StateUnloadable, match=r"A\.t\["):
        bound(str, str, it.state).table["k"]
    with pytest.raises(StateUnloadable, match=r"A\.t\["):
        list(bound(int, int, it.state).table)


# ---- iteration ----


def test_keys_may_be_deleted_while_iterating() -> None:
    it = bound(int, int)
    it.table.update({n: n for n in range(100)})
    it.end()
    seen = []
    for key in it.table:
        seen.append(key)
        assert key in it.table
        del it.table[key]
        it.table.pop(99 - key, None)
    assert len(seen) == len({frozenset((k, 99 - k)) for k in seen}) == 50
    assert len(it.table) == 0


def test_keys_may_be_set_while_iterating() -> None:
    table = bound(int, int).table
    table.update(dict.fromkeys(range(50), 0))
    for key, value in table.items():
        table[key] = value + 1
        if key < 50:
            table[key + 1000] = 0
    assert len(table) == 100
    assert all(table[n] == 1 for n in range(50))


# ---- turns and tables of one's own ----


def test_outside_a_turn_a_table_is_read_only() -> None:
    it = bound(str, list[int])
    it.table["k"] = [1]
    it.end()
    it.turn[0] = False
    assert it.table["k"] == [1]
    it.table["k"].append(2)  # not the table's: every read outside a turn decodes anew
    assert dict(it.table) == {"k": [1]}
    changes: list[Callable[[], object]] = [
        lambda: it.table.update(x=[1]), lambda: it.table.pop("k"), it.table.popitem, it.table.clear,
        lambda: it.table.setdefault("l", []), lambda: it.table.__delitem__("k"),
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(NotInTurn, match="handler"):
            change()
    it.turn[0] = True
    assert it.end() is None


def test_a_table_of_ones_own_is_a_mapping_that_gives_a_field_its_content() -> None:
    own = Table({"a": 1})
    own["b"] = 2
    del own["a"]
    assert dict(own) == {"b": 2}
    assert (len(own), "b" in own, own == {"b": 2}, repr(own)) == (1, True, True, "<Table of 1 keys>")
    assert len(Table[str, int]()) == 0
    it = bound(str, int)
    it.table.update(own)
    it.end()
    own["b"] = 3
    assert it.table == {"b": 2}
