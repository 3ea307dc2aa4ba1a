"""Which targets may be tried now: a circuit breaker and a cooling time for each node, and a limit on attempts at a time.

This is knowledge about nodes, not about agents: if one agent cannot run on a node, that says nothing about the node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from mielin_cells.migration.failure import MigrationErrorType
from mielin_cells.migration.recovery import RecoveryConfig

TARGETS_MAX = 10_000
"""Nodes that are remembered; nodes without failures are forgotten first."""

TRIES_MAX = 3
"""Attempts of one migration with one node, on a node's own manager."""

BLAMES = frozenset(
    {MigrationErrorType.NETWORK_TRANSIENT, MigrationErrorType.TIMEOUT, MigrationErrorType.TARGET_UNREACHABLE}
)
"""Failures that count towards opening a circuit: the node, or the way to it, does not work."""

COOLS = frozenset({MigrationErrorType.INSUFFICIENT_RESOURCES, MigrationErrorType.TARGET_UNREACHABLE})
"""Failures after which the node is not chosen for a while: asked at once, it would answer the same."""


class Circuit(Enum):
    CLOSED = "Closed"
    """Attempts go through."""
    OPEN = "Open"
    """No attempt goes through until its time is over."""
    HALF_OPEN = "HalfOpen"
    """Its time is over: single trials go through, and the first result decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerConfig:
    """Durations are seconds."""

    running_max: int = 16
    """Attempts with one node at a time, so that a node that comes back is not overrun."""
    tries_max: int | None = None
    """Attempts of one migration with one node before it looks elsewhere; None: as many as there are retries."""
    failures_max: float = 4.5
    """Decayed failures that open a circuit: five, if they come shortly after one another."""
    half_life_secs: float = 60
    """After this long half of a node's failures are forgotten."""
    open_secs: float = 20
    """How long a circuit is open for the first time; a failed trial doubles it, up to `open_max_secs`."""
    open_max_secs: float = 300
    trials_max: int = 1
    cooling_secs: float = 10
    """How long a node is not chosen after it failed once; doubles with its failures, up to `open_max_secs`.  Of refusals for lack of
    room only those count that come when it is not cooling off."""

    @classmethod
    def of(cls, config: RecoveryConfig) -> BreakerConfig:
        """In proportion to the delays between retries: a node cools off as long as its migrations wait."""
        first, cap = config.initial_retry_delay_secs, config.max_retry_delay_secs
        return cls(
            tries_max=TRIES_MAX,
            half_life_secs=6 * first,
            open_secs=min(2 * first, cap),
            open_max_secs=cap,
            cooling_secs=first,
        )


@dataclass(slots=True)
class _Health:
    failures: float = 0.0
    failed_at: float = 0.0
    open_until: float | None = None
    """Set while the circuit is open or half-open."""
    open_secs: float = 0.0
    coolings: float = 0.0
    """Decayed count of the failures after which the node cools off."""
    cooled_at: float = 0.0
    cooling_until: float = 0.0
    running: int = 0
    trials: int = 0
    """How many of the running attempts were let through half-open."""


class Targets:
    """Circuits, cooling times and running attempts of every node that migrations went to."""

    def __init__(self, config: BreakerConfig | None = None) -> None:
        self.config = config or BreakerConfig()
        self._nodes: dict[str, _Health] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def circuit(self, target: str, now: float) -> Circuit:
        health = self._nodes.get(target)
        if health is None or health.open_until is None:
            return Circuit.CLOSED
        return Circuit.OPEN if now < health.open_until else Circuit.HALF_OPEN

    def running(self, target: str) -> int:
        """Attempts with this node that hold a place."""
        health = self._nodes.get(target)
        return health.running if health is not None else 0

    def is_full(self, target: str) -> bool:
        return self.running(target) >= self.config.running_max

    def admits(self, target: str, now: float) -> bool:
        """An attempt with this node may begin now."""
        circuit = self.circuit(target, now)
        if circuit is Circuit.OPEN or self.is_full(target):
            return False
        return circuit is Circuit.CLOSED or self._nodes[target].trials < self.config.trials_max

    def is_cooling(self, target: str, now: float) -> bool:
        health = self._nodes.get(target)
        return health is not None and now < health.cooling_until

    def free_at(self, target: str, now: float) -> float:
        """The earliest time at which its circuit and cooling let the node be asked again: `now`, or later."""
        health = self._nodes.get(target)
        return now if health is None else max(now, health.open_until or 0.0, health.cooling_until)

    def unfit(self, now: float) -> frozenset[str]:
        """The nodes that are not to be chosen now: cooling off, open, on trial, or with enough attempts running."""
        return frozenset(name for name in self._nodes if self.is_cooling(name, now) or not self.admits(name, now))

    # ---- attempts --------------------------------------------------------------------------------------------

    def begin(self, target: str, now: float) -> bool:
        """Takes a place for one attempt; False: the node admits none now.  `end` gives the place back."""
        if not self.admits(target, now):
            return False
        health = self._known(target, now)
        health.running += 1
        if health.open_until is not None:
            health.trials += 1
        return True

    def end(self, target: str, now: float, error: MigrationErrorType | None) -> None:
        """Gives the place back with the attempt's result; None is success."""
        health = self._known(target, now)
        health.running = max(0, health.running - 1)
        if error is None:
            self.succeeded(target)
        else:
            self.failed(target, now, error)
        health.trials = max(0, health.trials - 1)

    def release(self, target: str) -> None:
        """Gives the place back without a result: the attempt was not made, or says nothing of the node."""
        health = self._nodes.get(target)
        if health is not None:
            health.running = max(0, health.running - 1)
            health.trials = max(0, health.trials - 1)

    def succeeded(self, target: str) -> None:
        """Closes the circuit and forgets the failures."""
        health = self._nodes.get(target)
        if health is not None:
            health.failures = health.coolings = health.open_secs = health.cooling_until = 0.0
            health.open_until = None

    def failed(self, target: str, now: float, error: MigrationErrorType) -> None:
        """Counts a failure with this node, also one that was not begun here (a first attempt)."""
        if error not in BLAMES and error not in COOLS:
            return
        config, health = self.config, self._known(target, now)
        if error in COOLS:
            if error in BLAMES or now >= health.cooling_until:  # many agents are refused at once for one lack of room
                health.coolings = self._decayed(health.coolings, health.cooled_at, now) + 1
                health.cooled_at = now
            cooling = config.cooling_secs * 2 ** min(max(0.0, health.coolings - 1), 30)
            health.cooling_until = max(health.cooling_until, now + min(cooling, config.open_max_secs))
        if error not in BLAMES:
            return
        failures = self._decayed(health.failures, health.failed_at, now) + 1
        health.failures, health.failed_at = failures, now
        was = self.circuit(target, now)
        if was is Circuit.HALF_OPEN:
            health.open_secs = min(2 * health.open_secs, config.open_max_secs)
            health.open_until = now + health.open_secs
        elif was is Circuit.CLOSED and failures >= config.failures_max:
            health.open_secs = config.open_secs
            health.open_until = now + health.open_secs

    def _decayed(self, count: float, since: float, now: float) -> float:
        age = max(0.0, now - since)
        return count * math.exp2(-min(age / self.config.half_life_secs, 1000.0))

    def _known(self, target: str, now: float) -> _Health:
        if target not in self._nodes and len(self._nodes) >= TARGETS_MAX:
            self._forget(now)
        return self._nodes.setdefault(target, _Health())

    def _forget(self, now: float) -> None:
        """Drops every node without failures; if there is none, the idle node that failed longest ago."""
        idle = [name for name, health in self._nodes.items() if not health.running]
        fine = [n for n in idle if self.circuit(n, now) is Circuit.CLOSED and not self.is_cooling(n, now)]
        oldest = sorted(idle, key=lambda name: max(self._nodes[name].failed_at, self._nodes[name].cooled_at))[:1]
        for name in fine or oldest:
            del self._nodes[name]
