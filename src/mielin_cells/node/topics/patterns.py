"""A pattern of topics, read once for all agents of the node that have subscribed to it, in batches.

What is live only wakes the reader.  A live message that was lost leaves no trace in the next one of another publisher, so a
cursor may move only over what was read from the store in its order (rule T8).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from typing import Protocol, TypeAlias

from mielin_cells.errors import CellError, RecordInvalid, described
from mielin_cells.log.topics.names import matches, scan_pattern
from mielin_cells.log.topics.posts import Post, decode_post
from mielin_cells.substrate.ports import Entry, Found, Log, Subscription
from mielin_cells.substrate.retry import whole
from mielin_cells.tasks.signal import Signal
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.topics")

PAGE = 256
"""Entries in one read."""
GIVEN_AT_ONCE = 64
"""Subscriptions that are served before the event loop gets its turn."""
CROWDED_S = 0.01
"""After this it is looked whether a subscriber that had no room has some."""


Made: TypeAlias = dict[int, list[bytes]]
"""What was made of an entry's messages for agents of this node, by the identity of what made it: they are the same for all agents of
a class, and encoding them for each of 10,000 subscribers took a third of a delivery."""


class Member(Protocol):
    """A subscription that the reader serves."""

    pattern: str
    position: list[int]

    @property
    def may_take(self) -> bool: ...
    @property
    def has_room(self) -> bool: ...
    def take(self, shard: int, found: Found, post: Post, made: Made) -> None: ...


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
        self._crowded: dict[Member, None] = {}
        """Members that had no room for what there may be."""
        self._watch: Subscription | None = None

    def wake(self) -> None:
        self._is_woken = True
        self._woken.set()

    async def run(self, patterns: dict[str, Pattern]) -> None:
        backoff = Backoff()
        try:
            while patterns.get(self._pattern) is self:
                try:
                    await self._listen()
                    self._is_woken, self._crowded = False, {}
                    while await self._pass():
                        pass
                    backoff = Backoff()
                except CellError as error:
                    self._failed(error)
                    await backoff.wait()
                    continue
                if not self._is_woken:
                    await self._rest()
        finally:
            self._close()

    async def _rest(self) -> None:
        """Until there may be something to read.  The store is not asked for a member that has no room: it may be slow for hours."""
        clock = asyncio.get_running_loop().time
        until = clock() + self._wait_s()
        while not self._is_woken and (left := until - clock()) > 0:
            await self._woken.within(min(CROWDED_S, left) if self._crowded else left)
            if any(member.has_room or member not in self.members for member in self._crowded):
                return

    async def _listen(self) -> None:
        """Has what comes wake the reader."""
        if self._watch is None:
            self._watch = self._log.watch(self._scanned, self.wake)

    def _wait_s(self) -> float:
        return self._poll_s

    def _failed(self, error: CellError) -> None:
        logger.info("reading topics %s failed; trying again: %s", self._pattern, described(error))

    def _close(self) -> None:
        if self._watch is not None:
            self._watch.close()

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
                    self._crowded[member] = None
        return ready

    async def _read(self, shard: int, after: int) -> tuple[int, bool]:
        """Reads one page and gives it to all members that have had what is before it.  Returns where it ends, and if it was full."""
        page = await self._log.scan(self._scanned, shard, after, PAGE)
        if not page:
            return after, False
        posts = [(one, await self._post(one), Made()) for one in page]
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

    def _give(self, member: Member, shard: int, posts: Iterable[tuple[Found, Post | None, Made]]) -> None:
        for one, post, made in posts:
            if one.seq <= member.position[shard]:
                continue
            if not member.may_take:
                return
            if not member.has_room:
                self._crowded[member] = None
                return
            if post is not None:
                member.take(shard, one, post, made)
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
