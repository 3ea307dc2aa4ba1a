"""Nodes between which moves are undone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.membership.announcement import Announcement
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.node.node import Node
from support.nodes import Deployment, deployment

QUICK = cells.Settings(reconcile_s=0.2, retry_first_s=0, tries=2, probation_s=1.0)


calls: list[str] = []


keys: list[str] = []


def charge(what: str) -> str:
    calls.append(what)
    keys.append(cells.this().idempotency_key)
    return f"paid {what}"


class Daybook(cells.Agent):
    """What others are told stays told."""

    lines: list[tuple[str, int]] = []

    @cells.handler
    async def note(self, line: str) -> int:
        self.lines.append((line, cells.this().corrects))
        return len(self.lines)

    @cells.handler
    async def all(self) -> list[tuple[str, int]]:
        return self.lines


class Stall(cells.Agent, version=1):
    total: int = 0
    seen: list[str] = []
    rows: cells.Table[str, int] = cells.Table()
    ledger: Daybook

    @cells.handler
    async def take(self, amount: int) -> int:
        self.total += amount
        self.seen.append(f"take {amount}")
        self.rows[str(amount)] = self.total
        await self.ledger.note.tell(f"took {amount}")
        return self.total

    @cells.handler
    async def ask(self, amount: int) -> int:
        self.total += amount
        return await self.ledger.note(f"asked {amount}")

    @cells.handler
    async def pay(self, what: str) -> str:
        said: str = await cells.step("charge", charge, what)
        self.seen.append(said)
        return said

    @cells.handler
    async def get(self) -> int:
        return self.total

    @cells.handler
    async def all(self) -> list[str]:
        return self.seen


StallV1 = Stall


class StallV2(cells.Agent, version=2, name="Stall"):
    """Counts tenfold, tells something else, and cannot pay: the deploy that is regretted."""

    total: int = 0
    seen: list[str] = []
    rows: cells.Table[str, int] = cells.Table()
    ledger: Daybook
    added: int = 0

    @cells.upgrade(from_version=1)
    def _from_1(cls, old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "added": 1}

    @cells.handler
    async def take(self, amount: int) -> int:
        self.total += amount * 10
        self.seen.append(f"TAKE {amount}")
        self.rows[f"x{amount}"] = self.total
        await self.ledger.note.tell(f"took {amount * 10}")
        return self.total

    @cells.handler
    async def ask(self, amount: int) -> int:
        self.total += amount * 10
        return await self.ledger.note(f"asked {amount * 10}")

    @cells.handler
    async def pay(self, what: str) -> str:
        said: str = await cells.step("charge", charge, what)
        raise OSError(f"lost after it was {said}")

    @cells.handler
    async def get(self) -> int:
        return self.total

    @cells.handler
    async def all(self) -> list[str]:
        return self.seen


class StallV3(StallV2, version=3, name="Stall"):
    @cells.upgrade(from_version=2)
    def _from_2(cls, old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "total": 10 // old["total"]}

    async def healthy(self) -> bool:
        return self.total < 5


STALLS: dict[int, type[cells.Agent]] = {1: StallV1, 2: StallV2, 3: StallV3}


async def start(opened: Deployment, name: str, version: int) -> Node:
    """A node that has `Stall` in this version."""
    known: dict[str, type[cells.Agent]] = {"Daybook": Daybook, "Stall": STALLS[version]}
    return await opened.start(name, known=known.get, about=Announcement(classes={"Daybook": 1, "Stall": version}))


@asynccontextmanager
async def stalls(
    versions: dict[str, int], settings: cells.Settings = QUICK, recovery: RecoveryConfig | None = None
) -> AsyncIterator[Deployment]:
    """Nodes that have the class `Stall` in different versions."""
    calls.clear()
    keys.clear()
    async with deployment(settings=settings, recovery=recovery) as opened:
        for name, version in versions.items():
            await start(opened, name, version)
        yield opened


@asynccontextmanager
async def nodes(
    versions: dict[str, int], settings: cells.Settings = QUICK, recovery: RecoveryConfig | None = None
) -> AsyncIterator[tuple[Client, dict[str, Node]]]:
    async with stalls(versions, settings, recovery) as opened:
        yield opened.client, opened.nodes
