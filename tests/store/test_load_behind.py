"""A log of which the end is known is read from its end back, if that is short; the result is that of a load."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from support.logs import SLOW, Score
from support.moving import nodes
from support.waiting import until

from mielin_cells.log.ids import log_subject
from mielin_cells.store.reader import BACK_RECORDS, load, load_behind
from mielin_cells.substrate.ports import Entry, Log
from mielin_cells.testing.forwarded import ForwardedLog


class CountedLog(ForwardedLog):
    """Notes how much is read, and may show old ends of logs when several are asked for."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.reads = list[int]()
        self.old = dict[str, Entry]()

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        self.reads.append(limit)
        return await super().read(subject, after, limit)

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        return await super().lasts(subjects) | {name: self.old[name] for name in subjects if name in self.old}


@pytest.mark.parametrize("asks", range(BACK_RECORDS + 3))
async def test_the_agent_is_that_of_a_load_and_a_short_log_is_read_record_by_record(asks: int) -> None:
    async with nodes("node-1", settings=SLOW) as (client, _):
        agent = await client.on("node-1").spawn(Score, "s")
        for _ in range(asks):
            await agent.add()
        log = CountedLog(client.log)
        last = await log.last(log_subject("s"))
        assert last is not None
        fold, loaded = await load_behind(log, "s", last), await load(client.log, "s")
        assert (fold.seq, fold.epoch, fold.ledger.cursor) == (loaded.seq, loaded.epoch, loaded.ledger.cursor)
        assert fold.state.digest() == loaded.state.digest()
        before = asks + 1  # the commit of its hooks, too
        if before <= BACK_RECORDS:
            assert log.reads == [1] * before
        else:
            assert max(log.reads) > 1


async def test_an_end_that_is_not_the_last_one_any_more_gives_the_agent_as_of_then() -> None:
    async with nodes("node-1", settings=SLOW) as (client, _):
        agent = await client.on("node-1").spawn(Score, "s")
        await agent.add()
        last = await client.log.last(log_subject("s"))
        await agent.add()
        assert last is not None
        assert (await load_behind(client.log, "s", last)).seq == last.seq


async def test_a_record_that_is_gone_is_looked_for_as_a_load_does() -> None:
    async with nodes("node-1", settings=SLOW) as (client, _):
        agent = await client.on("node-1").spawn(Score, "s")
        await agent.add()
        log = CountedLog(client.log)
        last = await log.last(log_subject("s"))
        assert last is not None
        read = ForwardedLog.read

        async def gone_once(self: ForwardedLog, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
            return [] if limit == 1 else await read(self, subject, after, limit)

        log.read = gone_once.__get__(log)  # type: ignore[method-assign]
        assert (await load_behind(log, "s", last)).seq == last.seq


async def test_a_node_that_reads_an_old_end_of_its_agents_log_takes_it_by_the_new_one() -> None:
    """A replica is behind: the record that it shows names this node too, and the claim behind it is refused."""
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        agent = await client.on("node-1").spawn(Score, "s")
        old = (await client.log.lasts([log_subject("s")]))[log_subject("s")]
        assert await agent.add() == 1
        node = running["node-1"]
        node.activations.drop(node.activations.live["s"])
        log = node.home.log = CountedLog(node.home.log)
        log.old[log_subject("s")] = old
        await node.adoption.take_all(["s"])
        await until(lambda: "s" in node.activations.live)
        assert await agent.add() == 2
