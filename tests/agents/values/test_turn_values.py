"""State is changed by the turn that runs: what is kept of an earlier turn, or a task of it, changes nothing."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from support.field_types import stored

import mielin_cells as cells
from mielin_cells.agents.live import Cell
from mielin_cells.agents.spec import spec_of


@dataclasses.dataclass
class Shape:
    name: str = ""


KEPT_OUTSIDE: list[Any] = []


class AliasKeeper(cells.Agent):
    flat: list[int] = [1]
    deep: list[list[int]] = [[1]]
    shape: Shape = Shape("a")
    seen: set[str] = {"a"}
    raw: bytearray = bytearray(b"a")
    notes: cells.Table[str, list[int]] = cells.Table({"a": [1]})
    n: int = 0

    @cells.handler
    async def keep(self) -> None:
        KEPT_OUTSIDE[:] = [self.flat, self.deep[0], self.shape, self.seen, self.raw, self.notes["a"]]

    @cells.handler
    async def keep_new(self) -> None:
        self.flat, self.deep, self.shape, self.seen, self.raw = [1], [[1]], Shape("a"), {"a"}, bytearray(b"a")
        self.notes["a"] = [1]
        KEPT_OUTSIDE[:] = [self.flat, self.deep[0], self.shape, self.seen, self.raw, self.notes["a"]]

    @cells.handler
    async def keep_changed(self) -> None:
        self.flat, self.deep, self.shape, self.seen, self.raw = [2], [[2]], Shape("b"), {"b"}, bytearray(b"b")
        self.notes["a"] = [2]
        await self.keep()
        await self.keep_new()

    @cells.handler
    async def spoil(self, touch: bool) -> None:
        if touch:
            await self.look()
        spoil()
        self.n += 1

    @cells.handler(tries=1)
    async def keep_and_fail(self) -> None:
        await self.keep()
        raise ValueError

    @cells.handler
    async def look(self) -> str:
        return repr((self.flat, self.deep, self.shape, self.seen, self.raw, self.notes["a"]))

    @cells.handler
    async def leave(self) -> None:
        KEPT_OUTSIDE[:] = [asyncio.create_task(self.linger())]

    async def linger(self) -> None:
        await asyncio.sleep(0.05)
        refused = 0
        assigns: list[Callable[[], None]] = [
            lambda: setattr(self, "n", 5),
            lambda: setattr(self, "flat", [5]),
            lambda: self.notes.update(a=[5]),
        ]
        for assign in assigns:
            try:
                assign()
            except cells.NotInTurn:
                refused += 1
        self.flat.append(5)
        self.deep[0].append(5)
        self.shape.name = "z"
        self.notes["a"].append(5)
        KEPT_OUTSIDE.append(refused)

    @cells.handler
    async def wait(self) -> str:
        before = await self.look()
        await KEPT_OUTSIDE[0]
        assert await self.look() == before
        return before

    @cells.handler
    async def in_threads(self) -> list[int]:
        await asyncio.to_thread(lambda: self.flat.append(2))
        with pytest.raises(cells.NotInTurn, match=r"asyncio\.to_thread"):
            await asyncio.get_running_loop().run_in_executor(None, lambda: self.flat)
        return self.flat


def spoil() -> None:
    flat, deep, shape, seen, raw, note = KEPT_OUTSIDE
    flat.append(9)
    deep.append(9)
    shape.name = "z"
    seen.add("z")
    raw.append(9)
    note.append(9)


AS_MADE = "([1], [[1]], Shape(name='a'), {'a'}, bytearray(b'a'), [1])"


@pytest.mark.parametrize("how", ["keep", "keep_new", "keep_changed"])
@pytest.mark.parametrize("where", ["outside", "in another turn", "in another turn that touches it"])
async def test_objects_kept_from_an_earlier_turn_change_nothing(how: str, where: str) -> None:
    async with cells.local(nodes=2) as cluster:
        agent = await cluster.spawn(AliasKeeper, "a")
        await getattr(agent, how)()
        if where == "outside":
            spoil()
        else:
            await agent.spoil(where != "in another turn")
        assert await agent.look() == AS_MADE
        await cluster.migrate(agent)
        assert await agent.look() == AS_MADE


async def test_objects_kept_from_a_failed_turn_change_nothing() -> None:
    async with cells.local() as cluster:
        agent = await cluster.spawn(AliasKeeper, "a")
        with pytest.raises(cells.HandlerFailed):
            await agent.keep_and_fail()
        spoil()
        await agent.spoil(True)
        assert await agent.look() == AS_MADE


async def test_a_task_left_behind_changes_nothing_while_another_turn_runs() -> None:
    async with cells.local() as cluster:
        agent = await cluster.spawn(AliasKeeper, "a")
        await agent.leave()
        assert await agent.wait() == AS_MADE
        assert KEPT_OUTSIDE[1] == 3
        assert await agent.look() == AS_MADE


async def test_a_thread_that_has_the_turn_may_change_state_and_another_is_refused() -> None:
    async with cells.local() as cluster:
        agent = await cluster.spawn(AliasKeeper, "a")
        assert await agent.in_threads() == [1, 2]


def test_a_turn_that_is_given_a_list_of_numbers_keeps_the_very_list() -> None:
    """A list that nobody has kept need not be made anew: a read costs no more than its comparison."""
    spec = spec_of(AliasKeeper)
    cell = Cell(spec, stored(spec), "a")
    agent: Any = cell.agent
    cell.begin()
    was = id(agent.flat)
    cell.end()
    cell.begin()
    assert id(agent.flat) == was


async def test_the_call_of_a_step_cannot_change_state_since_a_turn_that_runs_again_does_not_make_it() -> None:
    class StepKeeper(cells.Agent):
        n: int = 0
        names: list[str] = ["a"]
        seen: cells.Table[str, int] = cells.Table()
        raw: cells.Buffer = cells.Buffer(b"a")

        def change(self) -> list[str]:
            ways: list[Callable[[], object]] = [
                lambda: setattr(self, "n", 1), lambda: setattr(self, "names", ["b"]), lambda: self.seen.update(a=1),
                lambda: self.raw.append(b"b"),
            ]  # fmt: skip
            for way in ways:
                with pytest.raises(cells.NotInTurn):
                    way()
            self.names.append("b")
            return [cells.this().id, *self.names]

        async def changed(self) -> list[str]:
            return await asyncio.create_task(asyncio.to_thread(self.change))

        @cells.handler
        async def go(self) -> None:
            assert await cells.step("plain", self.change) == ["s", "a"]
            assert await cells.step("awaited", self.changed) == ["s", "a"]

        @cells.handler
        async def look(self) -> tuple[int, list[str], int, bytes]:
            return self.n, self.names, len(self.seen), bytes(self.raw)

    async with cells.local() as cluster:
        agent = await cluster.spawn(StepKeeper, "s")
        await agent.go()
        assert await agent.look() == (0, ["a"], 0, b"a")
