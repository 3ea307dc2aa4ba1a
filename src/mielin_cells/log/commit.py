"""A commit in the making: what the turns since the last one have changed."""

from __future__ import annotations

from typing import TypeAlias

from mielin_cells.log.records import Commit, DeadLetter, Ended, Fired, Out, Replayed, Taken, Timer, Wish
from mielin_cells.log.state import StateDelta, TableDelta

Answers: TypeAlias = dict[tuple[str, str], dict[int, bytes]]
"""By reply subject and sender: the answer to each number."""


class Batch:
    """The turns that one commit will hold.  `answers` leave when it is acknowledged (rule 9), and only then."""

    __slots__ = (
        "answers", "dead", "delta", "ended", "fired", "forgot", "held", "moved", "outs", "released", "replayed", "taken",
        "timers", "touched", "turns", "wish",
    )  # fmt: skip

    def __init__(self) -> None:
        self.turns = 0
        self.touched = False
        """Something is to be committed, though no turn ran."""
        self.moved = False
        """The cursor has passed repeats: worth no commit of its own, but part of a seal."""
        self.taken: list[Taken] = []
        self.outs: list[Out] = []
        self.ended: list[Ended] = []
        self.replayed: Replayed | None = None
        self.timers: dict[str, Timer | None] = {}
        """Set, gone on, or gone (None)."""
        self.fired: list[Fired] = []
        self.dead: list[DeadLetter] = []
        self.forgot: list[str] = []
        self.held = False
        self.released: dict[str, int] = {}
        self.delta: StateDelta | None = None
        self.answers: Answers = {}
        self.wish: Wish | None = None

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
            self.delta = merged(mine, delta)
        else:
            mine.plain.update(delta.plain)

    def commit(self, cursor: int, held: list[int], version: int, digest: bytes) -> Commit:
        return Commit(
            cursor, list(held) if self.held else None, self.taken, self.outs, self.released, self.dead, self.forgot,
            self.delta, version, digest, self.ended, self.replayed,
            [timer for timer in self.timers.values() if timer is not None],
            [name for name, timer in self.timers.items() if timer is None], self.fired, self.wish,
        )  # fmt: skip


def merged(first: StateDelta, second: StateDelta) -> StateDelta:
    """One delta with the effect of both, in order.  Deltas are absolute, so the later value of a key or page wins."""
    removed = list(dict.fromkeys([*first.removed, *second.removed]))  # applied before anything is set
    gone = set(second.removed)
    tables = {k: v for k, v in first.tables.items() if k not in gone}
    for name, table in second.tables.items():
        tables[name] = _tables(tables[name], table) if name in tables else table
    buffers = {k: v for k, v in first.buffers.items() if k not in gone}
    for name, buffer in second.buffers.items():
        buffers[name] = buffers[name].then(buffer) if name in buffers else buffer
    plain = {k: v for k, v in first.plain.items() if k not in gone}
    return StateDelta(plain={**plain, **second.plain}, tables=tables, buffers=buffers, removed=removed)


def _tables(first: TableDelta, second: TableDelta) -> TableDelta:
    sets = {**first.sets, **second.sets}
    for key in second.dels:
        sets.pop(key, None)
    dels = dict.fromkeys([*first.dels, *second.dels])
    for key in second.sets:
        dels.pop(key, None)
    return TableDelta(sets=sets, dels=list(dels))
