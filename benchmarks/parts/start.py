"""How long the import and the command line take to begin, each in fresh processes, beside a bare interpreter."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.figures import Found, Size, spread
from benchmarks.harness import run

RUNS: dict[Size, int] = {"smoke": 2, "quick": 10, "full": 40}
IMPORT_MS, HELP_MS = 120.0, 300.0
TIMED = "import time; at = time.perf_counter(); import mielin_cells; print((time.perf_counter() - at) * 1000)"


def wall_ms(*command: str) -> float:
    at = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - at) * 1000


async def measure(size: Size, found: Found) -> None:
    await asyncio.to_thread(measured, size, found)


def measured(size: Size, found: Found) -> None:
    mielin = str(Path(sys.executable).parent / "mielin")
    imports, helps, bare = list[float](), list[float](), list[float]()
    for _ in range(RUNS[size] + 1):
        text = subprocess.run([sys.executable, "-c", TIMED], check=True, capture_output=True, text=True).stdout
        imports.append(float(text))
        helps.append(wall_ms(mielin, "--help"))
        bare.append(wall_ms(sys.executable, "-c", "pass"))
    found.figures = {
        "import_ms": spread(imports[1:]), "help_ms": spread(helps[1:]), "bare_python_ms": spread(bare[1:])
    }  # fmt: skip
    bare_ms = found.figures["bare_python_ms"]["p50"]
    note = f"{RUNS[size]} fresh processes, files in the page cache; a bare interpreter: {bare_ms:.0f} ms"
    for key, limit in (("import", IMPORT_MS), ("help", HELP_MS)):
        middle = found.figures[f"{key}_ms"]["p50"]
        found.row(f"start-{key}", "", f"{middle:.0f} ms", middle < limit, note)


if __name__ == "__main__":
    run(measure)
