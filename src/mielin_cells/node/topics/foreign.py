"""A subscription of an agent to a stream that another system writes."""

from __future__ import annotations

import logging

from mielin_cells.agents.signature import HandlerSpec
from mielin_cells.agents.topics.bodies import BodyUnreadable, takes_bytes, value_of
from mielin_cells.agents.topics.calls import message_args
from mielin_cells.agents.values.wire import encode
from mielin_cells.log.topics.outside import MADE, Foreign, Page, judge_page, publisher_of
from mielin_cells.log.topics.subs import Gap, Sub
from mielin_cells.node.topics.member import Member
from mielin_cells.settings import MAIL_BYTES_MAX, MESSAGE_BYTES_MAX
from mielin_cells.store.outside import about_of, gap_of

logger = logging.getLogger("mielin_cells.topics")

TAKEN_BYTES_MAX = 4 * 1024 * 1024
"""While so many bytes of what the agent has sent are on their way, it takes no more of the stream."""


class OutsideMember(Member):
    """What is taken of a page becomes messages of the agent to itself, in the commit that moves the position."""

    __slots__ = ()

    @property
    def has_room(self) -> bool:
        return super().has_room and self._owner.fold.ledger.pending_bytes < TAKEN_BYTES_MAX

    @property
    def made(self) -> set[int | None]:
        subs = self._owner.fold.ledger.topics
        return {sub.marks.get(MADE) for sub in subs.by_key.values()} if subs is not None else set()

    def take_page(self, page: Page) -> bool:
        """Takes what it has not had of a page that was read behind its position or before it, as far as there is room.

        True if the stream was made anew, and is read from another place.
        """
        owner, before = self._owner, self.position[0]
        try:
            after = self._take_page(page)
        except Exception as error:  # of whatever kind: half of it must not be committed
            logger.exception("agent %s: taking messages of %s failed", owner.fold.agent, self.pattern)
            owner.broke(error)
            after = before
        self.position[0] = after
        return after < before

    def _take_page(self, page: Page) -> int:
        """Returns the position behind what was taken."""
        subs, position = self._owner.fold.ledger.topics, self.position[0]
        if subs is None or self.key not in subs.by_key:
            return position
        taking = judge_page(subs, self.key, position, page, self._fitting(page, position))
        if taking is None:
            return max(position, page.passed)
        sub = subs.by_key[self.key]
        if taking.gap is not None:
            self._tell_lost(sub, taking.gap)
        handler = self._owner.spec.handlers.get(sub.handler)
        for message in taking.messages:
            self._hand_over(sub, handler, message)
        self._change(subs, taking.took)
        return taking.took.seq

    def _fitting(self, page: Page, position: int) -> int:
        """How many messages are taken at once; at least one."""
        size, count = 0, 0
        for message in page.messages:
            if message.seq > position:
                size += len(message.data)
                if count and size > MAIL_BYTES_MAX:
                    break
                count += 1
        return max(1, count)

    def _hand_over(self, sub: Sub, handler: HandlerSpec | None, message: Foreign) -> None:
        sender = publisher_of(sub.pattern)
        what = f"message {message.seq} of {sender} to {message.subject}"
        if len(message.data) > MESSAGE_BYTES_MAX:
            cause = f"MessageTooLarge: {what} has {len(message.data)} bytes; the limit is {MESSAGE_BYTES_MAX}."
            self._bury(sub, sender, message.seq, cause, b"")
            return
        about = about_of(sub.pattern, message)
        try:
            args = message_args(handler, value_of(message.data, takes_bytes(handler)), about)
        except BodyUnreadable:
            cause = (
                f"BadArguments: {what} is neither JSON nor msgpack; a handler whose first parameter is of type bytes gets bodies as "
                "they are."
            )
            self._bury(sub, sender, message.seq, cause, message_args(handler, encode(message.data), about))
        else:
            self._send(sub.handler, args)

    def _tell_lost(self, sub: Sub, gap: Gap) -> None:
        what = publisher_of(sub.pattern)
        said = f"positions {gap.first} to {gap.last} of {what} were removed before they were read"
        if not gap.last:
            said = f"{what} was deleted and made anew, with what it had from position {gap.first} on; it is read from its beginning"
        self._tell(sub, gap_of(sub.pattern, gap), said, (what, gap.last or gap.first))
