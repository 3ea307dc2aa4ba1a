"""Topics in the simulator's mix: what accounts do with them, and the checker of what comes to subscribers (I30)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import mielin_cells as cells
from mielin_cells.agents.topics.messages import Since
from mielin_cells.log.commit import Commit
from mielin_cells.log.records import Committed, HandedOff, Undone
from mielin_cells.log.topics.names import is_topic, matches, topic_named, topic_of
from mielin_cells.log.topics.outside import is_outside
from mielin_cells.log.topics.posts import Post
from mielin_cells.log.topics.subs import Sub, Subscribed, Took, Unsubscribed
from mielin_cells.testing.checkers.checker import Checker, Posted, Step
from mielin_cells.testing.checkers.lines.priorities import Urgent
from mielin_cells.testing.checkers.scene import Scene

TOPICS = ("rates.eu", "rates.us", "rates.us.day", "news")
PATTERNS = ("rates.*", "rates.>", "news", ">")
WORLDS = 0.35
"""The share of the worlds in which agents publish and subscribe."""


class Market(Urgent, name="SimMarket"):
    """What an account does with topics."""

    posted: int = 0
    came: list[tuple[str, str, int]] = []  # noqa: RUF012 - a mutable default is copied for each agent
    gaps: int = 0

    @cells.handler
    async def post(self, sender: str, n: int, topic: str, count: int) -> int:
        for _ in range(count):
            self.posted += 1
            cells.publish(topic, self.posted)
        return self._heard(sender, n)

    @cells.handler
    async def attend(self, sender: str, n: int, pattern: str, count: int) -> int:
        since: Since = "first" if count == 3 else "now"
        await cells.subscribe(pattern, self.on_post, since=since, on_gap=self.on_gap)
        return self._heard(sender, n)

    @cells.handler
    async def depart(self, sender: str, n: int, pattern: str, count: int) -> int:
        cells.unsubscribe(pattern, self.on_post)
        return self._heard(sender, n)

    @cells.handler
    async def on_post(self, value: int, about: cells.Published) -> None:
        self.came.append((about.topic, about.publisher, about.n))

    @cells.handler
    async def on_gap(self, gap: cells.TopicGap) -> None:
        self.gaps += 1

    @cells.handler
    async def attended(self) -> tuple[list[tuple[str, str, int]], int]:
        return self.came, self.gaps


class Deal(NamedTuple):
    """A call about a topic."""

    rest_s: float
    agent: str
    kind: str
    topic: str
    size: int


def deals(seed: int, name: str, agents: list[str]) -> list[Deal]:
    """What one client has the agents do; nothing in most worlds."""
    if Random(f"topics {seed}").random() > WORLDS:
        return []
    rng, made = Random(f"topics {seed} {name}"), list[Deal]()
    for _ in range(rng.randint(5, 18)):
        kind = rng.choices(("post", "attend", "depart"), (6.0, 2.5, 0.7))[0]
        rest_s = rng.choice((0.0, 0.05, 0.5, 2.0)) * rng.random()
        topic = rng.choice(TOPICS if kind == "post" else PATTERNS)
        made.append(Deal(rest_s, rng.choice(agents), kind, topic, rng.randint(1, 3)))
    return made


@dataclass(slots=True)
class _Life:
    """One subscription from its first record on."""

    start: int
    parked: str = ""
    marks: dict[str, int] = field(default_factory=dict)
    taken: set[tuple[str, int]] = field(default_factory=set)
    """Subject and number."""
    had: set[tuple[str, int]] = field(default_factory=set)
    """Also of messages that another subscription of the handler had taken."""


class TopicsOnce(Checker):
    """I30: a subscriber takes each message of a topic once and in its publisher's order, or is told that it is gone.

    A message is taken only where it stands in the store, is never called gone while it is there, and no position goes back by an
    undo.  At rest each subscriber has taken all that was published since it began, and its handler has had just that, in that order.
    """

    invariant = "I30"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._posts: dict[str, dict[int, Post]] = {}
        """By subject and sequence."""
        self._lives: dict[str, dict[str, _Life]] = {}
        self._gone: dict[str, dict[str, _Life]] = {}
        """Those that were ended, and that an undo may bring back."""
        self._replaying: set[str] = set()
        """Agents that take inputs again after an undo."""
        self._came: dict[str, list[tuple[str, str, int]]] = {}
        """By agent, what its handler is to have, in order."""
        self._gaps: Counter[str] = Counter()

    def post(self, posted: Posted) -> None:
        there = self._posts.setdefault(posted.subject, {})
        before = max(there, default=0)
        if posted.post.prev != before:
            self.fails(
                f"{posted.author.label} appended to {posted.subject} behind {posted.post.prev}; its end is {before}"
            )
        if before and posted.post.n != there[before].last + 1:
            self.fails(
                f"{posted.author.label} put number {posted.post.n} into {posted.subject} behind {there[before].last}"
            )
        there[posted.seq] = posted.post

    def record(self, step: Step) -> None:
        if isinstance(step.record, Undone):
            self._undone(step, [sub for sub in step.record.subs or [] if not is_outside(sub.pattern)])
        commit = _commit_of(step)
        for change in commit.changes if commit is not None else ():
            lives = self._lives.setdefault(step.agent, {})
            if isinstance(change, Took) and change.subject:  # without a subject it is of another system
                self._took(step, change, lives)
            elif isinstance(change, Subscribed) and not is_outside(change.sub.pattern):
                self._subscribed(change.sub, lives)
            elif isinstance(change, Unsubscribed) and change.key in lives and self._replays(step.agent, change):
                lives[change.key].parked = "undone"  # a later turn may make it again
            elif isinstance(change, Unsubscribed) and change.key in lives:
                self._ended(step.agent, change.key, lives)
        if self.scene.folds[step.agent].ledger.replays:
            self._replaying.add(step.agent)
            return
        self._replaying.discard(step.agent)
        if lives := self._lives.get(step.agent, {}):
            for key in [key for key, life in lives.items() if life.parked == "undone"]:  # nobody has made it again
                if key in lives:  # else it went with another one of its handler
                    self._ended(step.agent, key, lives)

    def _subscribed(self, sub: Sub, lives: dict[str, _Life]) -> None:
        life = lives.get(sub.key)
        if life is not None and life.parked != "ended":
            life.parked = ""
        else:
            lives[sub.key] = _Life(sub.start[0])

    def _replays(self, agent: str, change: Unsubscribed) -> bool:
        """True if inputs were still to be taken again then.  In the commit that takes the last ones, the change itself says so."""
        return agent in self._replaying and (change.again or bool(self.scene.folds[agent].ledger.replays))

    def _ended(self, agent: str, key: str, lives: dict[str, _Life]) -> None:
        """What a handler has had is forgotten with its last subscription."""
        lives[key].parked = "ended"
        handler = _handler_of(key)
        if all(life.parked for other, life in lives.items() if _handler_of(other) == handler):
            for other in [other for other in lives if _handler_of(other) == handler]:
                self._gone.setdefault(agent, {})[other] = lives.pop(other)

    def _undone(self, step: Step, subs: list[Sub]) -> None:
        lives = self._lives.setdefault(step.agent, {})
        for sub in subs:
            life = lives.get(sub.key) or self._gone.get(step.agent, {}).get(sub.key)
            if life is None or sub.marks != life.marks:
                self.fails(
                    f"{step.what} sets subscription {sub.key!r} to {sub.marks}, which had come to {life and life.marks}"
                )
            lives[sub.key], life.parked = life, sub.parked

    def _took(self, step: Step, took: Took, lives: dict[str, _Life]) -> None:
        life, posts = lives.get(took.key), self._posts.get(took.subject, {})
        post = posts.get(took.seq)
        what = f"{step.what} takes {took.subject} at {took.seq} for {took.key!r}"
        if life is None or life.parked or post is None or took.n != post.last or took.seq <= life.start:
            self.fails(f"{what}, which it cannot: it is not there, or before the beginning, or for nobody")
        numbers = [(took.subject, n) for n in range(post.n, post.last + 1)]
        topic, publisher = topic_of(took.subject)
        others = [
            other for key, other in lives.items() if other is not life and _handler_of(key) == _handler_of(took.key)
        ]
        if took.count:
            again = [one for one in numbers if any(one in other.taken for other in (life, *others))]
            if again:
                self.fails(f"{what} again: {again}")
            self._came.setdefault(step.agent, []).extend((topic, publisher, n) for _, n in numbers)
            life.taken.update(numbers)
        elif not all(any(one in other.had for other in others) for one in numbers):
            self.fails(f"{what} without its messages, which nobody has taken")
        life.had.update(numbers)
        self._look_for_gap(what, took, life, post)
        life.marks[took.subject] = took.n
        self._gaps[step.agent] += took.missed > 0

    def _look_for_gap(self, what: str, took: Took, life: _Life, post: Post) -> None:
        posts, mark = self._posts[took.subject], life.marks.get(took.subject)
        missed = [seq for seq, one in posts.items() if life.start < seq < took.seq and (mark is None or one.n > mark)]
        if bool(missed) != (took.missed > 0):
            self.fails(f"{what} without {missed}, and counts {took.missed} as missed")
        kept = [seq for seq in missed if seq >= self.scene.history.trimmed.get(took.subject, 0)]
        if kept:
            self.fails(f"{what}, and calls {kept} gone, which the store has")

    def behind(self) -> str:
        """What has not come yet; "" if everything has."""
        for agent, fold in self.scene.folds.items():
            if agent not in self.scene.observed:
                continue
            subs = fold.ledger.topics
            for sub in (one for one in (subs.live() if subs is not None else ()) if not is_outside(one.pattern)):
                for subject, posts in self._posts.items():
                    seq = max(posts)
                    if (
                        matches(sub.pattern, topic_of(subject)[0])
                        and seq > sub.start[0]
                        and sub.marks.get(subject) != posts[seq].last
                    ):
                        return f"{agent} has not taken {subject} at {seq} for {sub.key!r}"
            for to, n in fold.ledger.numbers.items():
                if is_topic(to) and n > self._stored(agent, topic_named(to)):
                    return f"number {n} of {agent} to topic {topic_named(to)} is not stored"
            if len(self.scene.observed[agent].came) < len(self._came.get(agent, [])):
                return f"{agent} has not handled all that it has taken"
            if self.scene.observed[agent].gaps < self._gaps[agent]:
                return f"{agent} has not heard of all gaps"
        return ""

    def _stored(self, publisher: str, topic: str) -> int:
        posts = [posts for subject, posts in self._posts.items() if topic_of(subject) == (topic, publisher)]
        return posts[0][max(posts[0])].last if posts else 0

    def at_rest(self) -> None:
        if behind := self.behind():
            self.fails(f"at rest {behind}")
        for agent, state in self.scene.observed.items():
            if state.book is None and state.came != self._came.get(agent, []):
                self.fails(f"{agent} was to have {self._came.get(agent, [])}; it had {state.came}")
            if state.book is None and state.gaps != self._gaps[agent]:
                self.fails(f"{agent} was to hear of {self._gaps[agent]} gaps; it heard of {state.gaps}")
        self.scene.counts["messages of topics taken"] += sum(map(len, self._came.values()))
        self.scene.counts["gaps in topics"] += self._gaps.total()


def _handler_of(key: str) -> str:
    return key.partition(" ")[0]


def _commit_of(step: Step) -> Commit | None:
    if isinstance(step.record, Committed):
        return step.record.commit
    return step.record.seal if isinstance(step.record, HandedOff) else None
