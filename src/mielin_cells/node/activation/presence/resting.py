"""Whether an activation is at rest, and may leave memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from mielin_cells.agents.spec import Spec
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.node.activation.context import NodeContext
from mielin_cells.node.activation.core import Core
from mielin_cells.node.activation.intake import Intake
from mielin_cells.node.activation.priorities.inboxes import Inboxes
from mielin_cells.node.activation.runner import Runner
from mielin_cells.node.activation.writer import Writer

NO_REST: tuple[int, int, float] = (-1, -1, 0.0)


class Resting(Core):
    """The part of an activation that says what is under way."""

    __slots__ = ("_ending", "inbox", "intake", "keeps", "rested", "runner")

    inbox: Inboxes
    intake: Intake
    runner: Runner
    _ending: asyncio.Task[Any] | None

    def __init__(self, home: NodeContext, spec: Spec, writer: Writer) -> None:
        super().__init__(home, spec, writer)
        self.keeps = 0
        """How many callers want the agent to stay in memory."""
        self.rested = NO_REST
        """What it had done when it was looked at, and since when it has done nothing more."""

    @property
    def is_idle(self) -> bool:
        """True if every message that was read from the inbox has taken effect and is committed."""
        waits = not self.inbox.is_empty or self.intake.delays.senders
        return not waits and self.inflight is None and not self._batch and self.is_open

    @property
    def has_news(self) -> bool:
        """True if the log does not hold all that this activation knows."""
        return self.has_unsealed or self.outbox.has_news

    @property
    def has_to_stay(self) -> bool:
        """True if the agent stays in memory although nothing may be under way: nothing need be stopped to know that."""
        fold = self.fold
        runs = fold.may_run and fold.lifecycle.state is AgentState.RUNNING
        has_topics = bool(fold.ledger.topics and fold.ledger.topics.by_key)
        has_streams = self.ends is not None and (self.ends.is_busy or self._ending is None or not self._ending.done())
        has_orders = fold.ledger.family is not None and fold.ledger.family.has_orders
        return not runs or bool(fold.ledger.replays) or has_topics or has_streams or has_orders

    @property
    def may_sleep(self) -> bool:
        """True if nothing is under way and the log holds everything.  The caller has stopped the intake, and nobody else has."""
        fold = self.fold
        is_between_turns = fold.turn is None and fold.wish is None and self.runner.turn is None
        is_stored = not self.has_news and self.inflight is None and self._committing is None and not self.writer.is_busy
        is_quiet = (
            self.inbox.are_done
            and not self.intake.delays.senders
            and not self.outbox.is_busy
            and not self.snapshots.is_busy
        )
        is_listed = self.attributes is None or not self.attributes.is_busy
        is_kept = self.keeps > 0 or self.stops > 1 or self._answers is not None
        is_kept = is_kept or (self.desk is not None and not self.desk.may_sleep)
        is_wanted = self.has_to_stay or not is_listed or is_kept
        return self.is_open and is_between_turns and is_stored and is_quiet and not is_wanted

    async def settled(self) -> None:
        """Returns when no commit is being made."""
        if (committing := self._committing) is not None:
            await asyncio.wait((committing,))

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps the agent in memory for the length of a block that holds on to this activation."""
        self.keeps += 1
        try:
            yield
        finally:
            self.keeps -= 1

    @property
    def has_unsealed(self) -> bool:
        """True if state or ledger is ahead of the log."""
        return self._batch is not None and (bool(self._batch) or self._batch.moved)
