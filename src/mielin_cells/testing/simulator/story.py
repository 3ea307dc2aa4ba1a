"""One seed played to its end: what is left out of its story, and what came of it."""

from __future__ import annotations

import contextlib
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from mielin_cells.testing.checkers.migrations import SameAgain
from mielin_cells.testing.simulator.loop import Livelock
from mielin_cells.testing.simulator.scenario import Scenario, play
from mielin_cells.testing.simulator.swarm import Cut, drawn

STEPS_MAX = 400_000
"""Callbacks in one seed; a usual one takes a fiftieth of it."""

TWICE_EVERY = 15
"""One in so many seeds is run twice: the traces must be equal (I23)."""

SPIN_S = 60.0
"""Processor time of one seed; a usual one takes 50 ms.  A callback that never ends takes no virtual time, and no step ends."""


class Story(NamedTuple):
    """A seed, less what is cut from its story: one line of `tests/seeds.txt`."""

    seed: int
    cut: Cut | None = None

    def __str__(self) -> str:
        return f"{self.seed} {self.cut or ''}".strip()

    @classmethod
    def parse(cls, line: str) -> Story:
        """Raises `ValueError` for a line that is not a story."""
        words = line.partition("#")[0].split()
        return cls(int(words[0]), Cut.parse(words[1:]) if words[1:] else None)


@dataclass(slots=True)
class Result:
    """What one seed came to."""

    story: Story
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

    def make() -> Scenario:
        made.append(Scenario(drawn(seed, cut)))
        return made[0]

    try:
        with _limit_processor(SPIN_S):
            play(make, seed=seed, steps_max=STEPS_MAX)
    except Livelock as error:
        made[0].violations.append(f"{made[0].world.loop.time():.6f} s: I15: {error}")
    except Exception:  # noqa: BLE001 - whatever it is, it is a finding of this seed, and the next one goes on
        made[0].violations.append(f"raised: {traceback.format_exc()}")
    scenario, world = made[0], made[0].world
    return Result(
        Story(seed, cut), scenario.violations, world.digest(), world.loop.time(), world.calls, world.counts,
        scenario.scene.counts, world.trace,
    )  # fmt: skip


@contextlib.contextmanager
def _limit_processor(seconds: float) -> Iterator[None]:
    """Raises `Livelock` wherever the code is by then; only in the main thread, which alone gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def spinning(*_: object) -> None:
        raise Livelock(f"after {seconds:g} s of processor time the story is not over: something spins")

    before = signal.signal(signal.SIGVTALRM, spinning)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


def check(story: Story, twice_every: int = TWICE_EVERY) -> Result:
    """`simulate`, and for one in `twice_every` seeds twice.  The trace is kept only with a violation."""
    result = simulate(*story)
    if twice_every and story.seed % twice_every == 0:
        again = simulate(*story)
        result.counts["seeds run twice"] += 1
        if again.digest != result.digest:
            result.violations.append(SameAgain.compare(result.trace, again.trace))
    if not result.violations:
        result.trace = []
    return result
