"""A failing seed made small: parts of its story are left out, one after the other, while it still fails in the same way.

What is left is a line for `tests/seeds.txt`.  A smaller story is another story: it fails by the same invariant, and most often by the
same fault, but neither is certain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mielin_cells.testing.simulator.environment import CHANCES
from mielin_cells.testing.simulator.story import Result, Story, simulate
from mielin_cells.testing.simulator.swarm import HARMS, ORDERS, Cut, drawn

RUNS_MAX = 400
"""Stories that are tried for one seed."""

KINDS = (
    "wider", "crowd", "versions", "starve", "keepers", "idle", "limits",
    "refusal", "odd", "terms", "deaths", "strikes", "dead clients",
    "power cut", *HARMS, *ORDERS, *CHANCES,
)  # fmt: skip


class _Spent(Exception):
    """All runs are used up."""


class _Shrink:
    def __init__(self, failed: Result, say: Callable[[str], None]) -> None:
        self._failed = failed
        self._say = say
        self._left = RUNS_MAX
        self.best = failed.story.cut or Cut()

    def fails(self, cut: Cut) -> bool:
        if self._left == 0:
            raise _Spent
        self._left -= 1
        result = simulate(self._failed.story.seed, cut)
        if result.invariant != self._failed.invariant:
            return False
        self.best = cut
        self._say(f"still fails: {Story(self._failed.story.seed, cut)}")
        return True

    def kinds(self) -> None:
        """Faults and operations by kind."""
        for kind in KINDS:
            if kind not in self.best.without:
                self.fails(replace(self.best, without=self.best.without | {kind}))

    def numbers(self, name: str, all_of: frozenset[int]) -> None:
        """Operations, or calls, by halves, quarters, ... down to each one."""
        keep = sorted(getattr(self.best, name) if getattr(self.best, name) is not None else all_of)
        size = len(keep)
        while size:
            at = 0
            while at < len(keep):
                rest = keep[:at] + keep[at + size :]
                fewer = frozenset(rest)
                if self.fails(replace(self.best, ops=fewer) if name == "ops" else replace(self.best, calls=fewer)):
                    keep = rest
                else:
                    at += size
            size //= 2

    def budget(self, most: int) -> None:
        """The fewest faults of the world that are enough, if fewer are."""
        low, high = 0, most if self.best.budget is None else self.best.budget
        while low < high:
            middle = (low + high) // 2
            if self.fails(replace(self.best, budget=middle)):
                high = middle
            else:
                low = middle + 1


def shrink(failed: Result, say: Callable[[str], None] = lambda _: None) -> Story:
    """The smallest story of this seed that still breaks the same invariant.  `say` is called with each on the way."""
    if failed.invariant == "I23":  # two runs of it differ, and a cut can only hide that
        return failed.story
    work, swarm = _Shrink(failed, say), drawn(failed.story.seed)
    try:
        for _ in range(2):
            before = work.best
            work.kinds()
            work.numbers("ops", frozenset(range(len(swarm.ops))))
            work.numbers("calls", frozenset(call.number for call in swarm.calls))
            work.budget(swarm.budget)
            if work.best == before:
                break
    except _Spent:
        say(f"after {RUNS_MAX} runs it is left as it is")
    return Story(failed.story.seed, work.best)
