"""Delivers an agent's messages: in order per receiver, each only after the one before is stored (rules 10 and 11)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from mielin_cells.errors import InboxFull, RetryError, described
from mielin_cells.log.commit import Out
from mielin_cells.log.fold import Fold
from mielin_cells.log.inboxes.lines import end_of, line, line_text, priority_of
from mielin_cells.log.message import Mail, Message, encode_mail, inbox_of, opening_of
from mielin_cells.log.topics.names import is_topic, receiver_text, topic_named
from mielin_cells.node.activation.context import NodeContext
from mielin_cells.node.topics.publishing import Publishing
from mielin_cells.rpc.reminder import count_waiting
from mielin_cells.settings import MAIL_BYTES_MAX
from mielin_cells.substrate.ports import Appended
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.outbox")


SHARE = 10
"""After sending a tenth of the inbox limit, the outbox asks how many messages wait in the inbox."""


class Owner(Protocol):
    """What an outbox needs of the agent that it belongs to."""

    @property
    def home(self) -> NodeContext: ...

    @property
    def fold(self) -> Fold: ...

    def low(self, to: str) -> int:
        """The lowest number to `to` whose outcome may still be wanted."""

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...


class _Receiver:
    """The messages on their way to one receiver."""

    __slots__ = ("ahead", "counted", "publishing", "queue", "refused", "stored", "task")

    def __init__(self, first: int) -> None:
        self.queue: deque[Out] | tuple[()] = ()
        """A deque takes 760 bytes: there is one while messages wait."""
        self.task: asyncio.Task[None] | None = None
        """The task that delivers the queue; None while it is empty."""
        self.stored = 0
        """The highest number stored together with all lower ones (rule 11)."""
        self.ahead: set[int] | None = None
        """Stored numbers above one that is not stored yet."""
        self.refused = ""
        """Why the store refuses the first message of the queue."""
        self.counted = first
        """The number before which the receiver's inbox was last looked at."""
        self.publishing: Publishing | None = None
        """Of a topic: what is known of the store's last entry."""


NO_RECEIVERS: dict[str, _Receiver] = {}
NOTHING_STORED: dict[str, int] = {}
"""Shared by agents that send nothing.  Both stay empty."""


class Outbox:
    """The committed outputs of one agent that are not yet stored at their receivers."""

    __slots__ = ("_owner", "_receivers", "_stored")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._receivers = NO_RECEIVERS
        self._stored = NOTHING_STORED
        """Per receiver, the highest number stored since `take_stored` was called last."""

    def push(self, out: Out) -> None:
        """Delivers a committed output after those before it.  An ask may be pushed again: it is then repeated."""
        receiver = self._receivers.get(out.to)
        if receiver is None:
            if self._receivers is NO_RECEIVERS:
                self._receivers = {}
            receiver = self._receivers[out.to] = _Receiver(out.n)
        if isinstance(receiver.queue, deque):
            receiver.queue.append(out)
        else:
            receiver.queue = deque((out,))
            deliver = self._publish if is_topic(out.to) else self._deliver
            receiver.task = self._owner.start(deliver(out.to, receiver, receiver.queue))

    def check_room(self, to: str) -> None:
        """Raises `InboxFull` if a full inbox's worth of messages waits here for this receiver."""
        receiver, limit = self._receivers.get(to), self._owner.home.settings.inbox_max
        if receiver is not None and len(receiver.queue) >= limit and is_topic(to):
            raise InboxFull(
                f"Agent {self._owner.fold.agent!r} has published {len(receiver.queue)} messages to {receiver_text(to)} that are not "
                f"stored yet (limit {limit}). This one was not published; the earlier ones are. Publish less, or wait.",
                agent=self._owner.fold.agent, waiting=len(receiver.queue), limit=limit,
            )  # fmt: skip
        if receiver is not None and len(receiver.queue) >= limit:
            raise InboxFull(
                f"Agent {self._owner.fold.agent!r} has {len(receiver.queue)} messages for {line_text(to)!r}, whose inbox has no room "
                f"for them yet (limit {limit}). This one was not sent; the earlier ones are delivered later. Send less, or wait.",
                agent=end_of(to), waiting=len(receiver.queue), limit=limit,
            )  # fmt: skip

    def holds(self, out: Out) -> bool:
        """True while it is not stored at its receiver."""
        receiver = self._receivers.get(out.to)
        return receiver is not None and any(out.n == queued.n for queued in receiver.queue)

    @property
    def is_busy(self) -> bool:
        """True while a message is not stored at its receiver."""
        return any(receiver.task is not None or receiver.queue for receiver in self._receivers.values())

    @property
    def has_news(self) -> bool:
        """True if messages were stored that no commit has noted."""
        return bool(self._stored)

    def refused(self, to: str) -> str:
        """Why the store does not take the first message for this receiver; "" if it does."""
        receiver = self._receivers.get(to)
        return receiver.refused if receiver is not None else ""

    def push_missing(self, outs: list[Out]) -> None:
        """Delivers the outputs that are neither stored nor on their way."""
        for out in outs:
            receiver = self._receivers.get(out.to)
            if (receiver is None or out.n > receiver.stored) and not self.holds(out):
                self.push(out)

    def take_stored(self) -> dict[str, int]:
        """For each receiver that changed since the last call, the highest number stored together with all lower ones."""
        stored, self._stored = self._stored, NOTHING_STORED
        return stored

    def close(self) -> None:
        for receiver in self._receivers.values():
            if receiver.task is not None:
                receiver.task.cancel()
        self._receivers = NO_RECEIVERS

    async def drained(self) -> None:
        while tasks := [receiver.task for receiver in self._receivers.values() if receiver.task is not None]:
            await asyncio.wait(tasks)

    def _note_stored(self, to: str, receiver: _Receiver, messages: Sequence[Message | Out]) -> None:
        mark = max(receiver.stored, self._owner.fold.ledger.released.get(to, 0))
        ahead = receiver.ahead or set[int]()
        ahead.update(message.n for message in messages if message.n > mark)
        while mark + 1 in ahead:
            mark += 1
            ahead.discard(mark)
        receiver.stored, receiver.ahead = mark, ahead or None
        if self._stored is NOTHING_STORED:
            self._stored = {}
        self._stored[to] = mark

    async def _store(self, mail: Mail, receiver: _Receiver) -> None:
        """Stores mail, and tries until it is known to be there, whatever the store raises: committed messages must be delivered."""
        data, subject = encode_mail(mail), inbox_of(mail)
        backoff = Backoff()
        while True:
            try:
                if isinstance(await self._owner.home.log.append(subject, data), Appended):
                    receiver.refused = ""
                    return
            except Exception as error:
                is_new, receiver.refused = receiver.refused != described(error), described(error)
                if is_new:
                    say = logger.info if isinstance(error, RetryError) else logger.warning
                    say(
                        "mail from agent %s to %s is not stored yet; trying again: %s",
                        mail.sender,
                        mail.to,
                        receiver.refused,
                    )
            await backoff.wait()

    async def _publish(self, to: str, receiver: _Receiver, queue: deque[Out]) -> None:
        """Stores what was published to one topic."""
        home = self._owner.home

        def refused(why: str) -> bool:
            is_new, receiver.refused = receiver.refused != why, why
            return is_new

        publishing = receiver.publishing
        if publishing is None:
            publishing = receiver.publishing = Publishing(
                home.log,
                self._owner.fold.agent,
                topic_named(to),
                home.wall,
                lambda: home.rng.randbytes(8),
                refused,
                home.settings,
            )
        await publishing.deliver(queue, lambda outs: self._note_stored(to, receiver, outs))
        receiver.queue, receiver.task = (), None

    def _share_of(self, cls: str) -> int:
        """How many messages may be sent to an agent of the class before its inbox is looked at."""
        home = self._owner.home
        known = home.resolve(cls) if home.resolve is not None else None
        return max(((known.__mielin_inbox_max__ if known is not None else None) or home.settings.inbox_max) // SHARE, 1)

    async def _has_room(self, to: str) -> int | None:
        """Waits until the receiver's inbox has room.  Returns how many may be sent before it is looked at again; None if its owner
        does not answer: then it counts as one with room."""
        home, backoff = self._owner.home, Backoff()
        agent, priority = end_of(to), priority_of(to)
        while (room := await count_waiting(home.log, home.wire, agent, priority)) is not None and room.is_full:
            await backoff.wait()
        return None if room is None else max(room.limit // SHARE, 1)

    async def _deliver(self, to: str, receiver: _Receiver, queue: deque[Out]) -> None:
        owner = self._owner
        agent, sender = end_of(to), line(owner.fold.agent, priority_of(to))
        reply_to, share = owner.home.reply_to, self._share_of(queue[0].cls)
        while queue:
            if queue[0].n - receiver.counted >= share:
                share = await self._has_room(to) or share
                receiver.counted = queue[0].n
            cls, size, messages = queue[0].cls, 0, list[Message]()
            for out in queue:
                size += len(out.args) + 64
                if messages and (
                    len(messages) >= share or out.cls != cls or size > MAIL_BYTES_MAX or out.n != messages[-1].n + 1
                ):
                    break
                messages.append(Message(out.n, out.handler, out.args, out.ask, out.corrects, out.chain, out.terms))
            mail = Mail(agent, cls, sender, 0, owner.low(to), reply_to, messages)
            if agent != to and not receiver.stored and not owner.fold.ledger.released.get(to):
                await self._store(opening_of(mail), receiver)
            await self._store(mail, receiver)
            for _ in messages:
                queue.popleft()
            self._note_stored(to, receiver, messages)
        receiver.queue, receiver.task = (), None
