"""Measured values: medians with their spread, and rows that say whether a bar is met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from benchmarks.bars import find

Size: TypeAlias = Literal["smoke", "quick", "full"]
"""smoke: that it runs; quick: 3 minutes; full: what is published."""

Sync: TypeAlias = Literal["always", "lazy"]
SYNCS: tuple[Sync, ...] = ("always", "lazy")

KEPT = 2000
"""Samples of one series that are kept for plots; of more, evenly chosen ones."""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is at least as large as `share` of all."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """What is published of a series: median, quartiles, 99th percentile, extremes and count."""
    points = {
        "p50": statistics.median(values), "p25": percentile(values, 0.25), "p75": percentile(values, 0.75),
        "p99": percentile(values, 0.99), "min": min(values), "max": max(values),
    }  # fmt: skip
    return {**{name: float(f"%.{digits}g" % value) for name, value in points.items()}, "n": len(values)}


def kept(values: Sequence[float]) -> list[float]:
    """The series itself, for plots: sorted, and thinned where it is long."""
    ordered = sorted(values)
    step = max(1.0, len(ordered) / KEPT)
    return [float(f"{ordered[int(n * step)]:.4g}") for n in range(int(len(ordered) / step))]


def ratio(ours: float, theirs: float) -> float:
    return float(f"{ours / theirs:.3g}") if theirs else float("inf")


@dataclass(slots=True, kw_only=True)
class Row:
    """What a bar of `benchmarks.bars` came to.  `is_met` is None where something was not there to be measured."""

    key: str
    sync: str
    measured: str
    is_met: bool | None
    note: str = ""


@dataclass(slots=True)
class Found:
    """What one part has measured."""

    rows: list[Row] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def row(self, key: str, sync: str, measured: str, is_met: bool | None, note: str = "") -> None:
        assert sync in find(key).syncs, f"{key} has no sync {sync!r}"
        self.rows.append(Row(key=key, sync=sync, measured=measured, is_met=is_met, note=note))

    def as_json(self) -> dict[str, Any]:
        return {"rows": [asdict(row) for row in self.rows], "figures": self.figures}
