"""A suspected node that lives says so again until the store takes it, also while nothing else is said of anybody (seed 120634)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from support.nodes import Deployment, deployment
from support.waiting import until

import mielin_cells as cells
from mielin_cells.errors import PermissionDenied
from mielin_cells.log.ids import MEMBERS
from mielin_cells.membership.members import Leads, Serving, Status, Suspected, decode_record
from mielin_cells.membership.table import Members
from mielin_cells.node.presence import Presence
from mielin_cells.substrate.ports import Outcome

QUICK = cells.Settings(reconcile_s=0.1)
ROUNDS = 5


class Refusing:
    """A log that refuses the next `count` times that a node says it lives."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def append(self, subject: str, data: bytes, *args: Any, **options: Any) -> Outcome:
        if subject == MEMBERS and self.count and isinstance(decode_record(data, subject), Serving):
            self.count -= 1
            raise PermissionDenied("not allowed just now")
        outcome: Outcome = await self._log.append(subject, data, *args, **options)
        return outcome


async def suspected(opened: Deployment) -> tuple[Members, Refusing]:
    """Node-2 lives and is suspected, and the store refuses what it says at once."""
    log: Any = Refusing(opened.substrate.log)
    _ = await opened.start("node-2", log=log)
    members = Members(opened.substrate.log)
    await members.read()
    await members.append(lambda _: Leads("node-1", 1))
    log.count = 1
    await members.append(lambda now: Suspected("node-2", 1, now.term))
    await until(lambda: not log.count)
    return members, log


async def status(members: Members) -> Status:
    me = (await members.read()).get("node-2")
    assert me is not None
    return me.status


async def test_whoever_is_suspected_and_lives_says_so_again_until_the_store_takes_it() -> None:
    async with deployment("node-1", settings=QUICK) as opened:
        members, _ = await suspected(opened)
        async with asyncio.timeout(30):
            while await status(members) is not Status.SERVING:
                await asyncio.sleep(0.005)


async def test_without_that_duty_it_stays_suspected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard, taken away: it is said when the log of the members grows, and at no other time."""
    rounds, say = [0], Presence.say_serving
    async with deployment("node-1", settings=replace(QUICK, reconcile_s=0.05)) as opened:
        members, _ = await suspected(opened)

        async def never(self: Presence) -> None:
            rounds[0] += 1

        monkeypatch.setattr(Presence, "say_serving", never)
        await until(lambda: rounds[0] > 2 * ROUNDS)
        assert await status(members) is Status.SUSPECTED
        monkeypatch.setattr(Presence, "say_serving", say)
        await until(lambda: opened.nodes["node-2"].members.table.get("node-2").status is Status.SERVING)  # type: ignore[union-attr]
