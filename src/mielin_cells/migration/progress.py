"""How far a migration is: its phases, progress events in order, and callbacks that cannot harm it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol, TypeAlias

from mielin_cells.errors import InvalidTransition

EVENTS_KEPT = 10_000
"""Of a collecting callback; a migration has a few hundred events."""

EVENTS_WAITING = 1_000
"""Events kept for a watcher that does not fetch them: more than one migration has, so none are dropped unless something is wrong."""


class MigrationPhase(Enum):
    PLANNED = "PLANNED"
    PREPARING = "PREPARING"
    """The target checks everything and reserves."""
    COPYING = "COPYING"
    """The target folds the log and tails it; the source serves."""
    PAUSED = "PAUSED"
    """The intake is stopped; the turn ends."""
    HANDING_OVER = "HANDING_OVER"
    """`HandedOff` is sent."""
    IN_DOUBT = "IN_DOUBT"
    """Its answer is unknown: nobody runs; the source settles it by a claim at the same place (rule 6)."""
    VERIFYING = "VERIFYING"
    """Probation: the target verifies, then accepts or returns."""
    COMPLETED = "COMPLETED"
    ROLLED_BACK = "ROLLED_BACK"
    GAVE_UP = "GAVE_UP"

    @property
    def is_end(self) -> bool:
        return self in (MigrationPhase.COMPLETED, MigrationPhase.ROLLED_BACK, MigrationPhase.GAVE_UP)


class ProgressPhase(Enum):
    """Values are the seed's names."""

    CAPTURING = "Capturing"
    TRANSFERRING = "Transferring"
    VALIDATING = "Validating"
    RESTORING = "Restoring"
    COMPLETED = "Completed"
    FAILED = "Failed"

    @property
    def is_terminal(self) -> bool:
        return self in (ProgressPhase.COMPLETED, ProgressPhase.FAILED)


_ORDER = list(ProgressPhase)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    phase: ClassVar[ProgressPhase]
    migration_id: str
    agent_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(_Event):
    phase = ProgressPhase.CAPTURING
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturingState(_Event):
    phase = ProgressPhase.CAPTURING
    percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferProgress(_Event):
    phase = ProgressPhase.TRANSFERRING
    bytes_done: int
    bytes_total: int
    percent: int
    bytes_per_s: float = 0.0
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Validating(_Event):
    phase = ProgressPhase.VALIDATING
    step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoring(_Event):
    phase = ProgressPhase.RESTORING
    percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed(_Event):
    phase = ProgressPhase.COMPLETED
    duration_ms: float
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(_Event):
    phase = ProgressPhase.FAILED
    message: str


ProgressEvent: TypeAlias = Started | CapturingState | TransferProgress | Validating | Restoring | Completed | Failed


def percent(done: int, total: int) -> int:
    """0 to 100, rounded down; 100 of nothing."""
    return 100 if total <= 0 else max(0, min(100, 100 * done // total))


class ProgressCallback(Protocol):
    def __call__(self, event: ProgressEvent) -> None: ...


class CollectingCallback:
    """Keeps the newest events.

    >>> from mielin_cells.migration import CollectingCallback
    >>> seen = CollectingCallback()
    >>> async with cells.local(nodes=2, progress=seen) as deployment:
    ...     shop = await deployment.on("node-1").spawn(Till, "shop")
    ...     (await deployment.migrate(shop)).ok
    ...
    True
    >>> type(seen.latest).__name__
    'Completed'
    """

    def __init__(self, kept: int = EVENTS_KEPT) -> None:
        self._events: deque[ProgressEvent] = deque(maxlen=kept)

    def __call__(self, event: ProgressEvent) -> None:
        self._events.append(event)

    @property
    def events(self) -> list[ProgressEvent]:
        return list(self._events)

    @property
    def latest(self) -> ProgressEvent | None:
        return self._events[-1] if self._events else None

    def clear(self) -> None:
        self._events.clear()


class LoggingCallback:
    """Logs each event as a line; unless `verbose`, a transfer only at every tenth percent.  Failures go to `warn`.

    >>> from mielin_cells.migration import LoggingCallback
    >>> lines, warnings = [], []
    >>> async with cells.local(nodes=2, progress=LoggingCallback(lines.append, warnings.append)) as deployment:
    ...     shop = await deployment.on("node-1").spawn(Till, "shop")
    ...     (await deployment.migrate(shop)).ok
    ...
    True
    >>> lines[0], warnings
    ('migration m-... of agent shop: started, ... bytes', [])
    """

    def __init__(self, info: Callable[[str], None], warn: Callable[[str], None], verbose: bool = False) -> None:
        self._info = info
        self._warn = warn
        self._verbose = verbose

    def __call__(self, event: ProgressEvent) -> None:
        if isinstance(event, TransferProgress) and not self._verbose and event.percent % 10:
            return
        tell = self._warn if isinstance(event, Failed) else self._info
        tell(f"migration {event.migration_id} of agent {event.agent_id}: {_said(event)}")


def _said(event: ProgressEvent) -> str:
    match event:
        case Started(total_bytes=total):
            return f"started, {total:,} bytes"
        case CapturingState(percent=share):
            return f"capturing, {share} %"
        case TransferProgress(bytes_done=done, bytes_total=total, percent=share):
            return f"transferred {done:,} of {total:,} bytes, {share} %"
        case Validating(step=step):
            return f"validating {step}"
        case Restoring(percent=share):
            return f"restoring, {share} %"
        case Completed(duration_ms=took, bytes=size):
            return f"completed in {took:.1f} ms, {size:,} bytes"
        case Failed(message=message):
            return f"failed: {message}"


class MultiCallback:
    """Passes each event to all callbacks, in order.  If one raises, `broken` gets its error and the others still get the event.

    >>> from mielin_cells.migration import CollectingCallback, MultiCallback
    >>> one, other = CollectingCallback(), CollectingCallback()
    >>> async with cells.local(nodes=2, progress=MultiCallback([one, other])) as deployment:
    ...     shop = await deployment.on("node-1").spawn(Till, "shop")
    ...     (await deployment.migrate(shop)).ok
    ...
    True
    >>> one.events == other.events
    True
    """

    def __init__(
        self, callbacks: Iterable[ProgressCallback] = (), broken: Callable[[Exception], None] | None = None
    ) -> None:
        self._callbacks = list(callbacks)
        self._broken = broken

    def add(self, callback: ProgressCallback) -> None:
        self._callbacks.append(callback)

    def __call__(self, event: ProgressEvent) -> None:
        for callback in list(self._callbacks):
            try:
                callback(event)
            except Exception as error:  # noqa: BLE001 - a watcher's bug is the watcher's; the move goes on
                if self._broken is not None:
                    self._broken(error)


class ProgressTracker:
    """The events of one migration, in order.  Phases only go forward, shares only grow, and nothing follows the end.

    An event is emitted only if it says something new, so a transfer has at most 101 of them.  What would go back, or repeat, is
    ignored: reports may come late.  Events wait in `take`, the newest `EVENTS_WAITING` of them, for the loop that delivers them beside
    the move: a slow watcher never holds it up.  `now` is monotonic seconds.
    """

    def __init__(self, migration_id: str, agent_id: str, *, total_bytes: int = 0, now: float) -> None:
        self._migration = migration_id
        self._agent = agent_id
        self._began = now
        self._total = max(0, total_bytes)
        self._done = 0
        self._shares: dict[ProgressPhase, int] = {}
        self._waiting: deque[ProgressEvent] = deque(maxlen=EVENTS_WAITING)
        self.phase = ProgressPhase.CAPTURING
        self._waiting.append(Started(migration_id=migration_id, agent_id=agent_id, total_bytes=self._total))

    def take(self) -> list[ProgressEvent]:
        """The events since the last call."""
        events = list(self._waiting)
        self._waiting.clear()
        return events

    def capturing(self, share: int) -> None:
        share = percent(share, 100)
        if self._grows(ProgressPhase.CAPTURING, share):
            self._tell(CapturingState(migration_id=self._migration, agent_id=self._agent, percent=share))

    def transferred(self, done: int, total: int, *, now: float) -> None:
        """`total` may grow, since a working agent makes more to copy.  Then the share stays where it was."""
        if self._is_over(ProgressPhase.TRANSFERRING):
            return
        self._done, self._total = max(self._done, done), max(self._total, total, done)
        spent = now - self._began
        rate = self._done / spent if spent > 0 else 0.0
        share = percent(self._done, self._total)
        if not self._grows(ProgressPhase.TRANSFERRING, share):
            return
        self._tell(
            TransferProgress(
                migration_id=self._migration,
                agent_id=self._agent,
                bytes_done=self._done,
                bytes_total=self._total,
                percent=share,
                bytes_per_s=rate,
                seconds_left=(self._total - self._done) / rate if rate > 0 else None,
            )
        )

    def validating(self, step: str) -> None:
        if not self._is_over(ProgressPhase.VALIDATING):
            self._tell(Validating(migration_id=self._migration, agent_id=self._agent, step=step))

    def restoring(self, share: int) -> None:
        share = percent(share, 100)
        if self._grows(ProgressPhase.RESTORING, share):
            self._tell(Restoring(migration_id=self._migration, agent_id=self._agent, percent=share))

    def completed(self, *, now: float) -> None:
        """Raises `InvalidTransition` if not everything was transferred: the caller is mistaken about one of the two."""
        if self.phase.is_terminal:
            return
        if self._done < self._total:
            raise InvalidTransition(
                f"Migration {self._migration} cannot be completed with {self._done:,} of {self._total:,} bytes transferred; "
                "report the rest first.",
                have=self.phase.value,
                need=ProgressPhase.COMPLETED.value,
            )
        took = max(0.0, now - self._began) * 1000
        self._tell(Completed(migration_id=self._migration, agent_id=self._agent, duration_ms=took, bytes=self._done))

    def failed(self, message: str) -> None:
        if not self.phase.is_terminal:
            self._tell(Failed(migration_id=self._migration, agent_id=self._agent, message=message))

    def _is_over(self, phase: ProgressPhase) -> bool:
        return self.phase.is_terminal or _ORDER.index(phase) < _ORDER.index(self.phase)

    def _grows(self, phase: ProgressPhase, share: int) -> bool:
        if self._is_over(phase) or share <= self._shares.get(phase, -1):
            return False
        self._shares[phase] = share
        return True

    def _tell(self, event: ProgressEvent) -> None:
        self.phase = event.phase
        self._waiting.append(event)
