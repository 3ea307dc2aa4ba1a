"""Going back on purpose: a completed migration is undone, and the messages that came since are taken by the older code."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from support.undoing import Daybook, Stall, StallV1, calls, nodes, stalls, start

import mielin_cells as cells
from mielin_cells.agents.reference import classes
from mielin_cells.cli import moves, recovery
from mielin_cells.cli.show import Printer
from mielin_cells.client.client import Client
from mielin_cells.client.operator import Operator
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import Claimed, Undone
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.rpc import requests
from mielin_cells.rpc.serve import Handlers
from mielin_cells.store import journal
from mielin_cells.store.reader import load, read_record

classes["Stall"] = StallV1


async def till_at(client: Client, node: str) -> tuple[Stall, Daybook]:
    ledger = await client.on(node).spawn(Daybook, "ledger")
    return await client.on(node).spawn(Stall, "till", ledger=ledger), ledger


async def records(client: Client, agent: str) -> list[Any]:
    return [await read_record(client.log, agent, entry) for entry in await client.log.read(log_subject(agent), 0, 1000)]


async def test_the_older_code_takes_again_what_came_since_and_nothing_is_sent_twice() -> None:
    async with nodes({"node-1": 1, "node-2": 2}) as (client, _):
        till, ledger = await till_at(client, "node-1")
        assert await till.take(1) == 1
        move = await client.migrate(till, to="node-2")
        assert [await till.take(2), await till.take(3)] == [21, 51]
        assert await ledger.all() == [("took 1", 0), ("took 20", 0), ("took 30", 0)]

        report = await client.rollback(move.migration)

        assert (report.source, report.target, report.ok) == ("node-2", "node-1", True)
        assert (report.version, report.version_then) == (2, 1)
        assert (report.messages, report.sent, report.answered) == (2, 2, 2)
        assert (report.replayed, report.differing, report.same, report.corrected, report.missing) == (2, 2, 0, 0, 0)
        assert await till.get() == 6
        assert await till.all() == ["take 1", "take 2", "take 3"]
        assert await ledger.all() == [("took 1", 0), ("took 20", 0), ("took 30", 0)]
        assert await till.take(4) == 10
        assert (await ledger.all())[3:] == [("took 4", 0)]
        fold = await load(client.log, "till")
        assert not fold.ledger.replays
        assert fold.version == 1


async def test_messages_that_now_differ_can_be_sent_as_corrections() -> None:
    async with nodes({"node-1": 1, "node-2": 2}) as (client, _):
        till, ledger = await till_at(client, "node-1")
        move = await client.migrate(till, to="node-2")
        await till.take(2)
        await ledger.all()

        report = await client.rollback(move.migration, correct=True)

        assert (report.corrected, report.differing) == (1, 0)
        assert await till.get() == 2
        assert await ledger.all() == [("took 20", 0), ("took 2", 1)]


@pytest.mark.parametrize("told", [False, True], ids=["asked", "told"])
async def test_asks_keep_their_answers_and_finished_steps_are_not_called_again(told: bool) -> None:
    async with nodes({"node-1": 1, "node-2": 2}) as (client, _):
        till, ledger = await till_at(client, "node-1")
        move = await client.migrate(till, to="node-2")
        assert await till.ask(5) == 1
        if told:
            await till.pay.tell("tea")
            async with asyncio.timeout(30):
                while not (await client.show(till)).dead:
                    await asyncio.sleep(0.01)
        else:
            with pytest.raises(cells.HandlerFailed, match="lost after it was paid tea"):
                await till.pay("tea")
            assert (await client.show(till)).dead == 0, "the error is the answer"
        assert calls == ["tea"]

        report = await client.rollback(move.migration)

        assert report.ok
        assert (report.messages, report.sent, report.steps, report.replayed) == (2, 1, 1, 2)
        assert await till.get() == 5
        assert await till.all() == ["paid tea"]  # what failed is done by the code that can
        assert calls == ["tea"]
        assert await ledger.all() == [("asked 50", 0)]
        assert (await client.show(till)).dead == 0


async def test_with_the_same_code_everything_comes_out_the_same() -> None:
    async with nodes({"node-1": 1, "node-2": 1, "node-3": 1}) as (client, _):
        till, ledger = await till_at(client, "node-1")
        await till.take(1)
        move = await client.migrate(till, to="node-2")
        for amount in range(2, 40):
            await till.take(amount)
        assert await till.ask(40) > 0
        await till.pay("tea")
        before = (await till.get(), await till.all(), sorted(await ledger.all()))
        digest = (await load(client.log, "till")).state.digest()

        report = await client.rollback(move.migration, to="node-3")

        assert (report.target, report.same, report.differing, report.missing) == ("node-3", 39, 0, 0)
        assert (await till.get(), await till.all(), sorted(await ledger.all())) == before
        assert (await load(client.log, "till")).state.digest() == digest
        assert calls == ["tea"]


classes["Stall"] = StallV1


@pytest.mark.parametrize(("total", "cause"), [(0, "ZeroDivisionError"), (1, "healthy")])
async def test_an_upgrade_that_fails_its_probe_is_back_at_the_older_version_by_itself(total: int, cause: str) -> None:
    async with nodes({"node-1": 1, "node-3": 3}, recovery=RecoveryConfig(max_retries=0)) as (client, _):
        stall, _ = await till_at(client, "node-1")
        if total:
            await stall.take(total)
        before = await load(client.log, "till")
        report = await client.migrate(stall, to="node-3")
        assert (report.outcome, report.error_type) == ("rolled_back", "IncompatibleTarget")
        assert cause in report.reason
        after = await load(client.log, "till")
        assert (after.owner, after.version, after.state.digest()) == ("node-1", 1, before.state.digest())
        assert await stall.take(2) == total + 2


async def test_a_node_that_takes_no_agents_is_passed_over_unless_it_is_named() -> None:
    async with nodes({"node-1": 1, "node-2": 2, "node-3": 1}) as (client, _):
        till, _ = await till_at(client, "node-1")
        move = await client.migrate(till, to="node-2")
        await till.take(2)
        await client.cordon("node-1")
        with pytest.raises(cells.MigrationRefused, match="cordoned") as refused:
            await client.rollback(move.migration, to="node-1")
        assert refused.value.facts["kinds"] == ["cordoned"]

        report = await client.rollback(move.migration)

        assert (report.ok, report.target) == (True, "node-3")
        assert await till.get() == 2


class Kettle(cells.Agent):
    boiled: int = 0

    async def on_arrive(self) -> None:
        if calls:
            raise OSError("no power")

    @cells.handler
    async def boil(self) -> int:
        self.boiled += 1
        return self.boiled


async def test_an_agent_that_breaks_on_its_next_node_is_reported_and_not_waited_for() -> None:
    async with nodes({"node-1": 1, "node-2": 1}) as (client, running):
        for node in running.values():
            node.activations._classes = {"Kettle": Kettle}.get
        kettle = await client.on("node-1").spawn(Kettle, "k")
        move = await client.migrate(kettle, to="node-2")
        await kettle.boil()
        calls.append("the power is off")

        report = await client.rollback(move.migration, to="node-1")

        assert (report.ok, report.left) == (False, 1)
        assert "no power" in report.trouble
        assert "mielin resume k" in report.trouble
        calls.clear()
        await client.resume(kettle)
        assert await kettle.boil() == 2


class Nomad(cells.Agent):
    stays: list[str] = []

    @cells.handler
    async def go(self, to: str) -> None:
        self.stays.append(to)
        cells.this().migrate(to=to)

    @cells.handler
    async def all(self) -> list[str]:
        return self.stays


async def test_a_turn_that_moved_its_agent_does_not_move_it_again() -> None:
    async with nodes({"node-1": 1, "node-2": 1, "node-3": 1}) as (client, running):
        for node in running.values():
            node.activations._classes = {"Nomad": Nomad}.get
        nomad = await client.on("node-1").spawn(Nomad, "n")
        move = await client.migrate(nomad, to="node-2")
        await nomad.go("node-3")
        while (await client.show(nomad)).node != "node-3":
            await asyncio.sleep(0.01)

        report = await client.rollback(move.migration, to="node-1")

        assert (report.ok, report.replayed) == (True, 1)
        assert await nomad.all() == ["node-3"]
        assert (await client.show(nomad)).node == "node-1"
        assert not any(node.migrations.open for node in running.values())


async def test_a_dry_run_tells_what_would_be_and_does_nothing() -> None:
    async with nodes({"node-1": 1, "node-2": 2}) as (client, _):
        till, _ = await till_at(client, "node-1")
        move = await client.migrate(till, to="node-2")
        await till.take(2)
        before = await load(client.log, "till")

        report = await client.rollback(move.migration, dry_run=True)

        assert (report.target, report.messages, report.sent, report.left) == ("node-1", 1, 1, 1)
        after = await load(client.log, "till")
        assert (after.epoch, after.owner, after.undone) == (before.epoch, "node-2", [])
        assert await till.get() == 20


async def test_an_undo_that_is_not_possible_is_refused_and_the_agent_keeps_running() -> None:
    async with nodes({"node-1": 1, "node-2": 1}) as (client, running):
        till, _ = await till_at(client, "node-1")
        with pytest.raises(cells.errors.NoSuchMigration):
            await client.rollback("m-nothing")
        move = await client.migrate(till, to="node-2")
        with pytest.raises(cells.MigrationRefused, match="does not answer"):
            await client.rollback(move.migration, to="node-9")
        await running["node-1"].stop()
        await client.rollback(move.migration)  # the only node that is left has the class as it was
        assert await till.take(1) == 1
        assert (await client.show(till)).node == "node-2"


async def test_no_node_with_the_older_code_is_an_error_that_says_so_unless_one_is_named() -> None:
    async with nodes({"node-1": 1, "node-2": 2}) as (client, running):
        till, _ = await till_at(client, "node-1")
        move = await client.migrate(till, to="node-2")
        await till.take(2)
        await running["node-1"].stop()
        with pytest.raises(cells.errors.UnknownNode, match="version 1"):
            await client.rollback(move.migration)
        report = await client.rollback(move.migration, to="node-2")  # the newer code takes it all once more
        assert (report.same, report.ok) == (1, True)
        assert await till.get() == 20


async def test_an_agent_that_broke_runs_again_where_it_was() -> None:
    async with nodes({"node-1": 1, "node-2": 2}) as (client, running):
        till, _ = await till_at(client, "node-1")
        move = await client.migrate(till, to="node-2")
        await running["node-2"].activations.live["till"].failed(OSError("broken"))
        assert (await client.show(till)).state == "Error"
        await client.rollback(move.migration)
        assert (await client.show(till)).state == "Running"
        assert await till.take(1) == 1


async def test_a_suspended_agent_stays_suspended_and_takes_its_messages_when_it_is_resumed() -> None:
    async with nodes({"node-1": 1, "node-2": 2}) as (client, _):
        till, _ = await till_at(client, "node-1")
        move = await client.migrate(till, to="node-2")
        await till.take(2)
        await client.suspend(till)
        undoing = asyncio.create_task(client.rollback(move.migration))
        async with asyncio.timeout(30):
            while (await client.owner("till"))[0] != "node-1":
                await asyncio.sleep(0.01)
        await client.resume(till)
        assert (await undoing).replayed == 1
        assert await till.get() == 2


async def test_an_owner_that_dies_behind_its_record_gives_the_agent_to_the_node_that_was_chosen() -> None:
    async with stalls({"node-1": 1, "node-2": 2}) as opened:
        client, running = opened.client, opened.nodes
        till, _ = await till_at(client, "node-1")
        move = await client.migrate(till, to="node-2")
        await till.take(2)
        dying = running["node-2"]
        appended = asyncio.Event()
        append = client.log.append

        async def append_and_die(subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Any:
            outcome = await append(subject, data, expect, owner)
            if b"Undone" in data:
                dying._close_all()
                dying.kill()
                appended.set()
            return outcome

        dying.home.log.append = append_and_die  # type: ignore[method-assign]
        undoing = asyncio.create_task(client.rollback(move.migration))
        await appended.wait()
        dying.home.log.append = append  # type: ignore[method-assign]
        await start(opened, "node-2", 2)
        report = await undoing  # nobody answered, and the log tells of it
        assert (report.ok, report.source, report.target, report.replayed) == (True, "node-2", "node-1", 1)

        assert await till.get() == 2  # by the older code, at the node that was chosen, though its dying came back first
        assert (await client.show(till)).node == "node-1"
        last = [r for r in await records(client, "till") if isinstance(r, (Undone, Claimed))]
        assert [type(r).__name__ for r in last][-2:] == ["Undone", "Claimed"]
        assert last[-1].node == "node-1"


async def test_nobody_runs_an_agent_that_waits_for_a_dead_node_until_an_operator_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with nodes({"node-1": 1, "node-2": 2}) as (client, running):
        till, _ = await till_at(client, "node-1")
        move = await client.migrate(till, to="node-2")
        await till.take(2)
        chosen = running["node-1"]

        async def refuse(wish: requests.Claim) -> bool:
            raise cells.errors.NodeStopping("is about to stop")

        with monkeypatch.context() as patched:
            handlers: Handlers = {**chosen.server.handlers, requests.Claim: refuse}
            patched.setattr(chosen.server, "handlers", handlers)
            report = await client.rollback(move.migration)
        assert "about to stop" in report.trouble
        chosen._close_all()
        chosen.kill()
        await running["node-2"].rounds.round(every=True)
        assert "node-1, which has not claimed it" in running["node-2"].activations.unloadable["till"].error
        with pytest.raises(cells.errors.ClaimRefused, match="--force"):
            await client.claim(till, "node-2", force=False)
        await client.claim(till, "node-2")
        assert await till.get() == 20


async def test_a_second_undo_goes_back_further_and_still_sends_nothing_twice() -> None:
    async with nodes({"node-1": 1, "node-2": 1, "node-3": 2}) as (client, _):
        till, ledger = await till_at(client, "node-1")
        first = await client.migrate(till, to="node-2")
        await till.take(2)
        second = await client.migrate(till, to="node-3")
        await till.take(3)
        await ledger.all()

        await client.rollback(second.migration, to="node-2")
        assert await till.get() == 5
        report = await client.rollback(first.migration, to="node-1")

        assert (report.messages, report.same, report.differing) == (3, 1, 1)  # and the `get` in between
        assert await till.get() == 5
        assert await ledger.all() == [("took 2", 0), ("took 30", 0)]
        with pytest.raises(cells.UsageError, match="went back to before it"):
            await client.rollback(second.migration)
        again = await client.rollback(
            first.migration, to="node-2"
        )  # once more: its record is where the agent comes from
        assert (again.same, again.differing, await till.get()) == (1, 1, 5)


async def test_the_journal_and_the_snapshot_tell_of_it() -> None:
    settings = cells.Settings(reconcile_s=0.2, snapshot_records=8)
    async with nodes({"node-1": 1, "node-2": 1}, settings) as (client, running):
        till, _ = await till_at(client, "node-1")
        move = await client.migrate(till, to="node-2")
        for amount in range(30):
            await till.take(amount)
        report = await client.rollback(move.migration)
        assert report.replayed == 30
        for amount in range(30):
            await till.take(amount)
        found = await journal.read(client.log, "till", move.migration)
        async with asyncio.timeout(30):
            while type(found.records[-1]).__name__ != "TakenBack":
                await asyncio.sleep(0.01)
                found = await journal.read(client.log, "till", move.migration)
        fold = await load(client.log, "till")
        activation = running["node-1"].activations.live["till"]
        assert fold.snap > report.record
        assert fold.undone == activation.fold.undone != []
        assert fold.seal_digest() == activation.fold.seal_digest()


async def test_an_undo_to_before_the_kept_log_is_reported_as_expired() -> None:
    settings = cells.Settings(reconcile_s=0.2, snapshot_records=4, retention_s=0)
    async with nodes({"node-1": 1, "node-2": 1}, settings) as (client, running):
        till, _ = await till_at(client, "node-1")
        move = await client.migrate(till, to="node-2")
        for amount in range(60):
            await till.take(amount)
        assert running["node-2"].activations.live["till"].fold.floor > 10
        with pytest.raises(cells.errors.RollbackExpired, match="retention_s"):
            await client.rollback(move.migration)
        assert await till.get() == sum(range(60))


async def test_the_command_tells_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    async with nodes({"node-1": 1, "node-2": 2}) as (client, _):
        till, _ = await till_at(client, "node-1")
        move = await client.migrate(till, to="node-2")
        await till.take(2)
        operator = Operator(client)

        assert await recovery.rollback.work(operator, Printer(as_json=True), move.migration, dry_run=True) == 0
        [dry] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert (dry["dry_run"], dry["messages"], dry["target"]) == (True, 1, "node-1")
        assert await recovery.rollback.work(operator, Printer(as_json=False), move.migration) == 0
        assert "version 1 instead of 2" in capsys.readouterr().out
        assert await moves.show_migration(operator, Printer(as_json=False), move.migration) == 0
        assert "takenback" in capsys.readouterr().out
        assert await till.get() == 2
