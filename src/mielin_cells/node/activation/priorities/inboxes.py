"""An agent's inboxes, one for each priority that is in use, and which of them the next message is taken from (rule T1).

The normal inbox is there always.  Another one comes into use by an opening in the normal inbox: mail without messages, which every
sender stores before its first message of that priority.  From then on the ledger names it, so an owner reads no inbox in vain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol

from mielin_cells.log.inboxes.choice import Turns
from mielin_cells.log.inboxes.lines import NORMAL, priority_of
from mielin_cells.log.inboxes.places import InboxPlace
from mielin_cells.log.turns.batch import Batch
from mielin_cells.node.activation.inbox import Arrival, Inbox, turn_goes_first
from mielin_cells.node.activation.inbox import Owner as InboxOwner
from mielin_cells.substrate.ports import Tail


class Owner(InboxOwner, Protocol):
    """What inboxes need of the agent that they belong to."""

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...


class Inboxes(Inbox):
    """The normal inbox, which knows the others."""

    __slots__ = ("_is_reading", "_readers", "_turns", "others")

    _owner: Owner

    def __init__(self, owner: Owner, tail: Tail | None = None) -> None:
        super().__init__(owner, tail, opened=self._open)
        self.others: dict[str, Inbox] | None = None
        self._turns: Turns | None = None
        self._readers: tuple[asyncio.Task[None], ...] = ()
        self._is_reading = False
        for priority in owner.fold.ledger.inboxes or ():
            self.use(priority)
        if turn_goes_first(owner.fold) and owner.fold.turn is not None:  # no commit may have named its inbox yet
            self.use(priority_of(owner.fold.turn.sender))

    def _open(self, priority: str) -> None:
        self.use(priority)

    def use(self, priority: str) -> Inbox:
        """The inbox of this priority, which is read from now on."""
        if priority == NORMAL:
            return self
        others = self.others
        if others is None:
            others = self.others = {}
            self._turns = Turns()
        inbox = others.get(priority)
        if inbox is None:
            place = (self._fold.ledger.inboxes or {}).get(priority) or InboxPlace()
            inbox = others[priority] = Inbox(self._owner, None, priority, place)
            inbox.drops_from = self.drops_from
            if self._is_reading:
                self._start(inbox)
        return inbox

    def _start(self, inbox: Inbox) -> None:
        self._readers = (*self._readers, self._owner.start(inbox.read()))

    def limit(self, drops_from: int) -> None:
        """Each inbox drops its first messages while more than so many wait in it."""
        for inbox in self.all():
            inbox.drops_from = drops_from

    async def read(self) -> None:
        self._is_reading = True
        for inbox in (self.others or {}).values():
            self._start(inbox)
        await super().read()

    def close(self) -> None:
        super().close()
        for inbox in (self.others or {}).values():
            inbox.close()
        for reader in self._readers:
            if reader is not asyncio.current_task():
                reader.cancel()

    def all(self) -> Iterator[Inbox]:
        yield self
        if self.others is not None:
            yield from self.others.values()

    def of(self, sender: str) -> Inbox:
        """The inbox that the messages of this sender come by."""
        priority = priority_of(sender)
        return self if self.others is None or priority == NORMAL else self.others.get(priority, self)

    # ---- what is next ----------------------------------------------------------------------------------------

    def next(self, alone: tuple[str, int] = ("", 0)) -> Inbox | None:
        """The inbox to take the next message from; None if nothing is to be taken now.

        `alone`: sender and number of a message that failed and that no other may overtake; ("", 0) if there is none.
        """
        if self.others is None or self._turns is None:
            return self if self.queue else None
        turn = self._fold.turn
        if turn is not None and turn_goes_first(self._fold):
            inbox = self.of(turn.sender)
            if inbox.queue or inbox.is_coming:
                return inbox if inbox.queue else None
        if alone[0]:
            inbox = self.of(alone[0])
            if inbox.queue and inbox.queue[0].is_at(*alone):
                return inbox
        waiting = self._waiting()
        if not waiting:
            return None
        chosen = self._turns.choose(waiting)
        return self if chosen == NORMAL else self.others[chosen]

    def _waiting(self) -> list[str]:
        return [inbox.priority for inbox in self.all() if inbox.queue]

    def took(self, inbox: Inbox) -> None:
        """A message was taken from this inbox."""
        if self._turns is not None:
            self._turns.took(inbox.priority, self._waiting())

    def pass_opening(self, arrival: Arrival, sender: str, batch: Batch) -> None:
        """The first entry of the normal inbox opens another one: the ledger names it in the commit that passes the entry."""
        self.use(priority_of(sender)).note(batch)
        self.done(arrival, batch)

    # ---- all of them -----------------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """True if no entry that was read waits."""
        return not self.queue and (self.others is None or not any(one.queue for one in self.others.values()))

    @property
    def waiting_in_all(self) -> int:
        return self.waiting if self.others is None else sum(one.waiting for one in self.all())

    @property
    def arrived_in_all(self) -> int:
        return self.arrived if self.others is None else sum(one.arrived for one in self.all())

    @property
    def are_done(self) -> bool:
        """`is_done` of each."""
        return all(one.is_done for one in self.all())

    def rest_all(self) -> None:
        for one in self.all():
            if not one.queue:
                one.rest()

    def release_tails(self, come: Callable[[], None]) -> list[Tail] | None:
        """Hands the tails over, that of the normal inbox first: `come` is called when the next entry has come to one.

        None, and nothing is changed, if one has come already.
        """
        tails = list[Tail]()
        for inbox in (*(self.others or {}).values(), self):
            tail = inbox.release_tail(come)
            if tail is None:
                for one, given in zip((self.others or {}).values(), tails, strict=False):
                    one.take_back(given)
                return None
            tails.append(tail)
        return tails[::-1]
