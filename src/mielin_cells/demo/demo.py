"""`mielin demo`: the main job.  Feeds events, moves the agents that have messages waiting, and compares at the end."""

from __future__ import annotations

import asyncio
import gc
import json
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.demo.chaos import Chaos
from mielin_cells.demo.flights import (
    Aircraft,
    AircraftTotals,
    Airport,
    AirportTotals,
    Flight,
    Flights,
    Totals,
    aircraft_id,
    airport_id,
    compare,
    expected,
    read_flights,
)
from mielin_cells.demo.progress import Display
from mielin_cells.demo.rolling import ROUNDS, Rolling
from mielin_cells.demo.stage import Stage, Sync, embedded, processes
from mielin_cells.deployment.fleet import Fleet
from mielin_cells.errors import never

WINDOW = 32
"""Events on their way at a time: enough that agents have messages waiting, few enough that the flow lasts."""

MOVERS = 6
"""Migrations at a time, each of another agent."""

AIRPORT_SHARE = 0.6
"""Of the movers; airports are few and busy, aircraft many and quiet."""

ROWS_PER_MOVE = 4
"""With fewer events than that for each migration, there may not be an agent with traffic for every one."""

QUIET_S = 20.0
"""At the end: how long without any progress before what is missing counts as lost."""

COMPLETED_SHARE = 0.9

NODES_MAX = 64

CHAOS_NODES_MIN = 3

S = TypeVar("S", AircraftTotals, AirportTotals)
T = TypeVar("T")


@dataclass(slots=True)
class Job:
    """One run's options, and what it has seen so far."""

    flights: Flights
    nodes: int
    migrations: int
    resumed: bool = False
    trouble: Chaos | Rolling | None = None
    """Nodes are killed, or replaced, while the job runs."""
    faults: str = ""
    """What nodes were made to fail at."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the report says of where it ran."""
    fed: int = 0
    done: int = 0
    started: int = 0
    reports: list[cells.MigrationReport] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    """Migrations that never began, by reason: the agent runs where it ran."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Migrations whose end nobody told, by reason."""
    unanswered: Counter[str] = field(default_factory=Counter)
    """Asks without an answer, by reason; what they did shows in the comparison."""
    busy: Counter[str] = field(default_factory=Counter)
    """Events that are sent and not yet answered, by aircraft and by airport."""
    moving: set[str] = field(default_factory=set)
    seconds: float = 0.0
    flowing_at: float | None = None
    """When the first event was about to be sent."""
    already: int = 0
    """Events that a resumed store had taken before."""
    sent: int = 0
    agents: int = 0
    """Agents that are there by now."""

    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def news(self) -> None:
        """Returns when something was sent, answered or moved."""
        self._news.clear()
        await self._news.wait()

    def tell(self) -> None:
        self._news.set()

    @property
    def to_send(self) -> int:
        return len(self.flights.events) - self.already

    @property
    def due(self) -> int:
        """Migrations that should have begun by the events sent; the last a little before the last event."""
        early = self.sent * (self.migrations + 2 * MOVERS) // max(1, self.to_send)
        return min(self.migrations, early)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The command's options."""

    events: Path | None = None
    nodes: int = 3
    migrations: int = 500
    report: Path | None = None
    embedded: bool = False
    path: Path | None = None
    resume: Path | None = None
    sync: Sync = "always"
    program: Path | None = None
    faults: str | None = None
    chaos: bool = False
    drain: bool = False


def run(wanted: Wanted) -> int:
    """The exit code.  Raises `ConfigError` for a file or option that cannot be used, before anything is begun."""
    _check(wanted)
    flights = read_flights(wanted.events)
    trouble = Chaos() if wanted.chaos else Rolling(ROUNDS * wanted.nodes) if wanted.drain else None
    job = Job(flights, wanted.nodes, wanted.migrations, wanted.resume is not None, trouble, wanted.faults or "")
    with tempfile.TemporaryDirectory(prefix="mielin-") as name:
        if wanted.embedded:
            stage = embedded(wanted.nodes, wanted.resume or wanted.path or Path(name) / "demo.db", wanted.sync)
        else:
            stage = processes(
                wanted.nodes, Path(name), wanted.sync, wanted.program, faults=wanted.faults, kills=wanted.chaos
            )
        result, good = asyncio.run(_run(job, stage))
    text = json.dumps(result, indent=2)
    print(text)
    if wanted.report is not None:
        try:
            wanted.report.write_text(text + "\n")
        except OSError as error:
            raise cells.CellError(f"The report was not written to {wanted.report}: {error.strerror}.") from error
    return 0 if good else 1


def _check(wanted: Wanted) -> None:
    def refused(option: str, what: str, wish: str) -> cells.ConfigError:
        return cells.ConfigError(f"--{option} {what}; wanted: {wish}.", field=option, range=wish)

    path, resume = wanted.path, wanted.resume
    if wanted.migrations < 0:
        raise refused("migrations", f"{wanted.migrations} is out of range", "0 or more")
    if not 2 <= wanted.nodes <= NODES_MAX:
        raise refused("nodes", f"{wanted.nodes} is out of range", f"2 (or none can move) to {NODES_MAX}")
    for option, file in (("path", path), ("resume", resume)):
        if file is not None and not wanted.embedded:
            raise refused(option, f"{file} is the store of an --embedded run", "--embedded with it, or neither")
    if wanted.faults is not None:
        if wanted.embedded:
            raise refused("faults", wanted.faults, "no --embedded with it: faults are made in node processes")
        from mielin_cells.testing.faults import parsed

        parsed(wanted.faults)
    if wanted.chaos and (wanted.embedded or wanted.nodes < CHAOS_NODES_MIN):
        raise refused("chaos", "kills node processes", f"{CHAOS_NODES_MIN} nodes or more, and no --embedded")
    if wanted.drain and (wanted.embedded or wanted.chaos):
        raise refused("drain", "replaces node processes", "no --embedded and no --chaos")
    if path is not None and resume is not None:
        raise refused("path", f"{path} and --resume {resume} name two stores", "one of them")
    if resume is not None and not resume.is_file():
        raise refused("resume", f"{resume}: there is no such file", "the file of an earlier run's --path")
    if path is not None and path.exists():
        raise refused("path", f"{path} is there already", f"a new file, or --resume {path} to go on with it")
    for option, file in (("path", path), ("json", wanted.report)):
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise refused(option, f"{file} cannot be written", "a file in a folder that is there")


async def _run(job: Job, where: AbstractAsyncContextManager[Stage]) -> tuple[dict[str, Any], bool]:
    begun = time.monotonic()
    wanted = expected(job.flights.events)
    async with where as (cluster, job.facts, _, fleet):
        with Display(job, len(wanted.aircraft) + len(wanted.airports)) as display:
            ticker = asyncio.create_task(display.tick())
            try:
                planes, airports = await _spawn(cluster, job, wanted)
                # Thousands of agents that stay: without this each full collection walks them all, and stops the loop for 0.2 s.
                gc.collect()
                gc.freeze()
                await _flow(cluster, job, planes, airports, fleet)
                found = await _collect(cluster, job, planes, airports)
            finally:
                ticker.cancel()
                await asyncio.gather(ticker, return_exceptions=True)
            if job.flowing_at is None:
                raise never("job.flowing_at is not None does not hold")
            job.seconds = time.monotonic() - job.flowing_at
            if job.trouble is not None and isinstance(cluster, Client):
                job.facts |= await job.trouble.report(cluster)
    return _report(job, wanted, found, time.monotonic() - begun)


async def _spawn(cluster: cells.Cluster, job: Job, wanted: Totals) -> tuple[dict[str, Aircraft], dict[str, Airport]]:
    names = [f"node-{n + 1}" for n in range(job.nodes)]
    planes, airports = dict[str, Aircraft](), dict[str, Airport]()

    async def plane(n: int, tailnum: str) -> None:
        planes[tailnum] = await cluster.on(names[n % len(names)]).spawn(Aircraft, aircraft_id(tailnum))
        job.agents += 1

    async def airport(n: int, dest: str) -> None:
        airports[dest] = await cluster.on(names[n % len(names)]).spawn(Airport, airport_id(dest))
        job.agents += 1

    await _all(airport(n, dest) for n, dest in enumerate(wanted.airports))
    await _all(plane(n, tailnum) for n, tailnum in enumerate(wanted.aircraft))
    return planes, airports


async def _all(work: Iterable[Awaitable[T]], at_once: int = 128) -> list[T]:
    """The results in order.  Each piece is made when its turn comes, so that an error leaves none unawaited."""
    results, pieces = dict[int, T](), enumerate(work)

    async def worker() -> None:
        for number, piece in pieces:
            results[number] = await piece

    await _together(worker() for _ in range(at_once))
    return [results[number] for number in range(len(results))]


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All at the same time.  The first error ends the others, and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for piece in work:
                group.create_task(piece)
    except BaseExceptionGroup as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


async def _flow(
    cluster: cells.Cluster,
    job: Job,
    planes: dict[str, Aircraft],
    airports: dict[str, Airport],
    fleet: Fleet | None = None,
) -> None:
    """Feeds and moves at the same time, through what trouble there is.  Raises the first `CellError` that ends the flow."""
    taken = await _taken(job, planes) if job.resumed else Counter[str]()
    job.flowing_at = time.monotonic()
    movers = [_move(cluster, job, Random(number)) for number in range(MOVERS)]
    troubling = None
    if job.trouble is not None and fleet is not None and isinstance(cluster, Client):
        troubling = asyncio.create_task(job.trouble.run(cluster, fleet, job))
    try:
        await _together([_feed(job, planes, airports, taken), *movers])
        if troubling is not None and isinstance(job.trouble, Rolling):
            await troubling
    finally:
        if troubling is not None:
            troubling.cancel()
            [error] = await asyncio.gather(troubling, return_exceptions=True)
            if isinstance(error, Exception):
                raise error


async def _taken(job: Job, planes: dict[str, Aircraft]) -> Counter[str]:
    """Flights that each aircraft of a resumed store has taken.

    An ask is behind all that is stored in the inbox, so events sent before the end of the earlier run are counted, too.
    """
    in_file = Counter(event.tailnum for event in job.flights.events)
    totals = await _all(plane.totals() for plane in planes.values())
    taken = Counter({tailnum: sums.flights for tailnum, sums in zip(planes, totals, strict=True)})
    job.already = (taken & in_file).total()
    return taken


async def _feed(job: Job, planes: dict[str, Aircraft], airports: dict[str, Airport], taken: Counter[str]) -> None:
    """Sends every event in file order, some on their way at a time; skips what a resumed store has taken already."""
    window = asyncio.Semaphore(WINDOW)
    async with asyncio.TaskGroup() as group:
        for number, event in enumerate(job.flights.events, 1):
            if taken[event.tailnum] > 0:
                taken[event.tailnum] -= 1
            else:
                await window.acquire()
                while job.trouble is not None and not job.trouble.may_send(job):
                    await job.news()
                job.busy[aircraft_id(event.tailnum)] += 1
                job.busy[airport_id(event.dest)] += 1
                group.create_task(_send(job, event, planes[event.tailnum], airports[event.dest], window))
                job.sent += 1
            job.fed = number
            # Migrations are spread over the events: the flow waits when they fall behind, and at its end for each of them.
            lag = MOVERS if job.to_send - job.sent > WINDOW else 0
            while job.due - job.started > lag and (job.moving or any(job.busy.values())):
                await job.news()
            job.tell()


async def _send(job: Job, event: Flight, plane: Aircraft, airport: Airport, window: asyncio.Semaphore) -> None:
    try:
        await plane.fly(airport, event.dest, event.miles, event.delay, event.label)
    except cells.AskTimeout as error:  # stored, and perhaps done later: the comparison tells
        job.unanswered[error.message] += 1
    finally:
        job.busy[aircraft_id(event.tailnum)] -= 1
        job.busy[airport_id(event.dest)] -= 1
        if job.trouble is not None:
            job.trouble.answered(aircraft_id(event.tailnum))
        job.done += 1
        job.tell()
        window.release()


async def _move(cluster: cells.Cluster, job: Job, rng: Random) -> None:
    """Moves agents that have messages on their way, as many as are due by the events sent, until all are done."""
    while job.started < job.migrations:
        agent = _mover(job, rng) if job.started < job.due else None
        if agent is None:
            if job.fed >= len(job.flights.events) and not any(job.busy.values()):
                return  # nothing flows any more: a move now would show nothing
            await job.news()
            continue
        job.started += 1
        job.moving.add(agent)
        try:
            job.reports.append(await cluster.migrate(agent))
        except cells.UsageError as error:
            job.refused[f"{error.code}: {error.message}"] += 1
        except cells.CellError as error:
            job.unknown[f"{error.code}: {error.message}"] += 1
        finally:
            job.moving.discard(agent)
            job.tell()


def _mover(job: Job, rng: Random) -> str | None:
    """An agent with messages waiting or in flight; one of the busiest of a few drawn."""
    busy = [name for name, count in job.busy.items() if count > 0 and name not in job.moving]
    kind = "airport-" if rng.random() < AIRPORT_SHARE else "aircraft-"
    drawn = [name for name in busy if name.startswith(kind)] or busy
    if not drawn:
        return None
    return max(rng.sample(drawn, min(4, len(drawn))), key=lambda name: (job.busy[name], name))


async def _collect(
    cluster: cells.Cluster, job: Job, planes: dict[str, Aircraft], airports: dict[str, Airport]
) -> Totals:
    """What every agent holds, once all is handled or nothing comes any more; airports last, so that a repeat shows."""
    wanted = sum(event.delay is not None for event in job.flights.events)
    last, since = (-1, -1), time.monotonic()
    while True:
        arrived = sum(totals.arrivals for totals in (await _totals(job, airports, AirportTotals)).values())
        agents = await cluster.agents()
        now = (arrived, sum(info.waiting for info in agents))
        if arrived >= wanted and now[1] == 0:
            break
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > QUIET_S:
            break
        await asyncio.sleep(0.05)
    found = Totals()
    found.aircraft = await _totals(job, planes, AircraftTotals)
    found.airports = await _totals(job, airports, AirportTotals)
    for info in agents:  # those that nobody made: the comparison counts them
        kind, _, name = info.id.partition("-")
        if kind == "aircraft" and name not in planes:
            found.aircraft[name] = AircraftTotals()
        elif kind == "airport" and name not in airports:
            found.airports[name] = AirportTotals()
    return found


async def _totals(job: Job, agents: Mapping[str, Aircraft | Airport], _: type[S]) -> dict[str, S]:
    """The sums of those agents that answer; one that does not has lost all, and the reason is reported."""

    async def one(agent: Aircraft | Airport) -> Any:
        try:
            return await agent.totals()
        except cells.CellError as error:
            job.unanswered[f"{error.code}: {error.message}"] += 1
            return None

    answers = await _all(one(agent) for agent in agents.values())
    return {name: sums for name, sums in zip(agents, answers, strict=True) if sums is not None}


def _report(job: Job, wanted: Totals, found: Totals, seconds: float) -> tuple[dict[str, Any], bool]:
    difference = compare(wanted, found)
    outcomes = Counter(report.outcome for report in job.reports)
    pauses = sorted(report.pause_ms for report in job.reports if report.pause_ms)
    reasons = Counter(report.reason for report in job.reports if not report.ok) + job.refused + job.unknown
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
            "gave_up": outcomes["gave_up"] + job.unknown.total(),
        },
        "reasons": dict(reasons),
        "unanswered": dict(job.unanswered),
        "with_traffic": sum(1 for report in job.reports if report.ok and report.arrived),
        "pause_ms": {"p50": _at(pauses, 0.5), "p99": _at(pauses, 0.99), "max": _at(pauses, 1.0)},
        "held": sum(report.held for report in job.reports),
        **_recovered(job),
        "events_per_s": round(job.to_send / job.seconds) if job.seconds else 0,
        "seconds": round(seconds, 1),
        "resumed_after": job.already,
        "nodes": job.nodes,
        **job.facts,
    }
    clean = not (difference.lost or difference.duplicated or difference.mismatched)
    if job.trouble is not None:
        clean = clean and job.trouble.is_good and not (job.unanswered and isinstance(job.trouble, Rolling))
    if job.faults or job.trouble is not None:  # moves may fail here; but each has to end, and nothing may be lost
        return result, clean and not outcomes["gave_up"] and not job.unknown
    return result, clean and outcomes["completed"] >= COMPLETED_SHARE * _chances(job)


def _recovered(job: Job) -> dict[str, Any]:
    """What failed on purpose, what was decided, and how many migrations completed all the same."""
    if not job.faults:
        return {}
    return {
        "faults": job.faults,
        "failures": dict(Counter(text.partition(":")[0] for report in job.reports for text in report.failures)),
        "decisions": dict(Counter(name for report in job.reports for name in report.decisions)),
        "recoveries": sum(1 for report in job.reports if report.ok and report.failures),
    }


def _chances(job: Job) -> int:
    """The migrations that count: all that were wanted, or, if there were too few events for them, those begun."""
    return job.migrations if job.to_send >= ROWS_PER_MOVE * job.migrations else job.started


def _at(values: list[float], share: float) -> float:
    return round(values[min(len(values) - 1, int(share * len(values)))], 3) if values else 0.0
