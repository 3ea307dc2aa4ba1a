"""An agent's inbox, as its owner works through it: entries in order, and those held for an earlier message (rule 10)."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from mielin_cells.errors import Fenced, RecordInvalid, StoreUnreachable, described, never
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import inbox_subject
from mielin_cells.log.inboxes.lines import CRITICAL, NORMAL, priority_of
from mielin_cells.log.inboxes.places import HasPlace, InboxPlace
from mielin_cells.log.ledger import Verdict
from mielin_cells.log.message import Mail, Message, decode_mail
from mielin_cells.log.turns.batch import Batch
from mielin_cells.node.activation.context import NodeContext
from mielin_cells.substrate.ports import Entry, Tail
from mielin_cells.substrate.retry import whole
from mielin_cells.tasks.signal import Signal
from mielin_cells.tasks.supervision import persist

logger = logging.getLogger("mielin_cells.inbox")

ASIDE_MAX = 512
"""Limit of postponed entries.  Each commit that postpones one lists them all, and a new owner reads them one by one."""


class Arrival:
    """An inbox entry that is not done.  `mail` is an error if its bytes cannot be read."""

    __slots__ = ("inbox", "index", "is_told", "mail", "seq", "was_held")

    def __init__(self, inbox: Inbox, seq: int, mail: Mail | RecordInvalid) -> None:
        self.inbox = inbox
        self.seq = seq
        self.mail = mail
        self.index = 0
        self.was_held = False
        self.is_told = False
        """Its asks were answered with the error that keeps the agent from running."""

    def is_at(self, sender: str, n: int) -> bool:
        """True if message `n` of this sender is the next of the entry."""
        mail = self.mail
        if not isinstance(mail, Mail) or mail.sender != sender or self.index >= len(mail.messages):
            return False
        return mail.messages[self.index].n == n

    @property
    def count(self) -> int:
        return 1 if isinstance(self.mail, RecordInvalid) else len(self.mail.messages) - self.index


class Owner(Protocol):
    """What an inbox needs of the agent that it belongs to."""

    @property
    def home(self) -> NodeContext: ...

    @property
    def fold(self) -> Fold: ...

    def kick(self) -> None:
        """Notes that there are messages to take."""

    def notice(self, arrival: Arrival) -> None:
        """An entry of the critical inbox has come."""


class Inbox:
    """The entries that have arrived and are not done.  The owner's `kick` is called when there is work."""

    __slots__ = (
        "_fold", "_held", "_home", "_owner", "_read_to", "_room", "_tail", "arrived", "aside", "drops_from", "is_coming", "opened",
        "place", "priority", "queue", "waiting",
    )  # fmt: skip

    def __init__(
        self, owner: Owner, tail: Tail | None = None, priority: str = NORMAL, place: HasPlace | None = None,
        opened: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        """`tail`: one that goes on behind the ledger's cursor, of an activation that left memory.

        `opened` is called with the priority of another inbox that comes into use.
        """
        self._owner = owner
        self.priority = priority
        self.place: HasPlace = owner.fold.ledger if place is None else place
        self.opened = opened
        self._home = owner.home
        self._fold = owner.fold
        self._tail = tail
        self._read_to = -1
        """Up to here entries have come from the tail; -1 until it is read."""
        self._held: dict[int, Arrival] | None = None
        self._room = Signal()
        self.queue: deque[Arrival] | tuple[()] = ()
        """A deque takes 760 bytes: an agent has one while it has work."""
        self.arrived = 0
        """Messages that have come since the inbox was opened."""
        self.waiting = 0
        self.drops_from = sys.maxsize
        """While more messages wait than this, the first ones are dropped."""
        self.aside = 0
        """Entries that were put off, until their senders' first messages are run again."""
        self.is_coming = turn_goes_first(self._fold) and priority_of(self._fold.turn.sender) == priority  # type: ignore[union-attr]
        """The message of the turn that goes first is in this inbox, and may not have been read yet."""

    @property
    def agent(self) -> str:
        return self._fold.agent

    @property
    def _subject(self) -> str:
        return inbox_subject(self._fold.agent, self.priority)

    def close(self) -> None:
        if self._tail is not None:
            self._tail.close()
        self._room.set()

    async def read(self) -> None:
        """Reads until the inbox is closed.  Raises `Fenced` if a held entry is trimmed: another node owns the agent (rule 19)."""
        log, place = self._home.log, self.place
        behind = await self._read_held()
        if (
            self.is_coming
            and self._has_others
            and (any(self._is_first(one) for one in self.queue) or not await self._has_more())
        ):
            self.is_coming = False
        self._owner.kick()
        if self._tail is None:
            self._tail = log.tail(self._subject, place.cursor)
        tail, self._read_to, most = self._tail, 0, 2 * self._home.settings.inbox_max
        try:
            async for batch in tail:
                self._read_to = batch[-1].seq
                for entry in batch:
                    arrival = await self.decoded(entry)
                    self._push(arrival)
                    self.waiting += arrival.count
                    self.arrived += arrival.count
                    self.is_coming = False
                    if self.priority == CRITICAL:
                        self._owner.notice(arrival)
                    if not arrival.count and self.opened is not None and isinstance(arrival.mail, Mail):
                        self.opened(priority_of(arrival.mail.sender))
                    if behind and self._is_new(arrival):
                        self.queue.extend(behind)  # type: ignore[union-attr]
                        behind = ()
                    if self.waiting > most and not behind:  # a batch may hold many times that
                        self._owner.kick()
                        while self.waiting > most:
                            await self._room.wait()
                self._owner.kick()
                while self.waiting > most or self.aside > ASIDE_MAX:
                    await self._room.wait()
        finally:
            if self._tail is tail:
                tail.close()

    @property
    def is_done(self) -> bool:
        """True if everything that has come from the tail has taken effect, and the tail is read on from the cursor."""
        is_read = 0 <= self._read_to <= self.place.cursor
        return is_read and not (self.queue or self._held or self.aside or self.place.held)

    def release_tail(self, come: Callable[[], None]) -> Tail | None:
        """Hands the tail over: `come` is called when the next entry has come.

        None, and nothing is changed, if one has come already.
        """
        tail = self._tail
        if tail is None or not tail.watch(come):
            return None
        self._tail = None
        return tail

    def take_back(self, tail: Tail) -> None:
        """Undoes `release_tail`."""
        self._tail = tail

    async def _read_held(self) -> Sequence[Arrival]:
        """Queues the held entries that wait for no earlier number.  Returns those that belong behind the next new entry.

        The message of a turn with recorded asks or steps goes first: its next run must find the state in which they were made.
        If it is not among the held entries, it is the first that the tail gives: the held ones were put off before it ran.
        A message of another priority is in another inbox, and changes nothing here.
        """
        fold, ready = self._fold, deque[Arrival]()
        opened = fold.turn if fold.turn is not None and fold.turn.is_bound else None
        if opened is not None and priority_of(opened.sender) != self.priority:
            opened = None
        is_found = opened is None
        for seq in sorted(self.place.held):
            arrival = await self._read_at(seq)
            arrival.was_held = True
            self.waiting += arrival.count
            mail = arrival.mail
            if isinstance(mail, Mail) and self.verdict(mail, mail.messages[0]) is Verdict.HOLD:
                self._keep(arrival)
            elif (
                not is_found and opened is not None and isinstance(mail, Mail) and holds(mail, opened.sender, opened.n)
            ):
                is_found = (
                    True  # a repetition of it stays at its place: what is with it comes after what was sent before
                )
                ready.appendleft(arrival)
            else:  # it was put off, or the message before it was committed and then the owner was lost
                ready.append(arrival)
        if ready and not is_found and await self._has_more():
            return ready
        for arrival in ready:
            self._push(arrival)
        return ()

    def _failed(self, error: Exception) -> None:
        """Logs an error of the store, after which the inbox is read again.  Raises a `RecordInvalid`: no entry may be skipped."""
        if isinstance(error, RecordInvalid):
            raise error
        logger.info("agent %s: reading its inbox failed; trying again: %s", self._fold.agent, described(error))

    @property
    def _has_others(self) -> bool:
        return self.priority != NORMAL or self._fold.ledger.inboxes is not None

    async def _has_more(self) -> bool:
        last = await persist(lambda: self._home.log.settled(self._subject), failed=self._failed)
        return last is not None and last.seq > self.place.cursor

    def _is_first(self, arrival: Arrival) -> bool:
        turn, mail = self._fold.turn, arrival.mail
        return turn is None or (isinstance(mail, Mail) and holds(mail, turn.sender, turn.n))

    def _is_new(self, arrival: Arrival) -> bool:
        mail = arrival.mail
        return isinstance(mail, Mail) and any(self.verdict(mail, message) is Verdict.APPLY for message in mail.messages)

    async def _read_at(self, seq: int) -> Arrival:
        """Reads the entry that is held at `seq`.  Raises `Fenced` if it was trimmed."""
        log = self._home.log

        async def read() -> Entry | None:
            entries = await log.read(self._subject, seq - 1, 1)
            if entries and entries[0].seq == seq:
                return entries[0]
            last = await log.settled(self._subject) if not entries else None
            if last is not None and last.seq >= seq:
                raise StoreUnreachable("The replica that answers is behind.", subject=self._subject)
            return None

        entry = await persist(read, failed=self._failed)
        if entry is None:
            raise Fenced(f"The inbox of agent {self._fold.agent!r} was trimmed at {seq}: another node owns it.")
        return await self.decoded(entry)

    def _push(self, arrival: Arrival) -> None:
        if isinstance(self.queue, tuple):
            self.queue = deque((arrival,))
        else:
            self.queue.append(arrival)

    def rest(self) -> None:
        """Frees the queue, which is empty and unused."""
        self.queue = ()

    async def decoded(self, entry: Entry) -> Arrival:
        """Decodes an entry.  One that does not decode is read again, since its bytes may have been damaged on their way."""
        decode = partial(self._mail, entry.seq)
        try:
            mail = decode(entry.data)
        except RecordInvalid:
            try:
                mail = await persist(lambda: whole(self._home.log, self._subject, entry, decode), failed=self._failed)
            except RecordInvalid as damaged:
                return Arrival(self, entry.seq, damaged)
        for message in mail.messages:
            if message.terms is not None:  # its deadline is judged without a wait
                await persist(self._home.clock.refresh, failed=self._failed)
                break
        return Arrival(self, entry.seq, mail)

    def _mail(self, seq: int, data: bytes) -> Mail:
        mail = decode_mail(data, f"The inbox of agent {self._fold.agent!r} at {seq}")
        is_opening = not mail.messages and self.priority == NORMAL != priority_of(mail.sender)
        if mail.to != self._fold.agent or not (mail.messages or is_opening):
            raise RecordInvalid(f"The inbox of agent {self._fold.agent!r} holds mail for {mail.to!r}.")
        return mail

    def verdict(self, mail: Mail, message: Message) -> Verdict:
        return self._fold.ledger.judge(mail.sender, message.n, mail.start)

    def done(self, arrival: Arrival, batch: Batch) -> None:
        """Removes the first entry, which is done: the cursor passes it, and entries that were held for it come next."""
        if isinstance(self.queue, tuple):
            raise never("an entry is done that is not in the queue")
        self.queue.popleft()
        self._room.set()
        mail = arrival.mail
        if arrival.was_held:
            self.place.held.remove(arrival.seq)
            batch.held = batch.touched = True
        else:
            self.place.cursor = arrival.seq
            batch.moved = True
        if self.priority != NORMAL:
            self.note(batch)
        if self._held and isinstance(mail, Mail):
            for seq, held in list(self._held.items()):
                same = isinstance(held.mail, Mail) and held.mail.sender == mail.sender
                if (
                    same
                    and isinstance(held.mail, Mail)
                    and self.verdict(held.mail, held.mail.messages[0]) is not Verdict.HOLD
                ):
                    del self._held[seq]
                    self.queue.appendleft(held)

    def hold(self, arrival: Arrival, batch: Batch) -> None:
        """Keeps the first entry until an earlier message of its sender has come."""
        self._pass(arrival, batch)
        self._keep(arrival)

    def kept(self) -> list[Arrival]:
        """The entries that are held for something else to come first."""
        return [*self._held.values()] if self._held else []

    def come_again(self, arrival: Arrival) -> None:
        """Makes a held entry the first again."""
        if self._held and self._held.pop(arrival.seq, None) is arrival:
            if isinstance(self.queue, tuple):
                self.queue = deque()
            self.queue.appendleft(arrival)

    def _keep(self, arrival: Arrival) -> None:
        if self._held is None:
            self._held = {}
        self._held[arrival.seq] = arrival

    def put_off(self, arrival: Arrival, batch: Batch) -> None:
        """Sets the first entry aside, so that others go before it.  `come_back` must follow."""
        self._pass(arrival, batch)
        self.aside += 1

    def come_back(self, arrival: Arrival, in_order: bool = False) -> None:
        """Makes an entry that was put off the first again; with `in_order`, behind the earlier entries that are first now."""
        self.aside -= 1
        self._room.set()
        if isinstance(self.queue, tuple):
            self.queue = deque()
        later = (place for place, one in enumerate(self.queue) if one.seq > arrival.seq)
        self.queue.insert(next(later, len(self.queue)) if in_order else 0, arrival)

    def _pass(self, arrival: Arrival, batch: Batch) -> None:
        """Moves the cursor past the first entry although it is not done: commits keep its position (rule 10)."""
        if isinstance(self.queue, tuple):
            raise never("an entry is done that is not in the queue")
        self.queue.popleft()
        if not arrival.was_held:
            arrival.was_held = True
            self.place.held.append(arrival.seq)
            self.place.cursor = arrival.seq
            batch.held = batch.touched = True  # before the record of any ask that others make meanwhile
            if self.priority != NORMAL:
                self.note(batch)

    def note(self, batch: Batch) -> None:
        """The next commit says that this inbox, which is not the normal one, is in use, and how far it is read."""
        ledger, place = self._fold.ledger, self.place
        if ledger.inboxes is None:
            ledger.inboxes = {}
        if isinstance(place, InboxPlace):
            if self.priority not in ledger.inboxes:  # an undo names the inboxes that the log has in use
                batch.touched = True
            ledger.inboxes[self.priority] = place
        batch.read_in(self.priority)


def turn_goes_first(fold: Fold) -> bool:
    """True if the message of the turn that the log has begun is to be taken before any other (rules 5 and 13)."""
    turn = fold.turn
    return turn is not None and (turn.is_bound or fold.claims > 0) and not fold.ledger.has_taken(turn.sender, turn.n)


def holds(mail: Mail, sender: str, n: int) -> bool:
    return mail.sender == sender and any(message.n == n for message in mail.messages)
