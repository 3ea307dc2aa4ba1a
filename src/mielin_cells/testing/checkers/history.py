"""What a run records for its checkers, and the register model of who owns an agent.

An agent's log is a register: its value is the last sequence, an append with `expect` is a compare-and-set, `last` is a read.  The
log is the order in which appends took effect, so one pass decides whether a history is linearizable: an append must not be ordered
before one that had ended before it began, and a read gives a value that was current between its beginning and its end.
An append whose caller never learnt its outcome has no end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol


class Author(Protocol):
    """The process that appended an entry or published a message: a node or client by name, and which incarnation of it."""

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...


@dataclass(slots=True)
class Operation:
    """One call of one process.  `seq`: where it took effect, or what it read (0: an empty log; -1: unknown)."""

    process: str
    is_read: bool
    began: float
    ended: float = inf
    """When its caller learnt the outcome, if it ever did."""
    seq: int = -1
    expect: int | None = None


@dataclass(slots=True)
class History:
    """One run as its checkers read it.  The simulated world writes it; `tests/torture` fills one in from a real store."""

    now: Callable[[], float]
    seed: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """Faults that happened, by kind."""
    clocks: Counter[str] = field(default_factory=Counter)
    """By name of a process, how many seconds its wall clock is off now."""
    clock_error_max: int = 0
    """The largest clock error so far, seconds."""
    trimmed: dict[str, int] = field(default_factory=dict)
    """By subject of a topic, the sequence below which its entries were removed."""
    operations: dict[str, list[Operation]] = field(default_factory=dict)
    """By agent log: appends, and reads of its end, as their callers saw them."""
    places: dict[str, list[tuple[int, Operation | None]]] = field(default_factory=dict)
    """By agent log: its sequences in order, each with the append that took effect there."""


def explain_nonlinear(history: Sequence[Operation], places: Sequence[tuple[int, Operation | None]]) -> str:
    """The first operation that the order of the log does not explain, as a sentence; "" if the history is linearizable."""
    return _check_appends(history, places) or _check_reads(history, places)


def _check_appends(history: Sequence[Operation], places: Sequence[tuple[int, Operation | None]]) -> str:
    before: dict[int, int] = {}
    last = 0
    for seq, _ in places:
        before[seq] = last
        last = seq
    for op in history:
        if op.is_read or op.seq < 0:
            continue
        if op.seq not in before:
            return f"{op.process} got {op.seq} for an append, where nothing is"
        if op.expect is not None and op.expect != before[op.seq]:
            return f"{op.process} expected {op.expect} and was put behind {before[op.seq]}"
    soonest = inf
    for seq, appended in reversed(places):
        if appended is None:
            continue
        if appended.began > soonest:
            return f"the append at {seq} began after one that is ordered behind it had ended"
        soonest = min(soonest, appended.ended)
    return ""


def _check_reads(history: Sequence[Operation], places: Sequence[tuple[int, Operation | None]]) -> str:
    order = {seq: index for index, (seq, _) in enumerate(places, 1)}
    order[0] = 0
    acknowledged = sorted((op.ended, order[op.seq]) for op in history if not op.is_read and op.seq > 0)
    reads = [op for op in history if op.is_read and op.seq >= 0]
    known, highest = 0, 0
    for op in sorted(reads, key=lambda op: op.began):
        while known < len(acknowledged) and acknowledged[known][0] < op.began:
            highest = max(highest, acknowledged[known][1])
            known += 1
        place = order.get(op.seq)
        if place is None:
            return f"{op.process} read {op.seq}, which the log never held"
        if place < highest:
            return f"{op.process} read {op.seq} after a later append had been acknowledged"
        appended = places[place - 1][1] if place else None
        if appended is not None and appended.began > op.ended:
            return f"{op.process} read {op.seq} before its append had begun"
    ended = sorted(reads, key=lambda op: op.ended)
    known, highest = 0, 0
    for op in sorted(reads, key=lambda op: op.began):
        while known < len(ended) and ended[known].ended < op.began:
            highest = max(highest, order[ended[known].seq])
            known += 1
        if order[op.seq] < highest:
            return f"{op.process} read {op.seq} after another read had shown more"
    return ""
