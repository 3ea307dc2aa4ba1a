"""A client's calls to one agent: numbered, stored in order, repeated until answered (rules 14 and 15)."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from mielin_cells.core.message import Mail, Message, client_sender, decode_answer
from mielin_cells.core.settings import MAIL_BYTES_MAX
from mielin_cells.errors import AskTimeout, InboxFull, RetryError, from_wire
from mielin_cells.node.outbox import store_mail
from mielin_cells.node.turn import ASK_REPEAT_S_MAX, ended

if TYPE_CHECKING:
    from mielin_cells.node.client import Client

WINDOW_SHARE = 10
"""A client asks after an inbox's length each time it has sent a tenth of what an inbox may hold."""


class Lane:
    """One session of one client with one agent."""

    def __init__(self, client: Client, agent: str, session: str, start: int) -> None:
        self.client = client
        self.agent = agent
        self.sender = client_sender(session)
        self.start = start
        self._next = 1
        self._open: dict[int, asyncio.Future[bytes]] = {}
        """Numbers without an outcome: an ask's answer, a tell's being stored.  In order, so the first is the lowest."""
        self._queue: deque[tuple[Message, str]] = deque()
        self._sending = False
        self._unknown = 0
        self._found = False

    async def ask(self, cls: str, handler: str, args: bytes, timeout: float) -> bytes:
        """The encoded result.  Raises the answer's error, or `AskTimeout`: then the ask may still take effect."""
        if self._unknown * WINDOW_SHARE >= self.client.settings.inbox_max:
            await self._admit()
        message, future = self._send(handler, args, True, cls)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(timeout, _expire, future)
        repeat = loop.call_later(self.client.settings.ask_repeat_s, self._repeat, message, cls, 1)
        try:
            data = await future
        except TimeoutError:
            raise AskTimeout(
                f"No answer from {self.agent!r}.{handler} in {timeout:g} s; the ask may still take effect.",
                agent=self.agent,
            ) from None
        finally:
            timer.cancel()
            repeat.cancel()
            self._open.pop(message.n, None)
            if not self._open:
                self._unknown = 0
        answer = decode_answer(data)
        if answer.error is not None:
            raise from_wire(*answer.error)
        return answer.result or b""

    async def tell(self, cls: str, handler: str, args: bytes) -> None:
        """Returns when the message is stored in the inbox."""
        if self._unknown * WINDOW_SHARE >= self.client.settings.inbox_max:
            await self._admit()
        message, future = self._send(handler, args, False, cls)
        try:
            await asyncio.shield(future)
        finally:
            if future.done():
                self._open.pop(message.n, None)
            else:  # the caller has gone; the number stays open until it is stored
                future.add_done_callback(lambda _: self._open.pop(message.n, None))

    def answered(self, n: int, answer: bytes) -> None:
        future = self._open.get(n)
        if future is not None and not future.done():
            future.set_result(answer)

    def _send(self, handler: str, args: bytes, ask: bool, cls: str) -> tuple[Message, asyncio.Future[bytes]]:
        message = Message(self._next, handler, args, ask)
        self._next += 1
        self._unknown += 1
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._open[message.n] = future
        self._put(message, cls)
        return message, future

    def _put(self, message: Message, cls: str) -> None:
        self._queue.append((message, cls))
        if not self._sending:
            self._sending = True
            self.client.start(self._store())

    async def _store(self) -> None:
        """Stores what waits, the next only after the last: so the inbox has a sender's messages in order."""
        try:
            if not self._found:
                await self.client.find(self.agent)
                self._found = True
            while self._queue:
                cls, size, messages = self._queue[0][1], 0, list[Message]()
                while self._queue and self._queue[0][1] == cls:
                    size += len(self._queue[0][0].args) + 64
                    if messages and size > MAIL_BYTES_MAX:
                        break
                    messages.append(self._queue.popleft()[0])
                low = next(iter(self._open), self._next)
                mail = Mail(
                    self.agent, cls, self.sender, self.start, min(low, messages[0].n), self.client.reply_to, messages
                )
                await store_mail(self.client.log, mail)
                for message in messages:
                    if not message.ask:
                        self.answered(message.n, b"")
        except Exception as error:
            self._queue.clear()
            for future in self._open.values():
                if not future.done():
                    future.set_exception(error)
            raise
        finally:
            self._sending = False

    def _repeat(self, message: Message, cls: str, times: int) -> None:
        """No answer yet: look whether the agent has ended, and send the same number again."""
        if message.n in self._open:
            self.client.start(self._look(message, cls, times))

    async def _look(self, message: Message, cls: str, times: int) -> None:
        try:
            answer = await ended(self.client.log, self.agent, self.sender, message.n)
        except RetryError:
            answer = None
        if answer is not None:
            self.answered(message.n, answer)
        elif message.n in self._open:
            self._put(message, cls)
            pause = min(self.client.settings.ask_repeat_s * 2**times, ASK_REPEAT_S_MAX)
            asyncio.get_running_loop().call_later(pause, self._repeat, message, cls, times + 1)

    async def _admit(self) -> None:
        """Asks how many messages wait.  Raises `InboxFull`: nothing was sent."""
        waiting = await self.client.waiting(self.agent)
        limit = self.client.settings.inbox_max
        if waiting is None:
            waiting = self._unknown
        if waiting >= limit:
            raise InboxFull(
                f"Agent {self.agent!r} has {waiting} messages waiting (limit {limit}); this one was not sent. Try again later.",
                agent=self.agent, waiting=waiting, limit=limit,
            )  # fmt: skip
        self._unknown = waiting if waiting * WINDOW_SHARE >= limit else 0


def _expire(future: asyncio.Future[bytes]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())
