"""What seeds of the simulator have found in production code, each told here without the simulator."""

from __future__ import annotations

import asyncio

import pytest
from support.logs import SLOW, HeldLog, Score
from support.moving import nodes
from support.waiting import until

import mielin_cells as cells
from mielin_cells.agents.spec import spec_of
from mielin_cells.errors import Fenced, NotInTurn, RecordInvalid, RollbackExpired
from mielin_cells.log.ids import JOURNALS, log_subject
from mielin_cells.log.records import Asked, Committed, HandedOff, decode_record
from mielin_cells.migration.progress import MigrationPhase
from mielin_cells.node.ownership.standby import StandbyCopy
from mielin_cells.node.ownership.undo import handover_of
from mielin_cells.rpc import requests
from mielin_cells.store.reader import load, load_at
from mielin_cells.substrate.ports import Entry, Log, Outcome, Tail, Unknown
from mielin_cells.tasks.limit import Limit


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


async def test_a_log_that_is_trimmed_up_to_the_handover_is_not_read_for_ever() -> None:
    """Seed 203984."""
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        tally = await client.on("node-1").spawn(Score, "t")
        await tally.add()
        report = await client.migrate(tally, to="node-2")
        await tally.add()
        log = running["node-2"].home.log
        fold = await load(log, "t")
        seq = handover_of(fold, report.migration)
        await log.trim(log_subject("t"), seq + 1)
        with pytest.raises(RollbackExpired):
            await load_at(log, fold, seq)


async def test_an_undo_on_a_node_that_has_lost_the_agent_and_does_not_know_it_is_fenced() -> None:
    """Seed 203305: it composed the record again and again, and its node did nothing else any more."""
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        tally = await client.on("node-1").spawn(Score, "t")
        report = await client.migrate(tally, to="node-2")
        assert await tally.add() == 1
        epoch = running["node-2"].activations.live["t"].fold.epoch
        await running["node-1"].claims.claim(requests.Claim("t", "a test"))
        assert "t" in running["node-2"].activations.live
        with pytest.raises(Fenced):
            await running["node-2"].undoes.undo(requests.Undo("t", report.migration, epoch, "node-2", "", False, False))
        assert "t" not in running["node-2"].activations.live
        assert await tally.add() == 2


async def test_a_source_that_stops_while_its_target_verifies_logs_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    """Seed 201268."""
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        tally = await client.on("node-1").spawn(Score, "t")
        probed, go = asyncio.Event(), asyncio.Event()

        async def held(step: str) -> None:
            if step == "probe":
                probed.set()
                await go.wait()

        running["node-2"].home.step = held
        moving = asyncio.ensure_future(client.migrate(tally, to="node-2"))
        await probed.wait()
        move = running["node-1"].migrations.attempts.moves["t"]
        async with asyncio.timeout(60):
            while move.machine.phase is not MigrationPhase.VERIFYING:
                await asyncio.sleep(0)
            await running["node-1"].stop()
        go.set()
        assert await tally.add() == 1
        moving.cancel()
        await asyncio.wait((moving,))
    assert errors(caplog) == []


async def test_a_claim_that_lands_after_its_node_has_stopped_leaves_nothing_running_there() -> None:
    """Seed 401737."""
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        tally = await client.on("node-1").spawn(Score, "t")
        assert await tally.add() == 1
        second = running["node-2"]
        log = second.home.log = HeldLog(second.home.log)
        claiming = asyncio.ensure_future(second.claims.claim(requests.Claim("t", "a test")))
        await log.asked.wait()
        await second.stop()
        log.go.set()
        await claiming
        assert second.activations.live == {}
        fold = await load(log, "t")
        assert fold.owner == "node-2", "it landed, and the agent stays claimable"
        running["node-1"].activations.drop(running["node-1"].activations.live["t"])
        await running["node-1"].claims.claim(requests.Claim("t", "a test"))
        assert await tally.add() == 2


async def test_a_record_that_comes_too_late_for_its_turn_is_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    """Seed 201297: an ask was recorded for a turn whose deadline had passed while the store was away."""
    async with nodes("node-1", settings=SLOW) as (_, running):

        async def late() -> None:
            raise NotInTurn("The turn has ended.")

        task = running["node-1"].home.start(late())
        await asyncio.wait((task,))
        await asyncio.sleep(0)
    assert errors(caplog) == []


class DamagingLog(HeldLog):
    """A log that loses the answer of one append to a journal, and damages what is read there next."""

    def __init__(self, inner: Log) -> None:
        super().__init__(inner)
        self.go.set()
        self.lost = self.damaged = False

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        outcome = await super().append(subject, data, expect, owner)
        if subject.startswith(JOURNALS) and not self.lost:
            self.lost = True
            return Unknown("a test")
        return outcome

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        entries = await super().read(subject, after, limit)
        if subject.startswith(JOURNALS) and self.lost and not self.damaged:
            self.damaged = True
            return [Entry(entry.seq, entry.data[:-1]) for entry in entries]
        return entries


async def test_a_journal_record_that_is_damaged_on_its_way_is_not_taken_for_another_process() -> None:
    """Seed 414555: a process gave its own migration up, and planned another while that one was open."""
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        tally = await client.on("node-1").spawn(Score, "t")
        log = running["node-1"].home.log = DamagingLog(running["node-1"].home.log)
        report = await client.migrate(tally, to="node-2")
        assert report.ok
        assert log.damaged


class Payer(cells.Agent):
    @cells.handler
    async def pay(self) -> int:
        return await cells.this().cluster.get(Score, "t").add()


class SlowAsks(HeldLog):
    """A log that lands asks at once, and answers them when it is let go on."""

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        outcome = await self.log.append(subject, data, expect, owner)
        if subject == log_subject("p") and isinstance(decode_record(data, subject), Asked):
            self.asked.set()
            await self.go.wait()
        return outcome


async def test_a_turn_that_runs_again_knows_of_the_ask_that_was_on_its_way_when_its_deadline_passed() -> None:
    """Seed 601050: the further run asked once more, under a new number, and the other agent took both."""
    settings = cells.Settings(reconcile_s=600.0, turn_deadline_s=0.2, retry_first_s=0.0)
    async with nodes("node-1", settings=settings) as (client, running):
        tally = await client.spawn(Score, "t")
        payer = await client.spawn(Payer, "p")
        activation = running["node-1"].activations.live["p"]
        log = SlowAsks(activation.home.log)
        activation.writer._log = log
        paying = asyncio.ensure_future(payer.pay())
        await log.asked.wait()
        async with asyncio.timeout(60):
            while activation.runner.turn is not None:  # until the first run has failed
                await asyncio.sleep(0.02)
        log.go.set()
        assert await paying == 1
        assert await tally.add() == 2


async def test_a_node_that_stops_hands_nothing_over_that_it_has_not_committed() -> None:
    """Seed 1020875: the commit in flight was given up, and the handover, which waited for it, sealed a cursor behind its message."""
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        score = await client.on("node-1").spawn(Score, "t")
        await score.add()
        source = running["node-1"]
        activation = source.activations.live["t"]
        held = HeldLog(source.home.log, Committed)
        activation.writer._log = held
        adding = asyncio.create_task(score.add())
        await held.asked.wait()  # the turn has run, and its commit is on its way
        moving = asyncio.create_task(client.migrate(score, to="node-2"))
        await until(lambda: activation._sealing, pause_s=0)
        source.activations.drop(activation)
        for _ in range(20):
            await asyncio.sleep(0)
        records = [decode_record(entry.data, "t") for entry in await client.log.read(log_subject("t"))]
        assert not any(isinstance(record, HandedOff) for record in records)
        await running["node-2"].claims.claim(requests.Claim("t", "a test"))
        assert await adding == 2  # as if the process had died: by the message in the inbox
        assert not (await moving).ok


async def test_a_host_that_is_closed_does_not_say_that_all_is_committed() -> None:
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        score = await client.on("node-1").spawn(Score, "t")
        activation = running["node-1"].activations.live["t"]
        held = HeldLog(running["node-1"].home.log, Committed)
        activation.writer._log = held
        adding = asyncio.create_task(score.add())
        await held.asked.wait()
        flushing = asyncio.create_task(activation.flush())
        await asyncio.sleep(0)
        running["node-1"].activations.drop(activation)
        with pytest.raises(Fenced, match="no longer runs agent 't'"):
            await flushing
        await running["node-2"].claims.claim(requests.Claim("t", "a test"))
        assert await adding == 1


class TailedLog(HeldLog):
    """A log whose `last` waits, and that knows who still listens."""

    def __init__(self, inner: Log) -> None:
        super().__init__(inner)
        self.tails = list[Tail]()

    async def last(self, subject: str) -> Entry | None:
        self.asked.set()
        await self.go.wait()
        return await self.log.last(subject)

    def tail(self, subject: str, after: int = 0) -> Tail:
        self.tails.append(self.log.tail(subject, after))
        return self.tails[-1]


@pytest.mark.parametrize("kind", ["a move's", "a standby's"])
async def test_a_copy_that_is_closed_while_it_loads_leaves_nobody_listening(kind: str) -> None:
    """Seed 1072814."""
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        await (await client.on("node-1").spawn(Score, "t")).add()
        node = running["node-2"]
        log, watched = node.home.log, TailedLog(node.home.log)
        node.home.log = watched
        copy = (
            node.copies._new("t", "m-1.1", spec_of(Score), epoch=1)
            if kind == "a move's"
            else StandbyCopy(node.activations, "t", Limit(1, 1, 1.0))
        )
        following = asyncio.create_task(copy._follow())
        await watched.asked.wait()
        copy.close()
        watched.go.set()
        for _ in range(20):
            await asyncio.sleep(0)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        node.home.log = log
        for tail in watched.tails:
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(anext(tail), 5)


async def test_an_agent_that_a_node_could_not_run_is_obeyed_there_once_it_has_moved_there() -> None:
    """Seed 2007616: the resume of an agent that was suspended was taken for one that has to be read again, and did nothing."""
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        score = await client.on("node-1").spawn(Score, "t")
        node = running["node-2"]
        node.activations.cannot_run("t", None, RecordInvalid("It could not be read."))
        assert (await client.migrate(score, to="node-2")).ok
        await client.suspend(score)
        await client.resume(score)
        assert not node.activations.unloadable
        assert await score.add() == 1
