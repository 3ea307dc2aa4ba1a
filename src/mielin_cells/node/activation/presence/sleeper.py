"""An agent of this node that has left memory: what is left of it until a message, its next timer or an order wakes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import NamedTuple

from mielin_cells.agents.reports import AgentInfo
from mielin_cells.log.fold import Fold
from mielin_cells.log.policy import Policy
from mielin_cells.substrate.ports import Tail
from mielin_cells.tasks.signal import Signal


class Owned(NamedTuple):
    """An agent of this node, in memory or not, for those who plan for it."""

    agent: str
    cls: str
    version: int
    epoch: int
    size_bytes: int
    policy: Policy
    waiting: int

    @classmethod
    def of(cls, one: Fold | Sleeper, waiting: int) -> Owned:
        return cls(one.agent, one.cls, one.version, one.epoch, one.size_bytes, one.policy, waiting)


NO_KIN = ("", 0)


class Sleeper:
    """Made from an activation that may sleep (`Activation.may_sleep`), right before that is closed.

    It has the names of a fold for what others ask of an agent that they plan for.  A node has 100,000 of them, so it has no
    state, no ledger and no task.
    """

    __slots__ = (
        "_alarm", "_others", "_stirred", "_tail", "_wake", "agent", "cls", "copies", "cursor", "cursors", "dead", "dues", "epoch",
        "is_stirring", "kin", "policy", "seq", "size_bytes", "version", "woken", "written",
    )  # fmt: skip

    def __init__(self, fold: Fold, dues: dict[str, float], copies: int, wake: Callable[[Sleeper], None]) -> None:
        self.agent = fold.agent
        self.cls = fold.cls
        self.version = fold.version
        self.epoch = fold.epoch
        self.seq = fold.seq
        """The last record of its log.  If the log ends there, nobody has owned the agent since."""
        self.cursor = fold.ledger.cursor
        """Up to here its inbox is taken, and the tail goes on behind it."""
        places = fold.ledger.inboxes
        self.cursors = tuple((one, place.cursor) for one, place in places.items()) if places else ()
        """The same of its inboxes of other priorities, if there are any."""
        self.size_bytes = fold.size_bytes
        self.policy = fold.policy
        self.dead = len(fold.ledger.dead)
        self.written = fold.written
        family = fold.ledger.family
        self.kin = NO_KIN if family is None else (family.of, len(family.children))
        """Its parent, and how many children it has."""
        self.copies = copies
        """How many nodes are to keep a copy of it."""
        self.dues = dues
        """By timer, when it is due by the loop's clock."""
        self.woken = Signal()
        """Set when the agent runs here again, or is no agent of this node any more."""
        self.is_stirring = False
        self._wake = wake
        self._tail: Tail | None = None
        self._others: tuple[Tail, ...] = ()
        self._alarm: asyncio.TimerHandle | None = None
        self._stirred: Context | None = None

    def begin(self, tail: Tail | None, others: Sequence[Tail], due: float | None, context: Context) -> None:
        """Takes over the inboxes' tails, which must call `stir`, and the next timer.  What wakes the agent runs in `context`.

        `others`: of the inboxes of other priorities that are in use; they are opened anew when the agent wakes.
        """
        self._tail, self._others, self._stirred = tail, tuple(others), context
        if due is not None:
            self._alarm = asyncio.get_running_loop().call_at(due, self.stir, context=context)

    def heard(self) -> None:
        """A message has come.  It may be called in any context."""
        asyncio.get_running_loop().call_soon(self.stir, context=self._stirred)

    def stir(self) -> None:
        """Has the agent wake up; once is enough."""
        if not self.is_stirring:
            self.is_stirring = True
            self._wake(self)

    def take_tail(self, cursor: int) -> Tail | None:
        """The tail of the inbox, for an activation that goes on behind `cursor`; None if the tail is at another place."""
        if cursor != self.cursor:
            return None
        tail, self._tail = self._tail, None
        return tail

    def end(self) -> None:
        """The agent runs here again, or is no agent of this node any more."""
        self.is_stirring = True
        if self._alarm is not None:
            self._alarm.cancel()
        if self._tail is not None:
            self._tail.close()
        for tail in self._others:
            tail.close()
        self._alarm, self._tail, self._others = None, None, ()
        self.woken.set()

    def info(self, node: str, standby: list[str]) -> AgentInfo:
        return AgentInfo(
            id=self.agent, cls=self.cls, version=self.version, node=node, epoch=self.epoch, state="Running", waiting=0,
            bytes=self.size_bytes, dead=self.dead, policy=self.policy, standby=standby, at=self.written, is_idle=True,
            parent=self.kin[0], children=self.kin[1],
        )  # fmt: skip
