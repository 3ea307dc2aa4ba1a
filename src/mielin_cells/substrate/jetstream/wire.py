"""`Wire` on plain NATS subjects of the deployment."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable

from mielin_cells.errors import CellError, NoResponder, WireTimeout
from mielin_cells.substrate.jetstream import api
from mielin_cells.substrate.jetstream.api import INBOX, Unanswered
from mielin_cells.substrate.jetstream.connection import Connection, Listener
from mielin_cells.substrate.jetstream.heard import Heard

logger = logging.getLogger("mielin_cells.wire")


class JetWire:
    """Callbacks run on the event loop, in the context of the one who subscribed."""

    def __init__(self, connection: Connection, deployment: str) -> None:
        self._connection = connection
        self._prefix = f"{deployment}.wire."
        self._tasks: set[asyncio.Task[None]] = set()

    def _name(self, subject: str) -> str:
        return self._prefix + api.checked_subject(subject)

    async def publish(self, subject: str, data: bytes) -> None:
        name = self._name(subject)
        try:
            await self._connection.send(name, data)
        except CellError as error:  # best effort: the caller that waits for it asks again
            logger.debug("not sent to %s: %s", subject, error)

    async def subscribe(self, subject: str, receive: Callable[[bytes], None]) -> Listener:
        context = contextvars.copy_context()
        return self._connection.listen(self._name(subject), lambda heard: context.run(receive, heard.data))

    async def request(self, subject: str, data: bytes, timeout: float) -> bytes:
        try:
            heard = await self._connection.call(self._name(subject), data, timeout)
        except Unanswered as error:
            raise WireTimeout(
                f"{subject!r} did not answer within {timeout:g} s ({error}); the request may still be acted on.",
                subject=subject,
            ) from None
        if heard.status == api.NO_RESPONDERS:
            raise NoResponder(
                f"Nobody serves {subject!r} now; nothing was done. Try again when its node is up.", subject=subject
            )
        return heard.data

    async def serve(self, subject: str, answer: Callable[[bytes], Awaitable[bytes]]) -> Listener:
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()

        def receive(heard: Heard) -> None:
            task = loop.create_task(self._answer(subject, heard, answer), context=context.copy())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return self._connection.listen(self._name(subject), receive)

    async def _answer(self, subject: str, heard: Heard, answer: Callable[[bytes], Awaitable[bytes]]) -> None:
        try:
            data = await answer(heard.data)
            if heard.reply.startswith(INBOX):  # elsewhere this user may write where the asker may not
                await self._connection.send(heard.reply, data)
        except CellError as error:
            logger.warning("an answer on %s was not sent: %s", subject, error)
        except Exception:
            logger.exception("The server of %r raised; the request gets no answer.", subject)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
