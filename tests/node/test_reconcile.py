"""What a node looks at in every round: the logs that may give it an agent, and no more of them than it must."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from support.logs import SLOW, HeldLog, Score
from support.moving import nodes

import mielin_cells as cells
from mielin_cells.errors import CellError, StoreUnreachable, StreamMissing
from mielin_cells.log.ids import LOGS, log_subject
from mielin_cells.log.records import Spilled, decode_record
from mielin_cells.substrate.jetstream.places import PARTS
from mielin_cells.substrate.ports import Entry, Log


class FarLog(HeldLog):
    """A log of which every agent's last entry is asked for one by one, or all at once from a replica that may be late."""

    def __init__(self, inner: Log) -> None:
        super().__init__(inner)
        self.go.set()
        self.asked_for: list[str] = []
        self.late: dict[str, Entry] = {}

    async def last(self, subject: str) -> Entry | None:
        self.asked_for.append(subject)
        return await super().last(subject)

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        return {**await super().lasts(subjects), **{name: self.late[name] for name in subjects if name in self.late}}


async def test_a_node_does_not_ask_after_each_agent_of_the_others() -> None:
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        second = running["node-2"]
        far = second.home.log = FarLog(second.home.log)
        scores = [await client.on("node-1").spawn(Score, f"g{n}") for n in range(20)]
        await second.rounds.round(every=True)
        assert [name for name in far.asked_for if name.startswith(LOGS)] == []
        assert await scores[3].add() == 1
        subject = log_subject("g3")
        last = await far.log.last(subject)
        assert last is not None
        far.late[subject] = last
        report = await client.migrate(scores[3], to="node-2")
        assert report.ok
        second.activations.drop(second.activations.live["g3"])  # as after a restart: only the log says that it is here
        await second.rounds.round(every=True)
        assert [name for name in far.asked_for if name.startswith(LOGS)][-1] == subject  # a late answer is no answer
        assert second.activations.live["g3"].fold.owner == "node-2"
        assert await scores[3].add() == 2


class Fat(cells.Agent):
    text: str = ""
    more: str = ""

    @cells.handler
    async def grow(self, size: int) -> None:
        self.text, self.more = "a" * size, "b" * size


class PartsAway(FarLog):
    """A log whose parts cannot be read."""

    error: type[CellError] = StoreUnreachable

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        if subject.startswith(PARTS):
            raise self.error("The parts are away.", subject=subject)
        return await super().read(subject, after, limit)


@pytest.mark.filterwarnings("ignore:Fat.*is written whole")
@pytest.mark.parametrize("error", [StoreUnreachable, StreamMissing])
async def test_parts_of_anothers_agent_do_not_keep_a_node_from_its_own(error: type[CellError]) -> None:
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        second = running["node-2"]
        fat = await client.on("node-1").spawn(Fat, "fat")
        await fat.grow(400_000)
        last = await second.home.log.last(log_subject("fat"))
        assert last is not None
        assert isinstance(decode_record(last.data, "fat"), Spilled)
        mine = await client.on("node-2").spawn(Score, "mine")
        assert await mine.add() == 1
        second.activations.drop(second.activations.live["mine"])
        away = second.home.log = PartsAway(second.home.log)
        away.error = error
        await second.rounds.round(every=True)
        assert await mine.add() == 2


async def test_an_agent_that_is_quarantined_while_a_round_reads_does_not_end_the_rounds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = cells.Settings(reconcile_s=0.1, probation_s=30.0, ask_repeat_s=0.2, regression_s=0.3)
    async with nodes("node-1", "node-2", settings=settings) as (client, running):
        second = running["node-2"]
        one, other = await client.on("node-1").spawn(Score, "a"), await client.on("node-1").spawn(Score, "b")
        await other.add()
        last = await second.home.log.last(log_subject("b"))
        assert last is not None
        await one.add()  # its log goes on behind that sequence, without it
        second.adoption.quiet.clear()
        second.quarantine.lost("a", last.seq)  # as if an activation of this node had known it acknowledged
        late = second.home.log = LateLasts(second.home.log)
        async with asyncio.timeout(60):
            await late.asked.wait()
            while "a" in second.quarantine.seen:
                await asyncio.sleep(0.01)
            late.go.set()
            rounds = late.rounds
            while late.rounds < rounds + 2:
                await asyncio.sleep(0.01)
    assert not [record for record in caplog.records if record.exc_info]


class LateLasts(HeldLog):
    """A log that answers after the last entries of agents only once it may."""

    rounds = 0

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        found = await self.log.lasts(subjects)
        if any(subject.startswith(LOGS) for subject in subjects):
            self.asked.set()
            await self.go.wait()
        return found

    def called(self, what: str, subject: str) -> None:
        self.rounds += what == "owned"


async def test_an_unreadable_log_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with nodes("node-1", settings=SLOW) as (_, running):
        node = running["node-1"]
        await node.home.log.append(log_subject("bad"), b"rubbish", 0)
        for _ in range(5):
            await node.rounds.round(every=True)
    assert len([record for record in caplog.records if "'bad'" in record.getMessage()]) == 1
