"""Phases of a migration as users see them."""

from __future__ import annotations

from enum import Enum


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
