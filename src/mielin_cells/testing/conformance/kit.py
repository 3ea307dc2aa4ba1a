"""Helpers of the checks of the ports."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

from mielin_cells.substrate.ports import Appended, Conflict, Entry, Log, Substrate

T = TypeVar("T")
Check: TypeAlias = Callable[[Substrate], Awaitable[None]]

REGISTERED: list[Check] = []

WAIT_S = 10.0
"""Seconds after which an awaited event counts as missing."""

CONTENDERS = 12


def check(function: Check) -> Check:
    """Adds the function to the checks."""
    REGISTERED.append(function)
    return function


def must(holds: bool, why: str) -> None:
    """An assertion that `python -O` keeps."""
    if not holds:
        raise AssertionError(why)


def require(value: T | None, why: str) -> T:
    if value is None:
        raise AssertionError(why)
    return value


async def in_time(work: Awaitable[T], why: str) -> T:
    try:
        return await asyncio.wait_for(work, WAIT_S)
    except TimeoutError:
        raise AssertionError(why) from None


async def fails(work: Awaitable[object], errors: tuple[type[Exception], ...], why: str) -> None:
    """The work must raise one of the errors, within `WAIT_S`."""
    try:
        await in_time(work, f"It does not end: {why}")
    except errors:
        return
    raise AssertionError(why)


async def store(log: Log, subject: str, data: bytes, expect: int | None = None) -> int:
    """Appends, which must succeed; the sequence."""
    outcome = await log.append(subject, data, expect)
    if not isinstance(outcome, Appended):
        raise AssertionError(f"An append to {subject} was answered {outcome}.")
    return outcome.seq


async def contend(log: Log, subjects: list[str], rounds: int, owner_of: Callable[[int], str | None]) -> None:
    """In each round, contenders append to a subject at once: exactly one gets `Appended`, the others `Conflict`.

    `owner_of` says what the n-th contender appends: an ownership record of this node, or another record (None).
    """
    last = dict.fromkeys(subjects, 0)
    for _ in range(rounds):
        for subject, expect in last.items():
            outcomes = await asyncio.gather(
                *(log.append(subject, b"%d" % n, expect, owner_of(n)) for n in range(CONTENDERS))
            )
            won = [outcome.seq for outcome in outcomes if isinstance(outcome, Appended)]
            lost = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
            must((len(won), len(lost)) == (1, CONTENDERS - 1), f"{len(won)} contenders won a place.")
            last[subject] = won[0]
    for subject, seq in last.items():
        must(len(await log.read(subject)) == rounds, "A loser's entry was stored, or a winner's was not.")
        entry = require(await log.last(subject), "`last` does not see an acknowledged append.")
        must(entry.seq == seq, "`last` is not the winner's entry.")


async def fill(log: Log, subject: str, count: int) -> list[Entry]:
    """Appends so many entries; the entries, as reads must give them."""
    data = [b"%d" % n for n in range(count)]
    return [Entry(await store(log, subject, one), one) for one in data]


async def read_tail(log: Log, subject: str, after: int, count: int) -> list[Entry]:
    """The first `count` entries of a tail, and whatever comes with them."""
    entries, tail = list[Entry](), log.tail(subject, after)

    async def follow() -> None:
        async for batch in tail:
            must(bool(batch), "A batch is empty.")
            entries.extend(batch)
            if len(entries) >= count:
                return

    try:
        await in_time(follow(), f"A tail of {subject} after {after} gave {len(entries)} entries of {count}.")
    finally:
        tail.close()
    return entries
