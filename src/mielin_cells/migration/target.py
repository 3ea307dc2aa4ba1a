"""The target's side of one migration, as a pure machine.

Until `Accepted` is acknowledged the target commits nothing and lets nothing out (rule 8).  A copy that is not handed over is
worth nothing and is dropped; one that is handed over ends only by a record in the log.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias


class TargetPhase(Enum):
    RESERVED = "RESERVED"
    COPYING = "COPYING"
    """Folding and tailing the log."""
    PROBATION = "PROBATION"
    """The log names this node: verifying."""
    ACCEPTING = "ACCEPTING"
    RETURNING = "RETURNING"
    SERVING = "SERVING"
    DROPPED = "DROPPED"

    @property
    def is_end(self) -> bool:
        return self in (TargetPhase.SERVING, TargetPhase.DROPPED)


# ---- events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CopyAsked:
    """The source wants the copy to reach its position."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """The next attempt of the same migration, in the same epoch: what is copied is still what it wants."""

    attempt: str


@dataclass(frozen=True, slots=True)
class HandoverSeen:
    """`HandedOff` of this attempt to this node is in the log."""


@dataclass(frozen=True, slots=True)
class Verified:
    """Digest, load, `on_arrive` and probe are good."""


@dataclass(frozen=True, slots=True)
class NotVerified:
    cause: str
    code: str = ""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The record that this side appended is in the log."""


@dataclass(frozen=True, slots=True)
class Overtaken:
    """Another record took its place, or another node was given the agent."""


@dataclass(frozen=True, slots=True)
class Released:
    """The source dropped the migration (a hint)."""


@dataclass(frozen=True, slots=True)
class Expired:
    """The reservation has run out, or the log cannot be folded."""


Event: TypeAlias = (
    CopyAsked | Adopted | HandoverSeen | Verified | NotVerified | Acknowledged | Overtaken | Released | Expired
)

# ---- effects --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FoldAndTail:
    pass


@dataclass(frozen=True, slots=True)
class Verify:
    pass


@dataclass(frozen=True, slots=True)
class Accept:
    pass


@dataclass(frozen=True, slots=True)
class Return:
    cause: str
    code: str = ""
    """Of the error that keeps the agent from running here."""


@dataclass(frozen=True, slots=True)
class Serve:
    pass


@dataclass(frozen=True, slots=True)
class Drop:
    """Free the copy and the reservation; the log is looked at again, which may name this node."""


Effect: TypeAlias = FoldAndTail | Verify | Accept | Return | Serve | Drop


@dataclass(frozen=True, slots=True)
class Target:
    migration: str
    """The attempt, as the agent's log calls it."""
    phase: TargetPhase = TargetPhase.RESERVED

    def on(self, event: Event) -> tuple[Target, tuple[Effect, ...]]:
        """Takes one event.  An event that means nothing in this phase (late, repeated) changes nothing."""
        match self.phase, event:
            case ((TargetPhase.RESERVED | TargetPhase.COPYING), HandoverSeen()):
                return self._to(TargetPhase.PROBATION, Verify())
            case ((TargetPhase.RESERVED | TargetPhase.COPYING), Adopted(attempt=attempt)):
                return replace(self, migration=attempt), ()
            case TargetPhase.RESERVED, CopyAsked():
                return self._to(TargetPhase.COPYING, FoldAndTail())
            case ((TargetPhase.RESERVED | TargetPhase.COPYING), Released() | Expired() | Overtaken()):
                return self._to(TargetPhase.DROPPED, Drop())
            case TargetPhase.PROBATION, Verified():
                return self._to(TargetPhase.ACCEPTING, Accept())
            case TargetPhase.PROBATION, NotVerified(cause=cause, code=code):
                return self._to(TargetPhase.RETURNING, Return(cause, code))
            case TargetPhase.PROBATION, Overtaken():
                return self._to(TargetPhase.DROPPED, Drop())
            case TargetPhase.ACCEPTING, Acknowledged():
                return self._to(TargetPhase.SERVING, Serve())
            case ((TargetPhase.ACCEPTING | TargetPhase.RETURNING), Overtaken()):
                return self._to(TargetPhase.DROPPED, Drop())
            case TargetPhase.RETURNING, Acknowledged():
                return self._to(TargetPhase.DROPPED, Drop())
            case _:
                return self, ()

    def _to(self, phase: TargetPhase, *effects: Effect) -> tuple[Target, tuple[Effect, ...]]:
        return replace(self, phase=phase), effects
