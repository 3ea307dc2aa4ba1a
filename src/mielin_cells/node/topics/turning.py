"""What a turn publishes, subscribes and ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mielin_cells.agents.spec import Spec
from mielin_cells.agents.topics.calls import check_takes, since_s, starts
from mielin_cells.agents.topics.messages import Since
from mielin_cells.log.commit import Out
from mielin_cells.log.fold import Fold
from mielin_cells.log.ledger import Ledger
from mielin_cells.log.message import Terms
from mielin_cells.log.topics.names import check_topic, receiver_of
from mielin_cells.log.topics.outside import is_outside
from mielin_cells.log.topics.subs import Sub, Subscribed, TopicChange, Unsubscribed, key_of
from mielin_cells.store.outside import subscription
from mielin_cells.substrate.ports import Log


class Home(Protocol):
    """What is needed of the node."""

    @property
    def log(self) -> Log: ...
    @property
    def wall(self) -> Callable[[], float]: ...


class Outbox(Protocol):
    def check_room(self, to: str) -> None: ...


class Owner(Protocol):
    """What is needed of the agent."""

    @property
    def spec(self) -> Spec: ...
    @property
    def fold(self) -> Fold: ...
    @property
    def home(self) -> Home: ...
    @property
    def outbox(self) -> Outbox: ...


class Turn(Protocol):
    """What is needed of the turn."""

    sender: str
    n: int
    tells: list[Out]
    topics: list[TopicChange] | None

    @property
    def _core(self) -> Owner: ...
    def _open(self) -> None: ...
    def _may_go_on(self) -> None: ...
    def _fits(self, agent: str, args: bytes) -> None: ...
    def _next_place(self, to: str, ask: bool) -> int: ...
    def traced(self, terms: Terms | None) -> Terms | None: ...


class TopicCalls:
    """The part of a turn that deals with topics.  What it notes takes effect once the turn is committed."""

    topics: list[TopicChange] | None = None
    """Subscriptions that are made or ended."""

    def publish(self: Turn, topic: str, value: bytes) -> None:
        """Notes a message that is published, and numbered, once the turn has ended."""
        to = receiver_of(check_topic(topic))
        self._open()
        self._fits(f"topic {topic}", value)
        self._core.outbox.check_room(to)
        self.tells.append(
            Out(to, "", 0, "", value, False, self.sender, self.n, self._next_place(to, False), terms=self.traced(None))
        )

    async def subscribe(self: Turn, pattern: str, handler: str, since: Since, on_gap: str) -> None:
        self._open()
        change = await subscribed(self._core, pattern, handler, since, on_gap)
        self._may_go_on()
        self.topics = [*(self.topics or ()), change]

    def unsubscribe(self: Turn, pattern: str, handler: str) -> bool:
        self._open()
        change = unsubscribed(self._core.fold.ledger, self.topics or [], pattern, handler)
        if change is not None:
            self.topics = [*(self.topics or ()), change]
        return change is not None


async def subscribed(owner: Owner, pattern: str, handler: str, since: Since, on_gap: str) -> Subscribed:
    """Raises as `cells.subscribe`.

    The ends are read before the turn is committed, so all that is published after the turn has been answered is behind them.
    """
    for name in filter(None, (handler, on_gap)):
        check_takes(owner.spec.handler(name))
    if is_outside(pattern):
        return Subscribed(await subscription(owner.home.log, pattern, handler, on_gap, since, owner.home.wall()))
    since_at = since_s(since, owner.home.wall())
    start = starts(since, await owner.home.log.topic_ends())
    return Subscribed(Sub(pattern, handler, on_gap, start, since_at, [*start]))


def unsubscribed(ledger: Ledger, made: list[TopicChange], pattern: str, handler: str) -> Unsubscribed | None:
    """None if there is no such subscription; `made`: what this turn has changed before."""
    key, subs = key_of(pattern, handler), ledger.topics
    is_there = subs is not None and key in subs.by_key and not subs.by_key[key].parked
    for change in made:
        if isinstance(change, Subscribed) and change.sub.key == key:
            is_there = True
        elif isinstance(change, Unsubscribed) and change.key == key:
            is_there = False
    return Unsubscribed(key, bool(ledger.replays)) if is_there else None
