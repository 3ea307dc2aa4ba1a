"""`mielin demo`: the main job.  Feeds events, moves agents that have messages waiting, and compares at the end."""

from __future__ import annotations

import asyncio
import gc
import json
import tempfile
import time
from collections import Counter
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from mielin_cells.client.client import Client
from mielin_cells.demo.chaos import Chaos
from mielin_cells.demo.deploying import Deploying
from mielin_cells.demo.flights import Totals, compare, expected, read_flights
from mielin_cells.demo.job import Job, Trouble, collect, quantiles, run_flow, spawn_agents
from mielin_cells.demo.progress import Display
from mielin_cells.demo.rebalance import Rebalancing
from mielin_cells.demo.rolling import ROUNDS, Rolling
from mielin_cells.demo.stage import Stage, Sync, embedded, processes
from mielin_cells.errors import CellError, ConfigError

ROWS_PER_MOVE = 4
"""With fewer events than this for each migration, there may not be an agent with traffic for every one."""

COMPLETED_SHARE = 0.9
NODES_MAX = 64
CHAOS_NODES_MIN = 3


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    events: Annotated[
        Path | None, Parameter(help="A CSV file, plain or .gz, with the columns of the built-in one.")
    ] = None
    nodes: Annotated[
        int, Parameter(validator=Number(gte=2, lte=NODES_MAX), help="How many nodes; each is a process.")
    ] = 3
    migrations: Annotated[int, Parameter(validator=Number(gte=0), help="Live migrations while events flow.")] = 500
    json: Annotated[Path | None, Parameter(help="Also write the report to this file.")] = None
    sync: Annotated[Sync, Parameter(help="`lazy` is faster and may lose the last writes at a power cut.")] = "always"
    nats_server: Annotated[
        Path | None, Parameter(help="The server program (default: the bundled one, or the one on PATH).")
    ] = None
    chaos: Annotated[bool, Parameter(help="Kill a node every few seconds; another one replaces it.")] = False
    drain: Annotated[bool, Parameter(help="Replace each node in turn, three times; no call may fail.")] = False
    rebalance: Annotated[
        bool, Parameter(help="Begin with all agents on one node, and spread them evenly; no call may fail.")
    ] = False
    deploy: Annotated[
        bool, Parameter(help="Upgrade the app of the job twice, once to a bad version, which is undone by itself.")
    ] = False
    faults: Annotated[
        str | None,
        Parameter(help="Make nodes fail: `default`, or step:kind[:probability][:most][@node], separated by commas."),
    ] = None
    embedded: Annotated[bool, Parameter(help="Run all nodes in this process, on SQLite.")] = False
    path: Annotated[Path | None, Parameter(help="With --embedded: keep the store in this file.")] = None
    resume: Annotated[Path | None, Parameter(help="With --embedded: go on with the store that --path kept.")] = None


DEFAULTS = Options()


def demo(options: Options = DEFAULTS) -> int:
    """Raises `ConfigError` for a file or option that cannot be used, before anything is begun."""
    _check(options)
    flights = read_flights(options.events)
    migrations, trouble = 0 if options.rebalance else options.migrations, _trouble(options)
    job = Job(flights, options.nodes, migrations, options.resume is not None, trouble, options.faults or "")
    job.crowds = options.rebalance
    with tempfile.TemporaryDirectory(prefix="mielin-") as name:
        if options.embedded:
            stage = embedded(options.nodes, options.resume or options.path or Path(name) / "demo.db", options.sync)
        else:
            stage = processes(
                options.nodes,
                Path(name),
                options.sync,
                options.nats_server,
                faults=options.faults,
                kills=options.chaos,
                deploys=options.deploy,
            )
        report, is_good = asyncio.run(_run(job, stage))
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        try:
            options.json.write_text(text + "\n")
        except OSError as error:
            raise CellError(f"The report was not written to {options.json}: {error.strerror}.") from error
    return 0 if is_good else 1


def _trouble(options: Options) -> Trouble | None:
    if options.rebalance:
        return Rebalancing()
    if options.chaos:
        return Chaos()
    if options.drain:
        return Rolling(ROUNDS * options.nodes)
    return Deploying() if options.deploy else None


def _check(options: Options) -> None:
    """Raises `ConfigError` for options that do not go together, and for files that cannot be used."""

    def refuse_if(condition: bool, option: str, what: str, wanted: str) -> None:
        if condition:
            raise ConfigError(f"--{option} {what}; wanted: {wanted}.", field=option, range=wanted)

    path, resume, is_embedded = options.path, options.resume, options.embedded
    for option, file in (("path", path), ("resume", resume)):
        is_alone = file is not None and not is_embedded
        refuse_if(is_alone, option, f"{file} is the store of an --embedded run", "--embedded with it, or neither")
    if options.faults is not None:
        refuse_if(is_embedded, "faults", "makes node processes fail", "no --embedded")
        from mielin_cells.testing.faults import parsed

        parsed(options.faults)
    few = options.nodes < CHAOS_NODES_MIN
    chaos, drain = options.chaos, options.drain
    refuse_if(
        chaos and (is_embedded or few),
        "chaos",
        "kills node processes",
        f"{CHAOS_NODES_MIN} nodes or more, and no --embedded",
    )
    refuse_if(drain and (is_embedded or chaos), "drain", "replaces node processes", "no --embedded and no --chaos")
    refuse_if(
        options.rebalance and (is_embedded or chaos or drain),
        "rebalance",
        "moves agents among node processes",
        "no --embedded, no --chaos and no --drain",
    )
    alone = is_embedded or chaos or drain or options.rebalance or options.faults is not None
    refuse_if(
        options.deploy and alone, "deploy", "upgrades node processes", "none of the other troubles, and no --embedded"
    )
    both, is_missing = path is not None and resume is not None, resume is not None and not resume.is_file()
    refuse_if(both, "path", f"{path} and --resume {resume} name two stores", "one of them")
    refuse_if(is_missing, "resume", f"{resume} does not exist", "the file of an earlier run's --path")
    refuse_if(path is not None and path.exists(), "path", f"{path} exists already", f"a new file, or --resume {path}")
    for option, file in (("path", path), ("json", options.json)):
        if file is not None:
            is_bad = file.is_dir() or not file.absolute().parent.is_dir()
            refuse_if(is_bad, option, f"{file} cannot be written", "a file in a folder that exists")


async def _run(job: Job, where: AbstractAsyncContextManager[Stage]) -> tuple[dict[str, Any], bool]:
    begun = time.monotonic()
    wanted = expected(job.flights.events)
    async with where as (cluster, job.facts, _, fleet):
        with Display(job, len(wanted.aircraft) + len(wanted.airports)) as display:
            ticker = asyncio.create_task(display.tick())
            try:
                await spawn_agents(cluster, job, wanted)
                # Thousands of agents stay: without this each full collection walks them all, and stops the loop for 0.2 s.
                gc.collect()
                gc.freeze()
                await run_flow(cluster, job, fleet)
                totals = await collect(cluster, job)
            finally:
                ticker.cancel()
                await asyncio.gather(ticker, return_exceptions=True)
            job.seconds = time.monotonic() - job.flowing_at
            if job.trouble is not None and isinstance(cluster, Client):
                job.facts |= await job.trouble.report(cluster)
    return _report(job, wanted, totals, time.monotonic() - begun)


def _report(job: Job, wanted: Totals, actual: Totals, seconds: float) -> tuple[dict[str, Any], bool]:
    """The report, and whether the job went as it must."""
    difference = compare(wanted, actual)
    outcomes = Counter(report.outcome for report in job.reports)
    reasons = Counter(report.reason for report in job.reports if not report.ok) + job.refused + job.unknown
    report = {
        "events": len(job.flights.events),
        "skipped": job.flights.skipped,
        "agents": {"aircraft": len(actual.aircraft), "airports": len(actual.airports)},
        "miles": sum(plane.miles for plane in actual.aircraft.values()),
        "arrival_delay_minutes": sum(plane.delay for plane in actual.aircraft.values()),
        "flights_without_delay": sum(plane.without_delay for plane in actual.aircraft.values()),
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
        "pause_ms": quantiles([report.pause_ms for report in job.reports if report.pause_ms], 3),
        "held": sum(report.held for report in job.reports),
        **_recoveries(job),
        "events_per_s": round(job.to_send / job.seconds) if job.seconds else 0,
        "seconds": round(seconds, 1),
        "resumed_after": job.already,
        "nodes": job.nodes,
        **job.facts,
    }
    is_good = not (difference.lost or difference.duplicated or difference.mismatched)
    if job.trouble is not None:
        is_good = is_good and job.trouble.is_good(job)
    if job.faults or job.trouble is not None:  # moves may fail here; but each has to end, and nothing may be lost
        return report, is_good and not outcomes["gave_up"] and not job.unknown
    return report, is_good and outcomes["completed"] >= COMPLETED_SHARE * counted_moves(job)


def counted_moves(job: Job) -> int:
    """All migrations that were asked for or, with too few events for them, those that began."""
    return job.migrations if job.to_send >= ROWS_PER_MOVE * job.migrations else job.started


def _recoveries(job: Job) -> dict[str, Any]:
    """What failed on purpose, what was decided, and how many migrations completed all the same."""
    if not job.faults:
        return {}
    return {
        "faults": job.faults,
        "failures": dict(Counter(text.partition(":")[0] for report in job.reports for text in report.failures)),
        "decisions": dict(Counter(name for report in job.reports for name in report.decisions)),
        "recoveries": sum(1 for report in job.reports if report.ok and report.failures),
    }
