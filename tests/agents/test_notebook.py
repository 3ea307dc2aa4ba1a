"""What a notebook does: classes are defined again while their agents live, and each cell is a task of its own."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest

import mielin_cells as cells

QUICK = cells.Settings(ask_timeout_s=5)

seen: list[str] = []


def defined(step: int) -> type[Any]:
    """The cell that defines the class, run for the `step`-th time."""

    class Sketch(cells.Agent):
        lines: int = 0

        async def on_arrive(self) -> None:
            seen.append(f"arrive {step}")

        async def on_depart(self) -> None:
            seen.append(f"depart {step}")
            if step == 3:
                raise ValueError("stuck")

        @cells.handler
        async def draw(self) -> int:
            self.lines += step
            return self.lines

        @cells.handler
        async def me(self) -> Sketch:
            return self

    return Sketch


async def test_agents_that_are_active_run_the_newer_definition_from_their_next_message_on() -> None:
    seen.clear()
    first = defined(1)
    async with cells.local(settings=QUICK) as cluster:
        sketch = await cluster.spawn(first, "s")
        assert await sketch.draw() == 1
        second = defined(10)
        assert await sketch.draw() == 11  # also through the reference from before
        assert await cluster.get(second, "s").draw() == 21
        assert seen == ["arrive 1", "depart 1", "arrive 10"]
        defined(3)
        calls = [sketch.draw() for _ in range(5)]
        assert [await call for call in calls] == [24, 27, 30, 33, 36]
        await (await cluster.spawn(defined(100), "t")).draw()
        assert await sketch.draw() == 136  # though `on_depart` of the third raised
        assert seen[-2:] == ["depart 3", "arrive 100"]


def with_fields(version: int = 1, **fields: Any) -> type[Any]:
    async def look(self: Any) -> str:
        return f"{ {name: getattr(self, name) for name in fields} }"

    look.__annotations__["return"] = str
    members = {
        "__annotations__": {name: type(value) for name, value in fields.items()},
        **fields,
        "look": cells.handler(look),
    }
    if version > 1:
        members["up"] = cells.upgrade(from_version=version - 1)(lambda cls, old: {"size": old["width"]})
    return type("Canvas", (cells.Agent,), members, version=version)


async def test_a_newer_definition_that_the_state_does_not_fit_says_so_and_one_that_upgrades_goes_on() -> None:
    async with cells.local(settings=QUICK) as cluster:
        canvas = await cluster.spawn(with_fields(width=2), "c")
        await canvas.look()
        with_fields(size=1)
        with pytest.raises(cells.CellError):
            await canvas.look.options(timeout=1)()
        while (info := await cluster.show("c")).state != "Error":
            await asyncio.sleep(0.01)
        assert "stored field 'width' that Canvas version 1 lacks; raise the version and write an upgrade" in info.error
        with_fields(2, size=1)
        await cluster.resume("c")
        assert await canvas.look() == "{'size': 2}"


def brush(size: int) -> type[Any]:
    class Brush(cells.Agent):
        @cells.handler
        async def stroke(self) -> int:
            return size

    return Brush


async def test_a_reference_to_a_class_that_was_defined_again_is_still_one() -> None:
    old = brush(1)

    class Painter(cells.Agent):
        brush: old  # type: ignore[valid-type]
        spare: list[old] = []  # type: ignore[valid-type]

        @cells.handler
        async def paint(self) -> int:
            return int(await self.brush.stroke())  # type: ignore[attr-defined]

        @cells.handler
        async def take(self, brush: old) -> None:  # type: ignore[valid-type]
            self.brush = brush
            self.spare = [brush]

    Painter.take.fn.__annotations__["brush"] = old
    Painter.__annotations__.update(brush=old, spare=list[old])  # type: ignore[valid-type]
    async with cells.local(nodes=2, settings=QUICK) as cluster:
        painter = await cluster.spawn(Painter, "p", brush=await cluster.spawn(old, "b"))
        new = brush(2)
        assert await painter.paint() == 2
        await painter.take(cluster.get(new, "b"))
        await painter.take(cluster.get(old, "b"))
        assert (await cluster.migrate(painter)).ok
        assert await painter.paint() == 2


async def test_each_cell_may_be_a_task_with_a_context_of_its_own() -> None:
    opening = cells.local(settings=QUICK)

    async def cell(work: Any) -> Any:
        async def run() -> Any:
            return await work()

        return await asyncio.create_task(run(), context=contextvars.Context())

    cluster = await cell(opening.__aenter__)
    sketch = await cell(lambda: cluster.spawn(defined(1), "s"))
    again = await cell(sketch.me)  # a reference from an answer uses the cluster that gave it
    assert await cell(again.draw) == 1
    assert await cell(sketch.draw) == 2
    await cell(lambda: opening.__aexit__(None, None, None))
    with pytest.raises(cells.errors.NotConnected):
        await cell(again.draw)
