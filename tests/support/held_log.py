"""A log of which a test holds calls back, and an agent that counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import mielin_cells as cells
from mielin_cells.errors import RecordInvalid
from mielin_cells.log.records import Claimed, Record, decode_record
from mielin_cells.substrate.ports import Entry, Log, Outcome, Tail

SLOW = cells.Settings(reconcile_s=600.0, probation_s=30.0, ask_repeat_s=0.2, pause_s=0.5)
"""No node looks at its logs by itself."""


class Score(cells.Agent):
    count: int = 0

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count


class HeldLog:
    """A log whose records of one kind wait until they are let go on."""

    def __init__(self, inner: Log, kind: type[Record] = Claimed) -> None:
        self.inner = inner
        self.kind = kind
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def append(self, subject: str, data: bytes, expect: int | None = None) -> Outcome:
        try:
            is_held = isinstance(decode_record(data, subject), self.kind)
        except RecordInvalid:
            is_held = False
        if is_held:
            self.asked.set()
            await self.go.wait()
        return await self.inner.append(subject, data, expect)

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        return await self.inner.read(subject, after, limit)

    async def last(self, subject: str) -> Entry | None:
        return await self.inner.last(subject)

    async def settled(self, subject: str) -> Entry | None:
        return await self.inner.settled(subject)

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        return await self.inner.lasts(subjects)

    def tail(self, subject: str, after: int = 0) -> Tail:
        return self.inner.tail(subject, after)

    async def trim(self, subject: str, before: int) -> None:
        await self.inner.trim(subject, before)

    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        return await self.inner.subjects(prefix)
