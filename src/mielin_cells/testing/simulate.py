"""`python -m mielin_cells.testing.simulate --seeds N --start K`: production code in N seeded worlds.

Ends with one summary line.  The exit code is 1 if an invariant was violated; then the command that replays the seed is printed.
`--replay FILE` runs the kept seeds of a file; `--shrink` looks for a smaller story that fails in the same way.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from mielin_cells.testing.simulator.coverage import (
    CELLS,
    list_faults,
    list_unreached,
    reached_too_little,
    render_matrix,
)
from mielin_cells.testing.simulator.shrink import shrink
from mielin_cells.testing.simulator.story import TWICE_EVERY, Result, Story, check, simulate
from mielin_cells.testing.simulator.swarm import OFF, Cut

__all__ = ["Result", "Story", "main", "simulate"]

TRACE_LINES = 60
"""Shown of a seed with a violation."""

SHRUNK_MAX = 3
"""Seeds that are made small in one campaign: each takes some hundred stories."""

BATCH = 2000
"""Seeds after which a long campaign says how far it is."""


class Campaign:
    """The sum of many results."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.began = time.monotonic()
        self.seeds = self.calls = 0
        self.virtual_s = 0.0
        self.failed: list[str] = []
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.calls += result.calls
        self.virtual_s += result.virtual_s
        self.faults.update(result.faults)
        self.counts.update(result.counts)
        if result.violations:
            self.failed.append(str(result.story))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def plain(self) -> dict[str, Any]:
        return {
            "what": self.what, "seeds": self.seeds, "violations": len(self.failed), "failed": self.failed,
            "virtual_hours": round(self.virtual_s / 3600, 2), "calls": self.calls,
            "completed": self.counts["migrations completed"], "rolled_back": self.counts["migrations rolled_back"],
            "gave_up": self.counts["migrations gave_up"], "faults": dict(sorted(self.faults.items())),
            "counts": dict(sorted(self.counts.items())), "unreached": list_unreached(self.faults, self.counts),
            "seconds": round(self.seconds, 1),
        }  # fmt: skip

    def record(self) -> str:
        """For a file that sums pieces up: what was run, of which commit, and what came of it."""
        plain = self.plain()
        record = {
            name: plain[name] for name in ("what", "seeds", "violations", "failed", "virtual_hours", "calls", "seconds")
        }
        record |= {"commit": _commit(), "faults": self.faults.total(), "kinds": len(self.faults)}
        return json.dumps(record)

    def line(self) -> str:
        counts = self.counts
        return (
            f"sim: {self.seeds} seeds from {self.what}, {len(self.failed)} with violations; "
            f"{self.virtual_s / 3600:.2f} virtual hours, {self.calls} calls; migrations: "
            f"{counts['migrations completed']} completed, {counts['migrations rolled_back']} rolled back, "
            f"{counts['migrations gave_up']} gave up; {self.faults.total()} faults of {len(self.faults)} kinds; "
            f"{len([name for name in counts if name.startswith('cell ')])} of {len(CELLS)} cells reached, "
            f"{counts['seeds run twice']} seeds twice; {self.seconds:.1f} s"
        )


def _commit() -> str:
    """The commit of the sources; "" if they are not in a repository."""
    here = Path(__file__).resolve().parent
    try:
        git = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return git.stdout.strip()


def report(result: Result, verbose: bool) -> None:
    """Prints a seed with a violation; with `verbose` any."""
    if result.violations:
        print(f"seed {result.story}: {len(result.violations)} violations")
        for line in result.trace if verbose else result.trace[-TRACE_LINES:]:
            print(f"  {line}")
        for violation in result.violations:
            print(f"seed {result.story}: {violation}")
        print(f"replay: python -m mielin_cells.testing.simulate --only '{result.story}' --verbose")
        print(f"keep: {line_to_keep(result.story, result)}")
    elif verbose:
        happened = ", ".join(f"{name} {count}" for name, count in sorted(result.counts.items()))
        print(f"seed {result.story}: {result.calls} calls, {result.virtual_s:.0f} virtual s, {happened}")


def line_to_keep(story: Story, result: Result) -> str:
    """The story and its violation, for `tests/seeds.txt`."""
    sentence = result.violations[0].partition("\n")[0].partition(" s: ")[2] or result.invariant
    return f"{story}  # {sentence[:120]}"


def run_all(stories: list[Story], jobs: int, twice_every: int) -> Iterator[Result]:
    """The result of each story, in order; on `jobs` processes."""
    check_one = partial(check, twice_every=twice_every)
    if jobs == 1 or len(stories) < 4:
        yield from map(check_one, stories)
        return
    with ProcessPoolExecutor(jobs) as pool:
        for first in range(0, len(stories), BATCH):
            yield from pool.map(check_one, stories[first : first + BATCH], chunksize=4)


def parse_stories(lines: Iterable[str]) -> list[Story]:
    """The stories of a file of kept seeds."""
    return [Story.parse(line) for line in lines if line.partition("#")[0].strip()]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mielin_cells.testing.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=150)
    parser.add_argument("--start", type=int, default=1)
    parser.add_argument(
        "--with", dest="extra", choices=OFF, action="append", default=[], help="a part of stories that is off as yet"
    )
    parser.add_argument("--only", help="one story, as a line of the file of kept seeds says it")
    parser.add_argument("--replay", type=Path, help="a file of kept seeds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--twice-every", type=int, default=TWICE_EVERY, help="so many seeds, one is run twice; 0: none")
    parser.add_argument("--json", action="store_true", help="the summary as JSON")
    parser.add_argument(
        "--matrix", action="store_true", help="faults by kind, and how often each met each phase of a migration"
    )
    parser.add_argument(
        "--reach", action="store_true", help="fail if a fault or too much of the matrix was never reached"
    )
    parser.add_argument(
        "--record", type=Path, help="a file to add the summary to, as a line of JSON: a long campaign is run in pieces"
    )
    parser.add_argument("--shrink", action="store_true", help="look for a smaller story of each seed that fails")
    parser.add_argument("--verbose", action="store_true", help="a line per seed; the whole trace of a failed one")
    args = parser.parse_args()
    cut = Cut(extra=frozenset(args.extra)) if args.extra else None
    stories = [Story(seed, cut) for seed in range(args.start, args.start + args.seeds)]
    what = str(args.start)
    if args.only is not None:
        stories, what = [Story.parse(args.only)], args.only
    elif args.replay is not None:
        stories, what = parse_stories(args.replay.read_text().splitlines()), args.replay.name
    gc.collect()
    gc.freeze()  # what is loaded now is never garbage; each seed collects its own
    campaign = Campaign(what)
    for result in run_all(stories, args.jobs, args.twice_every):
        campaign.add(result)
        report(result, args.verbose)
        if result.violations and args.shrink and len(campaign.failed) <= SHRUNK_MAX:
            print(f"keep: {line_to_keep(shrink(result, print), result)}", flush=True)
        if campaign.seeds % BATCH == 0 and campaign.seeds < len(stories):
            print(campaign.line(), file=sys.stderr, flush=True)
    if args.record is not None:
        with args.record.open("a") as file:
            file.write(campaign.record() + "\n")
    if args.matrix:
        print(list_faults(campaign.faults))
        print(render_matrix(campaign.counts))
    print(json.dumps(campaign.plain()) if args.json else campaign.line())
    missing = list_unreached(campaign.faults, campaign.counts) if args.reach else []
    if missing:
        print(f"never reached: {', '.join(missing)}")
    return 1 if campaign.failed or reached_too_little(missing, campaign.seeds) else 0


if __name__ == "__main__":
    sys.exit(main())
