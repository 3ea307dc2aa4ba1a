"""Messages that wait to be run again after their turns failed, while those of other senders go on.

Later messages of a sender wait behind its first one, so the order of each sender is kept.  The entries that wait are `held` positions
of the ledger and part of each commit, so a move or a crash loses none.  The next owner runs them first, and counts runs anew.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum
from typing import Protocol

from mielin_cells.log.fold import Fold
from mielin_cells.log.message import Mail
from mielin_cells.log.turns.replays import next_replay
from mielin_cells.node.activation.core import Core
from mielin_cells.node.activation.inbox import Arrival
from mielin_cells.tasks.supervision import Backoff


class Fate(Enum):
    """The result of a message whose turn did not end at its first step."""

    TAKEN = "taken"
    PUT_OFF = "put off"
    """It runs again later, and messages of other senders continue."""
    STOPPED = "stopped"
    """It stays first: the intake was stopped, or the agent was lost."""


def stays_first(fold: Fold, sender: str, n: int) -> bool:
    """True if no other message may overtake one that failed.

    A run that goes on behind recorded asks, steps and parts must find the state in which they were made (rule 13).  So must a message
    that is taken again after an undo, because what it sent stands (rule 17).  While claims count against the first message, no other
    message that ends the process may come between (rule 5).
    """
    opened = fold.turn
    return (
        fold.claims > 0
        or bool(fold.ledger.replays)
        or (opened is not None and (opened.sender, opened.n) == (sender, n) and opened.is_bound)
    )


def turn_is_open(fold: Fold) -> bool:
    """True while a turn with recorded asks, steps or parts has not taken effect: no message may come before its own."""
    opened = fold.turn
    return opened is not None and opened.is_bound and not fold.ledger.has_taken(opened.sender, opened.n)


class Intake(Protocol):
    def kick(self) -> None:
        """Notes that a message has waited long enough."""


class _Sender:
    """A sender whose first message waits, or is being run again."""

    __slots__ = ("arrivals", "backoff", "n", "passes", "ran", "task", "why")

    def __init__(self, first: Arrival) -> None:
        self.arrivals = deque((first,))
        self.n = 0
        """The message that failed last."""
        self.ran = 0
        self.passes = False
        """True if the store was at fault."""
        self.why = ""
        """A sentence for people about the last failure."""
        self.backoff = Backoff()
        self.task: asyncio.Task[None] | None = None


NO_SENDERS: dict[str, _Sender] = {}
"""Shared by agents that have never put a message off.  It stays empty."""


class Delays:
    """The messages of one agent that are put off."""

    __slots__ = ("_core", "_intake", "count", "due", "early", "senders")

    def __init__(self, core: Core, intake: Intake) -> None:
        self._core = core
        self._intake = intake
        self.senders = NO_SENDERS
        self.count = 0
        """How often a message was put off."""
        self.due: tuple[str, ...] = ()
        """Senders whose first message has waited long enough; the intake takes these messages next."""
        self.early: list[Arrival] | tuple[()] = ()
        """After an undo: entries that wait for others which had been taken before them."""

    def close(self) -> None:
        for sender in self.senders.values():
            if sender.task is not None:
                sender.task.cancel()

    def is_behind(self, arrival: Arrival, mail: Mail) -> bool:
        """True if an earlier entry of its sender waits."""
        sender = self.senders.get(mail.sender)
        return sender is not None and sender.arrivals[0] is not arrival

    def queue(self, arrival: Arrival, mail: Mail) -> None:
        """Puts off the inbox's first entry, which is behind another of its sender."""
        arrival.inbox.put_off(arrival, self._core.batch)
        self.senders[mail.sender].arrivals.append(arrival)

    def times_run(self, sender: str, n: int) -> int:
        """How often this message has run and failed by its own fault."""
        first = self.senders.get(sender)
        return first.ran if first is not None and first.n == n else 0

    def why(self, sender: str) -> str:
        """Why the sender's message that is to be run again failed; "" if there is none."""
        first = self.senders.get(sender)
        return first.why if first is not None else ""

    def put_off(self, arrival: Arrival, mail: Mail, n: int, ran: int, passes: bool, why: str) -> None:
        """Message `n` of the inbox's first entry has failed, `ran` times by its own fault, and is to be run again later.

        `passes`: this time it was the store's fault.
        """
        sender = self.senders.get(mail.sender)
        if sender is None:
            if self.senders is NO_SENDERS:
                self.senders = {}
            sender = self.senders[mail.sender] = _Sender(arrival)
        if sender.n != n or sender.passes is not passes:
            sender.n, sender.passes = n, passes
            sender.backoff = Backoff() if passes else Backoff(self._core.home.settings.retry_first_s)
        sender.ran, sender.why = ran, why
        self.count += 1
        arrival.inbox.put_off(arrival, self._core.batch)
        sender.task = self._core.start(self._wait(mail.sender, sender))

    def hurry(self, name: str, n: int) -> None:
        """Message `n` of the sender need not wait any longer, if it is the one that waits to be run again."""
        sender = self.senders.get(name)
        if sender is not None and sender.n == n:
            sender.backoff.wake()

    async def _wait(self, name: str, sender: _Sender) -> None:
        await sender.backoff.wait()
        self.due += (name,)
        self._intake.kick()

    def come_back(self) -> None:
        """Makes the messages first in the inbox whose waits are over, and those that came too early and do no more."""
        if self.early:
            self._bring_back_early()
        for name in reversed(self.due):
            first = self.senders[name].arrivals[0]
            first.inbox.come_back(first)
        self.due = ()

    def is_early(self, sender: str) -> bool:
        """True if, after an undo, messages of other senders are to be taken again first: their answers were given in that order.

        The inbox keeps the order of one sender.
        """
        first = next_replay(self._core.fold.ledger)
        return first is not None and first[0] != sender

    def put_off_early(self, arrival: Arrival) -> None:
        arrival.inbox.put_off(arrival, self._core.batch)
        self.early = [*self.early, arrival]

    def _bring_back_early(self) -> None:
        """Makes the entry first in the inbox that is next to be taken again; all that came too early, once none is.

        The inbox may begin with an entry of which only a part was taken before the undo: later entries stay behind its rest.
        """
        first = next_replay(self._core.fold.ledger)
        ready = [one for one in self.early if first is None or one.is_at(*first)]
        self.early = [one for one in self.early if one not in ready]
        for arrival in sorted(ready, key=lambda one: -one.seq):
            arrival.inbox.come_back(arrival, in_order=True)

    def done(self, arrival: Arrival, mail: Mail) -> None:
        """An entry is done: the next entry of its sender comes first in the inbox."""
        sender = self.senders.get(mail.sender)
        if sender is None or sender.arrivals[0] is not arrival:
            return
        sender.arrivals.popleft()
        if sender.arrivals:
            sender.arrivals[0].inbox.come_back(sender.arrivals[0])
        else:
            del self.senders[mail.sender]
