"""The main job as it runs: events that are fed to agents, agents that move meanwhile, and what has happened so far."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, ClassVar, Protocol, TypeVar

import mielin_cells as cells
from mielin_cells.agents.cluster import Spawning
from mielin_cells.client.client import Client
from mielin_cells.demo.flights import Aircraft, Airport, Flight, Flights, Totals, aircraft_id, airport_id
from mielin_cells.deployment.fleet import Fleet
from mielin_cells.errors import leaves
from mielin_cells.tasks.together import together

WINDOW = 32
"""Events in flight: enough that agents have messages waiting, few enough that the flow lasts."""

MOVERS = 6
"""Migrations at a time, each of another agent."""

AIRPORT_SHARE = 0.6
"""The share of airports among agents that move; airports are few and busy, aircraft many and quiet."""

QUIET_S = 20.0
"""At the end: after so long without progress, what is missing counts as lost."""

T = TypeVar("T")


class Trouble(Protocol):
    """What happens to the nodes while the job runs."""

    ends: ClassVar[bool]
    """The job waits until the trouble is over, instead of cancelling it."""

    def may_send(self, job: Job) -> bool: ...

    def answered(self, agent: str) -> None:
        """A call of the agent has ended."""

    async def calling(self, agent: str, call: Callable[[], Awaitable[None]]) -> None:
        """Makes the call of the agent, in the order in which the calls of each agent come here."""

    async def run(self, client: Client, fleet: Fleet, job: Job) -> None: ...

    def is_good(self, job: Job) -> bool:
        """The nodes and calls ended as they should; the comparison judges the agents."""

    async def report(self, client: Client) -> dict[str, Any]: ...


@dataclass(slots=True)
class Job:
    flights: Flights
    nodes: int
    migrations: int
    resumed: bool = False
    trouble: Trouble | None = None
    faults: str = ""
    """The faults that are injected into nodes."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the report says of the deployment."""
    planes: dict[str, Aircraft] = field(default_factory=dict)
    airports: dict[str, Airport] = field(default_factory=dict)
    reports: list[cells.MigrationReport] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    """Migrations that never began, by reason: the agent runs where it ran."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Migrations whose outcome is unknown, by reason."""
    unanswered: Counter[str] = field(default_factory=Counter)
    """Asks without an answer, by reason; the comparison shows what they did."""
    busy: Counter[str] = field(default_factory=Counter)
    """Events in flight, by aircraft and by airport."""
    moving: set[str] = field(default_factory=set)
    read: int = 0
    """Events of the file that were sent or skipped."""
    crowds: bool = False
    """All agents begin on the first node."""
    already: int = 0
    """Events that a resumed store had taken before."""
    sent: int = 0
    done: int = 0
    started: int = 0
    """Migrations that began."""
    flowing_at: float = 0.0
    """When the first event was about to be sent; 0 until then."""
    seconds: float = 0.0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        """Returns when something was sent, answered or moved."""
        self._changed.clear()
        await self._changed.wait()

    def notify(self) -> None:
        self._changed.set()

    @property
    def to_send(self) -> int:
        return len(self.flights.events) - self.already

    @property
    def due(self) -> int:
        """Migrations that should have begun by now; the last one is due a little before the last event."""
        return min(self.migrations, self.sent * (self.migrations + 2 * MOVERS) // max(1, self.to_send))

    @property
    def is_idle(self) -> bool:
        return not any(self.busy.values())


def quantiles(values: Iterable[float], digits: int) -> dict[str, float]:
    """The median, the 99th percentile and the maximum; zeros if there are no values."""
    ordered = sorted(values) or [0.0]
    at = {"p50": len(ordered) // 2, "p99": int(0.99 * len(ordered)), "max": len(ordered) - 1}
    return {name: round(ordered[index], digits) for name, index in at.items()}


async def run_all(work: Iterable[Awaitable[T]], at_once: int = 128) -> list[T]:
    """The results in order.  Each piece is made when its turn comes, so that an error leaves none unawaited."""
    results, pieces = dict[int, T](), enumerate(work)

    async def worker() -> None:
        for number, piece in pieces:
            results[number] = await piece

    await together(worker() for _ in range(at_once))
    return [results[number] for number in range(len(results))]


async def spawn_agents(cluster: cells.Cluster, job: Job, totals: Totals) -> None:
    def node(number: int) -> Spawning:
        return cluster.on(f"node-{1 if job.crowds else number % job.nodes + 1}")

    async def airport(number: int, dest: str) -> None:
        job.airports[dest] = await node(number).spawn(Airport, airport_id(dest))

    async def plane(number: int, tailnum: str) -> None:
        job.planes[tailnum] = await node(number).spawn(Aircraft, aircraft_id(tailnum))

    await run_all(airport(number, dest) for number, dest in enumerate(totals.airports))
    await run_all(plane(number, tailnum) for number, tailnum in enumerate(totals.aircraft))


async def run_flow(cluster: cells.Cluster, job: Job, fleet: Fleet | None) -> None:
    """Feeds and moves at the same time, through the trouble if there is any.  Raises the first `CellError` that ends the flow."""
    taken = await _count_taken(job) if job.resumed else Counter[str]()
    job.flowing_at = time.monotonic()
    trouble = None
    if job.trouble is not None and fleet is not None and isinstance(cluster, Client):
        trouble = asyncio.create_task(job.trouble.run(cluster, fleet, job))
    try:
        await together([_feed(job, taken), *(_move_agents(cluster, job, Random(number)) for number in range(MOVERS))])
        if trouble is not None and job.trouble is not None and job.trouble.ends:
            await trouble
    except BaseExceptionGroup as errors:
        raise leaves(errors)[0] from None
    finally:
        if trouble is not None:
            trouble.cancel()
            [error] = await asyncio.gather(trouble, return_exceptions=True)
            if isinstance(error, Exception):
                raise error


async def _count_taken(job: Job) -> Counter[str]:
    """The flights that each aircraft of a resumed store has taken.

    An ask is behind everything that is stored in the inbox, so events sent before the end of the earlier run are counted, too.
    """
    in_file = Counter(event.tailnum for event in job.flights.events)
    totals = await run_all(plane.totals() for plane in job.planes.values())
    taken = Counter({tailnum: sums.flights for tailnum, sums in zip(job.planes, totals, strict=True)})
    job.already = (taken & in_file).total()
    return taken


async def _feed(job: Job, taken: Counter[str]) -> None:
    """Sends every event in the order of the file, some at a time; skips what a resumed store has taken already."""
    window = asyncio.Semaphore(WINDOW)
    async with asyncio.TaskGroup() as group:
        for number, event in enumerate(job.flights.events, 1):
            if taken[event.tailnum] > 0:
                taken[event.tailnum] -= 1
            else:
                await window.acquire()
                while job.trouble is not None and not job.trouble.may_send(job):
                    await job.wait()
                job.busy[aircraft_id(event.tailnum)] += 1
                job.busy[airport_id(event.dest)] += 1
                group.create_task(_send(job, event, window))
                job.sent += 1
            job.read = number
            # Migrations are spread over the events: the flow waits when they fall behind, and at its end for each of them.
            lag = MOVERS if job.to_send - job.sent > WINDOW else 0
            while job.due - job.started > lag and (job.moving or not job.is_idle):
                await job.wait()
            job.notify()


async def _send(job: Job, event: Flight, window: asyncio.Semaphore) -> None:
    plane, airport = job.planes[event.tailnum], job.airports[event.dest]
    try:
        if job.trouble is None:
            await plane.fly(airport, event.dest, event.miles, event.delay, event.label)
        else:
            await job.trouble.calling(
                event.tailnum, partial(plane.fly, airport, event.dest, event.miles, event.delay, event.label)
            )
    except cells.AskTimeout as error:  # stored, and perhaps done later: the comparison shows it
        job.unanswered[error.message] += 1
    finally:
        job.busy[aircraft_id(event.tailnum)] -= 1
        job.busy[airport_id(event.dest)] -= 1
        if job.trouble is not None:
            job.trouble.answered(aircraft_id(event.tailnum))
        job.done += 1
        job.notify()
        window.release()


async def _move_agents(cluster: cells.Cluster, job: Job, rng: Random) -> None:
    """Moves agents that have messages in flight, as many as are due, until all migrations are done."""
    while job.started < job.migrations:
        agent = _choose(job, rng) if job.started < job.due else None
        if agent is None:
            if job.read >= len(job.flights.events) and job.is_idle:
                return  # nothing flows any more: a move now would show nothing
            await job.wait()
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
            job.notify()


def _choose(job: Job, rng: Random) -> str | None:
    """An agent with messages in flight: the busiest of a few drawn."""
    busy = [name for name, count in job.busy.items() if count > 0 and name not in job.moving]
    kind = "airport-" if rng.random() < AIRPORT_SHARE else "aircraft-"
    drawn = [name for name in busy if name.startswith(kind)] or busy
    if not drawn:
        return None
    return max(rng.sample(drawn, min(4, len(drawn))), key=lambda name: (job.busy[name], name))


async def collect(cluster: cells.Cluster, job: Job) -> Totals:
    """What every agent holds, once all is handled or nothing arrives any more; airports last, so that a repeat shows."""
    expected = sum(event.delay is not None for event in job.flights.events)
    last, since = (-1, -1), time.monotonic()
    while True:
        arrived = sum(sums.arrivals for sums in (await _read_totals(job, job.airports)).values())
        agents = await cluster.agents()
        now = (arrived, sum(info.waiting for info in agents))
        if arrived >= expected and now[1] == 0:
            break
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > QUIET_S:
            break
        await asyncio.sleep(0.05)
    totals = Totals(await _read_totals(job, job.planes), await _read_totals(job, job.airports))
    made = {*map(aircraft_id, job.planes), *map(airport_id, job.airports)}
    totals.add_strangers(info.id for info in agents if info.id not in made)
    return totals


async def _read_totals(job: Job, agents: Mapping[str, Any]) -> dict[str, Any]:
    """The sums of the agents that answer; one that does not has lost everything, and the reason is reported."""

    async def read(agent: Any) -> Any:
        try:
            return await agent.totals()
        except cells.CellError as error:
            job.unanswered[f"{error.code}: {error.message}"] += 1
            return None

    answers = await run_all(read(agent) for agent in agents.values())
    return {name: sums for name, sums in zip(agents, answers, strict=True) if sums is not None}
