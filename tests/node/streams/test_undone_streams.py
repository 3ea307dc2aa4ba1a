"""A stream whose turn an undo takes back goes on if the turn yields the same parts; if not, its error says why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.waiting import until

import mielin_cells as cells

share = 1
"""What `add` adds: what comes from outside, and not by a step."""
runs = 0
go: asyncio.Event


class Narrator(cells.Agent):
    total: int = 0

    @cells.handler
    async def add(self) -> int:
        self.total += share
        return self.total

    @cells.handler(cancellable=True)
    async def tell_total(self) -> AsyncIterator[str]:
        global runs  # noqa: PLW0603 (what an undo does not take back)
        runs += 1
        yield f"total {self.total}"
        await go.wait()
        yield "end"


@pytest.mark.parametrize("later", [1, 5], ids=["same", "another"])
async def test_a_turn_that_runs_again_after_an_undo(later: int, monkeypatch: pytest.MonkeyPatch) -> None:
    global go, runs
    go, runs = asyncio.Event(), 0
    async with cells.local(nodes=2) as cluster, asyncio.timeout(60):
        narrator = await cluster.on("node-1").spawn(Narrator, "n")
        report = await cluster.migrate(narrator, to="node-2")
        assert await narrator.add() == 1
        stream = narrator.tell_total()
        assert await anext(stream) == "total 1"
        monkeypatch.setattr(f"{__name__}.share", later)
        undoing = asyncio.create_task(cluster.rollback(report.migration))
        await until(lambda: runs == 2)
        go.set()
        if later == 1:
            assert [part async for part in stream] == ["end"]
        else:
            with pytest.raises(
                cells.errors.NonDeterministicTurn, match="taken back by an undo while it answered. Call"
            ):
                await anext(stream)
        await undoing
        assert await narrator.add() == 2 * later
        assert [part async for part in narrator.tell_total()] == [f"total {2 * later}", "end"]
