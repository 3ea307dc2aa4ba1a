"""Stateful agents that are durable, addressable, and movable while they work.

A map of the package:
  core/        what an agent is: classes, state, records, the fold.  Pure: no I/O, no clock, no chance.
  migration/   how a move goes: the source's and the target's machine.  Pure.
  substrate/   what the outside world must offer: `Log` and `Wire`, and their adapters.
  node/        the only driver: hosts agents, moves them, and the client.
  testing/     public kit: conformance suite, simulator, virtual-time loop.
  cli/         the `mielin` command.
"""

from typing import TYPE_CHECKING

from mielin_cells.core.agent import Agent, upgrade
from mielin_cells.core.buffer import Buffer
from mielin_cells.core.calls import this
from mielin_cells.core.cluster import AgentInfo, Cluster, DrainReport, MigrationReport, NodeInfo, RollbackReport
from mielin_cells.core.handler import handler
from mielin_cells.core.ids import AgentId
from mielin_cells.core.lifecycle import AgentState
from mielin_cells.core.settings import Settings
from mielin_cells.core.step import Retry, step
from mielin_cells.core.table import Table
from mielin_cells.core.timer import CatchUp, after, cancel, every
from mielin_cells.errors import *  # noqa: F403 - every public exception, listed in errors.__all__
from mielin_cells.errors import AlreadySpawned
from mielin_cells.errors import __all__ as _errors
from mielin_cells.node.local import local
from mielin_cells.node.remote import connect

if TYPE_CHECKING:
    from mielin_cells.core.policy import Policy
    from mielin_cells.migration.audit import AuditEntry, AuditEvent, MigrationAuditLog
    from mielin_cells.migration.case import RecoveryOutcome
    from mielin_cells.migration.failure import MigrationError as MigrationFailure
    from mielin_cells.migration.failure import MigrationErrorType
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
    from mielin_cells.migration.rollback import RollbackInfo
    from mielin_cells.migration.validation import (
        AgentRequirements,
        CompatibilityStatus,
        MigrationValidator,
        NodeCapabilities,
    )
    from mielin_cells.migration.verification import Manifest, StateVerifier, VerificationResult

__version__ = "0.1.0"

_LAZY = {
    "AgentRequirements": "migration.validation",
    "AuditEntry": "migration.audit",
    "AuditEvent": "migration.audit",
    "CollectingCallback": "migration.progress",
    "CompatibilityStatus": "migration.validation",
    "LoggingCallback": "migration.progress",
    "Manifest": "migration.verification",
    "MigrationAuditLog": "migration.audit",
    "MigrationErrorType": "migration.failure",
    "MigrationFailure": "migration.failure",
    "MigrationRecoveryManager": "migration.manager",
    "MigrationValidator": "migration.validation",
    "MultiCallback": "migration.progress",
    "NodeCapabilities": "migration.validation",
    "Policy": "core.policy",
    "ProgressEvent": "migration.progress",
    "ProgressPhase": "migration.progress",
    "ProgressTracker": "migration.progress",
    "RecoveryAttempt": "migration.recovery",
    "RecoveryConfig": "migration.recovery",
    "RecoveryOutcome": "migration.case",
    "RecoveryStrategy": "migration.recovery",
    "RollbackInfo": "migration.rollback",
    "StateVerifier": "migration.verification",
    "VerificationResult": "migration.verification",
}
"""The vocabulary of recovery, imported when it is first used: most programs never name it, and it takes 30 ms."""


def __getattr__(name: str) -> object:
    place = _LAZY.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    seeds = {"MigrationFailure": "MigrationError"}  # which is an exception here; a failure is a value
    value = globals()[name] = getattr(import_module(f"{__name__}.{place}"), seeds.get(name, name))
    return value


__all__ = [  # noqa: PLE0604 - the errors' names are strings, which the check cannot see
    "Agent",
    "AgentId",
    "AgentInfo",
    "AgentRequirements",
    "AgentState",
    "AlreadySpawned",
    "AuditEntry",
    "AuditEvent",
    "Buffer",
    "CatchUp",
    "Cluster",
    "CollectingCallback",
    "CompatibilityStatus",
    "DrainReport",
    "LoggingCallback",
    "Manifest",
    "MigrationAuditLog",
    "MigrationErrorType",
    "MigrationFailure",
    "MigrationRecoveryManager",
    "MigrationReport",
    "MigrationValidator",
    "MultiCallback",
    "NodeCapabilities",
    "NodeInfo",
    "Policy",
    "ProgressEvent",
    "ProgressPhase",
    "ProgressTracker",
    "RecoveryAttempt",
    "RecoveryConfig",
    "RecoveryOutcome",
    "RecoveryStrategy",
    "Retry",
    "RollbackInfo",
    "RollbackReport",
    "Settings",
    "StateVerifier",
    "Table",
    "VerificationResult",
    "after",
    "cancel",
    "connect",
    "every",
    "handler",
    "local",
    "step",
    "this",
    "upgrade",
    *_errors,
]
