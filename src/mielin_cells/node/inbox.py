"""An agent's inbox as its owner works it off: entries in order, and those held for an earlier message (rule 10)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial

from mielin_cells.core.commit import Batch
from mielin_cells.core.fold import Fold
from mielin_cells.core.ids import inbox_subject
from mielin_cells.core.ledger import Verdict
from mielin_cells.core.message import Mail, Message, decode_mail
from mielin_cells.errors import Fenced, RecordInvalid, described, never
from mielin_cells.node.home import Home
from mielin_cells.node.signal import Signal
from mielin_cells.node.supervision import Backoff
from mielin_cells.substrate.again import whole
from mielin_cells.substrate.ports import Entry, Tail

logger = logging.getLogger("mielin_cells.inbox")


class Arrival:
    """An inbox entry being worked off.  `mail` is the error if its bytes could not be read."""

    __slots__ = ("index", "mail", "seq", "was_held")

    def __init__(self, seq: int, mail: Mail | RecordInvalid) -> None:
        self.seq = seq
        self.mail = mail
        self.index = 0
        self.was_held = False

    @property
    def count(self) -> int:
        return 1 if isinstance(self.mail, RecordInvalid) else len(self.mail.messages) - self.index


class Inbox:
    """What has arrived and is not done.  `kick` is called when there is work."""

    def __init__(self, home: Home, fold: Fold, kick: Callable[[], None]) -> None:
        self._home = home
        self._fold = fold
        self._kick = kick
        self._tail: Tail | None = None
        self._held: dict[int, Arrival] = {}
        self._room = Signal()
        self.queue: deque[Arrival] | tuple[()] = ()
        """A deque takes 760 bytes: an agent has one while it has work."""
        self.arrived = 0
        """Messages that have come since the inbox was opened."""
        self.waiting = 0

    def close(self) -> None:
        if self._tail is not None:
            self._tail.close()
        self._room.set()

    async def read(self) -> None:
        """Reads for ever.  Raises `Fenced` if what was held is trimmed: then another node owns the agent (rule 19)."""
        log, inbox, ledger = self._home.log, inbox_subject(self._fold.agent), self._fold.ledger
        for seq in list(ledger.held):
            arrival = await self._kept(seq)
            arrival.was_held = True
            self.waiting += arrival.count
            if isinstance(arrival.mail, Mail) and self.verdict(arrival.mail, arrival.mail.messages[0]) is Verdict.HOLD:
                self._held[seq] = arrival
            else:  # what it waited for was committed, and the owner was lost before this
                self._push(arrival)
        self._kick()
        self._tail = tail = log.tail(inbox, ledger.cursor)
        try:
            async for batch in tail:
                for entry in batch:
                    arrival = await self._arrival(entry)
                    self._push(arrival)
                    self.waiting += arrival.count
                    self.arrived += arrival.count
                self._kick()
                while self.waiting > 2 * self._home.settings.inbox_max:
                    await self._room.wait()
        finally:
            tail.close()

    async def _kept(self, seq: int) -> Arrival:
        """What is held at `seq`, once the store answers."""
        log, inbox, backoff = self._home.log, inbox_subject(self._fold.agent), Backoff()
        while True:
            try:
                entries = await log.read(inbox, seq - 1, 1)
                if entries and entries[0].seq == seq:
                    return await self._arrival(entries[0])
                last = await log.settled(inbox) if not entries else None
            except Exception as error:  # whatever the store raises: nothing may be passed over
                said = described(error)
            else:
                if last is None or last.seq < seq:
                    raise Fenced(f"The inbox of agent {self._fold.agent!r} was trimmed at {seq}: another node owns it.")
                said = "the replica that answers is behind"
            logger.info("agent %s: its inbox is read again: %s", self._fold.agent, said)
            await backoff.wait()

    def _push(self, arrival: Arrival) -> None:
        if isinstance(self.queue, tuple):
            self.queue = deque((arrival,))
        else:
            self.queue.append(arrival)

    def rest(self) -> None:
        """Nobody looks at the queue, and it is empty."""
        self.queue = ()

    async def _arrival(self, entry: Entry) -> Arrival:
        """Of an entry that does not read, once it is certain that it is stored so: its bytes may be damaged on their way."""
        backoff = Backoff()
        while True:
            try:
                mail = self._mail(entry.seq, entry.data)
            except RecordInvalid:
                try:
                    mail = await whole(
                        self._home.log, inbox_subject(self._fold.agent), entry, partial(self._mail, entry.seq)
                    )
                except RecordInvalid as damaged:
                    return Arrival(entry.seq, damaged)
                except Exception as error:  # whatever the store raises: nothing may be passed over
                    logger.info("agent %s: its inbox is read again: %s", self._fold.agent, described(error))
                    await backoff.wait()
                    continue
            return Arrival(entry.seq, mail)

    def _mail(self, seq: int, data: bytes) -> Mail:
        mail = decode_mail(data, f"The inbox of agent {self._fold.agent!r} at {seq}")
        if mail.to != self._fold.agent or not mail.messages:
            raise RecordInvalid(f"The inbox of agent {self._fold.agent!r} holds mail for {mail.to!r}.")
        return mail

    def verdict(self, mail: Mail, message: Message) -> Verdict:
        return self._fold.ledger.judge(mail.sender, message.n, mail.start)

    def done(self, arrival: Arrival, batch: Batch) -> None:
        """The entry is done: the cursor passes it, and what was held for it comes next."""
        if isinstance(self.queue, tuple):
            raise never("not isinstance(self.queue, tuple) does not hold")
        self.queue.popleft()
        self._room.set()
        ledger, mail = self._fold.ledger, arrival.mail
        if arrival.was_held:
            ledger.held.remove(arrival.seq)
            batch.held = batch.touched = True
        else:
            ledger.cursor = arrival.seq
            batch.moved = True
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
        """An earlier message of its sender is still missing: keep the position, part of what is committed."""
        if isinstance(self.queue, tuple):
            raise never("not isinstance(self.queue, tuple) does not hold")
        arrival.was_held = True
        self.queue.popleft()
        self._held[arrival.seq] = arrival
        self._fold.ledger.held.append(arrival.seq)
        self._fold.ledger.cursor = arrival.seq
        batch.held = batch.touched = True
