"""Stored state: digests follow content alone, deltas replay, snapshots may be taken while the state changes."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mielin_cells.errors import StateUnloadable
from mielin_cells.log.delta import PAGE_BYTES, BufferDelta, StateDelta, TableDelta
from mielin_cells.log.digest import DigestTree
from mielin_cells.log.state import StoredState
from mielin_cells.log.stores import BUCKETS

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def tree_of(leaves: Iterable[tuple[int, bytes]]) -> DigestTree:
    tree = DigestTree()
    for index, digest in leaves:
        tree.set(index, digest)
    return tree


def loaded(slices: Iterable[bytes]) -> StoredState:
    state = StoredState()
    for data in slices:
        state.load_slice(data)
    return state


def content(state: StoredState) -> object:
    """All that a state holds, read from the stores and not from their digests.  What is empty counts as no field."""
    tables = {
        name: {key: value for number in range(BUCKETS) for key, value in table.items_in(number)}
        for name, table in state.tables.items()
        if len(table)
    }
    buffers = {
        name: (b.size, {n: b.stripped(n) for n in b.pages_from(0)}) for name, b in state.buffers.items() if b.size
    }
    return state.plain, tables, buffers


# ---- strategies: deltas as the turns of an agent make them, fields changing kind only through `removed` ----

NAMES = st.sampled_from(["a", "b", "c"])
KEYS = st.binary(max_size=2)
VALUES = st.binary(max_size=40)
TABLES = st.builds(
    lambda sets, dels: TableDelta(sets, [key for key in dels if key not in sets]),
    st.dictionaries(KEYS, VALUES, max_size=4),
    st.lists(KEYS, max_size=3, unique=True),
)


@st.composite
def buffers(draw: st.DrawFn) -> BufferDelta:
    size = draw(st.integers(0, 4 * PAGE_BYTES))
    pages = draw(st.dictionaries(st.integers(0, 3), st.binary(max_size=20), max_size=2))
    fitting = {n: page[: size - n * PAGE_BYTES] for n, page in pages.items() if n * PAGE_BYTES < size}
    return BufferDelta(size, fitting, draw(st.none() | st.integers(0, size)))


@st.composite
def histories(draw: st.DrawFn) -> list[StateDelta]:
    kinds: dict[str, int] = {}
    history = []
    for _ in range(draw(st.integers(0, 12))):
        name, kind = draw(NAMES), draw(st.integers(0, 2))
        removed = [name] if kinds.get(name, kind) != kind or draw(st.integers(0, 7)) == 0 else []
        kinds[name] = kind
        if kind == 0:
            delta = StateDelta(plain={name: draw(VALUES)}, removed=removed)
        elif kind == 1:
            delta = StateDelta(tables={name: draw(TABLES)}, removed=removed)
        else:
            delta = StateDelta(buffers={name: draw(buffers())}, removed=removed)
        history.append(delta)
    return history


def state_after(history: Iterable[StateDelta]) -> StoredState:
    state = StoredState()
    for delta in history:
        state.apply(delta)
        state.digest()  # so that every digest is one kept up, not one made at the end
    return state


# ---- the tree ----


@QUICK
@given(st.lists(st.tuples(st.integers(0, 5000), st.none() | st.binary(min_size=32, max_size=32)), max_size=40))
def test_a_root_depends_on_the_leaves_that_are_there_and_not_on_the_history(
    changes: list[tuple[int, bytes | None]],
) -> None:
    tree, leaves = DigestTree(), dict[int, bytes]()
    for index, digest in changes:
        tree.set(index, digest)
        tree.root()
        leaves.pop(index, None)
        if digest is not None:
            leaves[index] = digest
    assert tree.root() == tree_of(sorted(leaves.items())).root() == tree_of(reversed(leaves.items())).root()


def test_roots_tell_apart_which_leaf_is_where() -> None:
    x, y = b"x" * 32, b"y" * 32
    sets = [
        [], [(0, x)], [(0, y)], [(1, x)], [(63, x)], [(64, x)], [(4096, x)], [(0, x), (1, y)], [(0, y), (1, x)],
        [(0, x), (64, y)], [(0, x), (4096, y)], [(64, x), (4096, y)],
    ]  # fmt: skip
    assert len({tree_of(leaves).root() for leaves in sets}) == len(sets)


def test_a_tree_is_told_apart_from_the_tree_of_its_nodes() -> None:
    node = blake3(b"x" * 32 + bytes(63 * 32)).digest()
    assert tree_of([(0, b"x" * 32), (64, b"x" * 32)]).root() != tree_of([(0, node), (1, node)]).root()


def test_a_leaf_is_32_bytes_at_an_index_from_0() -> None:
    for index, digest in ((-1, b"x" * 32), (0, b"x" * 31)):
        with pytest.raises(ValueError, match="leaf"):
            DigestTree().set(index, digest)


# ---- digests ----


@QUICK
@given(histories())
def test_a_digest_kept_up_is_the_digest_of_the_same_content_loaded_anew(history: list[StateDelta]) -> None:
    state = state_after(history)
    for fresh in (loaded(state.slices(100)), loaded(state.slices()), StoredState.decode_small(state.encode_small())):
        assert content(fresh) == content(state)
        assert fresh.digest() == state.digest()
        assert fresh.size_bytes == state.size_bytes


@QUICK
@given(histories(), histories())
def test_states_have_one_digest_exactly_if_they_have_one_content(a: list[StateDelta], b: list[StateDelta]) -> None:
    one, other = state_after(a), state_after(b)
    assert (one.digest() == other.digest()) == (content(one) == content(other))


@given(histories(), histories())
def test_a_delta_to_another_state_makes_it(a: list[StateDelta], b: list[StateDelta]) -> None:
    state, wanted = state_after(a), state_after(b)
    delta = state.delta_to(wanted)
    if state.digest() == wanted.digest():
        assert not delta.plain
        assert not any(table.sets or table.dels for table in delta.tables.values())
        assert not any(buffer.pages for buffer in delta.buffers.values())
    state.apply(delta)
    assert content(state) == content(wanted)
    assert state.digest() == wanted.digest()


def test_any_change_of_content_changes_the_digest() -> None:
    page = b"p" * PAGE_BYTES

    def of(
        plain: bytes = b"1",
        table: dict[bytes, bytes] | None = None,
        pages: tuple[bytes, ...] = (page, b"q"),
        size: int = 0,
    ) -> StateDelta:
        entries = {b"k": b"v", b"l": b"w"} if table is None else table
        buffer = BufferDelta(PAGE_BYTES + 10 + size, dict(enumerate(pages)))
        return StateDelta(plain={"a": plain}, tables={"t": TableDelta(entries, [])}, buffers={"b": buffer})

    whole = of()
    variants = [
        whole, of(b"2"), of(b""), of(table={b"k": b"v"}), of(table={b"k": b"w", b"l": b"v"}),
        of(table={b"k": b"v", b"l": b"w", b"m": b""}), of(table={b"kv": b"", b"l": b"w"}),
        of(pages=(b"q", b"p")), of(pages=(page[:-1], b"q")), of(pages=(page,)), of(size=1), of(pages=(page, b"\0q")),
        StateDelta(tables=whole.tables, buffers=whole.buffers), StateDelta(plain=whole.plain, buffers=whole.buffers),
        StateDelta(plain=whole.plain, tables=whole.tables), StateDelta(),
        StateDelta(plain={"b": b"1"}), StateDelta(plain={"a": b"1"}), StateDelta(tables={"a": TableDelta({b"": b""}, [])}),
        StateDelta(tables={"b": TableDelta({b"": b""}, [])}), StateDelta(buffers={"a": BufferDelta(1, {})}),
    ]  # fmt: skip
    assert len({state_after([delta]).digest() for delta in variants}) == len(variants)


def test_a_flipped_bit_in_a_slice_is_refused_or_changes_the_digest() -> None:
    state = state_after([
        StateDelta(
            plain={"name": b"\xa3ada"},
            tables={"t": TableDelta({b"\x01": b"one", b"\x02": b"two"}, [])},
            buffers={"b": BufferDelta(9, {0: b"some data"})},
        )
    ])  # fmt: skip
    (data,) = state.slices()
    refused = 0
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            assert loaded([bytes(changed)]).digest() != state.digest()
        except StateUnloadable:
            refused += 1
    assert refused > 0


def test_a_missing_slice_changes_the_digest() -> None:
    state = state_after([StateDelta(plain={"a": b"x"}, tables={"t": TableDelta({b"k": b"v" * 90, b"l": b"w"}, [])})])
    slices = list(state.slices(100))
    assert len(slices) > 2
    for gone in range(len(slices)):
        assert loaded(slices[:gone] + slices[gone + 1 :]).digest() != state.digest()


# ---- deltas ----


@QUICK
@given(histories(), st.integers(0, 12))
def test_replaying_the_newest_deltas_changes_nothing(history: list[StateDelta], count: int) -> None:
    state = state_after(history)
    before = state.digest(), content(state_after(history))
    for delta in history[max(len(history) - count, 0) :]:
        state.apply(delta)
    assert (state.digest(), content(state)) == before


@QUICK
@given(histories(), st.integers(0, 12))
def test_merged_deltas_have_the_effect_of_all_in_order(history: list[StateDelta], start: int) -> None:
    one = StateDelta()
    for delta in history[start:]:
        one = one.then(delta)
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=StateDelta)
    assert state_after([*history[:start], read]).digest() == state_after(history).digest()


@pytest.mark.parametrize(
    "bad",
    [
        StateDelta(plain={"x": b""}, tables={"x": TableDelta({}, [])}),
        StateDelta(tables={"t": TableDelta({b"k": b"v"}, [b"k"])}),
        StateDelta(buffers={"b": BufferDelta(-1, {})}),
        StateDelta(buffers={"b": BufferDelta(1 << 50, {})}),
        StateDelta(buffers={"b": BufferDelta(10, {1: b""})}),
        StateDelta(buffers={"b": BufferDelta(10, {-1: b""})}),
        StateDelta(buffers={"b": BufferDelta(10, {0: b"x" * 11})}),
        StateDelta(buffers={"b": BufferDelta(3 * PAGE_BYTES, {0: b"x" * (PAGE_BYTES + 1)})}),
        StateDelta(buffers={"b": BufferDelta(10, {}, 11)}),
    ],
)
def test_a_delta_that_contradicts_itself_is_refused_and_changes_nothing(bad: StateDelta) -> None:
    state = state_after([StateDelta(plain={"keep": b"1"}, tables={"t": TableDelta({b"k": b"old"}, [])})])
    before = state.digest()
    with pytest.raises(StateUnloadable):
        state.apply(msgspec.structs.replace(bad, plain={**bad.plain, "keep": b"2"}, removed=["t"]))
    assert content(state) == ({"keep": b"1"}, {"t": {b"k": b"old"}}, {})
    assert state.digest() == before


def test_a_removed_field_is_gone_and_may_come_back_as_another_kind() -> None:
    state = state_after([StateDelta(tables={"x": TableDelta({b"k": b"v"}, [])}), StateDelta(removed=["x"])])
    assert state.digest() == StoredState().digest()
    assert state.size_bytes == 0
    state.apply(StateDelta(removed=["x"], plain={"x": b"1"}))
    assert content(state) == ({"x": b"1"}, {}, {})


# ---- slices ----


@QUICK
@given(histories(), histories(), st.integers(60, 400), st.lists(st.integers(0, 3)))
def test_a_snapshot_taken_while_the_state_changes_is_completed_by_the_later_deltas(
    before: list[StateDelta], during: list[StateDelta], slice_bytes: int, steps: list[int]
) -> None:
    state = state_after(before)
    snapshot, pending, slices = state.slices(slice_bytes), list(during), []
    for data in snapshot:
        slices.append(data)
        for _ in range(steps.pop() if steps else 1):
            if pending:
                state.apply(pending.pop(0))
    for delta in pending:
        state.apply(delta)
    copy = loaded(slices)
    for delta in during:
        copy.apply(delta)
    assert content(copy) == content(state)
    assert copy.digest() == state.digest()


def test_slices_keep_to_their_bound_except_for_one_large_entry() -> None:
    table = TableDelta({b"%d" % n: b"v" * 50 for n in range(200)} | {b"big": b"V" * 5000}, [])
    buffer = BufferDelta(3 * PAGE_BYTES, dict.fromkeys(range(3), b"x" * PAGE_BYTES))
    state = state_after([StateDelta(plain={"p": b"y" * 3000, "q": b"z"}, tables={"t": table}, buffers={"b": buffer})])
    large = [len(data) for data in state.slices(1000) if len(data) > 1000]
    assert len(large) == 4
    assert min(large) < 5100  # the big value and nothing else with it
    assert all(len(data) <= 1 << 17 for data in state.slices())
    assert sum(len(data) for data in state.slices(1000)) < 2 * state.size_bytes


def test_an_empty_table_and_an_empty_buffer_are_in_a_snapshot_but_not_in_the_digest() -> None:
    state = state_after([StateDelta(tables={"t": TableDelta({}, [])}, buffers={"b": BufferDelta(0, {})})])
    copy = loaded(state.slices())
    assert (list(copy.tables), list(copy.buffers)) == (["t"], ["b"])
    assert copy.digest() == state.digest() == StoredState().digest()


def test_the_pages_of_a_buffer_joined_are_its_content() -> None:
    state = state_after([StateDelta(buffers={"b": BufferDelta(2 * PAGE_BYTES + 9, {0: b"x\0", 2: b"y"})})])
    buffer = state.buffers["b"]
    pages = [buffer.page(number) for number in range(4)]
    assert b"".join(pages) == b"x".ljust(2 * PAGE_BYTES, b"\0") + b"y".ljust(9, b"\0")


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xc1", b"not msgpack", msgspec.msgpack.encode([{"x": 1}])])
def test_bytes_that_are_no_state_are_refused(data: bytes) -> None:
    for load in (StoredState().load_slice, StoredState.decode_small):
        with pytest.raises(StateUnloadable):
            load(data)


def test_truncated_slices_are_refused_at_every_length() -> None:
    (data,) = state_after([StateDelta(plain={"a": b"12"}, tables={"t": TableDelta({b"k": b"v"}, [])})]).slices()
    for length in range(len(data)):
        with pytest.raises(StateUnloadable):
            StoredState().load_slice(data[:length])


def test_pieces_of_a_field_are_refused_out_of_order() -> None:
    slices = list(state_after([StateDelta(plain={"a": bytes(range(256)) * 2})]).slices(200))
    assert len(slices) > 2
    for wrong in (slices[1:], [slices[0], slices[0]], [slices[0], slices[2]]):
        with pytest.raises(StateUnloadable, match="piece"):
            loaded(wrong)


def test_growing_a_buffer_takes_no_pages() -> None:
    state = state_after([StateDelta(buffers={"b": BufferDelta(1 << 40, {0: b"x"})})])
    assert state.buffers["b"].pages_from(0) == [0]
    assert state.size_bytes == 1 << 40
    assert len(state.encode_small()) < 100
    state.apply(StateDelta(buffers={"b": BufferDelta(0, {})}))
    assert state.digest() == state_after([StateDelta(buffers={"b": BufferDelta(0, {})})]).digest()
