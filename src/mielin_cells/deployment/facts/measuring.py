"""The facts of this process's machine and the sensors of its nodes, measured on threads and put together at once."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any

from msgspec.structs import replace

from mielin_cells.deployment.facts.machine import Disk, Machine
from mielin_cells.deployment.facts.probe import Probe
from mielin_cells.errors import CellError, described
from mielin_cells.policy.facts import MAX, NAMES, UNKNOWN, Facts, Value
from mielin_cells.policy.sensors import Sensor, sensors

logger = logging.getLogger("mielin_cells.facts")

GROUP = "mielin_cells.sensors"
"""Entry points of this group name functions, or `Sensor`s; a function is a sensor of the entry point's name."""

DISK_S = 30.0
"""Between two looks at the disk, which a file system on the network may answer late."""

MACHINE_TIMEOUT_S = 10.0

FRESH_S = 0.1
"""For so long what was put together is given again: several nodes of one process may ask."""

BOOLS = frozenset({"mains"})
INTEGERS = frozenset({"memory_free_bytes", "disk_free_bytes", "agents", "waiting", "slots"})


class Measuring:
    """`start`, `facts` from any thread, and `stop`."""

    def __init__(
        self, find: Callable[[], Iterable[Sensor]] = tuple, *, every_s: float = 1.0, disk: str = ".",
        cost_per_hour: float | None = None,
    ) -> None:  # fmt: skip
        """`find` is asked for the sensors at the start.  `disk`: a path on the disk that is measured."""
        self._find = find
        self._every_s = every_s
        self._disk = disk
        self._cost = cost_per_hour
        self._machine: list[Probe[Facts]] = []
        self._sensors: list[Probe[Any]] = []
        self._made: tuple[Facts, float] = UNKNOWN, -math.inf
        self._starting: asyncio.TimerHandle | None = None
        self._lock = threading.Lock()
        self._running: list[Probe[Any]] = []
        self._is_over = False

    def start(self, after_s: float = 0.0) -> None:
        """Begins at once, or after some time of the running loop.  Does not wait: imports and sensors may be slow."""
        if after_s:
            self._starting = asyncio.get_running_loop().call_later(after_s, self.start)
        else:
            threading.Thread(target=self._start, name="facts", daemon=True).start()

    def _start(self) -> None:
        probes: list[Probe[Any]] = [
            Probe("machine", Machine().read, self._every_s, MACHINE_TIMEOUT_S),
            Probe("disk", Disk(self._disk).read, DISK_S, MACHINE_TIMEOUT_S),
        ]
        self._machine = probes[:]
        found = {one.name: one for one in self._find()}
        self._sensors = [Probe(one.name, one.read, one.every_s, one.timeout_s) for one in found.values()]
        with self._lock:
            if not self._is_over:
                self._running = [*self._machine, *self._sensors]
                for probe in self._running:
                    probe.start()

    def stop(self) -> None:
        """Ends the threads once their calls return; one that hangs ends with the process."""
        if self._starting is not None:
            self._starting.cancel()
        with self._lock:
            self._is_over = True
            for probe in self._running:
                probe.stop()

    def facts(self) -> Facts:
        made, at = self._made
        now = time.monotonic()
        if now - at >= FRESH_S:
            made = self._make()
            self._made = made, now
        return made

    def _make(self) -> Facts:
        fields, failing, own = dict[str, Any](), dict[str, str](), dict[str, Value]()
        if self._cost is not None:
            fields["cost_per_hour"] = self._cost
        for probe in self._machine:
            measured, why = probe.state()
            if measured is not None:
                fields |= measured.known()
            elif why:
                failing[probe.name] = why
        for sensor in self._sensors:
            value, why = sensor.state()
            said, wrong = _as_fact(sensor.name, value)
            if why or wrong:
                failing[sensor.name] = why or wrong
            if sensor.name in NAMES:
                fields[sensor.name] = said  # its own, also while it is absent
            elif said is not None:
                own[sensor.name] = said
        return replace(UNKNOWN, **fields, sensors=own, failing=failing)


def _as_fact(name: str, value: Any) -> tuple[Value | None, str]:
    """The value as that fact, or why it cannot be."""
    if value is None:
        return None, ""
    if name in BOOLS:
        return (value, "") if isinstance(value, bool) else (None, f"returned {_shown(value)}; wanted: true or false")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) <= MAX:  # also of one that is no number
            return None, f"returned {_shown(value)}; wanted: a finite number"
        is_whole = name in INTEGERS or (name not in NAMES and isinstance(value, int))
        return (int(value) if is_whole else float(value)), ""  # not of a library's kind of number
    if name in NAMES:
        return None, f"returned {_shown(value)}; wanted: a number"
    if isinstance(value, (bool, str)):
        return value if isinstance(value, bool) else str(value), ""
    return None, f"returned {_shown(value)}; wanted: a number, a text, true, false or None"


def _shown(value: Any) -> str:
    try:
        return f"{type(value).__name__} {value!r}"[:60]
    except Exception as error:  # noqa: BLE001 - whatever a user's value raises
        return f"a {type(value).__name__} whose text cannot be read ({type(error).__name__})"


def installed_sensors() -> list[Sensor]:
    """The sensors of installed packages (entry points of the group `mielin_cells.sensors`), and those of this process."""
    return [*{**installed(GROUP), **sensors}.values()]


def installed(group: str) -> dict[str, Sensor]:
    """By name, what the entry points of a group name.  One that cannot be imported is logged, and left out."""
    found = dict[str, Sensor]()
    for point in entry_points(group=group):
        try:
            read = point.load()
            found[point.name] = read if isinstance(read, Sensor) else Sensor(name=point.name, read=read)
        except Exception as error:  # noqa: BLE001 - whatever the import of another package raises
            why = error.message if isinstance(error, CellError) else described(error)
            logger.warning("%s %s (%s) cannot be used: %s", group, point.name, point.value, why)
    return found
