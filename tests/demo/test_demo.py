"""The main job: its data, bad data, and the job itself, also killed and gone on with."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mielin_cells.demo.flights import compare, expected, read_flights
from mielin_cells.demo.values import AirportTotals
from mielin_cells.errors import ConfigError

HEADER = "time_hour,carrier,flight,tailnum,origin,dest,dep_delay,arr_delay,air_time,distance\n"
CLOSE_S = 60


def test_the_january_data_has_the_known_totals() -> None:
    flights = read_flights(None)
    totals = expected(flights.events)
    planes = totals.aircraft.values()

    assert len(flights.events) == 26_849
    assert flights.skipped == 155
    assert len(totals.aircraft) == 3_148
    assert sum(plane.miles for plane in planes) == 27_107_042
    assert sum(plane.delay for plane in planes) == 161_819
    assert sum(plane.without_delay for plane in planes) == 451


def test_the_comparison_counts_what_is_lost_doubled_and_changed() -> None:
    wanted, found = expected(read_flights(None).events), expected(read_flights(None).events)
    assert compare(wanted, found).mismatched == 0
    first, *_ = found.aircraft
    found.aircraft[first].flights += 2
    found.airports["IAH"] = AirportTotals()
    difference = compare(wanted, found)
    assert difference.duplicated == 2
    assert difference.lost == wanted.airports["IAH"].arrivals
    assert difference.mismatched == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "line 1: column 'time_hour' is missing"),
        (HEADER + "t,UA,1,N1,EWR,IAH,2,soon,9,1400\n", "line 2: column 'arr_delay' holds 'soon'"),
        (HEADER + "t,UA,1,N1,EWR,IAH,2,11,9,far\n", "line 2: column 'distance' holds 'far'"),
        (HEADER + "t,UA,1,N1,EWR,,2,11,9,10\n", "line 2: column 'dest' is empty"),
    ],
)
def test_a_bad_file_is_refused_with_line_and_column(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "events.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_flights(path)


def test_a_damaged_archive_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.csv.gz"
    path.write_bytes(gzip.compress(HEADER.encode())[:-3])
    for bad in (path, tmp_path / "nowhere.csv"):
        with pytest.raises(ConfigError, match=bad.name):
            read_flights(bad)


def small(tmp_path: Path, rows: int) -> Path:
    path = tmp_path / "events.csv"
    lines = [HEADER]
    for n in range(rows):
        delay = "NA" if n % 11 == 0 else str(n % 60 - 10)
        lines.append(f"t{n},UA,{n},N{n % 40},EWR,D{n % 7},2,{delay},9,{100 + n % 900}\n")
    lines.append("t,UA,1,,EWR,D1,2,3,9,10\n")
    path.write_text("".join(lines))
    return path


def command(*options: str) -> list[str]:
    return [str(Path(sys.executable).with_name("mielin")), "demo", *options]


def test_a_small_file_ends_with_zeros(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ("--events", str(small(tmp_path, 2000)), "--migrations", "30", "--json", str(report))
    done = subprocess.run(command(*options), capture_output=True, text=True, timeout=CLOSE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(report.read_text())
    assert (result["lost"], result["duplicated"], result["mismatched"]) == (0, 0, 0)
    assert (result["events"], result["skipped"]) == (2000, 1)
    assert result["migrations"]["completed"] >= 27


def test_a_job_killed_in_the_middle_goes_on_from_its_last_acknowledged_state(tmp_path: Path) -> None:
    events, store = str(small(tmp_path, 12_000)), tmp_path / "store.db"
    wal = tmp_path / "store.db-wal"
    with subprocess.Popen(
        command("--embedded", "--events", events, "--migrations", "50", "--path", str(store)),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as child:  # fmt: skip
        until = time.monotonic() + CLOSE_S
        while not (wal.exists() and wal.stat().st_size > 600_000) and child.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert child.poll() is None, "the job was over before it could be killed"
        child.send_signal(signal.SIGKILL)
    report = tmp_path / "report.json"
    options = ("--embedded", "--events", events, "--migrations", "20", "--resume", str(store), "--json", str(report))
    done = subprocess.run(command(*options), capture_output=True, text=True, timeout=CLOSE_S, check=False)
    result = json.loads(report.read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    assert (result["lost"], result["duplicated"], result["mismatched"]) == (0, 0, 0)
    assert result["resumed_after"] > 0


def test_options_that_cannot_be_are_refused_in_one_sentence(tmp_path: Path) -> None:
    for options, says in (
        (("--nodes", "1"), 'mielin: Invalid value "1" for --nodes.'),
        (("--migrations=-1",), 'mielin: Invalid value "-1" for --migrations.'),
        (("--embedded", "--resume", str(tmp_path / "none.db")), "mielin: --resume "),
    ):
        done = subprocess.run(command(*options), capture_output=True, text=True, timeout=CLOSE_S, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(says)
        assert "Traceback" not in done.stderr
