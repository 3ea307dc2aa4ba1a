"""What happened to migrations, kept for questions: a bounded log of events, each with its outcome."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from mielin_cells.errors import ConfigError

ENTRIES_MAX = 10_000


class AuditEvent(Enum):
    """Values are the seed's names."""

    MIGRATION_STARTED = "MigrationStarted"
    VALIDATION_COMPLETED = "ValidationCompleted"
    SNAPSHOT_CAPTURED = "SnapshotCaptured"
    TRANSFER_STARTED = "TransferStarted"
    TRANSFER_COMPLETED = "TransferCompleted"
    VERIFICATION_COMPLETED = "VerificationCompleted"
    MIGRATION_COMPLETED = "MigrationCompleted"
    MIGRATION_FAILED = "MigrationFailed"
    ROLLBACK_STARTED = "RollbackStarted"
    ROLLBACK_COMPLETED = "RollbackCompleted"

    @property
    def is_final(self) -> bool:
        return self in (AuditEvent.MIGRATION_COMPLETED, AuditEvent.MIGRATION_FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """`timestamp` is on the clock of the node that wrote it."""

    migration_id: str
    agent_id: str
    event: AuditEvent
    timestamp: float
    source: str | None = None
    target: str | None = None
    details: str = ""
    success: bool = True


class MigrationAuditLog:
    """The newest `capacity` entries; adding and dropping cost the same whatever it holds."""

    def __init__(self, capacity: int = ENTRIES_MAX) -> None:
        """Raises `ConfigError` for a capacity below 1: such a log would drop everything and say nothing."""
        if capacity < 1:
            raise ConfigError(
                f"capacity = {capacity} is out of range; wanted: 1 or more.", field="capacity", range="1 or more"
            )
        self.capacity = capacity
        self._entries: deque[AuditEntry] = deque()
        self._by_migration: dict[str, deque[AuditEntry]] = {}
        self._by_agent: dict[str, deque[AuditEntry]] = {}

    def add(
        self,
        migration_id: str,
        agent_id: str,
        event: AuditEvent,
        *,
        now: float,
        source: str | None = None,
        target: str | None = None,
        details: str = "",
        success: bool = True,
    ) -> AuditEntry:
        """Called when it has happened, with what came of it."""
        entry = AuditEntry(
            migration_id=migration_id,
            agent_id=agent_id,
            event=event,
            timestamp=now,
            source=source,
            target=target,
            details=details,
            success=success,
        )
        if len(self._entries) == self.capacity:
            self._drop_oldest()
        self._entries.append(entry)
        self._by_migration.setdefault(migration_id, deque()).append(entry)
        self._by_agent.setdefault(agent_id, deque()).append(entry)
        return entry

    def _drop_oldest(self) -> None:
        oldest = self._entries.popleft()
        for index, key in ((self._by_migration, oldest.migration_id), (self._by_agent, oldest.agent_id)):
            index[key].popleft()  # an index holds its entries in the order of the log, so this one is its first
            if not index[key]:
                del index[key]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[AuditEntry]:
        return iter(tuple(self._entries))

    def by_migration(self, migration_id: str) -> list[AuditEntry]:
        return list(self._by_migration.get(migration_id, ()))

    def by_agent(self, agent_id: str) -> list[AuditEntry]:
        return list(self._by_agent.get(agent_id, ()))

    def by_event(self, event: AuditEvent) -> list[AuditEntry]:
        return [entry for entry in self._entries if entry.event is event]

    def failures(self) -> list[AuditEntry]:
        """Whatever did not succeed, also on the way to a migration that did in the end."""
        return [entry for entry in self._entries if not entry.success]

    def failed_migrations(self) -> list[AuditEntry]:
        """The ends that were failures."""
        return [entry for entry in self._entries if entry.event is AuditEvent.MIGRATION_FAILED]

    def between(self, first: float, last: float) -> list[AuditEntry]:
        """Both ends included."""
        return [entry for entry in self._entries if first <= entry.timestamp <= last]

    def clear(self) -> None:
        self._entries.clear()
        self._by_migration.clear()
        self._by_agent.clear()
