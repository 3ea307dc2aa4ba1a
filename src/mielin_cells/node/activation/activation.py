"""An activation: one agent on its owner, from being loaded to being handed over or dropped."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from mielin_cells.agents.live import Cell
from mielin_cells.agents.spec import Spec
from mielin_cells.errors import described, never, storable
from mielin_cells.log.delta import StateDelta
from mielin_cells.log.lifecycle import AgentError, AgentState
from mielin_cells.log.records import Failed
from mielin_cells.node.activation.context import NodeContext
from mielin_cells.node.activation.core import Core
from mielin_cells.node.activation.effects import Effects
from mielin_cells.node.activation.inbox import Inbox
from mielin_cells.node.activation.intake import Intake
from mielin_cells.node.activation.runner import Runner
from mielin_cells.node.activation.timers import Timers
from mielin_cells.node.activation.writer import Writer

logger = logging.getLogger("mielin_cells.activation")


class Activation(Core):
    """The owner's side of one agent.  Made with a fold that is at the log's end; `open` starts it."""

    __slots__ = ("__weakref__", "_reader", "cell", "inbox", "intake", "runner", "timers")

    def __init__(self, home: NodeContext, spec: Spec, cell: Cell, writer: Writer) -> None:
        super().__init__(home, spec, writer)
        self.cell = cell
        self.inbox = Inbox(self)
        self.timers = Timers(self)
        effects = Effects(self, cell, self.timers)
        self.runner = Runner(self, cell, effects)
        self.intake = Intake(self, self.inbox, self.runner, effects, self.timers)
        self._reader: asyncio.Task[Any] | None = None

    def kick(self) -> None:
        self.intake.kick()

    def open(self) -> None:
        """Begins to serve: re-sends every committed output that the log does not show as stored, and reads the inbox."""
        self.is_open = True
        self.deliver()
        self._reader = self.start(self.inbox.read())
        self.timers.open()
        self.commit_soon()
        if self.fold.wish is not None:  # whoever owned the agent before did not come to it
            self.fulfil()

    def close(self) -> None:
        super().close()
        self.inbox.close()
        self.intake.close()
        self.timers.close()
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()

    async def failed(self, error: BaseException, *, has_started: bool = True) -> None:
        """A hook raised, or the probe failed: the agent is in ERROR until it is resumed.

        `has_started` False: `on_start` is still to run.  If the activation was lost meanwhile, the hook has not failed:
        this raises why it was lost.
        """
        if self.lost is not None:
            raise self.lost
        # A user's exception may hold what no record takes.
        message, code = described(error), storable(type(error).__name__)
        logger.error("agent %s is in ERROR: %s", self.fold.agent, message, exc_info=error)
        await self.flush()
        if self.fold.lifecycle.state is not AgentState.PAUSED:
            found = AgentError(message=message, code=code, has_started=has_started)
            await self.append(lambda head: Failed(**head, error=found))

    def seal_at_once(self) -> bool:
        """After the intake has stopped: True if no commit is in flight; what ran stays, to be sealed by the handover."""
        self._sealing = True
        return self._committing is None and self.lost is None

    async def seal_ready(self) -> None:
        """As `seal_at_once`, after waiting for the commit in flight."""
        self._sealing = True
        while self._committing is not None:
            await self._settled.wait()
        if self.lost is not None:
            raise self.lost
        self.writer.check()  # else an activation that was closed meanwhile would hand over without what was in flight

    def resume_intake(self) -> None:
        """Takes messages again.  Only right if this activation still owns the agent (rule 6)."""
        self._sealing = False
        self.intake.resume()

    def unseal(self) -> None:
        """A seal that is not in the log: its turns go back to be committed."""
        batch, self.inflight = self.inflight, None
        if batch is not None:
            if self._batch:
                raise never("not self.batch")
            self._batch = batch

    def handed_over(self) -> None:
        """The seal is in the log: its answers may leave; its outputs are sent by the next owner."""
        batch, self.inflight = self.inflight, None
        if batch is not None and batch.answers:
            self.home.begin(self._let_out(batch.answers))

    def deliver(self) -> None:
        """Delivers what the log holds and does not show as stored.  What the next commit will hold waits for it (rule 9)."""
        waiting = {(out.to, out.n) for out in self._batch.outs} if self._batch else ()
        self.outbox.push_missing([out for out in self.fold.ledger.unreleased() if (out.to, out.n) not in waiting])

    def adopt(self, delta: StateDelta | None) -> None:
        """A change that joins the next commit: an upgrade of the state made while taking the agent over."""
        self.batch.change(delta)

    @property
    def is_idle(self) -> bool:
        """True if all that was read of the inbox has taken effect, and is committed."""
        waits = self.inbox.queue or self.intake.delays.senders
        return not waits and self.inflight is None and not self._batch and self.is_open

    @property
    def has_unsealed(self) -> bool:
        """True if state or ledger is ahead of the log."""
        return self._batch is not None and (bool(self._batch) or self._batch.moved)
