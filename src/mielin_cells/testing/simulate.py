"""`python -m mielin_cells.testing.simulate --seeds N --start K`: production code in N seeded worlds.

Ends with one summary line; exit code 1 if any invariant was violated, with the command that replays the seed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from mielin_cells.testing.loop import run
from mielin_cells.testing.scenario import Bugs, Scenario

STEPS_MAX = 600_000
"""Callbacks in one seed; a usual one takes a twentieth of it."""

TWICE_EVERY = 25
"""Every so many seeds one is run twice: the traces must be equal (I23)."""

TRACE_LINES = 60
"""Shown of a seed with a violation."""


@dataclass(slots=True)
class Result:
    """What one seed came to."""

    seed: int
    violations: list[str]
    digest: str
    """Of the trace: equal for equal seeds."""
    virtual_s: float
    calls: int
    """Calls of the substrate."""
    faults: Counter[str]
    counts: Counter[str]
    trace: list[str] = field(default_factory=list)


def simulate(seed: int) -> Result:
    """Runs one seed to its end.  Never raises for what production code does: that is in `violations`."""
    told: list[Scenario] = []

    logs = contextlib.ExitStack()

    async def main() -> None:
        scenario = Scenario(seed)
        told.append(scenario)
        logs.enter_context(Bugs(scenario))
        await scenario.play()

    try:
        with logs:
            run(main(), seed=seed, steps_max=STEPS_MAX)
    except Exception:  # noqa: BLE001 - whatever it is, it is a finding of this seed, and the next one goes on
        told[0].violations.append(f"raised: {traceback.format_exc()}")
    scenario = told[0]
    world = scenario.world
    return Result(
        seed, scenario.violations, world.digest(), world.loop.time(), world.calls, world.counts, scenario.counts,
        world.trace,
    )  # fmt: skip


def checked(seed: int) -> Result:
    """`simulate`, and now and then twice, without the trace unless it is needed."""
    result = simulate(seed)
    if seed % TWICE_EVERY == 0:
        again = simulate(seed)
        if again.digest != result.digest:
            at = next((i for i, (a, b) in enumerate(zip(result.trace, again.trace, strict=False)) if a != b), -1)
            result.violations.append(f"I23: the seed tells another story the second time, from line {at} on")
    if not result.violations:
        result.trace = []
    return result


def report(result: Result, verbose: bool) -> None:
    """Prints a seed with a violation, or, if asked, any."""
    if result.violations:
        print(f"seed {result.seed}: {len(result.violations)} violations")
        for line in result.trace if verbose else result.trace[-TRACE_LINES:]:
            print(f"  {line}")
        for violation in result.violations:
            print(f"seed {result.seed}: {violation}")
        print(f"replay: python -m mielin_cells.testing.simulate --seeds 1 --start {result.seed} --verbose")
    elif verbose:
        print(f"seed {result.seed}: {result.calls} calls, {result.virtual_s:.0f} virtual s, {_listed(result.counts)}")


def summary(results: list[Result], start: int, seconds: float) -> dict[str, object]:
    faults: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for result in results:
        faults.update(result.faults)
        counts.update(result.counts)
    return {
        "seeds": len(results),
        "start": start,
        "violations": sum(bool(result.violations) for result in results),
        "failed": [result.seed for result in results if result.violations],
        "virtual_hours": round(sum(result.virtual_s for result in results) / 3600, 2),
        "calls": sum(result.calls for result in results),
        "completed": counts["migrations completed"],
        "rolled_back": counts["migrations rolled_back"],
        "faults": dict(sorted(faults.items())),
        "counts": dict(sorted(counts.items())),
        "seconds": round(seconds, 1),
    }


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _line(total: dict[str, object]) -> str:
    faults = total["faults"]
    assert isinstance(faults, dict)
    return (
        f"sim: {total['seeds']} seeds from {total['start']}, {total['violations']} with violations; "
        f"{total['virtual_hours']} virtual hours, {total['calls']} calls; "
        f"migrations: {total['completed']} completed, {total['rolled_back']} rolled back; "
        f"faults: {_listed(Counter(faults))}; {total['seconds']} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mielin_cells.testing.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=150)
    parser.add_argument("--start", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--json", action="store_true", help="the summary as JSON")
    parser.add_argument("--verbose", action="store_true", help="a line per seed; the whole trace of a failed one")
    args = parser.parse_args()
    seeds = range(args.start, args.start + args.seeds)
    began = time.monotonic()
    gc.collect()
    gc.freeze()  # what is loaded now is never garbage; each seed collects its own
    results: list[Result] = []
    if args.jobs == 1 or args.seeds < 8:
        for seed in seeds:
            results.append(checked(seed))
            report(results[-1], args.verbose)
    else:
        with ProcessPoolExecutor(args.jobs) as pool:
            for result in pool.map(checked, seeds, chunksize=4):
                results.append(result)
                report(result, args.verbose)
    total = summary(results, args.start, time.monotonic() - began)
    print(json.dumps(total) if args.json else _line(total))
    return 1 if total["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
