"""What one commit will hold, while it is gathered."""

from __future__ import annotations

from typing import TypeAlias

from mielin_cells.log.commit import (
    Commit,
    DeadLetter,
    EndedTurn,
    Fired,
    Input,
    Out,
    ReplayCounts,
    Timer,
    Wish,
)
from mielin_cells.log.delta import StateDelta
from mielin_cells.log.family.tree import FamilyChange
from mielin_cells.log.inboxes.places import Places
from mielin_cells.log.topics.subs import TopicChange
from mielin_cells.log.waits.kept import WaitChange

Answers: TypeAlias = dict[tuple[str, str], dict[int, bytes]]
"""By reply subject and sender: the answer to each number."""


class Batch:
    """The turns that one commit will hold.  `answers` leave when it is acknowledged (rule 9), and only then."""

    __slots__ = (
        "answers",
        "cancels",
        "changes",
        "dead",
        "delta",
        "ended",
        "fired",
        "forgot",
        "held",
        "inboxes",
        "inputs",
        "keys_dropped",
        "moved",
        "outs",
        "released",
        "replayed",
        "timers",
        "touched",
        "turns",
        "wish",
    )  # fmt: skip

    def __init__(self) -> None:
        self.turns = 0
        self.touched = False
        """True if something must be committed although no turn ran."""
        self.moved = False
        """True if the cursor has passed repeats: this needs no commit of its own, but is part of a seal."""
        self.inputs: list[Input] = []
        self.outs: list[Out] = []
        self.ended: list[EndedTurn] = []
        self.replayed: ReplayCounts | None = None
        self.timers: dict[str, Timer | None] = {}
        """Timers that were set or moved on; None for those that are gone."""
        self.fired: list[Fired] = []
        self.dead: list[DeadLetter] = []
        self.forgot: list[str] = []
        self.held = False
        self.released: dict[str, int] = {}
        self.delta: StateDelta | None = None
        self.answers: Answers = {}
        self.wish: Wish | None = None
        self.changes: list[TopicChange | FamilyChange | WaitChange] = []
        self.keys_dropped = 0
        self.inboxes: set[str] | tuple[()] = ()
        """Priorities of the inboxes besides the normal one whose places have changed."""
        self.cancels: list[tuple[str, int]] = []

    def __bool__(self) -> bool:
        return self.turns > 0 or self.touched

    def answer(self, reply_to: str, sender: str, n: int, answer: bytes) -> None:
        numbers = self.answers.get((reply_to, sender))
        if numbers is None:
            self.answers[reply_to, sender] = {n: answer}
        else:
            numbers[n] = answer

    def change(self, delta: StateDelta | None) -> None:
        """Adds a turn's change of state to what the commit will carry.  The batch owns `delta` from then on."""
        if delta is None:
            return
        self.touched = True
        mine = self.delta
        if mine is None:
            self.delta = delta
        elif delta.tables or delta.buffers or delta.removed:
            self.delta = mine.then(delta)
        else:
            mine.plain.update(delta.plain)

    def read_in(self, priority: str) -> None:
        """The place in this inbox, which is not the normal one, has changed."""
        self.inboxes = {*self.inboxes, priority}

    def commit(self, cursor: int, held: list[int], version: int, digest: bytes, places: Places | None = None) -> Commit:
        return Commit(
            cursor, sorted(held) if self.held else None, self.inputs, self.outs, self.released, self.dead, self.forgot,
            self.delta, version, digest, self.ended, self.replayed,
            [timer for timer in self.timers.values() if timer is not None],
            [name for name, timer in self.timers.items() if timer is None], self.fired, self.wish,
            self.changes, self.keys_dropped, {one: places[one].copy() for one in sorted(self.inboxes)} if places else {},
            self.cancels,
        )  # fmt: skip
