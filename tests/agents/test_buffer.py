"""`Buffer` against a bytearray, and what it does at the edges of a turn."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mielin_cells.agents.buffer import Buffer
from mielin_cells.errors import NotInTurn
from mielin_cells.log.delta import PAGE_BYTES, BufferDelta, StateDelta
from mielin_cells.log.state import StoredState

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class Field:
    """A buffer in a stored state, with the turn protocol as the class machinery follows it."""

    buffer: Buffer
    state: StoredState
    turn: list[bool]

    def end(self) -> BufferDelta | None:
        delta = self.buffer._delta()
        if delta is not None:
            self.state.apply(StateDelta(buffers={"b": delta}))
        self.buffer._forget()
        return delta


def bound(state: StoredState | None = None) -> Field:
    if state is None:
        state = StoredState()
        state.apply(StateDelta(buffers={"b": BufferDelta(0, {})}))
    turn = [True]
    return Field(Buffer._bind(state.buffers["b"], "A.b", lambda: turn[0]), state, turn)


# Places near the edges of pages, where mistakes are.
PLACES = st.builds(lambda page, off: max(page * PAGE_BYTES + off, 0), st.integers(0, 3), st.integers(-2, 2))
OPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "tail", "append", "resize", "truncate", "byte", "read", "end", "undo"]),
        PLACES,
        st.binary(max_size=4) | st.sampled_from([b"\0", b"x" * (PAGE_BYTES + 1)]),
    ),
    max_size=25,
)


def write(model: bytearray, at: int, data: bytes) -> None:
    model.extend(bytes(max(at + len(data) - len(model), 0) if data else 0))
    model[at : at + len(data)] = data


@QUICK
@given(OPS)
def test_a_buffer_does_what_its_model_does(ops: list[tuple[str, int, bytes]]) -> None:
    it = bound()
    buffer, model, committed, first = it.buffer, bytearray(), b"", it.state.encode_small()
    one = StateDelta()
    for op, at, data in ops:
        match op:
            case "write":
                buffer[at : at + len(data)] = data
                write(model, at, data)
            case "tail":
                buffer[at:] = data
                model = model[:at].ljust(at, b"\0") + data
            case "append":
                buffer.append(data)
                model += data
            case "resize":
                buffer.resize(at)
                model = model[:at].ljust(at, b"\0")
            case "truncate":
                buffer.truncate(at)
                del model[at:]
            case "byte" if at < len(model):
                buffer[at] = model[at] = at % 256
            case "read":
                assert buffer[at : at + 5] == bytes(model[at : at + 5])
                assert buffer[-5:] == bytes(model[-5:])
            case "end":
                delta, committed = it.end(), bytes(model)
                one = one if delta is None else one.then(StateDelta(buffers={"b": delta}))
            case "undo":
                buffer._forget()
                model = bytearray(committed)
            case _:
                pass
        assert len(buffer) == len(model)
    assert bytes(buffer) == bytes(model)
    delta = it.end()
    one = one if delta is None else one.then(StateDelta(buffers={"b": delta}))

    again = bound()
    again.buffer[:] = bytes(model)
    again.end()
    assert it.state.digest() == again.state.digest(), "the digest follows from the content alone"
    replayed = StoredState.decode_small(first)
    replayed.apply(one)
    assert bytes(bound(replayed).buffer) == bytes(model), "one delta of many turns has their effect"
    assert replayed.digest() == it.state.digest()


def test_a_turn_carries_only_the_pages_it_changed() -> None:
    it = bound()
    it.buffer.append(b"x" * (10 * PAGE_BYTES))
    it.end()
    it.buffer[5 * PAGE_BYTES + 3] = 7
    it.buffer[0] = ord("x")  # as it was
    delta = it.end()
    assert delta is not None
    assert list(delta.pages) == [5]
    assert it.end() is None


def test_growing_carries_no_pages() -> None:
    it = bound()
    it.buffer.resize(1 << 30)
    delta = it.end()
    assert delta == BufferDelta(1 << 30, {})
    assert it.buffer[(1 << 30) - 2 :] == b"\0\0"


def test_bytes_truncated_in_a_turn_do_not_come_back() -> None:
    it = bound()
    it.buffer.append(b"x" * (3 * PAGE_BYTES))
    it.end()
    it.buffer.truncate(5)
    it.buffer.resize(3 * PAGE_BYTES)
    assert bytes(it.buffer) == (b"x" * 5).ljust(3 * PAGE_BYTES, b"\0")
    it.end()
    assert bytes(it.buffer) == (b"x" * 5).ljust(3 * PAGE_BYTES, b"\0")


def test_bytes_are_never_shifted() -> None:
    buffer = Buffer(b"0123456789")
    for start, stop in ((2, 4), (2, 9), (8, 20), (4, 2)):
        with pytest.raises(ValueError, match="as many bytes"):
            buffer[start:stop] = b"abc"
    buffer[8:11] = b"abc"
    buffer[-2:] = b"."
    assert buffer == b"01234567a."


def test_places_and_values_that_do_not_fit_are_refused() -> None:
    buffer = Buffer(b"abc")
    for at in (3, -4):
        with pytest.raises(IndexError):
            buffer[at]
        with pytest.raises(IndexError):
            buffer[at] = 1
    with pytest.raises(ValueError, match="256"):
        buffer[0] = 256
    with pytest.raises(ValueError, match="steps"):
        buffer[::2]
    with pytest.raises(ValueError, match="cannot have"):
        buffer.resize(-1)
    with pytest.raises(ValueError, match="cannot have"):
        buffer.resize(1 << 60)
    with pytest.raises(TypeError):
        buffer[0:1] = "a"  # type: ignore[call-overload]
    assert (list(buffer), buffer[-1], repr(buffer)) == ([97, 98, 99], 99, "<Buffer of 3 bytes>")


def test_outside_a_turn_a_buffer_is_read_only() -> None:
    it = bound()
    it.buffer.append(b"abc")
    it.end()
    it.turn[0] = False
    changes: list[Callable[[], object]] = [
        lambda: it.buffer.append(b"d"), lambda: it.buffer.truncate(1), lambda: it.buffer.resize(9),
        lambda: it.buffer.__setitem__(0, 1), lambda: it.buffer.__setitem__(slice(0, 1), b"z"),
        lambda: it.buffer.__setitem__(slice(None), b""),
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(NotInTurn, match="handler"):
            change()
    assert (bytes(it.buffer), it.buffer[1:]) == (b"abc", b"bc")
    assert it.end() is None


def test_an_undone_turn_leaves_no_trace() -> None:
    it = bound()
    it.buffer.append(b"abc")
    it.end()
    digest = it.state.digest()
    it.buffer[:] = b"other and longer"
    it.buffer._forget()
    assert it.buffer == b"abc"
    assert it.state.digest() == digest


class Whole(int):
    """A whole number that no commit can hold as it is, as numpy's are."""

    __slots__ = ()


class Index:
    """Another, which is no `int` at all."""

    def __index__(self) -> int:
        return 2


@pytest.mark.parametrize("number", [Whole(2), Index(), True])
@pytest.mark.parametrize(
    "change",
    [
        lambda buffer, at: (buffer.resize(at), buffer.resize(9)),
        lambda buffer, at: (buffer.truncate(at), buffer.append(b"x")),
        lambda buffer, at: buffer.__setitem__(slice(at, None), b"z" * PAGE_BYTES),
        lambda buffer, at: buffer.__setitem__(slice(at, operator.index(at) + 1), b"z"),
    ],
)
def test_sizes_and_places_of_any_whole_number_are_plain_in_what_a_commit_holds(
    number: Any, change: Callable[[Buffer, Any], Any]
) -> None:
    it, plain = bound(), bound()
    for field, at in ((it, number), (plain, operator.index(number))):
        field.buffer.append(b"hello world")
        field.end()
        change(field.buffer, at)

    delta = it.end()

    assert delta is not None
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(delta), type=BufferDelta) == plain.end()
    assert bytes(it.buffer) == bytes(plain.buffer)


def test_a_size_that_is_no_whole_number_is_refused_before_anything_changes() -> None:
    it = bound()
    it.buffer.append(b"hello")
    for size in (2.0, "2", None):
        with pytest.raises(TypeError):
            it.buffer.resize(size)  # type: ignore[arg-type]  # of a caller who checks no types
    assert bytes(it.buffer) == b"hello"
