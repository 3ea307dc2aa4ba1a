"""Subscriptions, as an agent's ledger holds them, and what a subscriber takes of a topic (rule T8).  Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import msgspec

from mielin_cells.log.topics.names import matches
from mielin_cells.log.topics.posts import Post


class Sub(msgspec.Struct, array_like=True):
    """A subscription of an agent.  Positions are sequences by shard."""

    pattern: str
    handler: str
    on_gap: str
    start: list[int]
    """Entries up to here are not wanted."""
    since: float
    """Entries from before this time are not wanted; 0: whatever their time."""
    cursor: list[int]
    """Entries up to here were taken, or are not wanted."""
    marks: dict[str, int] = {}
    """By subject, the number of the last message taken.  Of a stream that another system writes: `outside.MADE` alone."""
    taken: int = 0
    missed: int = 0
    parked: Literal["", "ended", "undone"] = ""
    """Not read.  ended: it was removed, and another of this handler may still come to what this one has taken.
    undone: the turn that made it was undone, or ended it while it was taken again; if it is made again it goes on where it was."""

    @property
    def key(self) -> str:
        return key_of(self.pattern, self.handler)

    def copy(self) -> Sub:
        return msgspec.structs.replace(self, start=[*self.start], cursor=[*self.cursor], marks=dict(self.marks))


def key_of(pattern: str, handler: str) -> str:
    """A subscription is known by this, so whoever subscribes twice has one."""
    return f"{handler} {pattern}"


class Subscribed(msgspec.Struct, array_like=True, frozen=True, tag="subscribed"):
    sub: Sub


class Unsubscribed(msgspec.Struct, array_like=True, frozen=True, tag="unsubscribed"):
    key: str
    again: bool = False
    """Inputs are taken again after an undo, so a later one may subscribe again what it had subscribed before: positions stay until all
    are taken.  Not set in logs of earlier versions, which dropped them here."""


class Took(msgspec.Struct, array_like=True, frozen=True, tag="took"):
    """An entry was taken: its messages are among the outputs of this commit, sent by the agent to itself."""

    key: str
    shard: int
    seq: int
    subject: str
    n: int
    """Number of the entry's last message."""
    count: int
    """Messages taken; 0 for an entry that another subscription of the same handler has taken."""
    missed: int
    """Messages that are gone without having been read, at least."""

    def begins_anew(self, sub: Sub) -> bool:
        """True if the stream of another system, which has no subject here, was deleted and made anew."""
        return not self.subject and sub.marks.get("", self.n) != self.n


TopicChange: TypeAlias = Subscribed | Unsubscribed | Took


class Gap(NamedTuple):
    """Messages that were removed before they were read: numbers `first` (0: unknown) to `last`."""

    first: int
    last: int

    @property
    def at_least(self) -> int:
        """At least so many."""
        return self.last - self.first + 1 if self.first else 1


class Taking(NamedTuple):
    """What a subscriber does with an entry."""

    took: Took
    gap: Gap | None
    is_wanted: bool


class Subs(msgspec.Struct, array_like=True):
    """All subscriptions of one agent, by key."""

    by_key: dict[str, Sub] = {}

    def live(self) -> list[Sub]:
        return [sub for sub in self.by_key.values() if not sub.parked]

    def copy(self) -> Subs:
        return Subs({key: sub.copy() for key, sub in self.by_key.items()})

    def apply(self, change: TopicChange) -> None:
        """Owner and readers make the same changes, in the same order."""
        if isinstance(change, Took):
            sub = self.by_key[change.key]
            if change.begins_anew(sub):
                sub.start[change.shard] = sub.cursor[change.shard] = change.seq
            else:
                sub.cursor[change.shard] = max(change.seq, sub.cursor[change.shard])
            sub.marks[change.subject] = change.n
            sub.taken += change.count
            sub.missed += change.missed
        elif isinstance(change, Subscribed):
            sub, before = change.sub, self.by_key.get(change.sub.key)
            if before is not None and before.parked != "ended":
                before.on_gap, before.parked = sub.on_gap, ""
            else:
                self.by_key[sub.key] = sub.copy()
        else:
            self._park(change.key, "undone" if change.again else "ended")

    def _park(self, key: str, how: Literal["ended", "undone"]) -> None:
        """Keeps what was removed while another subscription of its handler may come to the same messages."""
        sub = self.by_key.get(key)
        if sub is None:
            return
        sub.parked = how
        if how == "ended" and not any(
            other.handler == sub.handler and not other.parked for other in self.by_key.values()
        ):
            self.by_key = {k: other for k, other in self.by_key.items() if other.handler != sub.handler}

    def replayed(self) -> None:
        """All inputs since the undo are taken again: what was not subscribed again is over."""
        for key in [key for key, sub in self.by_key.items() if sub.parked == "undone"]:
            self._park(key, "ended")

    def content(self) -> list[tuple[object, ...]]:
        """For a digest: depends on what it holds alone."""
        return [
            (
                key,
                sub.on_gap,
                sub.start,
                sub.since,
                sub.cursor,
                sorted(sub.marks.items()),
                sub.taken,
                sub.missed,
                sub.parked,
            )
            for key, sub in sorted(self.by_key.items())
        ]

    def judge(self, key: str, shard: int, seq: int, subject: str, post: Post) -> Taking | None:
        """What becomes of the entry that was read behind all others that this subscription has had; None: nothing at all.

        A gap is judged by the last message taken of this very publisher (or by where the subscription began).  The cursor cannot
        tell it: what was removed unread may lie before an entry of another publisher that moved the cursor.
        """
        sub = self.by_key[key]
        mark = sub.marks.get(subject)
        if seq <= sub.cursor[shard] or (mark is not None and post.last <= mark) or post.at < sub.since:
            return None
        gap = None
        if mark is not None:
            gap = Gap(mark + 1, post.n - 1) if post.n > mark + 1 else None
        elif post.prev > sub.start[shard] and post.prev_at >= sub.since:
            gap = Gap(0 if sub.start[shard] or sub.since else 1, post.n - 1)
        is_wanted = not any(
            other is not sub and other.handler == sub.handler and other.start[shard] < seq <= other.cursor[shard]
            and post.at >= other.since and matches(other.pattern, post.topic)
            for other in self.by_key.values()
        )  # fmt: skip
        count = len(post.values) if is_wanted else 0
        return Taking(
            Took(key, shard, seq, subject, post.last, count, gap.at_least if gap is not None else 0), gap, is_wanted
        )


def after_undo(back: Subs | None, now: Subs | None, removed: dict[str, Sub]) -> list[Sub]:
    """The subscriptions after an undo to a record where they were `back`.

    Their positions do not go back: what was taken is in the inbox, and is taken from there once more.  `removed`: those that were
    removed since, as they were then.
    """
    latest = {**removed, **(now.by_key if now is not None else {})}
    before = back.by_key if back is not None else {}
    subs = []
    for key in sorted({*before, *latest}):
        sub = latest.get(key, before.get(key))
        if sub is None:
            continue
        there = before.get(key)
        parked = there.parked if there is not None else "undone"
        subs.append(msgspec.structs.replace(sub.copy(), parked=parked, on_gap=there.on_gap if there else sub.on_gap))
    return subs
