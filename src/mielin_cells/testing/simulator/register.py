"""A register model of who owns an agent: compare-and-set and reads, as their callers saw them, against one order.

An agent's log is a register: its value is the last sequence, an append with `expect` is a compare-and-set, `last` is a read.  The
order in which appends took effect is known, it is the log; so whether a history is linearizable is decided in one pass:
no append that took effect may be ordered before one that had ended before it began, and a read gives a value that was current
between its beginning and its end.  An append whose caller never learnt its outcome ends never.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(slots=True)
class Operation:
    """One call of one process.  `seq`: where it took effect, or what it read (0: an empty log; -1: not known)."""

    process: str
    is_read: bool
    began: float
    ended: float = inf
    """When its caller knew; never, if it did not learn it."""
    seq: int = -1
    expect: int | None = None


def linearizable(history: Sequence[Operation], places: Sequence[tuple[int, Operation | None]]) -> str:
    """What in the history no order explains; "" if one does.  `places`: the log's sequences in order, with who appended them."""
    trouble = _appends(history, places)
    return trouble or _reads(history, places)


def _appends(history: Sequence[Operation], places: Sequence[tuple[int, Operation | None]]) -> str:
    before: dict[int, int] = {}
    last = 0
    for seq, _ in places:
        before[seq] = last
        last = seq
    for op in history:
        if op.is_read or op.seq < 0:
            continue
        if op.seq not in before:
            return f"{op.process} was told that it appended at {op.seq}, where nothing is"
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


def _reads(history: Sequence[Operation], places: Sequence[tuple[int, Operation | None]]) -> str:
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
