"""What says that this machine goes away, besides signals: a file, and functions that ask a cloud; and a file for readiness probes."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from mielin_cells.deployment.ending import Ending
from mielin_cells.deployment.facts.measuring import installed
from mielin_cells.deployment.facts.probe import Probe
from mielin_cells.policy.sensors import LIMIT_S, Sensor, notices

logger = logging.getLogger("mielin_cells.process")

GROUP = "mielin_cells.notices"
"""Entry points of this group name functions, as `mielin_cells.sensors.notice` declares them."""

FILE_S = 0.5
"""Between two looks at the drain file."""

FILE_BYTES_MAX = 100
"""What is read of it."""


def installed_notices() -> list[Sensor]:
    """Those of installed packages, and those of this process."""
    return [*{**installed(GROUP), **notices}.values()]


class Notices:
    """Of one node's process.  `start`, then `stop`."""

    def __init__(self, ending: Ending, node: str, drain_file: str | None, find: Callable[[], Iterable[Sensor]]) -> None:
        self._ending = ending
        self._node = node
        self._find = find
        self._file = Path(drain_file) if drain_file else None
        self._seen = _touched(self._file)
        """When the file was touched last: one that an earlier process has left says nothing."""
        self._lock = threading.Lock()
        self._probes: list[Probe[Any]] = []
        self._is_over = False

    def start(self) -> None:
        """Does not wait for imports."""
        threading.Thread(target=self._start, name="notices", daemon=True).start()

    def _start(self) -> None:
        probes: list[Probe[Any]] = [] if self._file is None else [Probe("the drain file", self._look, FILE_S, LIMIT_S)]
        probes += [Probe(f"notice {one.name}", self._asking(one), one.every_s, one.timeout_s) for one in self._find()]
        with self._lock:
            self._probes = probes
            if not self._is_over:
                for probe in probes:
                    probe.start()

    def stop(self) -> None:
        with self._lock:
            self._is_over = True
            for probe in self._probes:
                probe.stop()

    def _look(self) -> None:
        touched = _touched(self._file)
        if self._file is None or touched in (0.0, self._seen):
            return
        self._seen = touched
        with self._file.open("rb") as file:
            text = file.read(FILE_BYTES_MAX).decode(errors="replace").strip()
        within_s = _seconds(text)
        if text and within_s is None:
            logger.warning("%s holds %r, which is no number of seconds: the setting drain_s counts", self._file, text)
        self._announce(f"{self._file} was touched", within_s)

    def _asking(self, one: Sensor) -> Callable[[], Any]:
        """Asks, and passes the answer on."""

        def ask() -> Any:
            answer: Any = one.read()
            if inspect.isawaitable(answer):
                answer = asyncio.run(_awaited(answer))
            if answer is not None:
                within_s = _seconds(answer)
                if within_s is None:
                    raise ValueError(f"returned {answer!r:.60}; wanted: seconds, or None")
                self._announce(f"notice {one.name}", within_s)
            return answer

        return ask

    def _announce(self, why: str, within_s: float | None) -> None:
        self._ending.announce(why, within_s)


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _touched(file: Path | None) -> float:
    """When the file was touched last; 0 if it is not there."""
    try:
        return file.stat().st_mtime if file is not None else 0.0
    except FileNotFoundError:
        return 0.0


def _seconds(value: object) -> float | None:
    """None for what is no time."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, seconds), LIMIT_S) if math.isfinite(seconds) else None


class ReadyFile:
    """A file that is there while the node serves.  One that cannot be written is logged: the node serves all the same."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self.remove()  # of an earlier process

    def make(self) -> None:
        if self._path is not None:
            try:
                self._path.write_text(f"{time.time():.3f}\n")
            except OSError as error:
                logger.error("%s cannot be written: %s", self._path, error.strerror)

    def remove(self) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
