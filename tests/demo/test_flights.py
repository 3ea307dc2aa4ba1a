"""The main job's data: what is read, what is refused, and where; and the flow that feeds and moves."""

from __future__ import annotations

import csv
import gzip
import io
from importlib import resources
from itertools import pairwise
from pathlib import Path

import pytest

import mielin_cells as cells
from mielin_cells.demo.demo import Options, _check, counted_moves
from mielin_cells.demo.flights import (
    Aircraft,
    Flights,
    aircraft_id,
    compare,
    expected,
    read_flights,
)
from mielin_cells.demo.job import Job, collect, run_flow, spawn_agents
from mielin_cells.demo.values import AircraftTotals, AirportTotals, chained

HEADER = "time_hour,carrier,flight,tailnum,origin,dest,dep_delay,arr_delay,air_time,distance\n"
ROW = "t,UA,1,N1,EWR,IAH,2,11,9,1400\n"


def written(tmp_path: Path, text: str, name: str = "events.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def flights(tmp_path: Path, rows: int) -> Flights:
    lines = [f"t{n},UA,{n},N{n % 20},EWR,D{n % 5},2,{n % 60 - 10},9,{100 + n}\n" for n in range(rows)]
    return read_flights(written(tmp_path, HEADER + "".join(lines)))


def job_of(events: Flights, migrations: int = 20) -> Job:
    return Job(events, 3, migrations)


def test_the_single_pass_agrees_with_plain_sums_over_the_rows() -> None:
    packed = (resources.files("mielin_cells.demo") / "data" / "flights-2013-01.csv.gz").read_bytes()
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(packed).decode())))
    mine = [row for row in rows if row["tailnum"] == "N14228"]
    plane = expected(read_flights(None).events).aircraft["N14228"]

    assert plane.flights == len(mine) > 1
    assert plane.miles == sum(int(row["distance"]) for row in mine)
    assert plane.delay == sum(int(row["arr_delay"]) for row in mine if row["arr_delay"] not in ("", "NA"))
    assert plane.airport == mine[-1]["dest"]


def test_plain_and_packed_files_are_read_alike(tmp_path: Path) -> None:
    text = "\ufeff" + HEADER + ROW + "t,UA,2,,EWR,IAH,2,11,9,1400\nt,UA,3,NA,EWR,IAH,2,11,9,1400\n"
    plain = read_flights(written(tmp_path, text))

    assert plain == read_flights(written(tmp_path, text, "events.csv.gz"))
    assert [event.tailnum for event in plain.events] == ["N1"]
    assert plain.skipped == 2


@pytest.mark.parametrize("text", ["", "NA"])
def test_an_empty_delay_is_none_and_not_zero(tmp_path: Path, text: str) -> None:
    events = read_flights(written(tmp_path, HEADER + f"t,UA,1,N1,EWR,IAH,2,{text},9,1400\n{ROW}")).events

    assert [event.delay for event in events] == [None, 11]
    totals = expected(events)
    assert totals.aircraft["N1"].without_delay == 1
    assert totals.airports["IAH"] == AirportTotals(1, 11)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: column 'time_hour' is missing"),
        (HEADER, "no row with a tail number"),
        (HEADER + ROW + "t,UA,1,N1,EWR\n", "line 3: the row ends before column 'dest'"),
        (HEADER + ROW[:-1] + ",7\n", "line 2: the row has more values"),
        (HEADER + ROW.replace("11", "1.5"), "line 2: column 'arr_delay' holds '1.5'"),
        (HEADER + ROW.replace("11", "nan"), "line 2: column 'arr_delay' holds 'nan'"),
        (HEADER + ROW.replace("1400", "1e30"), "line 2: column 'distance' holds '1e30'"),
        (HEADER + ROW.replace("1400", "NA"), "line 2: column 'distance' holds 'NA'"),
        (HEADER + ROW.replace("N1", "N" * 200), "line 2: column 'tailnum' makes no agent id"),
        (HEADER + ROW.replace("IAH", "I\x07H"), "line 2: column 'dest' makes no agent id"),
        (HEADER + ROW + '"t,UA,1,N1,EWR,IAH,2,11,9,1400\n', "line 3: unexpected end of data"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(cells.ConfigError, match=says):
        read_flights(written(tmp_path, text))


def test_bytes_that_are_no_text_or_no_archive_are_refused(tmp_path: Path) -> None:
    latin = tmp_path / "latin.csv"
    latin.write_bytes((HEADER + ROW).encode() + b"t,UA,1,N\xff,EWR,IAH,2,11,9,1400\n")
    with pytest.raises(cells.ConfigError, match=r"latin\.csv, line 3: not UTF-8"):
        read_flights(latin)

    whole = gzip.compress((HEADER + ROW * 50).encode())
    archive = tmp_path / "events.csv.gz"
    for bad in (b"no archive", whole[: len(whole) // 2], whole[:20] + b"\x00\xff" * 9 + whole[38:]):
        archive.write_bytes(bad)
        with pytest.raises(cells.ConfigError, match=r"events\.csv\.gz"):
            read_flights(archive)


def test_events_in_another_order_have_another_digest_and_only_that(tmp_path: Path) -> None:
    events = read_flights(written(tmp_path, HEADER + ROW + ROW.replace(",1,", ",2,"))).events
    forward, backward = expected(events), expected(reversed(events))

    assert chained(chained("", "a"), "b") != chained(chained("", "b"), "a")
    assert forward.aircraft["N1"].digest != backward.aircraft["N1"].digest
    difference = compare(forward, backward)
    assert (difference.lost, difference.duplicated, difference.mismatched) == (0, 0, 1)


def test_an_agent_that_should_not_be_there_is_a_mismatch(tmp_path: Path) -> None:
    wanted, found = (expected(flights(tmp_path, 30).events) for _ in range(2))
    found.aircraft["N999"] = AircraftTotals()
    assert compare(wanted, found).mismatched == 1


def test_migrations_are_paced_over_the_events_and_end_before_them(tmp_path: Path) -> None:
    job = job_of(flights(tmp_path, 1000), migrations=100)
    due = []
    for job.sent in range(1001):
        due.append(job.due)

    assert due[0] == 0
    assert max(after - before for before, after in pairwise(due)) == 1
    assert 850 < due.index(100) < 1000
    assert due[-1] == 100


def test_fewer_events_than_migrations_ask_for_no_more_than_there_arecounted_moves(tmp_path: Path) -> None:
    few, many = job_of(flights(tmp_path, 10), 500), job_of(flights(tmp_path, 2000), 500)
    few.started = many.started = 7
    assert (counted_moves(few), counted_moves(many)) == (7, 500)


async def test_the_flow_feeds_and_moves_and_every_agent_is_as_computed(tmp_path: Path) -> None:
    events = flights(tmp_path, 400)
    job, wanted = job_of(events), expected(events.events)
    async with cells.local(nodes=3) as cluster:
        await spawn_agents(cluster, job, wanted)
        await run_flow(cluster, job, None)
        found = await collect(cluster, job)

    assert found == wanted
    assert [report.reason for report in job.reports if not report.ok] == []
    assert len(job.reports) == 20
    assert {report.agent.split("-")[0] for report in job.reports} == {"aircraft", "airport"}
    assert sum(report.arrived > 0 for report in job.reports) >= 4


async def test_an_agent_that_has_ended_stops_the_flow_with_its_own_error(tmp_path: Path) -> None:
    events = flights(tmp_path, 400)
    job = job_of(events)
    async with cells.local(nodes=3, settings=cells.Settings(pause_s=0.2)) as cluster:
        await spawn_agents(cluster, job, expected(events.events))
        await cluster.terminate(aircraft_id("N7"))
        with pytest.raises(cells.AgentTerminated, match="N7"):
            await run_flow(cluster, job, None)


async def test_an_agent_that_does_not_answer_has_lost_all_and_a_stranger_is_found(tmp_path: Path) -> None:
    events = flights(tmp_path, 40)
    job, wanted = job_of(events, migrations=0), expected(events.events)
    async with cells.local(nodes=2) as cluster:
        job.nodes = 2
        await spawn_agents(cluster, job, wanted)
        await run_flow(cluster, job, None)
        await cluster.terminate(aircraft_id("N3"))
        await cluster.spawn(Aircraft, aircraft_id("N999"))
        found = await collect(cluster, job)

    difference = compare(wanted, found)
    assert (difference.lost, difference.duplicated, difference.mismatched) == (2, 0, 2)
    assert [reason.split(":")[0] for reason in job.unanswered] == ["AgentTerminated"]


def test_two_stores_an_existing_store_and_a_report_in_no_folder_are_refused(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    store.touch()
    for report, path, resume, says in (
        (None, store, None, "exists already"),
        (None, tmp_path / "a.db", store, "two stores"),
        (None, tmp_path / "none" / "a.db", None, "cannot be written"),
        (tmp_path / "none" / "a.json", None, None, "cannot be written"),
        (tmp_path, None, None, "cannot be written"),
        (None, None, tmp_path, "does not exist"),
    ):
        with pytest.raises(cells.ConfigError, match=says):
            _check(Options(json=report, path=path, resume=resume, embedded=True))
