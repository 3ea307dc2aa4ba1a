"""The subscriptions of one agent on its owner: what is taken of a topic becomes messages of the agent to itself, in one commit.

So a message that was taken is mail like any other: it is handled once, may fail and be run again, is put off, undone and moved
with the agent.  The commit that takes it moves the subscription's cursor, and is conditional, so it is taken once (rule T8).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from mielin_cells.agents.spec import Spec
from mielin_cells.agents.topics.calls import message_args
from mielin_cells.agents.topics.messages import Published, TopicGap
from mielin_cells.agents.values.wire import encode
from mielin_cells.log.commit import DeadLetter, Out
from mielin_cells.log.fold import Fold
from mielin_cells.log.message import Terms, sender_text
from mielin_cells.log.topics.posts import Post
from mielin_cells.log.topics.subs import Gap, Sub, Subscribed, TopicChange, Unsubscribed
from mielin_cells.log.turns.batch import Batch
from mielin_cells.node.topics.reader import Reader

logger = logging.getLogger("mielin_cells.topics")

TAKEN_MAX = 512
"""Messages that an agent takes ahead of its turns: while so many are on their way to its inbox, or wait there, it takes no more."""


class Home(Protocol):
    """What subscriptions need of the node."""

    @property
    def topics(self) -> Reader | None: ...
    @property
    def wall(self) -> Callable[[], float]: ...


class Owner(Protocol):
    """What subscriptions need of the agent that they belong to."""

    @property
    def home(self) -> Home: ...
    @property
    def spec(self) -> Spec: ...
    @property
    def fold(self) -> Fold: ...
    @property
    def batch(self) -> Batch: ...
    @property
    def is_open(self) -> bool: ...
    @property
    def may_send(self) -> bool: ...
    def commit_soon(self) -> None: ...
    def broke(self, error: BaseException) -> None: ...


class Member:
    """One subscription, as the node's reader sees it."""

    __slots__ = ("_owner", "key", "pattern", "position")

    def __init__(self, owner: Owner, sub: Sub) -> None:
        self._owner = owner
        self.key = sub.key
        self.pattern = sub.pattern
        self.position = [*sub.cursor]
        """By shard, up to where it was given what there is."""

    def __repr__(self) -> str:
        return f"<subscription of {self._owner.fold.agent} to {self.pattern}>"

    @property
    def may_take(self) -> bool:
        """False while the agent may not run, is being stopped, or is to take messages once more after an undo."""
        owner = self._owner
        return owner.is_open and owner.may_send and not owner.fold.ledger.replays

    @property
    def has_room(self) -> bool:
        """False while many of the agent's messages to itself are not handled yet."""
        ledger, agent = self._owner.fold.ledger, self._owner.fold.agent
        peer = ledger.peers.get(agent)
        return ledger.numbers.get(agent, 0) - (peer.mark if peer is not None else 0) < TAKEN_MAX

    def take(self, shard: int, seq: int, subject: str, post: Post) -> None:
        """Takes an entry that was read behind all that it was given before."""
        owner = self._owner
        try:
            self._take(shard, seq, subject, post)
        except Exception as error:  # of whatever kind: half of it must not be committed
            logger.exception("agent %s: taking a message of topic %s failed", owner.fold.agent, post.topic)
            owner.broke(error)
        self.position[shard] = seq

    def _take(self, shard: int, seq: int, subject: str, post: Post) -> None:
        owner = self._owner
        subs = owner.fold.ledger.topics
        taking = subs.judge(self.key, shard, seq, subject, post) if subs is not None else None
        if subs is None or taking is None:
            return
        sub, batch = subs.by_key[self.key], owner.batch
        if taking.gap is not None:
            self._tell_gap(sub, post, taking.gap)
        if taking.is_wanted:
            self._send_all(sub, seq, post)
        subs.apply(taking.took)
        batch.changes.append(taking.took)
        batch.touched = True
        owner.commit_soon()

    def _send_all(self, sub: Sub, seq: int, post: Post) -> None:
        publisher, handler = sender_text(post.publisher), self._owner.spec.handlers.get(sub.handler)
        for n, value in enumerate(post.values, post.n):
            about = Published(post.topic, publisher, n, post.at, seq, value.corrects)
            self._send(sub.handler, message_args(handler, value.data, about), value.trace)

    def _tell_gap(self, sub: Sub, post: Post, gap: Gap) -> None:
        told = TopicGap(sub.pattern, post.topic, sender_text(post.publisher), gap.first, gap.last)
        what = f"messages {gap.first or '?'} to {gap.last} of {told.publisher} to topic {post.topic}"
        said = f"{what} were removed before they were read"
        logger.warning("agent %s: %s (subscription %s)", self._owner.fold.agent, said, sub.pattern)
        args = message_args(self._owner.spec.handlers.get(sub.on_gap), encode(told), told)
        if sub.on_gap:
            self._send(sub.on_gap, args)
        else:
            owner, cause = self._owner, f"TopicGap: {said}."
            letter = DeadLetter(0, post.publisher, post.n, sub.handler, cause, 0, [], args, owner.home.wall())
            owner.batch.dead.append(letter)
            owner.fold.ledger.bury(letter)

    def _send(self, handler: str, args: bytes, trace: str = "") -> None:
        owner = self._owner
        ledger, agent = owner.fold.ledger, owner.fold.agent
        terms = Terms.of_trace(trace)
        out = Out(agent, owner.spec.name, ledger.next_number(agent), handler, args, False, "", 0, 0, terms=terms)
        ledger.send(out)
        owner.batch.outs.append(out)


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
        member = self._members[sub.key] = Member(self._owner, sub)
        self._owner.home.topics.join(member)
