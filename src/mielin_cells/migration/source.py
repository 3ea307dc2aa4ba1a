"""The source's side of one migration, as a pure machine.

`Source.on(event)` gives the next machine and the effects to perform, in order.  It decides nothing by a read: before the handover
the source owns the agent; `HandedOff` is the linearization point; while its answer is unknown nobody runs, and the only
way back is a claim at the same place, which exactly one side can win (rules 6 to 8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

from mielin_cells.migration import failure
from mielin_cells.migration.progress import MigrationPhase as Phase
from mielin_cells.migration.refusal import Refusal

# ---- events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """The migration may start: it is the agent's only open one and the epoch is the planned one."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The target has checked everything and reserved."""


@dataclass(frozen=True, slots=True)
class Refused:
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class Copied:
    """The target has folded all but the last records."""

    records_behind: int
    bytes_behind: int


@dataclass(frozen=True, slots=True)
class Quiet:
    """No turn runs and nothing is in flight."""


@dataclass(frozen=True, slots=True)
class HandedOver:
    """`HandedOff` is acknowledged."""


@dataclass(frozen=True, slots=True)
class Doubtful:
    """The answer to `HandedOff` did not come."""


@dataclass(frozen=True, slots=True)
class ClaimedBack:
    """The source's own `Claimed` is acknowledged."""


@dataclass(frozen=True, slots=True)
class Overtaken:
    """Another record is where the source wanted to append.  `handed`: it is this migration's own `HandedOff`."""

    handed: bool


@dataclass(frozen=True, slots=True)
class SeenAccepted:
    pass


@dataclass(frozen=True, slots=True)
class SeenReturned:
    cause: str
    code: str = ""
    """Of the error that the target gave it back for."""


@dataclass(frozen=True, slots=True)
class SeenClaimed:
    """Another node has claimed the agent."""

    node: str


@dataclass(frozen=True, slots=True)
class Deadline:
    """The current phase has run out of time."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """An operator's wish."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The phase cannot go on: the target is gone, a hook raised, a transfer failed."""

    code: str
    reason: str


Event: TypeAlias = (
    Begin | Prepared | Refused | Copied | Quiet | HandedOver | Doubtful | ClaimedBack | Overtaken
    | SeenAccepted | SeenReturned | SeenClaimed | Deadline | Cancel | Broken
)  # fmt: skip

# ---- effects --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AskPrepare:
    pass


@dataclass(frozen=True, slots=True)
class AskCopy:
    """`slow`: the source takes fewer messages meanwhile, so that the copy converges."""

    slow: bool = False


@dataclass(frozen=True, slots=True)
class StopIntake:
    pass


@dataclass(frozen=True, slots=True)
class HandOver:
    pass


@dataclass(frozen=True, slots=True)
class ClaimBack:
    pass


@dataclass(frozen=True, slots=True)
class WatchLog:
    """Read what follows the handover in the agent's log."""


@dataclass(frozen=True, slots=True)
class ResumeIntake:
    """The source runs the agent again; it owns it."""


@dataclass(frozen=True, slots=True)
class ReleaseTarget:
    """Tell the target to drop its copy: a hint, it expires by itself."""


@dataclass(frozen=True, slots=True)
class FreeCopy:
    """Drop the source's copy: the target has accepted."""


@dataclass(frozen=True, slots=True)
class Refold:
    """Drop the source's copy and read from the log who owns the agent."""


@dataclass(frozen=True, slots=True)
class RefuseCancel:
    pass


@dataclass(frozen=True, slots=True)
class End:
    outcome: str
    code: str = ""
    reason: str = ""
    """For people."""
    cause: failure.Refused | failure.SentBack | None = None
    """A cause that is classified in place of the code."""

    @property
    def happened(self) -> failure.Happened:
        return self.cause if self.cause is not None else failure.Coded(self.code)


Effect: TypeAlias = (
    AskPrepare | AskCopy | StopIntake | HandOver | ClaimBack | WatchLog | ResumeIntake | ReleaseTarget
    | FreeCopy | Refold | RefuseCancel | End
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """When a copy counts as converged, and how many rounds it gets."""

    rounds_max: int
    lag_records_max: int
    lag_bytes_max: int


@dataclass(frozen=True, slots=True)
class Source:
    migration: str
    limits: Limits
    phase: Phase = Phase.PLANNED
    rounds: int = 0
    bytes_behind: float = math.inf
    """What the round before this one has left."""

    def on(self, event: Event) -> tuple[Source, tuple[Effect, ...]]:
        """Takes one event.  An event that means nothing in this phase (late, repeated) changes nothing."""
        if self.phase.is_end:
            return self, ()
        match self.phase:
            case Phase.PLANNED | Phase.PREPARING | Phase.COPYING:
                return self._before_pause(event)
            case Phase.PAUSED:
                return self._paused(event)
            case Phase.HANDING_OVER | Phase.IN_DOUBT:
                return self._handing_over(event)
            case _:
                return self._verifying(event)

    def _before_pause(self, event: Event) -> tuple[Source, tuple[Effect, ...]]:
        """The source serves, and keeps serving whatever happens."""
        match self.phase, event:
            case Phase.PLANNED, Begin():
                return self._to(Phase.PREPARING, AskPrepare())
            case Phase.PREPARING, Prepared():
                return replace(self, rounds=1)._to(Phase.COPYING, AskCopy())
            case Phase.PREPARING, Refused(refusals=refusals):
                reason = "; ".join(map(str, refusals))
                return self._to(
                    Phase.ROLLED_BACK, End("rolled_back", "MigrationRefused", reason, failure.Refused(refusals))
                )
            case Phase.COPYING, Copied():
                return self._copied(event)
            case _, Deadline():
                # The request was repeated until the deadline without an answer: nobody is there.
                code = "TargetUnreachable" if self.phase is Phase.PREPARING else "Timeout"
                return self._back(f"{self.phase.value} ran out of time", code, ReleaseTarget())
            case _, Cancel():
                return self._back("cancelled", "Cancelled", ReleaseTarget())
            case _, Broken(code=code, reason=reason):
                return self._back(reason, code, ReleaseTarget())
            case _, Overtaken() | SeenClaimed():
                return self._back("the agent was claimed by another node", "Fenced", ReleaseTarget(), Refold())
            case _:
                return self, ()

    def _copied(self, event: Copied) -> tuple[Source, tuple[Effect, ...]]:
        """A copy within the limits gets another round while each leaves at most half of the one before; the pause folds the rest."""
        limits = self.limits
        is_near = event.records_behind <= limits.lag_records_max and event.bytes_behind <= limits.lag_bytes_max
        is_late = self.rounds * 2 >= limits.rounds_max
        if is_near and (is_late or not event.bytes_behind or event.bytes_behind * 2 > self.bytes_behind):
            return self._to(Phase.PAUSED, StopIntake())
        if self.rounds >= limits.rounds_max:
            reason = f"the copy does not converge: {event.records_behind} records behind after {self.rounds} rounds"
            return self._back(reason, "Timeout", ReleaseTarget())
        return replace(self, rounds=self.rounds + 1, bytes_behind=event.bytes_behind), (AskCopy(is_late),)

    def _paused(self, event: Event) -> tuple[Source, tuple[Effect, ...]]:
        """The intake is stopped and nothing was sent, so this incarnation may resume without an append (rule 6)."""
        match event:
            case Quiet():
                return self._to(Phase.HANDING_OVER, HandOver())
            case Deadline():
                return self._back("the turn did not end within the pause", "Timeout", ResumeIntake(), ReleaseTarget())
            case Cancel():
                return self._back("cancelled", "Cancelled", ResumeIntake(), ReleaseTarget())
            case Broken(code=code, reason=reason):
                return self._back(reason, code, ResumeIntake(), ReleaseTarget())
            case Overtaken() | SeenClaimed():
                return self._back("the agent was claimed by another node", "Fenced", Refold(), ReleaseTarget())
            case _:
                return self, ()

    def _handing_over(self, event: Event) -> tuple[Source, tuple[Effect, ...]]:
        match self.phase, event:
            case Phase.HANDING_OVER, HandedOver():
                return self._to(Phase.VERIFYING, WatchLog())
            case Phase.HANDING_OVER, Doubtful() | Deadline() | Broken():
                return self._to(Phase.IN_DOUBT, ClaimBack())
            case Phase.IN_DOUBT, ClaimedBack():
                return self._back("the handover's answer was lost", "Timeout", ResumeIntake(), ReleaseTarget())
            case _, Overtaken(handed=True):
                return self._to(Phase.VERIFYING, WatchLog())
            case _, Overtaken():
                return self._back("the agent was claimed by another node", "Fenced", Refold(), ReleaseTarget())
            case _, Cancel():
                return self, (RefuseCancel(),)
            case _:
                return self, ()

    def _verifying(self, event: Event) -> tuple[Source, tuple[Effect, ...]]:
        match event:
            case SeenAccepted():
                return self._to(Phase.COMPLETED, FreeCopy(), End("completed"))
            case SeenReturned(cause=cause, code=code):
                end = End("rolled_back", "Returned", f"the target returned it: {cause}", failure.SentBack(code))
                return self._to(Phase.ROLLED_BACK, ResumeIntake(), end)
            case ClaimedBack():
                return self._back("the target was silent in probation", "Timeout", ResumeIntake(), ReleaseTarget())
            case SeenClaimed(node=node):
                return self._back(f"{node} claimed the agent", "Fenced", Refold())
            case Deadline() | Broken():
                return self, (ClaimBack(),)
            case Overtaken():
                return self, (WatchLog(),)
            case Cancel():
                return self, (RefuseCancel(),)
            case _:
                return self, ()

    def _to(self, phase: Phase, *effects: Effect) -> tuple[Source, tuple[Effect, ...]]:
        return replace(self, phase=phase), effects

    def _back(self, reason: str, code: str, *effects: Effect) -> tuple[Source, tuple[Effect, ...]]:
        return replace(self, phase=Phase.ROLLED_BACK), (*effects, End("rolled_back", code, reason))
