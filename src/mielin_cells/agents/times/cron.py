"""Times of cron expressions in a time zone: which comes after a moment, and what is wrong with an expression.

The library and the zones are imported when they are first used, since few programs need them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from typing import Any

from mielin_cells.errors import CronInvalid

FIELDS = ("second", "minute", "hour", "day of the month", "month", "day of the week")
"""The first one may be left out."""
CHARS_MAX = 200


def check_cron(expression: str, zone: str) -> None:
    """Raises `CronInvalid` with the column of what is wrong, or for an unknown time zone."""
    if type(expression) is not str or len(expression) > CHARS_MAX:
        raise CronInvalid(
            f"A cron expression is text of at most {CHARS_MAX} characters, such as '0 6 * * *', and not {expression!r:.100}.",
            expression=str(expression)[:CHARS_MAX], column=1,
        )  # fmt: skip
    _zone(zone)
    found = [(match.start() + 1, match.group()) for match in re.finditer(r"\S+", expression)]
    if len(found) not in (5, 6):
        column = found[6][0] if len(found) > 6 else len(expression) + 1
        raise _wrong(
            expression, column, f"it has {len(found)} fields; minute, hour, day, month, day of the week make 5"
        )
    for name, (start, text) in zip(FIELDS[-len(found) :], found, strict=True):
        place, column = FIELDS.index(name), start
        for term in text.split(","):
            fields = ["*"] * 6
            fields[place] = term
            if not term or not _parses(" ".join(fields)):
                raise _wrong(expression, column, f"{term!r} is no {name}")
            column += len(term) + 1
    if not _parses(expression):
        raise _wrong(expression, found[-3][0], "no month has that day")


def next_time(expression: str, zone: str, after: float) -> float:
    """The first time of a valid expression that is later than `after`; both in wall-clock seconds.  Raises `CronInvalid`."""
    for moment in _times(expression, zone, after):
        if moment > after:
            return moment
    raise _wrong(expression, 1, "it has no time in the next 50 years")


def newest_times(expression: str, zone: str, until: float, count: int) -> float:
    """The earliest of the last `count` times up to `until`."""
    moment = until
    for number, earlier in enumerate(_times(expression, zone, until, is_back=True), 1):
        moment = min(moment, earlier)
        if number == count:
            break
    return moment


def _times(expression: str, zone: str, start: float, *, is_back: bool = False) -> Iterator[float]:
    begin = datetime.fromtimestamp(start, _zone(zone))
    for moment in _library().CronSim(expression, begin, reverse=is_back):
        yield moment.timestamp()


def _parses(expression: str) -> bool:
    library = _library()
    try:
        library.CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC))
    except (library.CronSimError, ValueError):
        return False
    return True


def _library() -> Any:
    return importlib.import_module("cronsim")


@lru_cache(maxsize=64)
def _zone(name: str) -> tzinfo:
    zones: Any = importlib.import_module("zoneinfo")
    try:
        if name == "UTC":
            return UTC
        zone: tzinfo = zones.ZoneInfo(name)
        return zone
    except (zones.ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise CronInvalid(
            f"There is no time zone {name!r} here; names are like 'Europe/Zurich'. A system without a database of zones needs the "
            "package tzdata.", zone=str(name),
        ) from None  # fmt: skip


def _wrong(expression: str, column: int, why: str) -> CronInvalid:
    return CronInvalid(
        f"The cron expression {expression!r} is wrong at column {column}: {why}.", expression=expression, column=column
    )
