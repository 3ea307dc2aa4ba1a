"""What is measured of the machine, by psutil.  Whatever it cannot measure here is absent."""

from __future__ import annotations

import os
from typing import Any

from mielin_cells.policy.facts import Facts

SMOOTHED = 0.3
"""The weight of the newest measure of the processor: one busy second is no load."""

CELSIUS_MAX = 150.0
"""Sensors that are not wired say 0, or something like 255."""


class Machine:
    """Call `read` again and again, on one thread."""

    def __init__(self) -> None:
        import psutil  # 10 ms that `import mielin_cells` need not take

        self._psutil = psutil
        self._cores = psutil.cpu_count() or 1
        self._cpu: float | None = None
        psutil.cpu_percent()  # the first one says nothing

    def read(self) -> Facts:
        psutil = self._psutil
        used, memory = psutil.cpu_percent(), psutil.virtual_memory()
        self._cpu = used if self._cpu is None else self._cpu + SMOOTHED * (used - self._cpu)
        battery, mains = self._power()
        return Facts(
            cpu=round(self._cpu, 1), load=round(psutil.getloadavg()[0] / self._cores, 2), memory=memory.percent,
            memory_free_bytes=memory.available, battery=battery, mains=mains, temperature_c=self._hottest(),
        )  # fmt: skip

    def _power(self) -> tuple[float | None, bool | None]:
        power = self._psutil.sensors_battery() if hasattr(self._psutil, "sensors_battery") else None
        return (round(power.percent, 1), power.power_plugged) if power is not None else (None, None)

    def _hottest(self) -> float | None:
        if not hasattr(self._psutil, "sensors_temperatures"):  # as on macOS and Windows
            return None
        groups: dict[str, list[Any]] = self._psutil.sensors_temperatures()
        measured = [one.current for group in groups.values() for one in group if one.current is not None]
        return max((round(float(one), 1) for one in measured if 0 < one < CELSIUS_MAX), default=None)


class Disk:
    """Of the disk that holds a path."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)

    def read(self) -> Facts:
        import psutil

        usage = psutil.disk_usage(self._path)
        return Facts(disk=usage.percent, disk_free_bytes=usage.free)
