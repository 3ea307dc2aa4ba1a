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

    def watch(self, come: Callable[[], None]) -> bool:
        return self._check_at is None and super().watch(come)

    @property
    def is_watched(self) -> bool:
        """Nobody reads, and somebody is to be called when there is something to read."""
        return self._come is not None

    def is_behind(self, last: Entry | None) -> bool:
        """True if the reader does not have the subject's last entry."""
        return last is not None and last.seq > self._seen

    @property
    def subject(self) -> str:
        return self._subject

    def _check(self) -> None:
        self._check_at = None
        self.look_again()


class Rechecks:
    """After a gap of the connection: has those watched tails look again that have missed something.

    A node may watch 100,000 inboxes, so their ends are read together, `lot` at a time, and not each by its tail.  In a cluster it
    takes a moment until every server knows who listens, so the ends are read once more after that.
    """

    def __init__(
        self, lasts: Callable[[list[str]], Awaitable[dict[str, Entry]]], again_s: Callable[[], float], lot: int
    ) -> None:
        self._lasts = lasts
        self._again_s = again_s
        self._lot = lot
        self._task: asyncio.Task[None] | None = None

    def begin(self, watched: list[JetTail]) -> None:
        """Begins again with all of them: an earlier gap is part of this one."""
        self.close()
        if watched:
            self._task = asyncio.get_running_loop().create_task(self._look(watched))

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _look(self, watched: list[JetTail]) -> None:
        await self._look_once(watched)
        if again_s := self._again_s():
            await asyncio.sleep(again_s)
            await self._look_once(watched)

    async def _look_once(self, watched: list[JetTail]) -> None:
        for start in range(0, len(watched), self._lot):
            some = [tail for tail in watched[start : start + self._lot] if tail.is_watched]
            lasts = await self._until_known([tail.subject for tail in some])
            for tail in some:
                if tail.is_watched and tail.is_behind(lasts.get(tail.subject)):
                    tail.look_again()

    async def _until_known(self, subjects: list[str]) -> dict[str, Entry]:
        said = ""
        while True:
            try:
                return await self._lasts(subjects)
            except CellError as error:
                if str(error) != said:
                    said = str(error)
                    logger.warning("Reading the ends of %d subjects failed; trying again: %s", len(subjects), error)
                await asyncio.sleep(RETRY_S)
