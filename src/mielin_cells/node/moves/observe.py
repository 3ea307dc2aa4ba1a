"""What a migration does, told as it happens in the seed's words: audit entries with their outcome, and progress events.

Nothing here can harm a move: events are delivered from the event loop beside it, and a watcher that raises is only logged.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from mielin_cells.agents.reports import MigrationReport
from mielin_cells.migration.audit import AuditEvent, MigrationAuditLog
from mielin_cells.migration.phases import MigrationPhase
from mielin_cells.migration.progress import MultiCallback, ProgressCallback, ProgressTracker

if TYPE_CHECKING:
    from mielin_cells.node.activation.activations import Activations
    from mielin_cells.node.moves.source import Move

logger = logging.getLogger("mielin_cells.migration")

FAILED_IN = {
    MigrationPhase.PLANNED: AuditEvent.VALIDATION_COMPLETED,
    MigrationPhase.PREPARING: AuditEvent.VALIDATION_COMPLETED,
    MigrationPhase.COPYING: AuditEvent.TRANSFER_COMPLETED,
    MigrationPhase.PAUSED: AuditEvent.SNAPSHOT_CAPTURED,
    MigrationPhase.HANDING_OVER: AuditEvent.SNAPSHOT_CAPTURED,
    MigrationPhase.IN_DOUBT: AuditEvent.SNAPSHOT_CAPTURED,
    MigrationPhase.VERIFYING: AuditEvent.VERIFICATION_COMPLETED,
}
"""What has not come about if an attempt ends in a phase."""


class Watchers:
    """Of one node: its audit, and whoever wants to be told."""

    def __init__(self, activations: Activations) -> None:
        self.activations = activations
        self.audit = MigrationAuditLog()
        self.callbacks = MultiCallback([], self._broken)

    def add(self, callback: ProgressCallback) -> None:
        self.callbacks.add(callback)

    def _broken(self, error: Exception) -> None:
        logger.error("node %s: a progress callback raised: %r", self.activations.name, error, exc_info=error)


class Observer:
    """Of one migration, on its source."""

    def __init__(
        self, watchers: Watchers, migration: str, agent: str, state_bytes: int, *, is_new: bool = True
    ) -> None:
        """`is_new` False: another node has told that it began."""
        self._watchers = watchers
        self._activations = watchers.activations
        self._migration = migration
        self._agent = agent
        self._total = state_bytes
        self._tracker = ProgressTracker(migration, agent, total_bytes=state_bytes, now=self._activations.clock())
        if is_new:
            self._note(AuditEvent.MIGRATION_STARTED)

    def entered(self, move: Move, phase: MigrationPhase) -> None:
        """An attempt has come to a phase."""
        tracker, now, read = self._tracker, self._activations.clock(), move.bytes_read
        match phase:
            case MigrationPhase.COPYING:
                self._note(AuditEvent.VALIDATION_COMPLETED, target=move.target)
                self._note(AuditEvent.TRANSFER_STARTED, target=move.target)
                tracker.capturing(100)
            case MigrationPhase.PAUSED:
                tracker.transferred(max(read, self._total), max(read, self._total), now=now)
                self._note(AuditEvent.TRANSFER_COMPLETED, target=move.target, details=f"{read} bytes")
            case MigrationPhase.VERIFYING:
                self._note(AuditEvent.SNAPSHOT_CAPTURED, target=move.target)
                tracker.validating("digest, on_arrive, healthy")
            case MigrationPhase.COMPLETED:
                self._note(AuditEvent.VERIFICATION_COMPLETED, target=move.target)
                tracker.restoring(100)
            case _:
                pass
        self._deliver()

    def failed(self, move: Move, phase: MigrationPhase, reason: str) -> None:
        """An attempt ended in `phase`, and the agent is back, or never left."""
        self._note(FAILED_IN[phase], target=move.target, details=reason, success=False)
        if phase in (
            MigrationPhase.PAUSED,
            MigrationPhase.HANDING_OVER,
            MigrationPhase.IN_DOUBT,
            MigrationPhase.VERIFYING,
        ):
            self._note(AuditEvent.ROLLBACK_STARTED, target=move.target)
            details = ", ".join(f"{name} {value}" for name, value in move.restored.items())
            self._note(AuditEvent.ROLLBACK_COMPLETED, target=move.target, details=details)

    def ended(self, report: MigrationReport) -> None:
        if report.ok:
            self._note(AuditEvent.MIGRATION_COMPLETED, target=report.target)
            self._tracker.transferred(self._total, self._total, now=self._activations.clock())
            self._tracker.completed(now=self._activations.clock())
        else:
            details = f"{report.outcome}: {report.reason}"
            self._note(AuditEvent.MIGRATION_FAILED, target=report.target, details=details, success=False)
            self._tracker.failed(details)
        self._deliver()

    def _note(self, event: AuditEvent, *, target: str = "", details: str = "", success: bool = True) -> None:
        self._watchers.audit.add(
            self._migration, self._agent, event, now=self._activations.clock(), source=self._activations.name, target=target or None,
            details=details, success=success,
        )  # fmt: skip

    def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        for event in self._tracker.take():
            loop.call_soon(self._watchers.callbacks, event)
