"""Wakes a node's open migrations when something is due: the recovery manager decides what, and one alarm wakes them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from mielin_cells.errors import RecoveryNotDue
from mielin_cells.migration.case import RecoveryOutcome, Ticket
from mielin_cells.migration.manager import MigrationRecoveryManager

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations


class Scheduled(Protocol):
    """An open migration, as far as the agenda steers it."""

    @property
    def agent(self) -> str: ...

    def begin(self, ticket: Ticket) -> None:
        """The attempt that was waited for is due."""

    def run_out(self) -> None:
        """The time of the attempt is over."""


class Agenda:
    """Of one node.  `open` holds its open migrations by agent; others add to it and remove from it."""

    def __init__(
        self, activations: Activations, manager: MigrationRecoveryManager, open_: Mapping[str, Scheduled]
    ) -> None:
        self.activations = activations
        self.manager = manager
        self._open = open_
        self._alarm: asyncio.TimerHandle | None = None

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def settle(self, migration: Scheduled, outcome: RecoveryOutcome) -> None:
        """Ends the migration in the manager, and frees its place with the target."""
        if self._open.get(migration.agent) is migration:
            self.manager.settle(migration.agent, self.activations.clock(), outcome)
            self.keep_time()

    def keep_time(self) -> None:
        """Sets the alarm for what the manager has next."""
        self.close()
        wake = self.manager.next_wake()
        if wake is not None and not self.activations.is_stopping:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(max(0.0, wake - self.activations.clock()), self._wake)

    def _wake(self) -> None:
        manager, now = self.manager, self.activations.clock()
        if self.activations.is_stopping:
            return
        for ticket in manager.expire(now):
            self._open[ticket.agent_id].run_out()
        for agent in manager.get_ready_for_retry(now):
            with contextlib.suppress(RecoveryNotDue):  # its target has enough to do: it is due again later
                self._open[agent].begin(manager.begin(agent, now))
        self.keep_time()
