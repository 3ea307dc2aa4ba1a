"""A pattern of a stream that another system writes, read once for all agents of the node that have subscribed to it."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol, cast

from mielin_cells.errors import CellError, described
from mielin_cells.log.topics.outside import Page, split
from mielin_cells.node.topics.patterns import GIVEN_AT_ONCE, Member, Pattern
from mielin_cells.store.outside import Waking, read_page, streams_of

logger = logging.getLogger("mielin_cells.topics")


class OutsideMember(Member, Protocol):
    """A subscription to such a stream."""

    @property
    def made(self) -> set[int | None]:
        """When the streams were made that its agent's subscriptions are at."""
        ...

    def take_page(self, page: Page) -> bool:
        """Takes what it has not had, as far as it has room.  True if it goes on at another place, since the stream was made anew."""
        ...


class OutsidePattern(Pattern):
    """Nothing is written to the stream: what is live only wakes the reader, and each agent's own commit holds its place."""

    _waking: Waking | None = None
    _made: int | None = None
    """Which stream was read last."""
    _said = ""

    async def _listen(self) -> None:
        if self._waking is None:
            self._waking = Waking(streams_of(self._log), self._pattern, self._poll_s, self.wake)
        await self._waking.listen()

    def _wait_s(self) -> float:
        return self._waking.wait_s() if self._waking is not None else self._poll_s

    def _failed(self, error: CellError) -> None:
        """A stream that was deleted stays away until somebody makes it again: it is named once, and looked for."""
        if (said := described(error)) != self._said:
            self._said = said
            logger.warning("reading %s failed, and is tried until it succeeds: %s", self._pattern, said)

    def _close(self) -> None:
        if self._waking is not None:
            self._waking.close()

    async def _read(self, shard: int, after: int) -> tuple[int, bool]:
        outside = streams_of(self._log)
        if self._made is None:
            self._made = (await outside.extent(split(self._pattern)[0])).made
        # While a page is read, an agent may go on in a stream that was made anew, by another of its patterns, or come from elsewhere:
        # the page may be of the stream before that, of which it does not know any more what it has had.
        made = {member: cast("OutsideMember", member).made for member in self.members}
        page = await read_page(outside, self._pattern, after, self._made)
        self._said, is_anew, self._made = "", page.extent.made != self._made, page.extent.made
        if page.messages and self._waking is not None:
            self._waking.found()
        end = page.messages[-1].seq if page.messages else max(after, page.passed)
        has_more = is_anew or (bool(page.messages) and page.extent.last > end)
        for count, member in enumerate(cast("list[OutsideMember]", self._ready())):
            if member.position[shard] >= after and member in self.members:
                is_late = made.get(member) != member.made
                if is_late or member.take_page(page):
                    has_more = True
            if count % GIVEN_AT_ONCE == GIVEN_AT_ONCE - 1:
                await asyncio.sleep(0)
        return end, has_more or self._has_left(shard, after, end)
