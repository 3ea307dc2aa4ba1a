"""What bounds the moves of a node: so many away from it at a time, and so many bytes to it in a second."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Gate:
    """So many may be inside at a time; others wait in the order in which they came."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """It may change: with fewer places than are taken nobody enters, and who is inside stays."""
        self.inside = 0
        self._waiting = deque[asyncio.Future[None]]()

    async def enter(self, unless: asyncio.Future[None]) -> bool:
        """Waits for a place; False, without one, if `unless` is done first."""
        if self.inside < self.limit and not self._waiting:
            self.inside += 1
            return True
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self.admit()
        try:
            await asyncio.wait((turn, unless), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._give_up(turn)
            raise
        if turn.done():
            return True
        self._give_up(turn)
        return False

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        if turn.done():  # it had just been given the place
            self.leave()
        else:
            self._waiting.remove(turn)

    def leave(self) -> None:
        self.inside -= 1
        self.admit()

    def admit(self) -> None:
        """Lets in those that wait, as far as there are places."""
        while self._waiting and self.inside < self.limit:
            self.inside += 1
            self._waiting.popleft().set_result(None)

    @property
    def waiting(self) -> int:
        return len(self._waiting)


class Flow:
    """So many bytes in a second on average: what is larger than that is let in whole, and then nothing for as long as it is worth."""

    def __init__(self, bytes_s: int, clock: Callable[[], float]) -> None:
        self.bytes_s = bytes_s
        self._clock = clock
        self._paid_at = -1e9
        """When what was let in is worth no more time."""

    @property
    def is_ahead(self) -> bool:
        return self.bytes_s > 0 and self._clock() < self._paid_at

    def let_in(self, size: int) -> None:
        if self.bytes_s > 0:
            self._paid_at = max(self._clock(), self._paid_at) + size / self.bytes_s
