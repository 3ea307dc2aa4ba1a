"""Timers on nodes whose wall clocks are wrong: sent once, and late by no more than their own time."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.moving import nodes

import mielin_cells as cells
from mielin_cells.log.records import SnapshotRef
from mielin_cells.node.activation import timers
from mielin_cells.node.activation.snapshots import still_needed
from mielin_cells.node.node import Node

YEAR_S = 365 * 86400.0


class Clock(cells.Agent):
    struck: list[str] = []

    @cells.handler
    async def strike(self, what: str) -> None:
        self.struck.append(what)

    @cells.handler
    async def set(self, seconds: float, what: str) -> None:
        cells.after(seconds, self.strike)(what)

    @cells.handler
    async def repeat(self, seconds: float, catch_up: cells.CatchUp) -> None:
        cells.every(seconds, self.strike, id="r", catch_up=catch_up)("tick")

    @cells.handler
    async def all(self) -> list[str]:
        return self.struck


def wrong_by(node: Node, seconds: float) -> None:
    node.home.wall = lambda: time.time() + seconds


async def struck(clock: Clock, count: int) -> list[str]:
    async with asyncio.timeout(30):
        while len(found := await clock.all()) < count:
            await asyncio.sleep(0.01)
    return found


@pytest.mark.parametrize(("at_source_s", "at_target_s"), [(YEAR_S, 0.0), (0.0, -YEAR_S), (-YEAR_S, 0.0), (0.0, YEAR_S)])
async def test_a_timer_that_moves_between_clocks_is_sent_once_and_soon(at_source_s: float, at_target_s: float) -> None:
    async with nodes("node-1", "node-2") as (client, running):
        wrong_by(running["node-1"], at_source_s)
        wrong_by(running["node-2"], at_target_s)
        clock = await client.on("node-1").spawn(Clock, "c")
        await clock.set(0.2, "once")
        for to in ("node-2", "node-1", "node-2"):
            assert (await client.migrate(clock, to=to)).ok
        assert await struck(clock, 1) == ["once"]
        await client.migrate(clock, to="node-1")
        assert await clock.all() == ["once"]


@pytest.mark.parametrize("catch_up", ["one", "all", "none"])
async def test_a_repeating_timer_goes_on_after_a_node_a_year_ahead(
    catch_up: cells.CatchUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "CATCH_UP_MAX", 5)
    async with nodes("node-1", "node-2") as (client, running):
        wrong_by(running["node-2"], YEAR_S)
        clock = await client.on("node-1").spawn(Clock, "c")
        await clock.repeat(0.05, catch_up)
        began = time.monotonic()
        for to in ("node-2", "node-1"):
            assert (await client.migrate(clock, to=to)).ok
            before = len(await clock.all())
            await struck(clock, before + 2)
        ticks = len(await clock.all())
        assert ticks <= (time.monotonic() - began) / 0.05 + 1 + (5 if catch_up == "all" else 1)


@given(st.lists(st.floats(-1e9, 1e9), max_size=40), st.floats(0, 1e4))
def test_nothing_is_kept_for_as_long_as_a_clock_was_wrong_by(jumps: list[float], retention_s: float) -> None:
    kept: list[SnapshotRef] = []
    for number, wall in enumerate(jumps, 1):
        kept = [
            *still_needed(kept, [5], wall, retention_s),
            SnapshotRef(number * 10, number * 10 - 1, number * 10, "p", wall),
        ]
    now = 0.0
    for number in range(len(jumps) + 1, len(jumps) + 4):
        kept = [
            *still_needed(kept, [5], now, retention_s),
            SnapshotRef(number * 10, number * 10 - 1, number * 10, "p", now),
        ]
        now += retention_s + 1
    assert kept[0].seq > 5
