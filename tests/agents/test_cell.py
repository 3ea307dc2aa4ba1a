"""A live agent bound to its stored bytes: what a turn changes is checked before it is kept, and else undone."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import mielin_cells as cells
from mielin_cells.agents.live import PLAIN_BYTES_WARN, Cell
from mielin_cells.agents.spec import spec_of
from mielin_cells.agents.values.wire import STACK_MARGIN
from mielin_cells.client.client import Client
from mielin_cells.log.delta import StateDelta
from mielin_cells.log.ids import log_subject
from mielin_cells.log.state import StoredState
from mielin_cells.store.reader import load


class Nested(msgspec.Struct):
    inner: Nested | None = None


class Pad(cells.Agent):
    count: int = 0
    ratio: float = 0.0
    text: str = ""
    names: list[str] = []
    notes: dict[str, list[int]] = {}
    nested: Nested = Nested()
    seen: cells.Table[str, list[int]] = cells.Table()
    blob: cells.Buffer = cells.Buffer()

    @cells.handler
    async def spoil(self, what: str) -> None:
        self.count += 1
        SPOIL[what](self)

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count

    @cells.handler
    async def counted(self) -> int:
        return self.count

    @cells.handler
    async def fail(self, what: str) -> None:
        raise FAILURES[what]

    @cells.handler
    async def leak(self) -> None:
        self.names.append("in the turn")
        LEAKED.append(self)


LEAKED: list[Any] = []


def deep(levels: int) -> Nested:
    made = Nested()
    for _ in range(levels):
        made = Nested(made)
    return made


def drop(nested: Nested) -> None:
    """Takes a deep value apart from its top: freeing it at once would use a stack as deep as it is."""
    while (inner := nested.inner) is not None:
        nested.inner, nested = None, inner


def set_to(name: str, make: Callable[[], Any]) -> Callable[[Any], None]:
    return lambda pad: setattr(pad, name, make())


SPOIL: dict[str, Callable[[Any], None]] = {
    "count: another type": set_to("count", lambda: "x"),
    "count: too large": set_to("count", lambda: 2**70),
    "count: too small": set_to("count", lambda: -(2**63) - 1),
    "count: nothing": set_to("count", lambda: None),
    "ratio: text": set_to("ratio", lambda: "1.5"),
    "text: half a character": set_to("text", lambda: "\ud800"),
    "names: a member": lambda pad: pad.names.append(5),
    "names: half a character": lambda pad: pad.names.append("\udfff"),
    "names: a lock": lambda pad: pad.names.append(threading.Lock()),
    "names: a generator": set_to("names", lambda: (name for name in "ab")),
    "notes: a value": lambda pad: pad.notes.update(a=[1, "b"]),
    "notes: a key": lambda pad: pad.notes.update({5: [1]}),
    "nested: 100,000 deep": set_to("nested", lambda: deep(100_000)),
    "nested: itself": lambda pad: setattr(pad.nested, "inner", pad.nested),
    "names: itself": lambda pad: pad.names.append(pad.names),
    "seen: a value": lambda pad: pad.seen.update(a=["b"]),
    "seen: in place": lambda pad: pad.seen.setdefault("a", []).append("b"),
    "seen: too large": lambda pad: pad.seen.update(a=[2**70]),
}
FAILURES: dict[str, Exception] = {
    "half a character": ValueError("\ud800"),
    "much text": ValueError("x" * 2_000_000),
    "an error of ours": cells.errors.StoreFull("the disk is full"),
}


def pad(**state: Any) -> tuple[Any, Cell, StoredState]:
    spec, stored = spec_of(Pad), StoredState()
    stored.apply(spec.initial(**state))
    cell = Cell(spec, stored, "p")
    return cell.agent, cell, stored


def loaded(stored: StoredState) -> Any:
    return Cell(spec_of(Pad), stored, "p").agent


# ---- what a turn changes ---------------------------------------------------------------------------------------


def test_a_turn_gives_the_changed_fields_alone() -> None:
    agent, cell, stored = pad()
    cell.begin()
    agent.count += 1
    agent.names.append("a")
    _ = agent.notes, agent.text, agent.nested
    agent.seen["k"] = [1]
    agent.blob.append(b"abc")

    delta = cell.end()

    assert delta is not None
    assert (set(delta.plain), set(delta.tables), set(delta.buffers)) == ({"count", "names"}, {"seen"}, {"blob"})
    moved = loaded(stored)
    assert (moved.count, moved.names, dict(moved.seen), bytes(moved.blob)) == (1, ["a"], {"k": [1]}, b"abc")


def test_a_turn_that_sets_what_was_there_changes_nothing() -> None:
    agent, cell, stored = pad(names=["a"], ratio=math.nan)
    before = stored.digest()
    cell.begin()
    agent.names = ["a"]
    agent.names.append("b")
    agent.names.pop()
    agent.ratio = math.nan
    agent.seen["k"] = [1]
    del agent.seen["k"]
    assert cell.end() is None
    assert stored.digest() == before


def test_a_table_and_a_buffer_are_replaced_by_assigning_content() -> None:
    agent, cell, stored = pad(seen={"old": [0]}, blob=b"old bytes")
    cell.begin()
    agent.seen = {"new": [1]}
    agent.blob = b"new"
    agent.seen = agent.seen
    cell.end()
    moved = loaded(stored)
    assert (dict(moved.seen), bytes(moved.blob)) == ({"new": [1]}, b"new")
    cell.begin()
    for wrong in (5, "text", None):
        with pytest.raises(TypeError):
            agent.blob = wrong
    with pytest.raises(TypeError):
        agent.seen = 5
    assert cell.end() is None


def test_nan_and_infinity_are_values() -> None:
    agent, cell, stored = pad()
    for value in (math.nan, math.inf, -math.inf):
        cell.begin()
        agent.ratio = value
        assert cell.end() is not None
        assert repr(loaded(stored).ratio) == repr(value)


# ---- checked before it is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("what", SPOIL)
def test_a_value_that_would_not_load_is_refused_and_all_of_the_turn_is_undone(what: str) -> None:
    agent, cell, stored = pad(count=5, names=["a"], seen={"k": [1]}, blob=b"abc")
    before = stored.digest()
    cell.begin()
    agent.count = 6
    agent.blob.append(b"d")

    with pytest.raises(cells.errors.StateInvalid) as refused:
        SPOIL[what](agent)
        cell.end()

    field = what.partition(":")[0]
    assert f"Pad.{field}" in refused.value.message
    assert refused.value.path.startswith(f"Pad.{field}")
    if what.endswith("deep"):
        drop(agent.nested)
    cell.undo()
    assert stored.digest() == before
    assert (agent.count, agent.ratio, agent.text, agent.names, agent.notes) == (5, 0.0, "", ["a"], {})
    assert (agent.nested, dict(agent.seen), bytes(agent.blob)) == (Nested(), {"k": [1]}, b"abc")
    cell.begin()
    agent.count += 1
    assert cell.end() == StateDelta(plain={"count": b"\x06"})


@pytest.mark.parametrize("what", [what for what in SPOIL if "deep" not in what])
async def test_a_turn_that_leaves_an_invalid_value_fails_and_the_agent_keeps_running(what: str) -> None:
    async with cells.local(nodes=2) as cluster:
        agent = await cluster.spawn(Pad, "p", count=5)
        with pytest.raises(cells.errors.StateInvalid, match=f"Pad.{what.partition(':')[0]}"):
            await agent.spoil(what)
        assert await agent.counted() == 5
        assert (await cluster.migrate(agent)).ok
        assert await agent.counted() == 5


ONE_STACK = sys.version_info < (3, 12)
"""Calls in C count to the limit of calls in Python."""


def test_a_value_nested_too_deeply_to_load_elsewhere_is_refused_where_it_is_set() -> None:
    """The deepest value that a turn may keep still loads where much more of the stack is in use."""
    deepest, kept = 0, StoredState()
    for levels in range(0, sys.getrecursionlimit(), 10):
        agent, cell, stored = pad()
        cell.begin()
        agent.nested = deep(levels)
        try:
            cell.end()
        except cells.errors.StateInvalid:
            break
        deepest, kept = levels, stored
    assert deepest > 100
    if ONE_STACK:
        assert deepest < sys.getrecursionlimit() - STACK_MARGIN

    def from_below(calls: int) -> Any:
        if calls == 0:
            return loaded(kept)
        return from_below(calls - 1)

    found, levels = from_below(STACK_MARGIN - 20).nested, 0
    while found.inner is not None:
        found, levels = found.inner, levels + 1
    assert levels == deepest


def test_stored_bytes_that_do_not_fit_are_reported_with_agent_and_path() -> None:
    for data in (b"", b"\xa1x", b"\xc1", b"\x05\x05", b"\x91" * 200_000):
        stored = StoredState()
        stored.put({"count": data})
        with pytest.raises(cells.errors.StateUnloadable, match=r"agent 'p' does not load: Pad\.count: ") as refused:
            loaded(stored)
        assert (refused.value.agent, refused.value.path) == ("p", "Pad.count")


# ---- outside a turn --------------------------------------------------------------------------------------------


def test_state_is_set_in_turns_alone() -> None:
    agent, cell, _ = pad()
    for name, value in {"count": 1, "names": [], "seen": {}, "blob": b"x"}.items():
        with pytest.raises(cells.NotInTurn, match=f"'p' \\({name}\\) is set only inside a turn"):
            setattr(agent, name, value)
    with pytest.raises(cells.NotInTurn):
        agent.seen["a"] = [1]
    with pytest.raises(cells.NotInTurn):
        agent.blob.append(b"x")
    cell.begin()
    agent.count = 1
    cell.end()
    with pytest.raises(cells.NotInTurn):
        agent.count = 2
    assert agent.count == 1


def test_a_change_in_place_outside_a_turn_does_not_reach_the_next_turn() -> None:
    agent, cell, stored = pad(names=["a"])
    agent.names.append("outside")
    cell.begin()
    assert agent.names == ["a"]
    agent.names.append("b")
    assert cell.end() is not None
    assert loaded(stored).names == ["a", "b"]


async def test_a_task_that_outlives_its_turn_can_read_state_but_not_set_it() -> None:
    async with cells.local() as cluster:
        LEAKED.clear()
        ref = await cluster.spawn(Pad, "p")
        await ref.leak()
        agent = LEAKED[0]
        assert agent.names == ["in the turn"]
        with pytest.raises(cells.NotInTurn):
            agent.count = 5
        agent.names.append("outside")
        await ref.leak()
        assert agent.names == ["in the turn", "in the turn"]


def test_an_undone_turn_leaves_other_fields_as_objects_alone() -> None:
    agent, cell, _ = pad(names=["a"], notes={"k": [1]})
    kept = agent.__dict__["notes"]
    cell.begin()
    agent.names.append("b")
    cell.undo()
    assert agent.names == ["a"]
    assert agent.__dict__["notes"] is kept


# ---- large fields ----------------------------------------------------------------------------------------------


def test_a_large_plain_field_warns_once_and_names_table() -> None:
    agent, cell, _ = pad()
    cell.begin()
    agent.text = "x" * (PLAIN_BYTES_WARN - 10)
    cell.end()
    cell.begin()
    agent.text += "x" * 20
    with pytest.warns(UserWarning, match=r"Pad\.text has more than 65,536 bytes .*; use Table or Buffer"):
        cell.end()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cell.begin()
        agent.text += "y"
        cell.end()
        cell.begin()
        agent.seen["k"] = list(range(PLAIN_BYTES_WARN))
        agent.blob.append(b"x" * 2 * PLAIN_BYTES_WARN)
        cell.end()


def test_many_agents_with_the_same_large_field_warn_with_the_same_words() -> None:
    said = set()
    for size in (PLAIN_BYTES_WARN, 2 * PLAIN_BYTES_WARN):
        agent, cell, _ = pad()
        cell.begin()
        agent.text = "x" * size
        with pytest.warns(UserWarning, match="use Table") as caught:
            cell.end()
        said.add(str(caught[0].message))
    assert len(said) == 1  # so Python's own filter shows it once


# ---- what handlers raise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["half a character", "much text"])
async def test_an_exception_with_any_text_reaches_the_caller_and_the_agent_keeps_running(what: str) -> None:
    settings = cells.Settings(retry_first_s=0, tries=1, ask_timeout_s=10)
    async with cells.local(nodes=2, settings=settings) as cluster:
        agent = await cluster.spawn(Pad, "p", count=5)
        with pytest.raises(cells.HandlerFailed, match="ValueError"):
            await agent.fail(what)
        assert await agent.counted() == 5
        assert (await cluster.migrate(agent)).ok
        assert await agent.counted() == 5


async def test_a_value_too_large_for_its_type_leaves_nothing_in_the_log() -> None:
    async with cells.local() as cluster:
        assert isinstance(cluster, Client)
        agent = await cluster.spawn(Pad, "p", count=5)
        for _ in range(3):
            with pytest.raises(cells.errors.StateInvalid, match=r"Pad\.count: ints beyond 64 bits"):
                await agent.spoil("count: too large")
        for _ in range(3):
            await agent.spoil.tell("count: too large")
        async with asyncio.timeout(30):
            assert await agent.add() == 6
        fold = await load(cluster.log, "p")
        assert [letter.handler for letter in fold.ledger.dead] == ["spoil"] * 3
        assert loaded(fold.state).count == 6
        assert await cluster.log.last(log_subject("p")) is not None
