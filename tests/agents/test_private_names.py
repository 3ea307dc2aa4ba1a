"""Private names belong to authors: whatever they keep under one, the package's own slots are untouched."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import mielin_cells as cells
from mielin_cells.agents.agent import Agent

OURS = [
    "_id", "_cell", "_caller", "_name", "_wire_name", "_version", "_recovery", "_policy", "_standby", "_spec", "_specs",
    "_state", "_fields", "_handlers", "_agent", "_host", "_node", "_cluster", "_turn", "_tables", "_buffers", "_lock",
]  # fmt: skip


class Harbour(cells.Agent, version=2):
    count: int = 0
    _id = "h-1"
    _version = "of the harbour"
    _policy = "first come, first served"
    _recovery = None
    _standby = "always"
    _wire_name = "telegraph"
    _spec = ("brick", "oak")

    @cells.handler
    async def keep(self) -> int:
        for name in OURS:
            setattr(self, name, f"the author's {name}")
        self.count += 1
        return self.count

    @cells.handler
    async def kept(self) -> list[str]:
        return [getattr(self, name) for name in OURS]

    @cells.handler
    async def me(self) -> Harbour:
        return self


async def test_an_author_may_keep_anything_under_any_private_name() -> None:
    async with cells.local(nodes=2) as cluster:
        harbour = await cluster.spawn(Harbour, "north")
        assert await harbour.keep() == 1
        assert await harbour.kept() == [f"the author's {name}" for name in OURS]
        assert await harbour.me() == harbour
        assert (await cluster.show("north")).version == 2
        assert (await cluster.migrate(harbour)).ok
        assert await harbour.keep() == 2
        assert repr(harbour) == "<Harbour 'north'>"


def test_names_that_the_package_adds_to_an_agent_class_collide_with_no_authors_names() -> None:
    public = {"on_start", "on_arrive", "on_depart", "on_stop", "healthy", "watch"}
    ours = {name for name in vars(Agent) if name not in vars(type("Bare", (), {})) and name not in public}
    assert {name for name in ours if not (name.startswith("__") and name.endswith("__"))} == set()


@pytest.mark.parametrize("make", ["reference", "live"])
async def test_names_that_the_package_adds_to_an_instance_collide_with_no_authors_names(make: str) -> None:
    found: dict[str, Any] = {}

    class Bare(cells.Agent):
        @cells.handler
        async def look(self) -> None:
            found.update(vars(self))

    async with cells.local() as cluster:
        bare = await cluster.spawn(Bare, "b")
        if make == "live":
            await bare.look()
        else:
            found.update(vars(bare))
    assert found
    assert {name for name in found if not (name.startswith("__mielin_") and name.endswith("__"))} == set()
    assert not [name for name, _ in inspect.getmembers(Bare) if name.startswith("_") and not name.endswith("__")]
