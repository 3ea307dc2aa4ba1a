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

This module has what an author needs first.  All exceptions are in `mielin_cells.errors`, the vocabulary of recovery is in
`mielin_cells.migration`, and the kit for tests is in `mielin_cells.testing`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from mielin_cells import errors, tracing
from mielin_cells.agents.agent import Agent, upgrade
from mielin_cells.agents.buffer import Buffer
from mielin_cells.agents.cluster import Cluster
from mielin_cells.agents.context import this, trace
from mielin_cells.agents.family.calls import child, link, monitor, spawn, unmonitor
from mielin_cells.agents.finding.calls import attributes
from mielin_cells.agents.finding.where import attr
from mielin_cells.agents.handler import handler
from mielin_cells.agents.reports import AgentInfo, DrainReport, MigrationReport, NodeInfo, RollbackReport
from mielin_cells.agents.retry import Retry
from mielin_cells.agents.shared.stream import Stream
from mielin_cells.agents.step import emit, step
from mielin_cells.agents.table import Table
from mielin_cells.agents.timer import CatchUp, after, cancel, cron, every
from mielin_cells.agents.topics.calls import publish, subscribe, unsubscribe
from mielin_cells.agents.topics.messages import Published, TopicGap
from mielin_cells.agents.waits.external import External, external
from mielin_cells.deployment.connect import connect
from mielin_cells.deployment.local import local
from mielin_cells.errors import (
    AgentTerminated,
    AskTimeout,
    BadArguments,
    CellError,
    ConfigError,
    FieldRefused,
    HandlerFailed,
    InboxFull,
    LostError,
    MigrationError,
    MigrationFailed,
    MigrationRefused,
    NoSuchAgent,
    NotInTurn,
    RetryError,
    StepFailed,
    UsageError,
)
from mielin_cells.log.family.supervise import Supervision
from mielin_cells.log.family.tree import Down
from mielin_cells.log.ids import AgentId
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.log.policy import Policy
from mielin_cells.settings import Settings

__version__ = "0.2.0"

__all__ = [
    "Agent", "AgentId", "AgentInfo", "AgentState", "AgentTerminated", "AskTimeout", "BadArguments", "Buffer", "CatchUp",
    "CellError", "Cluster", "ConfigError", "Down", "DrainReport", "External", "FieldRefused", "HandlerFailed", "InboxFull",
    "LostError", "MigrationError", "MigrationFailed", "MigrationRefused", "MigrationReport", "NoSuchAgent", "NodeInfo",
    "NotInTurn", "Policy", "Published", "Retry", "RetryError", "RollbackReport", "Settings", "StepFailed", "Stream",
    "Supervision", "Table", "TopicGap", "UsageError", "after", "attr", "attributes", "cancel", "child", "connect", "cron", "emit",
    "errors", "every", "external", "handler", "link", "local", "monitor", "publish", "spawn", "step", "subscribe", "this", "trace",
    "tracing",
    "unmonitor", "unsubscribe", "upgrade",
]  # fmt: skip

if not TYPE_CHECKING:  # type checkers are to see, and to suggest, the names above alone

    def __getattr__(name: str) -> object:
        """Programs for 0.1 found every exception, and the vocabulary of recovery, in this module."""
        if name[:1].isupper():
            for module in (errors, import_module("mielin_cells.migration")):
                if name in module.__all__:
                    return getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
