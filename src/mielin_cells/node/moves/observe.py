"""Reports a migration as it happens, in the seed's words: audit entries with their outcome, and progress events.

Nothing here can harm a move: events are delivered from the event loop beside it, and a watcher that raises is only logged.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from mielin_cells.agents.reports import MigrationReport
from mielin_cells.migration.audit import AuditEvent
from mielin_cells.migration.progress import MigrationPhase, MultiCallback, ProgressCallback, ProgressTracker
from mielin_cells.migration.validation import MigrationValidator

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations

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
"""The audit event that an attempt which ends in this phase has failed to reach."""


class Watchers:
    """Of one node: its validator with the audit, and the callbacks that follow its migrations."""

    def __init__(self, activations: Activations, validator: MigrationValidator) -> None:
        self.activations = activations
        self.validator = validator
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
        """`is_new` is False if another node has already noted the beginning."""
        self._watchers = watchers
        self._activations = watchers.activations
        self._migration = migration
        self._agent = agent
        self._total = state_bytes
        self._tracker = ProgressTracker(migration, agent, total_bytes=state_bytes, now=self._activations.clock())
        if is_new:
            self._note(AuditEvent.MIGRATION_STARTED)

    def entered(self, target: str, phase: MigrationPhase, read: int) -> None:
        """Notes that an attempt has reached a phase, and how many bytes its target has read."""
        tracker, now = self._tracker, self._activations.clock()
        match phase:
            case MigrationPhase.COPYING:
                self._note(AuditEvent.VALIDATION_COMPLETED, target=target)
                self._note(AuditEvent.TRANSFER_STARTED, target=target)
                tracker.capturing(100)
            case MigrationPhase.PAUSED:
                tracker.transferred(max(read, self._total), max(read, self._total), now=now)
                self._note(AuditEvent.TRANSFER_COMPLETED, target=target, details=f"{read} bytes")
            case MigrationPhase.VERIFYING:
                tracker.validating("digest, on_arrive, healthy")
            case MigrationPhase.COMPLETED:
                self._note(AuditEvent.VERIFICATION_COMPLETED, target=target)
                tracker.restoring(100)
            case _:
                pass
        self._deliver()

    def failed(self, target: str, phase: MigrationPhase, reason: str) -> None:
        """Notes that an attempt ended in `phase`: the agent goes back, or never left."""
        self._note(FAILED_IN[phase], target=target, details=reason, success=False)

    def ended(self, report: MigrationReport) -> None:
        details, now = "" if report.ok else f"{report.outcome}: {report.reason}", self._activations.clock()
        self._watchers.validator.complete(
            self._migration, self._agent, success=report.ok, now=now, details=details, source=self._activations.name,
            target=report.target or None,
        )  # fmt: skip
        if report.ok:
            self._tracker.transferred(self._total, self._total, now=now)
            self._tracker.completed(now=now)
        else:
            self._tracker.failed(details)
        self._deliver()

    def _note(self, event: AuditEvent, *, target: str = "", details: str = "", success: bool = True) -> None:
        self._watchers.validator.audit.add(
            self._migration, self._agent, event, now=self._activations.clock(), source=self._activations.name, target=target or None,
            details=details, success=success,
        )  # fmt: skip

    def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        for event in self._tracker.take():
            loop.call_soon(self._watchers.callbacks, event)
