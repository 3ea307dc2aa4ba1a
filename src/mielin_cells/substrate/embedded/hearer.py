"""Who listens for ownership records that name one node."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable


class Hearer:
    """A subscription to the records that name one owner.  Each call is made in the context of the one who subscribed."""

    def __init__(self, leave: Callable[[Hearer], None], receive: Callable[[str | None], None]) -> None:
        self._leave = leave
        self._receive = receive
        self._context = contextvars.copy_context()
        self._is_closed = False

    def tell(self, loop: asyncio.AbstractEventLoop, subject: str) -> None:
        loop.call_soon(self._pass_on, subject, context=self._context)

    def _pass_on(self, subject: str) -> None:
        if not self._is_closed:
            self._receive(subject)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._leave(self)
