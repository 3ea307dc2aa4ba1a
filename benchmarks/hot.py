"""The app of the part `policies`: a sensor says how hot a node is, as a file says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.agents import Counter
from mielin_cells.sensors import sensor

__all__ = ["Counter", "temperature"]

FOLDER = "BENCH_HEAT"
"""The environment's name of the folder with a file for each node."""


@sensor("temperature_c", every_s=0.05)
def temperature() -> float:
    node = sys.argv[sys.argv.index("--name") + 1]
    path = Path(os.environ[FOLDER]) / node
    return float(path.read_text()) if path.exists() else 40.0
