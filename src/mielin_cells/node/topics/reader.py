"""A node reads each pattern once for all its agents that have subscribed to it, in batches, and gives each what it has not had.

What is live only wakes the reader.  A live message that was lost leaves no trace in the next one of another publisher, so a
cursor may move only over what was read from the store in its order (rule T8).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Protocol, TypeAlias

from mielin_cells.errors import CellError, RecordInvalid, described
from mielin_cells.log.topics.names import matches, scan_pattern
from mielin_cells.log.topics.posts import Post, decode_post
from mielin_cells.substrate.ports import Entry, Found, Log
from mielin_cells.substrate.retry import whole
from mielin_cells.tasks.signal import Signal
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.topics")

PAGE = 256
"""Entries in one read."""
GIVEN_AT_ONCE = 64
"""Subscriptions that are served before the event loop gets its turn."""
CROWDED_S = 0.02
"""After this a subscriber that had no room is looked at again."""


Start: TypeAlias = Callable[[str, Callable[[], Coroutine[Any, Any, None]]], None]
"""Runs the loop that reads a pattern."""


class Member(Protocol):
    """A subscription that the reader serves."""

    pattern: str
    position: list[int]

    @property
    def may_take(self) -> bool: ...
    @property
    def has_room(self) -> bool: ...
    def take(self, shard: int, seq: int, subject: str, post: Post) -> None: ...


class Reader:
    """The patterns that agents of this node have subscribed to."""

    def __init__(
        self,
        log: Callable[[], Log],
        start: Start,
        poll_s: float,
    ) -> None:
        self._log = log
        self._start = start
        self._poll_s = poll_s
        self._patterns: dict[str, Pattern] = {}

    def join(self, member: Member) -> None:
        pattern = self._patterns.get(member.pattern)
        if pattern is None:
            pattern = self._patterns[member.pattern] = Pattern(member.pattern, self._log(), self._poll_s)
            self._start(member.pattern, partial(pattern.run, self._patterns))
        pattern.members[member] = None
        pattern.wake()

    def leave(self, member: Member) -> None:
        pattern = self._patterns.get(member.pattern)
        if pattern is not None and pattern.members.pop(member, member) is None and not pattern.members:
            del self._patterns[member.pattern]
            pattern.wake()

    def wake(self, pattern: str) -> None:
        if pattern in self._patterns:
            self._patterns[pattern].wake()


class Pattern:
    """One pattern, read for its members until none is left."""

    def __init__(self, pattern: str, log: Log, poll_s: float) -> None:
        self.members: dict[Member, None] = {}
        self._pattern = pattern
        self._scanned = scan_pattern(pattern)
        self._log = log
        self._poll_s = poll_s
        self._woken = Signal()
        self._is_woken = True
        self._is_crowded = False
        """A member had no room for what there may be."""

    def wake(self) -> None:
        self._is_woken = True
        self._woken.set()

    async def run(self, patterns: dict[str, Pattern]) -> None:
        backoff = Backoff()
        watch = None
        try:
            while patterns.get(self._pattern) is self:
                try:
                    if watch is None:
                        watch = self._log.watch(self._scanned, self.wake)
                    self._is_woken = self._is_crowded = False
                    while await self._pass():
                        pass
                    backoff = Backoff()
                except CellError as error:
                    logger.info("reading topics %s failed; trying again: %s", self._pattern, described(error))
                    await backoff.wait()
                    continue
                if not self._is_woken:
                    await self._woken.within(CROWDED_S if self._is_crowded else self._poll_s)
        finally:
            if watch is not None:
                watch.close()

    async def _pass(self) -> bool:
        """Reads behind the member that is furthest back, and behind the one that is furthest on; True if there may be more."""
        more = False
        for shard in range(len(next(iter(self.members)).position) if self.members else 0):
            places = [member.position[shard] for member in self._ready()]
            if not places:
                continue
            reached, is_full = await self._read(shard, min(places))
            more = more or is_full
            if max(places) > reached:
                _, is_full = await self._read(shard, max(places))
                more = more or is_full
        return more

    def _ready(self) -> list[Member]:
        ready = list[Member]()
        for member in self.members:
            if member.may_take:
                if member.has_room:
                    ready.append(member)
                else:
                    self._is_crowded = True
        return ready

    async def _read(self, shard: int, after: int) -> tuple[int, bool]:
        """Reads one page and gives it to all members that have had what is before it.  Returns where it ends, and if it was full."""
        page = await self._log.scan(self._scanned, shard, after, PAGE)
        if not page:
            return after, False
        posts = [(one, await self._post(one)) for one in page]
        end = page[-1].seq
        for count, member in enumerate(self._ready()):
            if after <= member.position[shard] < end and member in self.members:
                self._give(member, shard, posts)
            if count % GIVEN_AT_ONCE == GIVEN_AT_ONCE - 1:
                await asyncio.sleep(0)
        return end, len(page) == PAGE or self._has_left(shard, after, end)

    def _has_left(self, shard: int, after: int, end: int) -> bool:
        """True if a member with room has not had all of the page: it came meanwhile."""
        return any(after <= member.position[shard] < end for member in self._ready())

    def _give(self, member: Member, shard: int, posts: Iterable[tuple[Found, Post | None]]) -> None:
        for one, post in posts:
            if one.seq <= member.position[shard]:
                continue
            if not member.may_take:
                return
            if not member.has_room:
                self._is_crowded = True
                return
            if post is not None:
                member.take(shard, one.seq, one.subject, post)
            member.position[shard] = one.seq

    async def _post(self, found: Found) -> Post | None:
        """The entry, if it is of a topic that matches and can be read; what is damaged on its way is read again."""
        decode = partial(decode_post, subject=found.subject)
        try:
            post = decode(found.data)
        except RecordInvalid:
            try:
                post = await whole(self._log, found.subject, Entry(found.seq, found.data), decode)
            except RecordInvalid as error:  # the publisher's next entry shows that messages are missing
                logger.error("%s at %d cannot be read, and is passed over: %s", found.subject, found.seq, error)
                return None
        return post if matches(self._pattern, post.topic) else None
