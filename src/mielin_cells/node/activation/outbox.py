"""Delivering what an agent has sent: per receiver in order, the next only after the last is stored (rules 10 and 11)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from mielin_cells.errors import InboxFull, RetryError, described
from mielin_cells.log.ids import inbox_subject
from mielin_cells.log.message import Mail, Message, encode_mail
from mielin_cells.log.records import Out
from mielin_cells.settings import MAIL_BYTES_MAX
from mielin_cells.substrate.ports import Appended, Log
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.outbox")


SHARE = 10
"""After a tenth of what an inbox may hold a lane asks how many messages wait there."""


class Outbox:
    """The committed outputs of one agent that are not yet stored at their receivers."""

    __slots__ = (
        "_ahead",
        "_counted",
        "_inbox_max",
        "_lanes",
        "_log",
        "_low",
        "_released",
        "_reply_to",
        "_sender",
        "_start",
        "_tasks",
        "_waiting",
        "progress",
        "refused",
    )

    def __init__(
        self, log: Log, sender: str, reply_to: str, low: Callable[[str], int], released: Callable[[str], int],
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        waiting: Callable[[str], Coroutine[Any, Any, int | None]], inbox_max: int,
    ) -> None:  # fmt: skip
        self._log = log
        self._sender = sender
        self._reply_to = reply_to
        self._low = low
        self._released = released
        self._start = start
        self._waiting = waiting
        self._inbox_max = inbox_max
        self._lanes: dict[str, deque[Out]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.progress: dict[str, int] = {}
        """Per receiver, the highest number stored together with all lower ones (rule 11)."""
        self.refused: dict[str, str] = {}
        """Per receiver, why what is to be stored first there is not."""
        self._ahead: dict[str, set[int]] = {}
        """Numbers that are stored above one that is not."""
        self._counted: dict[str, int] = {}
        """The number to each receiver before which its inbox was last looked at."""

    @property
    def is_empty(self) -> bool:
        return not self._lanes

    def push(self, out: Out) -> None:
        """Delivers a committed output after those before it.  An ask may be pushed again: it is then repeated."""
        lane = self._lanes.get(out.to)
        if lane is None:
            self._lanes[out.to] = deque((out,))
            self._tasks[out.to] = self._start(self._deliver(out.to))
        else:
            lane.append(out)

    def check_room(self, to: str) -> None:
        """Raises `InboxFull` if as much waits here for this receiver as may wait in its inbox."""
        lane, limit = self._lanes.get(to), self._inbox_max
        if lane is not None and len(lane) >= limit:
            raise InboxFull(
                f"Agent {self._sender!r} has {len(lane)} messages for {to!r} that its inbox has no room for yet (limit {limit}). This "
                "one was not sent, and those are delivered. Send less, or later.", agent=to, waiting=len(lane), limit=limit,
            )  # fmt: skip

    def holds(self, out: Out) -> bool:
        """True while it is not stored at its receiver."""
        return any(out.n == queued.n for queued in self._lanes.get(out.to, ()))

    def push_missing(self, outs: list[Out]) -> None:
        """Delivers those that are neither stored nor on their way."""
        for out in outs:
            if out.n > self.progress.get(out.to, 0) and all(
                out.n != queued.n for queued in self._lanes.get(out.to, ())
            ):
                self.push(out)

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._lanes.clear()
        self._tasks.clear()

    async def drained(self) -> None:
        while self._tasks:
            await asyncio.wait([*self._tasks.values()])

    def _stored(self, to: str, messages: list[Message]) -> None:
        mark = max(self.progress.get(to, 0), self._released(to))
        ahead = self._ahead.setdefault(to, set())
        ahead.update(message.n for message in messages if message.n > mark)
        while mark + 1 in ahead:
            mark += 1
            ahead.discard(mark)
        if not ahead:
            del self._ahead[to]
        self.progress[to] = mark

    async def _store(self, mail: Mail) -> None:
        """Until it is known to be there, whatever the store raises: what is committed must be delivered."""
        data, subject = encode_mail(mail), inbox_subject(mail.to)
        backoff, said = Backoff(), ""
        while True:
            try:
                if isinstance(await self._log.append(subject, data), Appended):
                    self.refused.pop(mail.to, None)
                    return
            except Exception as error:
                self.refused[mail.to] = described(error)
                if described(error) != said:
                    said = described(error)
                    say = logger.info if isinstance(error, RetryError) else logger.warning
                    say("mail from agent %s to %s waits until the store takes it: %s", mail.sender, mail.to, said)
            await backoff.wait()

    async def _room(self, to: str) -> None:
        """Until the receiver's inbox has room: what is committed waits here meanwhile.  Who says nothing has room."""
        backoff = Backoff()
        while ((await self._waiting(to)) or 0) >= self._inbox_max:
            await backoff.wait()

    async def _deliver(self, to: str) -> None:
        lane = self._lanes[to]
        while lane:
            if lane[0].n - self._counted.setdefault(to, lane[0].n) >= self._inbox_max // SHARE:
                await self._room(to)
                self._counted[to] = lane[0].n
            cls, size, count, messages = lane[0].cls, 0, 0, list[Message]()
            for out in lane:
                size += len(out.args) + 64
                if messages and (out.cls != cls or size > MAIL_BYTES_MAX or out.n != messages[-1].n + 1):
                    break
                messages.append(Message(out.n, out.handler, out.args, out.ask, out.corrects, out.chain))
                count += 1
            await self._store(Mail(to, cls, self._sender, 0, self._low(to), self._reply_to, messages))
            for _ in range(count):
                lane.popleft()
            self._stored(to, messages)
        del self._lanes[to]
        del self._tasks[to]
