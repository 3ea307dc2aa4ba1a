"""`mielin demo`: the main job.  Feeds events, moves the agents that have messages waiting, and compares at the end."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeVar

import mielin_cells as cells
from mielin_cells.cli.flights import (
    Aircraft,
    AircraftTotals,
    Airport,
    AirportTotals,
    Flights,
    Totals,
    aircraft_id,
    airport_id,
    compare,
    expected,
    read_flights,
)

WINDOW = 96
"""Events on their way at a time: enough that agents have messages waiting, few enough that the flow lasts."""

MOVERS = 6
"""Migrations at a time, each of another agent."""

AIRPORT_SHARE = 0.6
"""Of the movers; airports are few and busy, aircraft many and quiet."""

QUIET_S = 20.0
"""At the end: how long without any progress before what is missing counts as lost."""

COMPLETED_SHARE = 0.9

TICK_S = 0.001

T = TypeVar("T")


@dataclass(slots=True)
class Job:
    """One run's options, and what it has seen so far."""

    flights: Flights
    nodes: int
    migrations: int
    path: Path
    sync: Literal["process", "power"]
    resumed: bool
    fed: int = 0
    done: int = 0
    started: int = 0
    reports: list[cells.MigrationReport] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    """Events that are sent and not yet answered, by aircraft and by airport."""
    moving: set[str] = field(default_factory=set)
    seconds: float = 0.0
    already: int = 0

    @property
    def due(self) -> int:
        """Migrations that should have begun by the events sent; the last a little before the last event."""
        early = self.fed * (self.migrations + 2 * MOVERS) // max(1, len(self.flights.events))
        return min(self.migrations, early)


def run(
    events: Path | None, nodes: int, migrations: int, report: Path | None, path: Path | None, resume: Path | None,
    sync: Literal["process", "power"],
) -> int:  # fmt: skip
    """The exit code.  Raises `ConfigError` for a file or option that cannot be used."""
    if migrations < 0:
        raise cells.ConfigError(
            f"--migrations {migrations} is out of range (0 or more).", field="migrations", range="0 or more"
        )
    if resume is not None and not resume.exists():
        raise cells.ConfigError(f"--resume {resume}: there is no such file.", field="resume", range="a store's file")
    if nodes < 2:
        raise cells.ConfigError(f"--nodes {nodes}: a move needs at least 2.", field="nodes", range="2 to 64")
    flights = read_flights(events)
    folder: AbstractContextManager[str] = (
        tempfile.TemporaryDirectory(prefix="mielin-") if not (path or resume) else nullcontext("")
    )
    with folder as name:
        job = Job(flights, nodes, migrations, resume or path or Path(name) / "demo.db", sync, resume is not None)
        result, good = asyncio.run(_run(job))
    text = json.dumps(result, indent=2)
    print(text)
    if report is not None:
        report.write_text(text + "\n")
    return 0 if good else 1


async def _run(job: Job) -> tuple[dict[str, Any], bool]:
    begun = time.monotonic()
    wanted = expected(job.flights.events)
    async with cells.local(nodes=job.nodes, path=job.path, sync=job.sync) as cluster:
        with Display(job) as display:
            planes, airports = await _spawn(cluster, job, wanted)
            # Thousands of agents that stay: without this each full collection walks them all, and stops the loop for 0.2 s.
            gc.collect()
            gc.freeze()
            at = time.monotonic()
            ticker = asyncio.create_task(display.tick())
            movers = [asyncio.create_task(_move(cluster, job, Random(n))) for n in range(MOVERS)]
            try:
                await _feed(job, planes, airports)
                await asyncio.gather(*movers)
            finally:
                for task in (*movers, ticker):
                    task.cancel()
                await asyncio.gather(*movers, ticker, return_exceptions=True)
            found = await _collect(planes, airports, wanted)
            job.seconds = time.monotonic() - at
    return _report(job, wanted, found, time.monotonic() - begun)


async def _spawn(cluster: cells.Cluster, job: Job, wanted: Totals) -> tuple[dict[str, Aircraft], dict[str, Airport]]:
    names = [f"node-{n + 1}" for n in range(job.nodes)]
    planes, airports = dict[str, Aircraft](), dict[str, Airport]()

    async def plane(n: int, tailnum: str) -> None:
        planes[tailnum] = await cluster.on(names[n % len(names)]).spawn(Aircraft, aircraft_id(tailnum))

    async def airport(n: int, dest: str) -> None:
        airports[dest] = await cluster.on(names[n % len(names)]).spawn(Airport, airport_id(dest))

    await _all(airport(n, dest) for n, dest in enumerate(wanted.airports))
    await _all(plane(n, tailnum) for n, tailnum in enumerate(wanted.aircraft))
    return planes, airports


async def _all(work: Iterable[Awaitable[T]], at_once: int = 128) -> list[T]:
    limit = asyncio.Semaphore(at_once)

    async def one(item: Awaitable[T]) -> T:
        async with limit:
            return await item

    return await asyncio.gather(*(one(item) for item in work))


async def _feed(job: Job, planes: dict[str, Aircraft], airports: dict[str, Airport]) -> None:
    """Sends every event in file order, some on their way at a time; skips what a resumed store has taken already."""
    events, window = job.flights.events, asyncio.Semaphore(WINDOW)
    taken: Counter[str] = Counter()
    if job.resumed:
        for tailnum, totals in zip(planes, await _all(plane.totals() for plane in planes.values()), strict=True):
            taken[tailnum] = totals.flights
        job.already = taken.total()
    async with asyncio.TaskGroup() as group:
        for number, event in enumerate(events, 1):
            if taken[event.tailnum] > 0:
                taken[event.tailnum] -= 1
            else:
                await window.acquire()
                job.busy[aircraft_id(event.tailnum)] += 1
                job.busy[airport_id(event.dest)] += 1
                call = planes[event.tailnum].fly(
                    airports[event.dest], event.dest, event.miles, event.delay, event.label
                )
                group.create_task(_sent(job, event.tailnum, event.dest, call, window))
            job.fed = number
            # Migrations are spread over the events: the flow waits when they fall behind.
            while job.due - job.started > MOVERS and (job.moving or any(job.busy.values())):
                await asyncio.sleep(TICK_S)


async def _sent(job: Job, tailnum: str, dest: str, call: Awaitable[None], window: asyncio.Semaphore) -> None:
    try:
        await call
    finally:
        job.busy[aircraft_id(tailnum)] -= 1
        job.busy[airport_id(dest)] -= 1
        job.done += 1
        window.release()


async def _move(cluster: cells.Cluster, job: Job, rng: Random) -> None:
    """Moves agents that have messages on their way, as many as are due by the events sent, until all are done."""
    while job.started < job.migrations:
        agent = _mover(job, rng) if job.started < job.due else None
        if agent is None:
            if job.fed >= len(job.flights.events) and not any(job.busy.values()):
                return  # nothing flows any more: a move now would show nothing
            await asyncio.sleep(TICK_S)
            continue
        job.started += 1
        job.moving.add(agent)
        try:
            job.reports.append(await cluster.migrate(agent))
        except cells.CellError as error:
            job.refused[f"{error.code}: {error.message}"] += 1
        finally:
            job.moving.discard(agent)


def _mover(job: Job, rng: Random) -> str | None:
    """An agent with messages waiting or in flight; one of the busiest of a few drawn."""
    busy = [name for name, count in job.busy.items() if count > 0 and name not in job.moving]
    kind = "airport-" if rng.random() < AIRPORT_SHARE else "aircraft-"
    drawn = [name for name in busy if name.startswith(kind)] or busy
    if not drawn:
        return None
    return max(rng.sample(drawn, min(4, len(drawn))), key=lambda name: (job.busy[name], name))


async def _collect(planes: dict[str, Aircraft], airports: dict[str, Airport], wanted: Totals) -> Totals:
    """What every agent holds, once the last arrivals are in or nothing comes any more."""
    found = Totals()
    last, since = -1, time.monotonic()
    due = sum(airport.arrivals for airport in wanted.airports.values())
    while True:
        totals: list[AirportTotals] = await _all(airport.totals() for airport in airports.values())
        found.airports = dict(zip(airports, totals, strict=True))
        count = sum(airport.arrivals for airport in totals)
        if count >= due or (count == last and time.monotonic() - since > QUIET_S):
            break
        if count != last:
            last, since = count, time.monotonic()
        await asyncio.sleep(0.05)
    sums: list[AircraftTotals] = await _all(plane.totals() for plane in planes.values())
    found.aircraft = dict(zip(planes, sums, strict=True))
    return found


def _report(job: Job, wanted: Totals, found: Totals, seconds: float) -> tuple[dict[str, Any], bool]:
    difference = compare(wanted, found)
    outcomes = Counter(report.outcome for report in job.reports)
    completed = [report for report in job.reports if report.ok]
    pauses = sorted(report.pause_ms for report in completed)
    reasons = Counter(report.reason for report in job.reports if not report.ok) + job.refused
    result = {
        "events": len(job.flights.events),
        "skipped": job.flights.skipped,
        "agents": {"aircraft": len(found.aircraft), "airports": len(found.airports)},
        "miles": sum(plane.miles for plane in found.aircraft.values()),
        "arrival_delay_minutes": sum(plane.delay for plane in found.aircraft.values()),
        "flights_without_delay": sum(plane.without_delay for plane in found.aircraft.values()),
        "lost": difference.lost,
        "duplicated": difference.duplicated,
        "mismatched": difference.mismatched,
        "migrations": {
            "completed": outcomes["completed"],
            "rolled_back": outcomes["rolled_back"] + job.refused.total(),
            "gave_up": outcomes["gave_up"],
        },
        "reasons": dict(reasons),
        "with_messages_on_the_way": sum(1 for report in completed if report.arrived),
        "pause_ms": {"p50": _at(pauses, 0.5), "p99": _at(pauses, 0.99), "max": _at(pauses, 1.0)},
        "held": sum(report.held for report in completed),
        "events_per_s": round((len(job.flights.events) - job.already) / job.seconds) if job.seconds else 0,
        "seconds": round(seconds, 1),
        "resumed_after": job.already,
        "nodes": job.nodes,
        "substrate": "embedded",
        "sync": job.sync,
    }
    clean = not (difference.lost or difference.duplicated or difference.mismatched)
    tried = len(job.reports) + job.refused.total()
    return result, clean and len(completed) >= COMPLETED_SHARE * tried


def _at(values: list[float], share: float) -> float:
    return round(values[min(len(values) - 1, int(share * len(values)))], 3) if values else 0.0


class Display:
    """Progress in real units: a live line on a terminal, else a plain one every few seconds."""

    PLAIN_S = 5.0

    def __init__(self, job: Job) -> None:
        self._job = job
        self._live = sys.stderr.isatty()
        self._at = time.monotonic()
        self._write: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Display:
        self._write(
            f"{len(self._job.flights.events)} events, {self._job.nodes} nodes, {self._job.migrations} migrations"
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._write("")

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(0.2 if self._live else self.PLAIN_S)
            job, total = self._job, len(self._job.flights.events)
            rate = job.done / (time.monotonic() - self._at)
            pause = f"last pause {job.reports[-1].pause_ms:.2f} ms" if job.reports else ""
            line = f"{job.done + job.already}/{total} events, {len(job.reports)}/{job.migrations} moves, {rate:.0f} events/s  {pause}"
            if self._live:
                print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
            else:
                self._write(line)
