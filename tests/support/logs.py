"""Logs that tests put in front of a real one, and an agent that counts."""

from __future__ import annotations

import asyncio

import mielin_cells as cells
from mielin_cells.errors import RecordInvalid
from mielin_cells.log.records import Claimed, Record, decode_record
from mielin_cells.substrate.ports import Log, Outcome
from mielin_cells.testing.forwarded import ForwardedLog

SLOW = cells.Settings(reconcile_s=600.0, probation_s=30.0, ask_repeat_s=0.2, pause_s=0.5)
"""No node looks at its logs by itself."""


class Score(cells.Agent):
    count: int = 0

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count


class HeldLog(ForwardedLog):
    """Records of one kind wait until `go` is set."""

    def __init__(self, log: Log, kind: type[Record] = Claimed) -> None:
        super().__init__(log)
        self.kind = kind
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        try:
            is_held = isinstance(decode_record(data, subject), self.kind)
        except RecordInvalid:
            is_held = False
        if is_held:
            self.asked.set()
            await self.go.wait()
        return await super().append(subject, data, expect, owner)
