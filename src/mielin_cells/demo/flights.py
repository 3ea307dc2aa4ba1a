"""The main job's data: flights, the agents that take them, and the same sums computed without any agent."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import mielin_cells as cells
from mielin_cells.demo.values import AircraftTotals, AirportTotals, chained
from mielin_cells.errors import ConfigError, InvalidAgentId
from mielin_cells.log.ids import AgentId

COLUMNS = ("time_hour", "carrier", "flight", "tailnum", "dest", "arr_delay", "distance")
BUILT_IN = "flights-2013-01.csv.gz"

NUMBER_MAX = 2**31
"""Minutes and miles above it are no minutes and miles; and every sum of them stays exact."""


@dataclass(frozen=True, slots=True)
class Flight:
    """One event.  `delay` is None where the data has no arrival delay (cancelled or diverted)."""

    tailnum: str
    dest: str
    miles: int
    delay: int | None
    label: str


@dataclass(frozen=True, slots=True)
class Flights:
    """The rows with a tail number, in file order, and how many had none."""

    events: list[Flight]
    skipped: int


@dataclass(slots=True)
class Totals:
    """What every agent must hold at the end."""

    aircraft: dict[str, AircraftTotals] = field(default_factory=dict)
    airports: dict[str, AirportTotals] = field(default_factory=dict)

    def add_strangers(self, agents: Iterable[str]) -> None:
        """Adds agents that nobody made, so that the comparison counts them."""
        for agent in agents:
            kind, _, name = agent.partition("-")
            if kind == "aircraft":
                self.aircraft.setdefault(name, AircraftTotals())
            elif kind == "airport":
                self.airports.setdefault(name, AirportTotals())


class Airport(cells.Agent):
    arrivals: int = 0
    delay: int = 0

    @cells.handler
    async def arrived(self, delay: int) -> None:
        self.arrivals += 1
        self.delay += delay

    @cells.handler
    async def totals(self) -> AirportTotals:
        return AirportTotals(self.arrivals, self.delay)


class Aircraft(cells.Agent):
    flights: int = 0
    miles: int = 0
    delay: int = 0
    without_delay: int = 0
    airport: str = ""
    digest: str = ""

    @cells.handler
    async def fly(self, to: Airport, dest: str, miles: int, delay: int | None, label: str) -> None:
        self.flights += 1
        self.miles += miles
        self.airport = dest
        self.digest = chained(self.digest, label)
        if delay is None:
            self.without_delay += 1
        else:
            self.delay += delay
            await to.arrived.tell(delay)

    @cells.handler
    async def totals(self) -> AircraftTotals:
        return AircraftTotals(self.flights, self.miles, self.delay, self.without_delay, self.airport, self.digest)


def airport_id(dest: str) -> str:
    return f"airport-{dest}"


def aircraft_id(tailnum: str) -> str:
    return f"aircraft-{tailnum}"


def read_flights(path: Path | None) -> Flights:
    """The events of a CSV file, plain or .gz.  Raises `ConfigError` naming file, line and column."""
    where = str(path) if path is not None else BUILT_IN
    reader = csv.DictReader(io.StringIO(_text(path, where), newline=""), strict=True)
    events, skipped = list[Flight](), 0
    try:
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise _unusable(f"{where}, line 1: column {missing[0]!r} is missing", ", ".join(COLUMNS))
        for row in reader:
            at = f"{where}, line {reader.line_num}"
            short = [name for name in COLUMNS if row[name] is None]
            if short:
                raise _unusable(f"{at}: the row ends before column {short[0]!r}", "a value in every column")
            if None in row:
                raise _unusable(f"{at}: the row has more values than the header has columns", "one value a column")
            if row["tailnum"] in ("", "NA"):
                skipped += 1
            else:
                events.append(_flight(row, at))
    except csv.Error as error:
        # The inner reader has counted the line that it failed on, the outer one has not.
        raise _unusable(f"{where}, line {reader.reader.line_num}: {error}", "CSV") from error
    if not events:
        raise _unusable(f"{where} has no row with a tail number ({skipped} without)", "at least one flight")
    return Flights(events, skipped)


def _unusable(what: str, wanted: str) -> ConfigError:
    return ConfigError(f"{what}; wanted: {wanted}.", field="events", range=wanted)


def _text(path: Path | None, where: str) -> str:
    data = b""
    try:
        if path is None:
            data = (resources.files("mielin_cells.demo") / "data" / BUILT_IN).read_bytes()
        else:
            data = path.read_bytes()
        if where.endswith(".gz"):
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _unusable(f"{where}, line {line}: not UTF-8 text ({error.reason})", "a CSV file, plain or .gz") from error
    except OSError as error:  # also BadGzipFile, which has no strerror
        raise _unusable(f"{where} cannot be read: {error.strerror or error}", "a CSV file, plain or .gz") from error
    except (EOFError, zlib.error) as error:
        raise _unusable(f"{where} is damaged gzip data: {error}", "a CSV file, plain or .gz") from error


def _flight(row: dict[str, str], where: str) -> Flight:
    if not row["dest"]:
        raise _unusable(f"{where}: column 'dest' is empty", "an airport's code")
    for name, make in (("tailnum", aircraft_id), ("dest", airport_id)):
        try:
            AgentId(make(row[name]))
        except InvalidAgentId as error:
            raise _unusable(f"{where}: column {name!r} makes no agent id. {error.message}", "printable text") from error
    delay = row["arr_delay"]
    minutes = None if delay in ("", "NA") else _number(row, "arr_delay", where)
    label = "|".join(row[name] for name in COLUMNS)
    return Flight(row["tailnum"], row["dest"], _number(row, "distance", where), minutes, label)


def _number(row: dict[str, str], name: str, where: str) -> int:
    """A whole number, also when written as 12.0.  A fraction is refused: sums would no longer be exact."""
    text = row[name]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value.is_integer() and abs(value) <= NUMBER_MAX):  # not so for nan and inf
        raise _unusable(f"{where}: column {name!r} holds {text!r}", "a whole number")
    return int(value)


def expected(events: Iterable[Flight]) -> Totals:
    """The independent computation: one pass, no agents."""
    totals = Totals()
    for event in events:
        plane = totals.aircraft.setdefault(event.tailnum, AircraftTotals())
        plane.flights += 1
        plane.miles += event.miles
        plane.airport = event.dest
        plane.digest = chained(plane.digest, event.label)
        airport = totals.airports.setdefault(event.dest, AirportTotals())
        if event.delay is None:
            plane.without_delay += 1
        else:
            plane.delay += event.delay
            airport.arrivals += 1
            airport.delay += event.delay
    return totals


@dataclass(slots=True)
class Difference:
    """How agents differ from what they must hold, in events and agents."""

    lost: int = 0
    duplicated: int = 0
    mismatched: int = 0

    def count(self, wanted: int, actual: int) -> None:
        self.lost += max(0, wanted - actual)
        self.duplicated += max(0, actual - wanted)


def compare(wanted: Totals, actual: Totals) -> Difference:
    """Every agent against the independent computation; a missing agent has lost everything."""
    difference = Difference()
    for tailnum, plane in wanted.aircraft.items():
        other = actual.aircraft.get(tailnum, AircraftTotals())
        difference.count(plane.flights, other.flights)
        difference.mismatched += plane != other
    for dest, airport in wanted.airports.items():
        airport_totals = actual.airports.get(dest, AirportTotals())
        difference.count(airport.arrivals, airport_totals.arrivals)
        difference.mismatched += airport != airport_totals
    difference.mismatched += len(actual.aircraft.keys() - wanted.aircraft.keys())
    difference.mismatched += len(actual.airports.keys() - wanted.airports.keys())
    return difference
