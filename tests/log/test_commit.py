"""Turns join into one commit: its state delta has the effect of all of them, in order."""

from __future__ import annotations

import copy
from functools import reduce

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.agent_log import taken

from mielin_cells.log.delta import PAGE_BYTES, BufferDelta, StateDelta, TableDelta
from mielin_cells.log.state import StoredState
from mielin_cells.log.turns.batch import Batch

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = st.sampled_from("abc")
BYTES = st.binary(max_size=3)


@st.composite
def buffer_deltas(draw: st.DrawFn) -> BufferDelta:
    size = draw(st.integers(0, 3 * PAGE_BYTES) | st.sampled_from([0, 1, PAGE_BYTES, PAGE_BYTES + 1]))
    pages = {n: draw(BYTES)[: size - n * PAGE_BYTES] for n in range(3) if n * PAGE_BYTES < size and draw(st.booleans())}
    return BufferDelta(size, pages, draw(st.none() | st.integers(0, size)))


@st.composite
def histories(draw: st.DrawFn, size: int) -> list[StateDelta]:
    """Changes as turns and upgrades make them, one after another: a field changes its kind only by way of `removed`."""
    kinds: dict[str, int] = {}
    history = []
    for _ in range(size):
        removed = draw(st.lists(NAMES, max_size=2, unique=True))
        for name in removed:
            kinds.pop(name, None)
        delta = StateDelta({}, {}, {}, removed)
        for name in draw(st.lists(NAMES, max_size=3, unique=True)):
            kind = draw(st.integers(0, 2))
            if kinds.setdefault(name, kind) != kind:
                removed.append(name)
                kinds[name] = kind
            if kind == 0:
                delta.plain[name] = draw(BYTES)
            elif kind == 1:
                sets = draw(st.dictionaries(BYTES, BYTES, max_size=3))
                dels = draw(st.lists(BYTES, max_size=3, unique=True))
                delta.tables[name] = TableDelta(sets, [key for key in dels if key not in sets])
            else:
                delta.buffers[name] = draw(buffer_deltas())
        history.append(delta)
    return history


def state_of(*changes: StateDelta) -> StoredState:
    state = StoredState()
    for change in changes:
        state.apply(change)
    return state


def content(state: StoredState) -> object:
    """Read from the stores, not from their digests."""
    tables = {
        name: {key: value for number in range(4096) for key, value in table.items_in(number)}
        for name, table in state.tables.items()
    }
    buffers = {name: (b.size, {n: b.page(n) for n in b.pages_from(0)}) for name, b in state.buffers.items()}
    return state.plain, tables, buffers


TABLE = StateDelta(tables={"a": TableDelta({b"k": b"v"}, [])})
PLAIN = StateDelta(plain={"a": b"1"})
AS_PLAIN = StateDelta(plain={"a": b"1"}, removed=["a"])
AS_TABLE = StateDelta(tables={"a": TableDelta({b"x": b"y"}, [])}, removed=["a"])
GONE = StateDelta(removed=["a"])
CUT = StateDelta(buffers={"a": BufferDelta(2, {}, 1)})
BUFFER = StateDelta(buffers={"a": BufferDelta(3, {0: b"abc"})})


@QUICK
@given(histories(3))
@example([TABLE, GONE, TABLE])
@example([TABLE, GONE, PLAIN])
@example([TABLE, AS_PLAIN, AS_TABLE])
@example([PLAIN, AS_TABLE, TABLE])
@example([PLAIN, AS_TABLE, AS_TABLE])
@example([BUFFER, CUT, BUFFER])
@example([BUFFER, BUFFER, CUT])
def test_merged_changes_have_the_effect_of_both_in_order(history: list[StateDelta]) -> None:
    base, one, two = history
    step_by_step = state_of(base, one, two)
    at_once = state_of(base, one.then(two))
    assert content(at_once) == content(step_by_step)
    assert at_once.digest() == step_by_step.digest()


@QUICK
@given(st.integers(2, 6).flatmap(histories))
def test_any_number_of_turns_joins_into_one_change(history: list[StateDelta]) -> None:
    """Joined, and applied twice: snapshots that are written while the state changes rest on that."""
    base, *turns = history
    at_once = reduce(StateDelta.then, turns)
    assert content(state_of(base, at_once)) == content(state_of(*history))
    assert content(state_of(base, at_once, at_once)) == content(state_of(*history))


@QUICK
@given(histories(2))
def test_merging_leaves_its_parts_alone(history: list[StateDelta]) -> None:
    before = copy.deepcopy(history)
    history[0].then(history[1])
    assert history == before


def test_a_batch_holds_what_its_turns_changed() -> None:
    batch = Batch()
    assert not batch
    batch.change(None)
    assert not batch
    for n in (1, 2):
        batch.change(StateDelta(plain={f"f{n}": b"x"}))
        batch.inputs.append(taken(n))
        batch.turns += 1
    assert batch
    made = batch.commit(7, [3], 2, b"digest")
    assert made.state == StateDelta(plain={"f1": b"x", "f2": b"x"})
    assert [t.n for t in made.inputs] == [1, 2]
    assert (made.cursor, made.held, made.version, made.digest) == (7, None, 2, b"digest")


def test_a_batch_says_what_is_held_only_if_that_changed() -> None:
    batch = Batch()
    batch.held = True
    held = [3]
    made = batch.commit(7, held, 1, b"")
    held.append(4)
    assert made.held == [3]
