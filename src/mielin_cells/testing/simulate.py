"""`python -m mielin_cells.testing.simulate --seeds N --start K`: production code in N seeded worlds.

Ends with one summary line; exit code 1 if any invariant was violated, with the command that replays the seed.
`--replay FILE` runs the kept seeds of a file; `--shrink` looks for a smaller story that fails in the same way.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mielin_cells.testing.checkers.moves import SameAgain
from mielin_cells.testing.simulator.loop import Livelock, run
from mielin_cells.testing.simulator.matrix import CELLS
from mielin_cells.testing.simulator.reach import faults_told, table, too_little, unreached
from mielin_cells.testing.simulator.scenario import Bugs, Scenario
from mielin_cells.testing.simulator.swarm import OFF, Cut, drawn

STEPS_MAX = 400_000
"""Callbacks in one seed; a usual one takes a fiftieth of it."""

TWICE_EVERY = 15
"""Every so many seeds one is run twice: the traces must be equal (I23)."""

SPIN_S = 60.0
"""Processor time of one seed; a usual one takes 50 ms.  A callback that never ends takes no virtual time, and no step ends."""

TRACE_LINES = 60
"""Shown of a seed with a violation."""

SHRUNK_MAX = 3
"""Seeds that are made small in one campaign: each takes some hundred stories."""

BATCH = 2000
"""Seeds after which a long campaign says how far it is."""


class Told(NamedTuple):
    """A seed, less what is cut from its story: one line of `tests/seeds.txt`."""

    seed: int
    cut: Cut | None = None

    def __str__(self) -> str:
        return f"{self.seed} {self.cut or ''}".strip()

    @classmethod
    def parsed(cls, line: str) -> Told:
        """Raises `ValueError` for a line that says nothing that is known."""
        words = line.partition("#")[0].split()
        return cls(int(words[0]), Cut.parsed(words[1:]) if words[1:] else None)


@dataclass(slots=True)
class Result:
    """What one seed came to."""

    told: Told
    violations: list[str]
    digest: str
    """Of the trace: equal for equal seeds."""
    virtual_s: float
    calls: int
    """Calls of the substrate."""
    faults: Counter[str]
    counts: Counter[str]
    """What happened besides faults, and cells of the matrix."""
    trace: list[str] = field(default_factory=list)

    @property
    def invariant(self) -> str:
        """Of the first violation: its number, "raised" for an exception, "" if there is none."""
        if not self.violations:
            return ""
        first = self.violations[0]
        return "raised" if first.startswith("raised") else first.partition(" s: ")[2].partition(":")[0] or "I23"


def simulate(seed: int, cut: Cut | None = None) -> Result:
    """Runs one seed to its end.  Never raises for what production code does: that is in `violations`."""
    made: list[Scenario] = []
    logs = contextlib.ExitStack()

    async def main() -> None:
        scenario = Scenario(drawn(seed, cut))
        made.append(scenario)
        logs.enter_context(Bugs(scenario))
        await scenario.play()

    try:
        with logs, _ended_in(SPIN_S):
            run(main(), seed=seed, steps_max=STEPS_MAX)
    except Exception:  # noqa: BLE001 - whatever it is, it is a finding of this seed, and the next one goes on
        made[0].violations.append(f"raised: {traceback.format_exc()}")
    scenario, world = made[0], made[0].world
    return Result(
        Told(seed, cut), scenario.violations, world.digest(), world.loop.time(), world.calls, world.counts,
        scenario.scene.counts, world.trace,
    )  # fmt: skip


@contextlib.contextmanager
def _ended_in(seconds: float) -> Iterator[None]:
    """Raises `Livelock` where the code is by then; only in the main thread, which alone hears signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(*_: object) -> None:
        raise Livelock(f"after {seconds:g} s of processor time the story is not over: something spins")

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


def checked(told: Told, twice_every: int = TWICE_EVERY) -> Result:
    """`simulate`, and now and then twice, without the trace unless it is needed."""
    result = simulate(*told)
    if twice_every and told.seed % twice_every == 0:
        again = simulate(*told)
        result.counts["seeds run twice"] += 1
        if again.digest != result.digest:
            result.violations.append(SameAgain.compare(result.trace, again.trace))
    if not result.violations:
        result.trace = []
    return result


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
            self.failed.append(str(result.told))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def plain(self) -> dict[str, Any]:
        return {
            "what": self.what, "seeds": self.seeds, "violations": len(self.failed), "failed": self.failed,
            "virtual_hours": round(self.virtual_s / 3600, 2), "calls": self.calls,
            "completed": self.counts["migrations completed"], "rolled_back": self.counts["migrations rolled_back"],
            "gave_up": self.counts["migrations gave_up"], "faults": dict(sorted(self.faults.items())),
            "counts": dict(sorted(self.counts.items())), "unreached": unreached(self.faults, self.counts),
            "seconds": round(self.seconds, 1),
        }  # fmt: skip

    def record(self) -> str:
        """For a file that sums pieces up: what was run, of which commit, and what came of it."""
        plain = self.plain()
        told = {
            name: plain[name] for name in ("what", "seeds", "violations", "failed", "virtual_hours", "calls", "seconds")
        }
        told |= {"commit": _commit(), "faults": self.faults.total(), "kinds": len(self.faults)}
        return json.dumps(told)

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
    """Of the sources; "" if they are not in a repository."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return found.stdout.strip()


def report(result: Result, verbose: bool) -> None:
    """Prints a seed with a violation, or, if asked, any."""
    if result.violations:
        print(f"seed {result.told}: {len(result.violations)} violations")
        for line in result.trace if verbose else result.trace[-TRACE_LINES:]:
            print(f"  {line}")
        for violation in result.violations:
            print(f"seed {result.told}: {violation}")
        print(f"replay: python -m mielin_cells.testing.simulate --only '{result.told}' --verbose")
        print(f"keep: {line_to_keep(result.told, result)}")
    elif verbose:
        happened = ", ".join(f"{name} {count}" for name, count in sorted(result.counts.items()))
        print(f"seed {result.told}: {result.calls} calls, {result.virtual_s:.0f} virtual s, {happened}")


def line_to_keep(told: Told, found: Result) -> str:
    """For `tests/seeds.txt`: the story, and what it was."""
    sentence = found.violations[0].partition("\n")[0].partition(" s: ")[2] or found.invariant
    return f"{told}  # {sentence[:120]}"


def results(stories: list[Told], jobs: int, twice_every: int) -> Iterator[Result]:
    """Of each story, in order; on `jobs` processes."""
    check = partial(checked, twice_every=twice_every)
    if jobs == 1 or len(stories) < 4:
        yield from map(check, stories)
        return
    with ProcessPoolExecutor(jobs) as pool:
        for first in range(0, len(stories), BATCH):
            yield from pool.map(check, stories[first : first + BATCH], chunksize=4)


def kept(lines: Iterable[str]) -> list[Told]:
    """The stories of a file of kept seeds."""
    return [Told.parsed(line) for line in lines if line.partition("#")[0].strip()]


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
    stories = [Told(seed, cut) for seed in range(args.start, args.start + args.seeds)]
    what = str(args.start)
    if args.only is not None:
        stories, what = [Told.parsed(args.only)], args.only
    elif args.replay is not None:
        stories, what = kept(args.replay.read_text().splitlines()), args.replay.name
    gc.collect()
    gc.freeze()  # what is loaded now is never garbage; each seed collects its own
    campaign = Campaign(what)
    for result in results(stories, args.jobs, args.twice_every):
        campaign.add(result)
        report(result, args.verbose)
        if result.violations and args.shrink and len(campaign.failed) <= SHRUNK_MAX:
            from mielin_cells.testing.simulator.shrink import shrunk

            print(f"keep: {line_to_keep(shrunk(result, print), result)}", flush=True)
        if campaign.seeds % BATCH == 0 and campaign.seeds < len(stories):
            print(campaign.line(), file=sys.stderr, flush=True)
    if args.record is not None:
        with args.record.open("a") as file:
            file.write(campaign.record() + "\n")
    if args.matrix:
        print(faults_told(campaign.faults))
        print(table(campaign.counts))
    print(json.dumps(campaign.plain()) if args.json else campaign.line())
    missing = unreached(campaign.faults, campaign.counts) if args.reach else []
    if missing:
        print(f"never reached: {', '.join(missing)}")
    return 1 if campaign.failed or too_little(missing, campaign.seeds) else 0


if __name__ == "__main__":
    sys.exit(main())
