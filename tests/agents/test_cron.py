"""Timers by cron expressions: their times in a time zone, what is wrong with one, and what is made up for."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.nodes import deployment
from support.undoing import QUICK
from support.waiting import until

import mielin_cells as cells
from mielin_cells.agents.times.cron import check_cron, newest_times, next_time
from mielin_cells.errors import CronInvalid
from mielin_cells.log.commit import Timer
from mielin_cells.node.activation.timers import _next
from mielin_cells.settings import CATCH_UP_MAX
from mielin_cells.store.reader import load

ZURICH = "Europe/Zurich"


def at(text: str, zone: str = ZURICH, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def times(expression: str, start: float, count: int, zone: str = ZURICH) -> list[float]:
    found = list[float]()
    for _ in range(count):
        start = next_time(expression, zone, start)
        found.append(start)
    return found


def test_a_fixed_hour_is_that_hour_in_its_zone_in_winter_and_in_summer() -> None:
    assert times("0 6 * * *", at("2026-03-28 06:00"), 2) == [at("2026-03-29 06:00"), at("2026-03-30 06:00")]
    assert at("2026-03-29 06:00") - at("2026-03-28 06:00") == 23 * 3600
    assert next_time("0 6 * * *", "UTC", at("2026-03-28 06:00")) == at("2026-03-28 06:00", "UTC")


def test_a_time_that_does_not_exist_is_taken_right_after_the_gap() -> None:
    assert times("30 2 * * *", at("2026-03-28 12:00"), 2) == [at("2026-03-29 03:00"), at("2026-03-30 02:30")]


def test_a_time_that_comes_twice_is_taken_once_the_first_time() -> None:
    assert times("30 2 * * *", at("2026-10-24 12:00"), 2) == [at("2026-10-25 02:30"), at("2026-10-26 02:30")]


def test_set_between_the_two_it_is_not_early() -> None:
    """At 02:10 of the second 2 o'clock, 02:30 of the first is over."""
    now = at("2026-10-25 02:10", fold=1)
    assert next_time("30 2 * * *", ZURICH, now) > now


def test_each_hour_comes_as_time_passes() -> None:
    hours = times("0 * * * *", at("2026-10-25 01:30"), 3)
    assert hours == [at("2026-10-25 02:00"), at("2026-10-25 02:00", fold=1), at("2026-10-25 03:00")]
    assert times("0 * * * *", at("2026-03-29 01:30"), 1) == [at("2026-03-29 03:00")]


@given(st.integers(0, 59), st.integers(0, 23), st.floats(1.7e9, 2.5e9))
def test_the_next_time_is_later_and_no_time_lies_between(minute: int, hour: int, start: float) -> None:
    expression = f"{minute} {hour} * * *"
    found = next_time(expression, ZURICH, start)
    assert start < found < start + 26 * 3600
    moment = datetime.fromtimestamp(found, ZoneInfo(ZURICH))
    assert (moment.minute, moment.hour) == (minute, hour) or moment.hour == 3  # after a gap


@pytest.mark.parametrize(
    ("expression", "column", "why"),
    [
        ("60 * * * *", 1, "'60' is no minute"),
        ("0 24 * * *", 3, "'24' is no hour"),
        ("0  6 * * MUN", 10, "'MUN' is no day of the week"),
        ("0 1,2,x * * *", 7, "'x' is no hour"),
        ("0 1,,2 * * *", 5, "'' is no hour"),
        ("*/0 * * * *", 1, "'*/0' is no minute"),
        ("0 0 31 2 *", 5, "no month has that day"),
        ("0 6 * *", 8, "it has 4 fields"),
        ("0 0 6 * * * 2026", 13, "it has 7 fields"),
        ("@daily", 7, "it has 1 fields"),
        ("", 1, "it has 0 fields"),
    ],
)
def test_a_wrong_expression_is_said_with_its_column(expression: str, column: int, why: str) -> None:
    with pytest.raises(CronInvalid, match=f"wrong at column {column}: ") as raised:
        check_cron(expression, "UTC")
    assert why in raised.value.message
    assert raised.value.facts == {"expression": expression, "column": column}


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "Europe/Zurich\0", 7])
def test_an_unknown_time_zone_is_said(zone: str) -> None:
    with pytest.raises(CronInvalid, match="no time zone"):
        check_cron("0 6 * * *", zone)


@pytest.mark.parametrize(
    "expression", ["0 6 * * MON-FRI", "0 6 L * *", "0 6 * * MON#2", "*/5 8-18 1,15 JAN *", "30 0 6 * * *"]
)
def test_what_crons_understand_is_understood(expression: str) -> None:
    check_cron(expression, ZURICH)
    assert next_time(expression, ZURICH, 1.8e9) > 1.8e9


def timer(catch_up: str, due: float, expression: str = "0 6 * * *") -> Timer:
    return Timer("t", "ring", b"", due, 86400.0, 0.0, catch_up, "", 0, 0, expression, ZURICH)


def test_what_was_missed_is_made_up_for_by_one_by_all_or_not_at_all() -> None:
    due, now = at("2026-05-01 06:00"), at("2026-05-04 07:00")
    later, has_passed = _next(timer("one", due), 0.0, now)
    assert (later.due, has_passed) == (at("2026-05-05 06:00"), True)
    later, _ = _next(timer("all", due), 0.0, now)
    assert later.due == at("2026-05-02 06:00")
    later, has_passed = _next(timer("none", due), 0.0, now)
    assert (later.due, has_passed) == (at("2026-05-05 06:00"), True)
    _, has_passed = _next(timer("none", due), 0.0, due + 1)
    assert not has_passed


def test_of_a_clock_that_was_years_behind_the_newest_times_are_made_up_for() -> None:
    due, now = at("2016-05-01 06:00"), at("2026-05-04 07:00")
    later, _ = _next(timer("all", due, "* * * * *"), 0.0, now)
    assert later.due == newest_times("* * * * *", ZURICH, now, CATCH_UP_MAX)
    assert now - later.due == pytest.approx(CATCH_UP_MAX * 60, abs=120)


class Nightwatch(cells.Agent):
    rings: list[str] = []

    async def on_arrive(self) -> None:
        cells.cron("* * * * * *", catch_up="all").ring("second")

    @cells.handler
    async def ring(self, what: str) -> None:
        self.rings.append(what)

    @cells.handler
    async def set(self, expression: str, tz: str = "UTC", id: str | None = None) -> str:
        return cells.cron(expression, self.ring, tz=tz, id=id)("set")

    @cells.handler
    async def count(self) -> int:
        return len(self.rings)


class Drowsy(cells.Agent, idle_s=0.1):
    rings: int = 0
    arrivals: int = 0

    async def on_arrive(self) -> None:
        self.arrivals += 1
        cells.every(1.0).ring()

    @cells.handler
    async def ring(self) -> None:
        self.rings += 1

    @cells.handler
    async def counts(self) -> tuple[int, int]:
        return self.rings, self.arrivals


async def test_a_timer_set_on_arrival_fires_also_moves_and_keeps_its_time() -> None:
    async with cells.local(nodes=2) as cluster:
        clock = await cluster.spawn(Nightwatch, "c")
        while await clock.count() < 2:
            await asyncio.sleep(0.05)
        await cluster.migrate(clock)
        before = await clock.count()
        while await clock.count() < before + 2:
            await asyncio.sleep(0.05)


async def test_a_wrong_expression_fails_the_turn_with_its_own_error() -> None:
    async with cells.local(nodes=1) as cluster:
        clock = await cluster.spawn(Nightwatch, "c")
        with pytest.raises(cells.errors.CellError, match="column 3"):
            await clock.set("0 25 * * *")
        with pytest.raises(cells.errors.CellError, match="no time zone"):
            await clock.set("0 6 * * *", "Mars/Olympus")


async def test_an_identical_timer_of_a_hook_keeps_its_time_over_a_restart() -> None:
    async with deployment("node-1", settings=QUICK) as place:
        clock = await place.client.spawn(Nightwatch, "c")
        await clock.set("0 6 1 1 *", id="year")
        first = (await load(place.substrate.log, "c")).ledger.timers["on_arrive.0"].due
        place.kill("node-1")
        await until(lambda: time.time() > first + 2)  # it is due three times while no node runs the agent
        await place.start("node-1")
        async with asyncio.timeout(30):
            while await clock.count() < int(time.time() - first) + 1:  # those are made up for
                await asyncio.sleep(0.02)
        assert set((await load(place.substrate.log, "c")).ledger.timers) == {"on_arrive.0", "year"}


async def test_a_timer_that_wakes_its_agent_fires_although_on_arrive_sets_it_again() -> None:
    """Else an agent that sets a timer in `on_arrive` would put it off each time it is woken by it, for ever."""
    async with deployment("node-1", settings=QUICK) as place:
        agent, node = await place.client.spawn(Drowsy, "h"), place.nodes["node-1"]
        for _ in range(2):
            await until(lambda: "h" in node.activations.asleep)
            await until(lambda: "h" in node.activations.live)
        await until(lambda: "h" in node.activations.asleep)
        rings, arrivals = await agent.counts()
        assert rings >= 2
        assert arrivals >= 3
