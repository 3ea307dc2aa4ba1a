"""A stream of another system in the simulator's mix: what accounts do with it, and the checker of what comes to them (I43)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple, TypeAlias

import msgspec

import mielin_cells as cells
from mielin_cells.agents.topics.messages import Since
from mielin_cells.errors import never
from mielin_cells.log.commit import Commit
from mielin_cells.log.records import Committed, HandedOff, Undone
from mielin_cells.log.topics.names import matches
from mielin_cells.log.topics.outside import MADE, is_outside, split
from mielin_cells.log.topics.subs import Sub, Subscribed, Took, Unsubscribed
from mielin_cells.testing.checkers.checker import Checker, Step
from mielin_cells.testing.checkers.outside.stream import STREAM, ForeignStream
from mielin_cells.testing.checkers.scene import Scene

PATTERNS = ("orders.eu", "orders.*", ">")
WORLDS = 0.2
"""The share of the worlds in which another system writes a stream."""

Number: TypeAlias = tuple[int, int]
"""When the stream was made, and the position in it."""


class Clerk(cells.Agent, name="SimClerk"):
    """What an account does with the stream."""

    orders: list[tuple[int, int]] = []  # noqa: RUF012 - a mutable default is copied for each agent
    order_gaps: int = 0

    def _heard(self, sender: str, n: int) -> int:
        raise NotImplementedError

    @cells.handler
    async def heed(self, sender: str, n: int, pattern: str, count: int) -> int:
        since: Since = "first" if count == 3 else "now"
        await cells.subscribe(pattern, self.on_order, since=since, on_gap=self.on_order_gap, stream=STREAM)
        return self._heard(sender, n)

    @cells.handler
    async def unheed(self, sender: str, n: int, pattern: str, count: int) -> int:
        cells.unsubscribe(pattern, self.on_order, stream=STREAM)
        return self._heard(sender, n)

    @cells.handler
    async def on_order(self, which: list[int], about: cells.Published) -> None:
        self.orders.append((which[0], about.n))

    @cells.handler
    async def on_order_gap(self, gap: cells.TopicGap) -> None:
        self.order_gaps += 1

    @cells.handler
    async def heeded(self) -> tuple[list[tuple[int, int]], int]:
        return self.orders, self.order_gaps


class Heeding(NamedTuple):
    """A call about the stream."""

    rest_s: float
    agent: str
    kind: str
    pattern: str
    size: int


def has_stream(seed: int) -> bool:
    return Random(f"outside {seed}").random() < WORLDS


def heedings(seed: int, name: str, agents: list[str]) -> list[Heeding]:
    """What one client has the agents do; nothing in most worlds."""
    if not agents or not has_stream(seed):
        return []
    rng, made = Random(f"outside {seed} {name}"), list[Heeding]()
    for _ in range(rng.randint(2, 7)):
        kind = rng.choices(("heed", "unheed"), (4.0, 1.0))[0]
        rest_s = rng.choice((0.0, 0.05, 0.5, 2.0)) * rng.random()
        made.append(Heeding(rest_s, rng.choice(agents), kind, rng.choice(PATTERNS), rng.randint(1, 3)))
    return made


@dataclass(slots=True)
class _Life:
    """One subscription from its first record on."""

    made: int
    start: int
    position: int
    parked: str = ""
    passed: set[Number] = field(default_factory=set)
    """What it has come by, taken or not."""


class _Came(msgspec.Struct):
    """The arguments of `on_order`, of which the first says which message it is."""

    which: list[int]

    @property
    def number(self) -> Number:
        made, seq = self.which
        return made, seq


_came = msgspec.msgpack.Decoder(_Came).decode


class OutsideOnce(Checker):
    """I43: of a stream that another system writes, each message that is read while it is kept is taken once, in the stream's order.

    What is passed over was removed by then, and is told as a gap; or another subscription of the handler has taken it.  No position
    goes back by an undo.  At rest each subscriber is where the stream is, and its handler has had what was taken, in that order.
    """

    invariant = "I43"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._lives: dict[str, dict[str, _Life]] = {}
        self._taken: dict[str, list[Number]] = {}
        """By agent, what its handler is to have, in order."""
        self._gone: dict[str, dict[str, _Life]] = {}
        """Those that were ended, and that an undo may bring back."""
        self._replaying: set[str] = set()
        """Agents that take inputs again after an undo."""
        self._gaps: Counter[str] = Counter()

    @property
    def _stream(self) -> ForeignStream:
        if self.scene.foreign is None:
            raise never("a stream of another system is read where there is none")
        return self.scene.foreign

    def record(self, step: Step) -> None:
        if isinstance(step.record, Undone):
            for sub in step.record.subs or []:
                if is_outside(sub.pattern):
                    self._undone(step, sub)
        commit = step.record.commit if isinstance(step.record, Committed) else None
        if isinstance(step.record, HandedOff):
            commit = step.record.seal
        if commit is not None and commit.changes:
            self._changed(step, commit)
        if self.scene.folds[step.agent].ledger.replays:
            self._replaying.add(step.agent)
            return
        self._replaying.discard(step.agent)
        if lives := self._lives.get(step.agent):
            for key in [key for key, life in lives.items() if life.parked == "undone"]:  # nobody has made it again
                if key in lives:  # else it went with another one of its handler
                    self._ended(step.agent, key, lives)

    def _changed(self, step: Step, commit: Commit) -> None:
        lives = self._lives.setdefault(step.agent, {})
        came = (_came(out.args).number for out in commit.outs if out.to == step.agent and out.handler == "on_order")
        for change in commit.changes:
            if isinstance(change, Subscribed) and is_outside(change.sub.pattern):
                life = lives.get(change.sub.key)
                if life is not None and life.parked != "ended":
                    life.parked = ""
                else:
                    start = change.sub.start[0]
                    lives[change.sub.key] = _Life(change.sub.marks[MADE], start, start)
            elif isinstance(change, Unsubscribed) and change.key in lives and self._replays(step.agent, change):
                lives[change.key].parked = "undone"  # a later turn may make it again
            elif isinstance(change, Unsubscribed) and change.key in lives:
                self._ended(step.agent, change.key, lives)
            elif isinstance(change, Took) and change.subject == MADE:
                self._took(step, change, lives, came)
        if left := [*came]:
            self.fails(f"{step.what} hands over {left}, which it has not taken")

    def _replays(self, agent: str, change: Unsubscribed) -> bool:
        """True if inputs were still to be taken again then.  In the commit that takes the last ones, the change itself says so."""
        return agent in self._replaying and (change.again or bool(self.scene.folds[agent].ledger.replays))

    def _ended(self, agent: str, key: str, lives: dict[str, _Life]) -> None:
        """What a handler has had is forgotten with its last subscription."""
        lives[key].parked = "ended"
        if all(life.parked for other, life in lives.items() if _is_same(other, key)):
            for other in [other for other in lives if _is_same(other, key)]:
                self._gone.setdefault(agent, {})[other] = lives.pop(other)

    def _undone(self, step: Step, sub: Sub) -> None:
        lives = self._lives.setdefault(step.agent, {})
        life = lives.get(sub.key) or self._gone.get(step.agent, {}).get(sub.key)
        if life is None or (sub.cursor[0], sub.marks.get(MADE)) != (life.position, life.made):
            self.fails(f"{step.what} sets {sub.key!r} to {sub.cursor[0]}, which had come to {life and life.position}")
        lives[sub.key], life.parked = life, sub.parked

    def _took(self, step: Step, took: Took, lives: dict[str, _Life], came: Iterator[Number]) -> None:
        life, what = lives.get(took.key), f"{step.what} takes up to {took.seq} for {took.key!r}"
        taken = [next(came) for _ in range(took.count)]
        if life is None or life.parked:
            self.fails(f"{what}, which nobody has subscribed to")
        self._gaps[step.agent] += took.missed > 0
        if took.n != life.made:
            if taken or took.n not in self._stream.streams:
                self.fails(f"{what}: of another stream, with {taken}")
            life.made, life.start, life.position = took.n, took.seq, took.seq
            return
        self._look_at(what, took, life, taken, lives)
        life.position = took.seq
        self._taken.setdefault(step.agent, []).extend(taken)

    def _look_at(self, what: str, took: Took, life: _Life, taken: list[Number], lives: dict[str, _Life]) -> None:
        """The stream's own word on what lies between the two positions."""
        _, subjects = split(took.key.partition(" ")[2])
        others = {
            one for key, other in lives.items() if other is not life and _is_same(key, took.key) for one in other.passed
        }
        lost = self._positions(life, took.seq, "")
        between = self._positions(life, took.seq, subjects)
        if taken != sorted(set(taken)) or not {*taken} <= {*between}:
            self.fails(f"{what} with {taken}, of {between}")
        if again := [one for one in taken if one in life.passed or one in others]:
            self.fails(f"{what} again: {again}")
        stream = self._stream.streams[life.made]
        skipped = [one for one in between if one not in taken and one not in others]
        if kept := [one for one in skipped if stream[one[1]].removed is None]:
            self.fails(f"{what} without {kept}, which the stream has")
        if skipped and not took.missed:
            self.fails(f"{what} without {skipped}, and tells nobody")
        if took.missed and not any(stream[one[1]].removed is not None for one in lost):
            self.fails(f"{what}, and tells of a gap where nothing was removed")
        life.passed.update(between)

    def _positions(self, life: _Life, upto: int, subjects: str) -> list[Number]:
        """Behind where the subscription is, of these subjects, or all."""
        return [
            (life.made, seq) for seq, kept in sorted(self._stream.streams[life.made].items())
            if life.position < seq <= upto and (not subjects or matches(subjects, kept.message.subject))
        ]  # fmt: skip

    def behind(self) -> str:
        """What has not come yet; "" if everything has."""
        foreign = self.scene.foreign
        if foreign is None:
            return ""
        for agent, lives in self._lives.items():
            if agent not in self.scene.observed:
                continue
            for key, life in lives.items():
                if life.parked:
                    continue
                if life.made != foreign.made:
                    return f"{agent} has not seen that the stream of {key!r} was made anew"
                _, subjects = split(key.partition(" ")[2])
                there = [
                    one
                    for one in self._positions(life, 1 << 60, subjects)
                    if foreign.streams[one[0]][one[1]].removed is None
                ]
                if there:
                    return f"{agent} has not taken {there} for {key!r}"
            if len(self.scene.observed[agent].orders) < len(self._taken.get(agent, [])):
                return f"{agent} has not handled all that it has taken of {STREAM}"
            if self.scene.observed[agent].order_gaps < self._gaps[agent]:
                return f"{agent} has not heard of all gaps in {STREAM}"
        return ""

    def at_rest(self) -> None:
        if behind := self.behind():
            self.fails(f"at rest {behind}")
        if self.scene.foreign is None:
            return
        for agent, state in self.scene.observed.items():
            if state.book is None and state.orders != self._taken.get(agent, []):
                self.fails(f"{agent} was to have {self._taken.get(agent, [])}; it had {state.orders}")
            if state.book is None and state.order_gaps != self._gaps[agent]:
                self.fails(f"{agent} was to hear of {self._gaps[agent]} gaps; it heard of {state.order_gaps}")
        self.scene.counts["messages of another system taken"] += sum(map(len, self._taken.values()))
        self.scene.counts["gaps in a stream of another system"] += self._gaps.total()


def _is_same(key: str, other: str) -> bool:
    """True for subscriptions of one handler."""
    return key.partition(" ")[0] == other.partition(" ")[0]
