"""The subscriptions of one agent on its owner."""

from __future__ import annotations

from mielin_cells.log.topics.outside import is_outside
from mielin_cells.log.topics.subs import Sub, Subscribed, TopicChange, Unsubscribed
from mielin_cells.node.topics.foreign import OutsideMember
from mielin_cells.node.topics.member import Member, Owner

NO_MEMBERS: dict[str, Member] = {}
"""Shared by agents that have subscribed to nothing.  It stays empty."""


class Subscriptions:
    """All subscriptions of one agent."""

    __slots__ = ("_members", "_owner")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._members = NO_MEMBERS

    def open(self) -> None:
        subs = self._owner.fold.ledger.topics
        for sub in subs.live() if subs is not None else ():
            self._join(sub)

    def close(self) -> None:
        members, self._members = self._members, NO_MEMBERS
        reader = self._owner.home.topics
        for member in members.values():
            if reader is not None:
                reader.leave(member)

    def kick(self) -> None:
        """The agent may take messages again."""
        reader = self._owner.home.topics
        if self._members and reader is not None:
            for member in self._members.values():
                reader.wake(member.pattern)

    def change(self, changes: list[TopicChange]) -> None:
        """Takes what a turn has subscribed, and what it has ended."""
        owner = self._owner
        ledger, batch = owner.fold.ledger, owner.batch
        subs = ledger.subscriptions()
        for change in changes:
            subs.apply(change)
            batch.changes.append(change)
            if isinstance(change, Subscribed):
                self._join(subs.by_key[change.sub.key])
            elif isinstance(change, Unsubscribed):
                member = self._members.pop(change.key, None)
                if member is not None and owner.home.topics is not None:
                    owner.home.topics.leave(member)
        batch.touched = True

    def _join(self, sub: Sub) -> None:
        if sub.key in self._members or self._owner.home.topics is None or not self._owner.is_open:
            return
        if self._members is NO_MEMBERS:
            self._members = {}
        kind = OutsideMember if is_outside(sub.pattern) else Member
        member = self._members[sub.key] = kind(self._owner, sub)
        self._owner.home.topics.join(member)
