"""The deployment's secret: with it the tokens of external waits are made, which nobody can guess (rule T5)."""

from __future__ import annotations

import os
from collections.abc import Callable

from mielin_cells.errors import RecordInvalid
from mielin_cells.log.codec import framed, unframed
from mielin_cells.log.ids import SECRET
from mielin_cells.log.waits.tokens import SECRET_BYTES
from mielin_cells.substrate.ports import Appended, Conflict, Entry, Log
from mielin_cells.substrate.retry import whole
from mielin_cells.tasks.supervision import Backoff


class Secret:
    """It is made when it is first needed, by whoever needs it first, and never changes."""

    __slots__ = ("_known", "_log", "make")

    def __init__(self, log: Log, make: Callable[[int], bytes] = os.urandom) -> None:
        """`make` gives so many random bytes that nobody can foresee."""
        self._log = log
        self._known = b""
        self.make = make

    async def get(self) -> bytes:
        """Raises what the store raises, and a `RecordInvalid` if it holds no secret that can be read."""
        if not self._known:
            last = await self._log.last(SECRET)
            self._known = await self._whole(last) if last is not None else await self._agreed()
        return self._known

    async def _agreed(self) -> bytes:
        """One conditional append decides between all that try.  Its outcome may be unknown: then the same bytes are sent again."""
        secret = self.make(SECRET_BYTES)
        data, backoff = framed(secret), Backoff()
        while True:
            outcome = await self._log.append(SECRET, data, 0)
            if isinstance(outcome, Appended):
                return secret
            if isinstance(outcome, Conflict):
                last = await self._log.settled(SECRET)
                if last is not None:
                    return await self._whole(last)
            await backoff.wait()

    async def _whole(self, entry: Entry) -> bytes:
        """Its bytes may have been damaged on their way: a handler that opens a wait must not fail of that."""
        return await whole(self._log, SECRET, entry, _read)


def _read(data: bytes) -> bytes:
    secret = unframed(data, "The deployment's secret")
    if len(secret) != SECRET_BYTES:
        raise RecordInvalid("The deployment's secret has a wrong length; restore the store.", subject=SECRET)
    return secret
