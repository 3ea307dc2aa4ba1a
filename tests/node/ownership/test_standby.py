"""Hot copies: who follows an agent's log, and what losing its owner costs then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from support.failing import QUICK, die, nodes

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.errors import InternalError, StoreBusy
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import LOGS, log_subject
from mielin_cells.log.records import Claimed
from mielin_cells.node.node import Node
from mielin_cells.store.reader import load


class Shelves(cells.Agent, standby=1):
    count: int = 0
    rows: cells.Table[int, bytes] = cells.Table()

    @cells.handler
    async def put(self, key: int, size: int = 10) -> int:
        self.rows[key] = bytes(size)
        self.count += 1
        return self.count

    @cells.handler
    async def where(self) -> str:
        return cells.this().node


async def followed(running: dict[str, Node], agent: str, count: int = 1) -> list[str]:
    """The nodes that keep a copy, once there are so many."""
    async with asyncio.timeout(30):
        while True:
            found = [name for name, node in running.items() if (copy := node.standbys.copies.get(agent)) and copy.fold]
            if len(found) == count:
                return found
            await asyncio.sleep(0.005)


async def up_to_date(node: Node, agent: str, client: Client) -> None:
    last = await client.log.last(log_subject(agent))
    assert last is not None
    async with asyncio.timeout(30):
        while (copy := node.standbys.copies[agent]).fold is None or copy.fold.seq < last.seq:
            await asyncio.sleep(0.005)


async def test_the_copy_takes_over_without_reading_the_log_again() -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, running, _, air):
        shelves = await client.on("node-1").spawn(Shelves, "l")
        for n in range(20):
            await shelves.put(n)
        [keeps] = await followed(running, "l")
        assert keeps != "node-1"
        await up_to_date(running[keeps], "l", client)
        assert (await client.show("l")).standby == [keeps]
        read = running[keeps].home.log
        reads: list[str] = []

        class Watched:
            """The log, with reads of the agent's own noted."""

            def __getattr__(self, name: str) -> object:
                return getattr(read, name)

            async def read(self, subject: str, after: int, count: int) -> object:
                reads.append(subject)
                return await read.read(subject, after, count)

        running[keeps].home.log = Watched()  # type: ignore[assignment]
        die(running["node-1"], air)
        assert await shelves.put(20) == 21
        assert await shelves.where() == keeps
        assert log_subject("l") not in reads
        fold = await load(client.log, "l")
        assert (fold.owner, fold.epoch) == (keeps, 2)
        running.pop("node-1")
        again = await followed(running, "l")  # its new owner has found another
        assert again != [keeps]


async def test_an_agent_that_moves_or_whose_follower_dies_is_followed_on() -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, running, _, air):
        shelves = await client.on("node-1").spawn(Shelves, "l")
        [keeps] = await followed(running, "l")
        assert (await client.migrate(shelves, to=keeps)).ok
        assert await shelves.put(1) == 1
        [other] = await followed(running, "l")
        assert other != keeps
        die(running[other], air)
        running.pop(other)
        [third] = await followed(running, "l")
        assert third not in (keeps, other)
        assert await shelves.put(2) == 2


async def test_copies_are_ordered_for_one_agent_and_the_order_moves_with_it() -> None:
    async with nodes("node-1", "node-2", "node-3", "node-4") as (client, running, _, _):
        shelves = await client.on("node-1").spawn(Shelves, "l")
        await followed(running, "l")
        await client.standby("l", 2)
        assert len(await followed(running, "l", 2)) == 2
        assert (await client.migrate(shelves, to="node-4")).ok
        await shelves.put(1)
        await followed(running, "l", 2)
        assert (await load(client.log, "l")).standby == 2
        await client.standby("l", 0)
        assert (await client.show("l")).standby == []
        with pytest.raises(cells.UsageError, match="0 to 8"):
            await client.standby("l", 9)


async def test_a_copy_that_nobody_asks_for_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mielin_cells.node.ownership.standby.ROUNDS_KEPT", 1)
    async with nodes("node-1", "node-2") as (client, running, _, _):
        await client.on("node-1").spawn(Shelves, "l")
        await followed(running, "l")
        await client.standby("l", 0)
        await followed(running, "l", 0)


async def test_a_copy_that_is_a_little_behind_is_read_again_and_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    async with nodes("node-1", "node-2") as (client, running, _, _):
        shelves = await client.on("node-1").spawn(Shelves, "l")
        await followed(running, "l")
        await up_to_date(running["node-2"], "l", client)
        monkeypatch.setattr("mielin_cells.store.follower.next_record", never)  # it does not come to this turn
        await shelves.put(1)
        await client.claim("l", to="node-2")
        assert await shelves.where() == "node-2"
        assert await shelves.put(2) == 2


def test_a_number_of_copies_that_is_none_is_refused() -> None:
    with pytest.raises(cells.FieldRefused, match="standby = 9"):

        class Nine(cells.Agent, standby=9):
            pass

    assert QUICK.reconcile_s < 1


class SlowParts:
    """A log whose parts arrive late: not before the node has come as far as `until` in its claim."""

    def __init__(self, log: Any, until: str) -> None:
        self._log = log
        self._until = until
        self.arrived = asyncio.Event()
        self.is_slow = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def _reached(self, step: str) -> None:
        if self.is_slow and step == self._until and not self.arrived.is_set():
            self.arrived.set()
            await asyncio.sleep(0.02)  # one way to the server: who still folds has time for it

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> Any:
        if self.is_slow and subject.startswith("part."):
            await self.arrived.wait()
        return await self._log.read(subject, after, limit)

    async def lasts(self, subjects: Sequence[str]) -> Any:
        await self._reached("lasts")
        return await self._log.lasts(subjects)

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Any:
        if subject.startswith(LOGS):
            await self._reached("append")
        return await self._log.append(subject, data, expect, owner)


@pytest.mark.parametrize("until", ["lasts", "append"])
async def test_nobody_folds_on_in_a_copy_that_is_claimed_with(until: str) -> None:
    async with nodes("node-1", "node-2") as (client, running, _, _):
        log = running["node-2"].home.log = SlowParts(client.log, until)
        shelves = await client.on("node-1").spawn(Shelves, "l")
        await followed(running, "l")
        for n in range(3):
            await shelves.put(n)
        await up_to_date(running["node-2"], "l", client)
        log.is_slow = True
        assert await shelves.put(3, 700_000) == 4, "a record in parts, that the copy has not read yet"
        await asyncio.sleep(0.05)
        await client.claim(shelves, to="node-2")
        log.arrived.set()
        await asyncio.sleep(0.05)
        assert await shelves.put(4) == 5, "what was acknowledged is there"
        fold = await load(client.log, "l")
        fold.verify()
        assert (fold.owner, fold.epoch) == ("node-2", 2)


class Meddling:
    """A log that is busy once, while somebody folds on what is to be appended behind."""

    def __init__(self, log: Any, fold: Fold) -> None:
        self._log, self._fold = log, fold
        self.appends = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Any:
        self.appends += 1
        self._fold.seq += 1
        raise StoreBusy("Try again.")


async def test_a_record_is_not_sent_behind_another_than_it_says() -> None:
    async with nodes("node-1") as (client, running, _, _):
        shelves = await client.spawn(Shelves, "l")
        await shelves.put(1)
        fold = await load(client.log, "l")
        log = running["node-1"].home.log = Meddling(client.log, fold)
        writer = running["node-1"].activations.writer(fold)
        with pytest.raises(InternalError, match="somebody else folds on"):
            await writer.append(lambda head: Claimed(**head, cause="test", waits=False), claim=True)
        assert log.appends == 1
