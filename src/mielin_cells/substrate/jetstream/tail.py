"""Tails over republished messages: what was missed is read, what comes is passed on, and a gap shows in its sequences.

The server sends each stored message once more, live, with its own sequence and its subject's before it.  So no consumer is
needed: a tail listens, reads what is stored, and goes on with what comes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mielin_cells.errors import CellError
from mielin_cells.substrate.ports import Entry
from mielin_cells.substrate.tail import BufferedTail

logger = logging.getLogger("mielin_cells.jetstream")

RETRY_S = 0.25
"""Seconds after which a tail that cannot read its stream tries again."""


class JetTail(BufferedTail):
    __slots__ = ("_check_at", "_said")

    def __init__(
        self,
        subject: str,
        after: int,
        read: Callable[[str, int, int], Awaitable[list[Entry]]],
        forget: Callable[[JetTail], None],
        check_at: float | None,
    ) -> None:
        super().__init__(subject, after, read, forget)
        self._check_at = check_at
        """In a cluster: when to read once more, as it takes a moment until every server knows that this tail listens."""
        self._said = ""

    async def _catch_up(self) -> list[Entry]:
        try:
            batch = await super()._catch_up()
        except CellError as error:
            if not self._closed:
                if str(error) != self._said:
                    self._said = str(error)
                    logger.warning("A tail of %s failed; trying again: %s", self._subject, error)
                await asyncio.sleep(RETRY_S)
            return []
        self._said = ""
        return batch

    async def _wait(self) -> None:
        timer = asyncio.get_running_loop().call_at(self._check_at, self._check) if self._check_at is not None else None
        try:
            await super()._wait()
        finally:
            if timer is not None:
                timer.cancel()

    def _check(self) -> None:
        self._check_at = None
        self.look_again()
