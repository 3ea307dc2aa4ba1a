"""The recovery manager with many failed migrations that wait: what one more costs, and finding one that is due.

A search that reads all of them would cost ten times as much among ten times as many; this one costs about the same.
"""

from __future__ import annotations

import time
from statistics import median

from benchmarks.figures import Found, Size, spread
from benchmarks.harness import run
from mielin_cells.migration import MigrationErrorType, MigrationRecoveryManager
from mielin_cells.migration.failure import MigrationError

PENDING: dict[Size, tuple[int, ...]] = {
    "smoke": (1_000, 10_000),
    "quick": (1_000, 1_000_000),
    "full": (1_000, 10_000, 100_000, 1_000_000),
}
ROUNDS = 1000
FAR_S = 100_000.0
"""When those that wait have failed; the one that is due has failed at 0 and is due at 10."""

LIMIT_US = 50.0


def failure(name: str, at: float) -> MigrationError:
    return MigrationError.new(MigrationErrorType.TIMEOUT, "", name, "node-2", now=at)


def filled(pending: int) -> MigrationRecoveryManager:
    manager = MigrationRecoveryManager()
    for number in range(pending):
        # Times in no order: in order, a heap would have nothing to do.
        manager.record_failure(failure(f"w{number}", FAR_S + (number * 7919) % pending))
    return manager


def measured(pending: int) -> dict[str, dict[str, float]]:
    """Microseconds: recording one more failure; finding that none is due; finding the due one and taking it out."""
    manager = filled(pending)
    inserts, empties, takes = list[float](), list[float](), list[float]()
    for number in range(ROUNDS):
        due = failure(f"d{number}", 0.0)
        begun = time.perf_counter()
        manager.record_failure(due)
        inserted = time.perf_counter()
        assert manager.get_ready_for_retry(0.0) == []
        looked = time.perf_counter()
        (agent,) = manager.get_ready_for_retry(11.0)
        ticket = manager.begin(agent, 11.0)
        manager.finish(ticket.token, 11.0)
        ended = time.perf_counter()
        assert agent == f"d{number}"
        for times, seconds in ((inserts, inserted - begun), (empties, looked - inserted), (takes, ended - looked)):
            times.append(seconds * 1e6)
    return {"insert_us": spread(inserts), "none_due_us": spread(empties), "due_us": spread(takes)}


async def measure(size: Size, found: Found) -> None:
    found.figures = {str(pending): measured(pending) for pending in PENDING[size]}
    largest = PENDING[size][-1]
    for key in ("insert", "due"):
        series = [figures[f"{key}_us"] for figures in found.figures.values()]
        least = median([one["p50"] for one in series[:1]])
        note = f"p99 {series[-1]['p99']:.1f} µs; with {PENDING[size][0]:,} pending {least:.1f} µs; found, begun and finished"
        found.row(
            f"queue-{key}", "", f"{series[-1]['p50']:.1f} µs with {largest:,}", series[-1]["p50"] < LIMIT_US,
            note if key == "due" else note.rpartition(";")[0],
        )  # fmt: skip


if __name__ == "__main__":
    run(measure)
