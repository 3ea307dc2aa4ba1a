"""A subscription of an agent on its owner: what is taken of a topic becomes messages of the agent to itself, in one commit.

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
from mielin_cells.log.topics.subs import Gap, Sub, Subs, Took
from mielin_cells.log.turns.batch import Batch
from mielin_cells.node.topics.patterns import Made
from mielin_cells.node.topics.reader import Reader
from mielin_cells.substrate.ports import Found

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

    __slots__ = ("_is_full", "_owner", "key", "pattern", "position")

    def __init__(self, owner: Owner, sub: Sub) -> None:
        self._owner = owner
        self._is_full = False
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
        """False while many of the agent's messages to itself are not handled yet.

        Once there are too many, half of them are handled first: a whole page is read however little of it is taken.
        """
        ledger, agent = self._owner.fold.ledger, self._owner.fold.agent
        peer = ledger.peers.get(agent)
        waiting = ledger.numbers.get(agent, 0) - (peer.mark if peer is not None else 0)
        self._is_full = waiting >= (TAKEN_MAX // 2 if self._is_full else TAKEN_MAX)
        return not self._is_full

    def take(self, shard: int, found: Found, post: Post, made: Made) -> None:
        """Takes an entry that was read behind all that it was given before."""
        owner = self._owner
        try:
            self._take(shard, found, post, made)
        except Exception as error:  # of whatever kind: half of it must not be committed
            logger.exception("agent %s: taking a message of topic %s failed", owner.fold.agent, post.topic)
            owner.broke(error)
        self.position[shard] = found.seq

    def _take(self, shard: int, found: Found, post: Post, made: Made) -> None:
        owner = self._owner
        subs = owner.fold.ledger.topics
        taking = subs.judge(self.key, shard, found.seq, found.subject, post) if subs is not None else None
        if subs is None or taking is None:
            return
        sub = subs.by_key[self.key]
        if taking.gap is not None:
            self._tell_gap(sub, post, taking.gap)
        if taking.is_wanted:
            self._send_all(sub, found.seq, post, made)
        self._change(subs, taking.took)

    def _change(self, subs: Subs, took: Took) -> None:
        owner = self._owner
        subs.apply(took)
        owner.batch.changes.append(took)
        owner.batch.touched = True
        owner.commit_soon()

    def _bury(self, sub: Sub, sender: str, n: int, cause: str, args: bytes) -> None:
        owner = self._owner
        letter = DeadLetter(0, sender, n, sub.handler, cause, 0, [], args, owner.home.wall())
        owner.batch.dead.append(letter)
        owner.fold.ledger.bury(letter)

    def _send_all(self, sub: Sub, seq: int, post: Post, made: Made) -> None:
        handler = self._owner.spec.handlers.get(sub.handler)
        all_args = made.get(id(handler))
        if all_args is None:
            publisher, all_args = sender_text(post.publisher), list[bytes]()
            for n, value in enumerate(post.values, post.n):
                about = Published(post.topic, publisher, n, post.at, seq, value.corrects)
                all_args.append(message_args(handler, value.data, about))
            made[id(handler)] = all_args
        for args, value in zip(all_args, post.values, strict=True):
            self._send(sub.handler, args, value.trace)

    def _tell_gap(self, sub: Sub, post: Post, gap: Gap) -> None:
        told = TopicGap(sub.pattern, post.topic, sender_text(post.publisher), gap.first, gap.last)
        what = f"messages {gap.first or '?'} to {gap.last} of {told.publisher} to topic {post.topic}"
        self._tell(sub, told, f"{what} were removed before they were read", (post.publisher, post.n))

    def _tell(self, sub: Sub, told: TopicGap, said: str, letter: tuple[str, int]) -> None:
        """Gives a gap to the handler for gaps; without one it is a dead letter, of this sender and number."""
        logger.warning("agent %s: %s (subscription %s)", self._owner.fold.agent, said, sub.pattern)
        args = message_args(self._owner.spec.handlers.get(sub.on_gap), encode(told), told)
        if sub.on_gap:
            self._send(sub.on_gap, args)
        else:
            self._bury(sub, *letter, f"TopicGap: {said}.", args)

    def _send(self, handler: str, args: bytes, trace: str = "") -> None:
        owner = self._owner
        ledger, agent = owner.fold.ledger, owner.fold.agent
        terms = Terms.of_trace(trace)
        out = Out(agent, owner.spec.name, ledger.next_number(agent), handler, args, False, "", 0, 0, terms=terms)
        ledger.send(out)
        owner.batch.outs.append(out)
