"""A node's own place in the log of the members: it joins, serves, refutes suspicions, and reads what is said of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from mielin_cells.membership import table
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.members import AnyRecord, Serving, Status, Table

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations

logger = logging.getLogger("mielin_cells.node")

LEAVE_S = 1.0
"""A stopping node's note in the log is a hint, and does not wait longer for the store."""


class Presence:
    """Of one incarnation.  `again` tries until the store answers; `ended` is called with the incarnation that ends this one."""

    def __init__(
        self, activations: Activations, again: Callable[[Callable[[], Coroutine[Any, Any, None]]], Awaitable[None]],
        ended: Callable[[int], None], uncordoned: Callable[[], None], changed: Callable[[Table], None] = lambda _: None,
    ) -> None:  # fmt: skip
        """`changed` is called whenever the log of the members has grown."""
        self._activations = activations
        self._home = activations.home
        self._members = activations.members
        self._again = again
        self._ended = ended
        self._uncordoned = uncordoned
        self._tell = changed
        self._is_cordoned = self.is_reserved = False
        self._is_leaving = False
        self._refuting: asyncio.Task[None] | None = None
        self.is_starting = True
        """True while the node, having joined, takes over the agents that the log gives it."""

    @property
    def is_cordoned(self) -> bool:
        """True while the node keeps the agents that it has, and takes no others."""
        return self._is_cordoned or self._is_leaving

    @property
    def is_closed(self) -> bool:
        """True while the node takes no agents that are moved to it by name either."""
        return self.is_cordoned and not (self.is_reserved and not self._is_leaving)

    async def join(self, about: Announcement, nonce: bytes) -> None:
        """Takes the next incarnation of the node's name.  Raises a `RetryError` while the store does not answer."""
        me = await table.enter(self._members, self._home.name, about, nonce)
        self._home.incarnation, self._is_cordoned = me.incarnation, me.is_cordoned
        self.is_reserved = me.is_reserved

    async def serve(self) -> None:
        """The node has taken its agents."""
        self.is_starting = False
        await self._again(self.say_serving)

    def leave(self) -> None:
        """The node is about to stop: it takes no more agents, and says so."""
        self._is_leaving = True
        self._home.begin(self._say())

    async def stop(self) -> None:
        """The node has ended cleanly; its agents stay claimable.

        It leaves although it may own agents.  They are claimed like those of a dead node, but nobody has to wait for its silence
        first; what grants them is each agent's log.
        """
        if self._home.incarnation:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await table.leave(self._members, self._home.name, self._home.incarnation)

    async def follow(self) -> None:
        """Reads the log as it grows, until the store is closed."""
        await self._members.follow(self._changed)

    async def say_serving(self) -> None:
        """Notes that the node lives, unless the log says so already.

        Also called now and then: whatever the store refused when the node was suspected, it may take by now.
        """
        home, begins = self._home, not self.is_starting

        def decide(table: Table) -> AnyRecord | None:
            me = table.get(home.name)
            if me is None or not table.is_current(home.name, home.incarnation) or self._activations.is_stopping:
                return None
            is_right = me.status is Status.SERVING or (me.status is Status.JOINED and not begins)
            if is_right and me.is_leaving == self._is_leaving:
                return None
            agents = self._activations.count
            return Serving(home.name, home.incarnation, agents, self.is_starting, self._is_leaving)

        await self._members.append(decide)

    async def _say(self) -> None:
        await self._again(self.say_serving)

    def _changed(self, table: Table) -> None:
        """The log has grown."""
        name, mine = self._home.name, self._home.incarnation
        me = table.get(name)
        if self._activations.is_stopping:
            return
        self._tell(table)
        if me is not None and me.incarnation > mine:
            logger.error(
                "node %s was started again as incarnation %d: this process, incarnation %d, stops at once; "
                "nothing that was acknowledged is lost", name, me.incarnation, mine,
            )  # fmt: skip
            self._ended(me.incarnation)
        elif me is None and table.floor < mine:
            return  # the log is being read again from its beginning
        elif me is None or me.status is Status.LEFT:
            logger.error(
                "node %s, incarnation %d, was silent for so long that the other nodes forgot it: this process stops at once; start "
                "it again, and nothing that was acknowledged is lost", name, mine,
            )  # fmt: skip
            self._ended(mine)
        else:
            if me.status in (Status.SUSPECTED, Status.DOUBTED) and (self._refuting is None or self._refuting.done()):
                logger.warning("node %s was not heard by others, and says that it lives", name)
                self._refuting = self._home.start(self._say())
            self.is_reserved = me.is_reserved
            self._note_cordon(me.is_cordoned)

    def _note_cordon(self, is_cordoned: bool) -> None:
        """An operator may have cordoned or uncordoned this node."""
        before, self._is_cordoned = self._is_cordoned, is_cordoned
        if is_cordoned != before:
            logger.info("node %s is %s", self._home.name, "cordoned" if is_cordoned else "not cordoned any more")
        if before and not is_cordoned:
            self._uncordoned()
