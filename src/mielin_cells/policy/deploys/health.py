"""Whether agents fare worse in new code than in old: from what nodes count of their turns.  Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

BUCKETS = 40
"""Bucket n has the turns that took less than 2**n microseconds, and at least half of that."""

FEW = 20
"""Turns below which no share says anything."""

MANY = 200
"""Turns below which the slowest hundredth is chance."""

SLOW_S = 0.1
"""Turns that take less are not slow, however fast they were before: a busy machine adds as much."""


class Turns(msgspec.Struct, array_like=True):
    """Turns that agents of one class have ended on one node since its process began."""

    ended: int = 0
    failed: int = 0
    """Of these, with an error that the handler does not declare."""
    buried: int = 0
    """Of these, tells that became dead letters."""
    took: list[int] = msgspec.field(default_factory=lambda: [0] * BUCKETS)
    """By duration."""

    def count(self, seconds: float) -> None:
        self.ended += 1
        self.took[min(int(seconds * 1e6).bit_length(), BUCKETS - 1)] += 1

    def plus(self, other: Turns) -> Turns:
        took = [mine + more for mine, more in zip(self.took, other.took, strict=True)]
        return Turns(self.ended + other.ended, self.failed + other.failed, self.buried + other.buried, took)

    def since(self, before: Turns) -> Turns:
        """What came after `before`.  A process that began anew counts from nothing."""
        if before.ended > self.ended:
            return self
        took = [now - was for now, was in zip(self.took, before.took, strict=True)]
        return Turns(self.ended - before.ended, self.failed - before.failed, self.buried - before.buried, took)

    @property
    def failing(self) -> float:
        """The share that failed."""
        return self.failed / self.ended if self.ended else 0.0

    def quantile_s(self, share: float) -> float:
        """The duration that so many turns did not exceed, to a factor of two; 0 without turns."""
        left = share * sum(self.took)
        for number, count in enumerate(self.took):
            left -= count
            if count and left <= 0:
                return float(2**number) / 1e6
        return 0.0


class Limits(msgspec.Struct, frozen=True):
    """What the new code is allowed.  `None`: not looked at."""

    errors: float | None = 0.01
    """How much larger than in the old code the share of turns may be that fail."""
    dead: int | None = 0
    """Dead letters that agents may get in the new code."""
    latency: float | None = 4.0
    """How many times as long as in the old code the slowest hundredth of turns may take.  Durations are known to a factor of 2."""
    crashes: int | None = 2
    """How often processes of new nodes may end by themselves."""


class Sample(msgspec.Struct):
    """What was seen of nodes during a time, by agent class."""

    classes: dict[str, Turns] = {}
    crashes: int = 0
    silent: list[str] = []
    """Nodes that have not answered for too long."""
    broken: list[str] = []
    """Agents that went into ERROR, or do not load, each with the reason."""


def summed(many: Iterable[dict[str, Turns]]) -> dict[str, Turns]:
    sums = dict[str, Turns]()
    for one in many:
        for cls, turns in one.items():
            sums[cls] = sums[cls].plus(turns) if cls in sums else turns
    return sums


def judge(old: Sample, new: Sample, limits: Limits) -> str:
    """Why the new code is not well; "" if nothing is known against it."""
    if limits.crashes is not None and new.crashes > limits.crashes:
        return f"processes of new nodes ended by themselves {new.crashes} times; {limits.crashes} are allowed"
    if new.silent:
        return f"{', '.join(new.silent)} did not answer"
    if new.broken:
        more = f" (and {len(new.broken) - 1} more)" if len(new.broken) > 1 else ""
        return f"{new.broken[0]}{more}"
    whys = (
        _judge_class(cls, old.classes.get(cls, Turns()), turns, limits) for cls, turns in sorted(new.classes.items())
    )
    return next(filter(None, whys), "")


def _judge_class(cls: str, old: Turns, new: Turns, limits: Limits) -> str:
    if limits.dead is not None and new.buried > limits.dead:
        return (
            f"{new.buried} messages to agents of {cls} became dead letters in the new code; {limits.dead} are allowed"
        )
    if new.ended < FEW:
        return ""
    if limits.errors is not None and new.failing > old.failing + limits.errors:
        return (
            f"{new.failed} of {new.ended} turns of {cls} failed in the new code ({new.failing:.1%}), and {old.failing:.1%} in the "
            f"old; {limits.errors:.1%} more are allowed"
        )
    mine, theirs = new.quantile_s(0.99), old.quantile_s(0.99)
    if limits.latency is not None and min(old.ended, new.ended) >= MANY and mine > max(limits.latency * theirs, SLOW_S):
        return (
            f"the slowest hundredth of turns of {cls} took {mine:.3g} s or more in the new code, and {theirs:.3g} s in the old; "
            f"{limits.latency:g} times as long is allowed"
        )
    return ""
