"""Many failed migrations that wait: what it costs to find those that are due, and to work through them.

    python -m benchmarks.bench_manager [--smoke] [--json]

The same number of due agents is looked for among more and more that wait.  A search that reads all of them would cost ten times
as much among ten times as many; this one costs about the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from statistics import median

from mielin_cells import MigrationError, MigrationErrorType, MigrationRecoveryManager

DUE = 100
ROUNDS = 20
SIZES = (1_000, 10_000, 100_000, 1_000_000)
SIZES_SMOKE = (1_000, 10_000)
FAR_S = 100_000.0
"""When those that wait have failed; the due ones failed at 0, and are due at 10."""


def filled(waiting: int) -> tuple[MigrationRecoveryManager, float]:
    """A manager with so many waiting and `DUE` due; microseconds for each failure recorded."""
    manager = MigrationRecoveryManager()
    kind = MigrationErrorType.TIMEOUT
    begun = time.perf_counter()
    for number in range(waiting - DUE):
        # Times in no order: in order, a heap would have nothing to do.
        failed_at = FAR_S + (number * 7919) % waiting
        manager.record_failure(MigrationError.new(kind, "", f"w{number}", "node-2", now=failed_at))
    for number in range(DUE):
        manager.record_failure(MigrationError.new(kind, "", f"d{number}", "node-2", now=number / DUE))
    return manager, (time.perf_counter() - begun) / waiting * 1e6


def measured(waiting: int) -> dict[str, float]:
    manager, record_us = filled(waiting)
    now, polls, empties = 11.0, [], []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        due = manager.get_ready_for_retry(now)
        polls.append(time.perf_counter() - begun)
        assert len(due) == DUE, f"{len(due)} are due"
        empty = time.perf_counter()
        assert manager.get_ready_for_retry(0.0) == []
        empties.append(time.perf_counter() - empty)
    due = manager.get_ready_for_retry(now)
    begun = time.perf_counter()
    for agent in due:
        ticket = manager.begin(agent, now)
        manager.finish(ticket.token, now)
    attempt_s = (time.perf_counter() - begun) / DUE
    return {
        "waiting": waiting,
        "record_us": record_us,
        "poll_us": median(polls) * 1e6,
        "empty_poll_us": median(empties) * 1e6,
        "attempt_us": attempt_s * 1e6,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [measured(size) for size in (SIZES_SMOKE if options.smoke else SIZES)]
    growth = rows[-1]["poll_us"] / rows[0]["poll_us"]
    if options.json:
        print(json.dumps({"due": DUE, "rows": rows, "growth": growth}))
    else:
        print(f"{'waiting':>10} {'record us':>10} {f'{DUE} due us':>11} {'none due us':>12} {'attempt us':>11}")
        for row in rows:
            print(
                f"{row['waiting']:>10,} {row['record_us']:>10.2f} {row['poll_us']:>11.1f} {row['empty_poll_us']:>12.2f} "
                f"{row['attempt_us']:>11.1f}"
            )
        more = rows[-1]["waiting"] / rows[0]["waiting"]
        print(f"{more:,.0f} times as many waiting: a poll costs {growth:.1f} times as much")
    return 0


if __name__ == "__main__":
    sys.exit(main())
