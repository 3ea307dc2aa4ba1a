"""The wire inside one process: exact subjects, one callback per message, nothing is called from inside `publish`."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from mielin_cells.errors import NoResponder, StoreUnreachable, WireTimeout

logger = logging.getLogger("mielin_cells.wire")


class _Registered:
    """Something under a subject.  It runs in the context of its maker, not of those who publish or ask."""

    __slots__ = ("_registry", "context", "is_closed", "subject")

    def __init__(self, subject: str, registry: dict[str, dict[Any, None]]) -> None:
        self.subject = subject
        self.context = contextvars.copy_context()
        self.is_closed = False
        self._registry = registry
        registry.setdefault(subject, {})[self] = None

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            registered = self._registry.get(self.subject, {})
            registered.pop(self, None)
            if not registered:
                self._registry.pop(self.subject, None)


class _Subscription(_Registered):
    __slots__ = ("_receive",)

    def __init__(
        self, subject: str, receive: Callable[[bytes], None], registry: dict[str, dict[_Subscription, None]]
    ) -> None:
        super().__init__(subject, registry)
        self._receive = receive

    def deliver(self, data: bytes) -> None:
        if self.is_closed:
            return
        try:
            self._receive(data)
        except Exception:
            logger.exception("A subscriber of %r raised; the others still get their messages.", self.subject)


class _Server(_Registered):
    """After `close` no new request is taken; running ones come to their end."""

    __slots__ = ("_answer", "_tasks")

    def __init__(
        self,
        subject: str,
        answer: Callable[[bytes], Awaitable[bytes]],
        registry: dict[str, dict[_Server, None]],
        tasks: dict[asyncio.Task[None], None],
    ) -> None:
        super().__init__(subject, registry)
        self._answer = answer
        self._tasks = tasks

    def deliver(self, data: bytes, reply: asyncio.Future[bytes]) -> None:
        if reply.done():
            return
        if self.is_closed:
            reply.set_exception(_nobody(self.subject))
            return
        task = asyncio.get_running_loop().create_task(self._run(data, reply))
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)

    async def _run(self, data: bytes, reply: asyncio.Future[bytes]) -> None:
        try:
            answer = await self._answer(data)
        except Exception:
            logger.exception("The server of %r raised; the request gets no answer.", self.subject)
            return
        if not reply.done():
            reply.set_result(answer)


def _nobody(subject: str) -> NoResponder:
    return NoResponder(
        f"Nobody serves {subject!r} now; nothing was done. Try again when its node is up.", subject=subject
    )


def _closed() -> StoreUnreachable:
    return StoreUnreachable("The wire is closed; open the substrate again.")


class EmbeddedWire:
    """`Wire` for nodes in one process.  Between one publisher and one subscriber messages keep their order."""

    def __init__(self) -> None:
        self._subscribers: dict[str, dict[_Subscription, None]] = {}
        self._servers: dict[str, dict[_Server, None]] = {}
        self._asking: dict[asyncio.Future[bytes], None] = {}
        self._answering: dict[asyncio.Task[None], None] = {}
        self._is_closed = False

    async def publish(self, subject: str, data: bytes) -> None:
        self._check()
        there = self._subscribers.get(subject)
        if there:
            call_soon = asyncio.get_running_loop().call_soon
            for subscription in there:
                call_soon(subscription.deliver, data, context=subscription.context)

    async def subscribe(self, subject: str, receive: Callable[[bytes], None]) -> _Subscription:
        self._check()
        return _Subscription(subject, receive, self._subscribers)

    async def request(self, subject: str, data: bytes, timeout: float) -> bytes:
        """Of several servers the one that has served longest answers.  A server that raises gives no answer."""
        self._check()
        server = next(iter(self._servers.get(subject, ())), None)
        if server is None:
            raise _nobody(subject)
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[bytes] = loop.create_future()
        self._asking[reply] = None
        loop.call_soon(server.deliver, data, reply, context=server.context)
        try:
            async with asyncio.timeout(timeout):
                return await reply
        except TimeoutError:
            raise WireTimeout(
                f"No answer from {subject!r} within {timeout:g} s; the request may still be acted on.", subject=subject
            ) from None
        finally:
            del self._asking[reply]

    async def serve(self, subject: str, answer: Callable[[bytes], Awaitable[bytes]]) -> _Server:
        self._check()
        return _Server(subject, answer, self._servers, self._answering)

    def close(self) -> None:
        """Ends all subscriptions, running answers, and waiting requests.  Repeating it is harmless."""
        self._is_closed = True
        for registry in (self._subscribers, self._servers):
            for registered in [one for there in registry.values() for one in there]:
                registered.close()
        for task in tuple(self._answering):
            task.cancel()
        for reply in self._asking:
            if not reply.done():
                reply.set_exception(_closed())

    def _check(self) -> None:
        if self._is_closed:
            raise _closed()
