"""Stateful agents that are durable, addressable, and movable while they work.

A map of the package; each room may import only rooms above it:
  log/         what an agent is: its records, and the fold that makes them a state.  Pure: no I/O, no clock, no chance.
  agents/      what authors write: classes, handlers, tables, buffers, steps, timers.  Pure.
  migration/   how a move goes, and what follows when it fails.  Pure.
  substrate/   what the outside world must offer, `Log` and `Wire`, and the adapters for SQLite and NATS.
  tasks/       supervised loops, back-off, and work that is done together.
  store/       reading agents, journals and letters through the ports.
  rpc/         what clients and nodes ask of each other.
  membership/  which nodes there are, which of them live, and who has room.
  client/      calls from outside, and the operator's commands.
  node/        one node: activations of agents, moves, ownership.
  deployment/  `local` and `connect`, node processes, configuration.
  testing/     the public test kit: conformance suite, simulator, virtual-time loop.
  demo/        the main job on real data.
  cli/         the `mielin` command.
"""

from typing import TYPE_CHECKING

from mielin_cells.agents.agent import Agent, upgrade
from mielin_cells.agents.buffer import Buffer
from mielin_cells.agents.cluster import Cluster
from mielin_cells.agents.context import this
from mielin_cells.agents.handler import handler
from mielin_cells.agents.reports import AgentInfo, DrainReport, MigrationReport, NodeInfo, RollbackReport
from mielin_cells.agents.retry import Retry
from mielin_cells.agents.step import step
from mielin_cells.agents.table import Table
from mielin_cells.agents.timer import CatchUp, after, cancel, every
from mielin_cells.deployment.connect import connect
from mielin_cells.deployment.local import local
from mielin_cells.errors import *  # noqa: F403 - every public exception, listed in errors.__all__
from mielin_cells.errors import AlreadySpawned
from mielin_cells.errors import __all__ as _errors
from mielin_cells.log.ids import AgentId
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.settings import Settings

if TYPE_CHECKING:
    from mielin_cells.log.policy import Policy
    from mielin_cells.migration.admission import AgentRequirements, CompatibilityStatus, NodeCapabilities
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
    from mielin_cells.migration.validation import (
        Manifest,
        MigrationValidator,
        RollbackInfo,
        StateVerifier,
        VerificationResult,
    )

__version__ = "0.2.0"

_LAZY = {
    "AgentRequirements": "migration.admission",
    "AuditEntry": "migration.audit",
    "AuditEvent": "migration.audit",
    "CollectingCallback": "migration.progress",
    "CompatibilityStatus": "migration.admission",
    "LoggingCallback": "migration.progress",
    "Manifest": "migration.validation",
    "MigrationAuditLog": "migration.audit",
    "MigrationErrorType": "migration.failure",
    "MigrationFailure": "migration.failure",
    "MigrationRecoveryManager": "migration.manager",
    "MigrationValidator": "migration.validation",
    "MultiCallback": "migration.progress",
    "NodeCapabilities": "migration.admission",
    "Policy": "log.policy",
    "ProgressEvent": "migration.progress",
    "ProgressPhase": "migration.progress",
    "ProgressTracker": "migration.progress",
    "RecoveryAttempt": "migration.recovery",
    "RecoveryConfig": "migration.recovery",
    "RecoveryOutcome": "migration.case",
    "RecoveryStrategy": "migration.recovery",
    "RollbackInfo": "migration.validation",
    "StateVerifier": "migration.validation",
    "VerificationResult": "migration.validation",
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
