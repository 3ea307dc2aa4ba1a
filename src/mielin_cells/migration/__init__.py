"""How a move goes and what follows when it fails.  Pure: no I/O, no clock, no chance.

The public names of this package are the vocabulary of recovery (docs/recovery.md).  Each is imported when it is first used, because
most programs name none of them.  `MigrationError` here is a value that describes a failure; the exception is
`mielin_cells.MigrationError`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mielin_cells.migration.admission import AgentRequirements, CompatibilityStatus, NodeCapabilities
    from mielin_cells.migration.audit import AuditEntry, AuditEvent, MigrationAuditLog
    from mielin_cells.migration.case import RecoveryOutcome
    from mielin_cells.migration.failure import MigrationError, MigrationErrorType
    from mielin_cells.migration.manager import MigrationRecoveryManager
    from mielin_cells.migration.progress import (
        CollectingCallback,
        LoggingCallback,
        MultiCallback,
        ProgressEvent,
        ProgressPhase,
        ProgressTracker,
    )
    from mielin_cells.migration.recovery import RecoveryAttempt, RecoveryConfig, RecoveryStrategy
    from mielin_cells.migration.validation import (
        Manifest,
        MigrationValidator,
        RollbackInfo,
        StateVerifier,
        VerificationResult,
    )

_MODULES = {
    "admission": ("AgentRequirements", "CompatibilityStatus", "NodeCapabilities"),
    "audit": ("AuditEntry", "AuditEvent", "MigrationAuditLog"),
    "case": ("RecoveryOutcome",),
    "failure": ("MigrationError", "MigrationErrorType"),
    "manager": ("MigrationRecoveryManager",),
    "progress": (
        "CollectingCallback", "LoggingCallback", "MultiCallback", "ProgressEvent", "ProgressPhase", "ProgressTracker",
    ),
    "recovery": ("RecoveryAttempt", "RecoveryConfig", "RecoveryStrategy"),
    "validation": ("Manifest", "MigrationValidator", "RollbackInfo", "StateVerifier", "VerificationResult"),
}  # fmt: skip


def __getattr__(name: str) -> object:
    from importlib import import_module

    for module, names in _MODULES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AgentRequirements", "AuditEntry", "AuditEvent", "CollectingCallback", "CompatibilityStatus", "LoggingCallback", "Manifest",
    "MigrationAuditLog", "MigrationError", "MigrationErrorType", "MigrationRecoveryManager", "MigrationValidator",
    "MultiCallback", "NodeCapabilities", "ProgressEvent", "ProgressPhase", "ProgressTracker", "RecoveryAttempt",
    "RecoveryConfig", "RecoveryOutcome", "RecoveryStrategy", "RollbackInfo", "StateVerifier", "VerificationResult",
]  # fmt: skip
