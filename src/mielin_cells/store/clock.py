"""The store's time, as a process knows it between two questions: what deadlines of messages are measured by (rule T2)."""

from __future__ import annotations

import asyncio

from mielin_cells.substrate.ports import Log

REFRESH_S = 60.0
"""An answer older than this is asked for again, since the clocks of two machines drift apart by a few ms in that time."""


class StoreClock:
    """The store's last answer, and what has passed since by the loop's clock.  No wall clock of this machine is looked at.

    The answer is from before it arrived, so this clock is never ahead of the store's.
    """

    __slots__ = ("_asked", "_log", "_offset")

    def __init__(self, log: Log) -> None:
        self._log = log
        self._offset = 0.0
        """The store's time minus the loop's."""
        self._asked = float("-inf")

    @property
    def is_known(self) -> bool:
        """False until the store has answered once."""
        return self._asked > float("-inf")

    async def refresh(self) -> None:
        """Asks the store, unless it has answered in the last minute.  Raises what the store raises."""
        clock = asyncio.get_running_loop().time
        if clock() - self._asked < REFRESH_S:
            return
        now = await self._log.now()
        self._asked = clock()
        self._offset = now - self._asked

    def now(self) -> float:
        """The store's time, or a little less.  0 until the store has answered once."""
        return asyncio.get_running_loop().time() + self._offset if self.is_known else 0.0
