"""Logs that tests put in front of a real one, and an agent that counts."""

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


class ForwardedLog:
    """Passes every call on to `log`, after `called`."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def called(self, what: str, subject: str) -> None:
        """For a subclass that counts calls or raises."""

    async def append(self, subject: str, data: bytes, expect: int | None = None) -> Outcome:
        self.called("append", subject)
        return await self.log.append(subject, data, expect)

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        self.called("read", subject)
        return await self.log.read(subject, after, limit)

    async def last(self, subject: str) -> Entry | None:
        self.called("last", subject)
        return await self.log.last(subject)

    async def settled(self, subject: str) -> Entry | None:
        self.called("settled", subject)
        return await self.log.settled(subject)

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        self.called("lasts", "")
        return await self.log.lasts(subjects)

    def tail(self, subject: str, after: int = 0) -> Tail:
        self.called("tail", subject)
        return self.log.tail(subject, after)

    async def trim(self, subject: str, before: int) -> None:
        self.called("trim", subject)
        await self.log.trim(subject, before)

    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        self.called("subjects", prefix)
        return await self.log.subjects(prefix)


class HeldLog(ForwardedLog):
    """Records of one kind wait until `go` is set."""

    def __init__(self, log: Log, kind: type[Record] = Claimed) -> None:
        super().__init__(log)
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
        return await super().append(subject, data, expect)
