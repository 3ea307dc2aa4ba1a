"""Commands about migrations that were made: lists, stories, and decisions about those that gave up."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from support.failed_moves import Kiosk, nodes

import mielin_cells as cells
from mielin_cells.cli import look, moves, records, recovery
from mielin_cells.cli.show import Printer
from mielin_cells.client.client import Client
from mielin_cells.client.operator import Operator
from mielin_cells.client.recoveries import list_moves, retry_move, stay
from mielin_cells.log.ids import journal_subject
from mielin_cells.migration.journal import Planned, encode
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.store import journal
from mielin_cells.testing.faults import Fault, Faults, Kind

GIVES_UP = RecoveryConfig(max_retries=0, auto_rollback=False)
PLANNED = Planned(
    migration="m-other", agent="t", node="node-1", incarnation=1, nonce=bytes(12), prev=0, at=0.0, source="node-1",
    target="node-2", epoch=1, config={},
)  # fmt: skip


def values(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


async def test_migrations_are_listed_and_shown_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    faults = Faults(0, Fault("prepare", Kind.REFUSE, node="node-2", most=1))
    async with nodes("node-1", "node-2", "node-3", faults=faults) as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        report = await client.migrate(kiosk)
        operator, out = Operator(client), Printer(as_json=True)

        assert await moves.migrations.work(operator, out, agent="t") == 0
        [[case]] = values(capsys)
        assert (case["migration"], case["outcome"], case["attempts"]) == (report.migration, "completed", 2)
        assert case["failures"] == {"InsufficientResources": 1}
        assert await moves.migrations.work(operator, out, failed=True) == 0
        assert values(capsys) == [[]]

        assert await look.show.work(operator, out, report.migration) == 0
        [story] = values(capsys)
        assert [moment["what"] for moment in story["timeline"]] == [
            "Planned", "Attempted", "Reached", "Failed", "Decided", "Attempted", "Reached", "Ended",
        ]  # fmt: skip
        assert story["timeline"][4]["facts"]["rule"]
        assert story["audit"][-1]["event"] == "MigrationCompleted"

        assert await look.show.work(operator, Printer(as_json=False), report.migration) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(report.migration)
        assert any("RetryOnDifferentTarget" in line for line in lines)
        with pytest.raises(cells.errors.NoSuchMigration):
            await look.show.work(operator, out, "m-none")


async def test_an_agent_whose_migration_gave_up_runs_again_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    async with nodes("node-1", "node-2", faults=Faults(0, Fault("probe", Kind.REFUSE)), recovery=GIVES_UP) as (
        client,
        _,
    ):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        await kiosk.add(5)
        report = await client.migrate(kiosk)
        operator, out = Operator(client), Printer(as_json=True)
        assert report.outcome == "gave_up"

        assert await recovery.recover.work(operator, out) == 0
        [[case]] = values(capsys)
        assert (case["migration"], case["outcome"]) == (report.migration, "gave_up")

        assert await recovery.recover.work(operator, out, report.migration, rollback=True) == 0
        [info] = values(capsys)
        assert (info["state"], info["node"]) == ("Running", "node-1")
        assert await kiosk.add() == 6
        assert await recovery.recover.work(operator, out) == 0
        assert values(capsys) == [[]]  # it waits for nobody now


async def test_an_agent_that_a_person_has_suspended_is_recovered_and_stays_suspended() -> None:
    faults = Faults(0, Fault("probe", Kind.REFUSE, most=1))
    async with nodes("node-1", "node-2", faults=faults, recovery=RecoveryConfig(max_retries=0)) as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        report = await client.migrate(kiosk, to="node-2")
        assert report.outcome == "rolled_back"
        await client.suspend(kiosk, "to be looked at")

        assert (await stay(client, report.migration)).state == "Suspended"
        assert (await retry_move(client, report.migration, to="node-2")).ok
        assert (await client.show(kiosk)).state == "Suspended"


async def test_a_migration_that_gave_up_is_made_after_all_and_its_agent_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    faults = Faults(0, Fault("probe", Kind.REFUSE, most=1))
    async with nodes("node-1", "node-2", "node-3", faults=faults, recovery=GIVES_UP) as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        await kiosk.add(5)
        report = await client.migrate(kiosk, to="node-2")
        operator, out = Operator(client), Printer(as_json=True)

        assert await recovery.recover.work(operator, out, report.migration, retry=True, to="node-3") == 0
        [again] = values(capsys)
        assert (again["outcome"], again["target"]) == ("completed", "node-3")
        assert again["migration"] != report.migration
        assert await kiosk.add() == 6
        assert (await client.show(kiosk)).state == "Running"
        with pytest.raises(cells.UsageError, match="completed"):
            await recovery.recover.work(operator, out, again["migration"], retry=True)


async def test_a_dry_run_says_what_it_would_take_and_every_reason_against_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with nodes("node-1", "node-2") as (client, running):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        await kiosk.add(5)
        operator, out = Operator(client), Printer(as_json=True)
        before = running["node-1"].activations.live["t"].fold.seq

        assert await moves.migrate.work(operator, out, "t", dry_run=True) == 0
        [found] = values(capsys)
        assert (found["source"], found["target"], found["reasons"]) == ("node-1", "node-2", [])
        assert found["bytes"] == (await client.show(kiosk)).bytes
        assert found["pause_ms"] > 0
        assert running["node-2"].copies.by_agent == {}
        assert running["node-1"].activations.live["t"].fold.seq == before

        running["node-2"].activations.is_stopping = True
        assert await moves.migrate.work(operator, out, "t", to="node-2", dry_run=True) == 3
        [found] = values(capsys)
        assert any("stopping" in reason for reason in found["reasons"])
        running["node-2"].activations.is_stopping = False


async def test_failures_and_predictions_are_shown_while_an_agent_moves(capsys: pytest.CaptureFixture[str]) -> None:
    faults = Faults(0, Fault("probe", Kind.REFUSE, node="node-2"))
    async with nodes("node-1", "node-2", "node-3", faults=faults) as (client, _):
        await client.on("node-1").spawn(Kiosk, "t")
        assert await moves.migrate.work(Operator(client), Printer(as_json=True), "t", to="node-2") == 0
        found = values(capsys)
        assert found[0]["event"] == "planned"
        assert [line["why"] for line in found if line["event"] == "failed"]
        assert found[-1]["event"] == "report"
        assert found[-1]["target"] == "node-3"
        [predicted] = [line for line in found if line["event"] == "predicted"]
        assert predicted["rounds"] == 1


async def test_a_detached_move_is_made_by_the_settings_of_its_call(capsys: pytest.CaptureFixture[str]) -> None:
    faults = Faults(0, Fault("probe", Kind.REFUSE, most=1))
    async with nodes("node-1", "node-2", faults=faults, recovery=GIVES_UP) as (client, _):
        await client.on("node-1").spawn(Kiosk, "t")
        operator, out = Operator(client), Printer(as_json=True)
        with pytest.raises(cells.ConfigError, match="max_retries = -1"):
            await moves.migrate.work(operator, out, "t", to="node-2", detach=True, retries=-1)
        assert await moves.begin_move(operator, out, "t", "node-2", {"auto_rollback": 1}) == 0
        [begun] = values(capsys)
        while not (found := await journal.find(client.log, begun["migration"])).end:
            await asyncio.sleep(0.01)
        assert found.end is not None
        assert found.end.outcome == "rolled_back"


async def test_the_log_of_an_agent_that_was_claimed_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    async with nodes("node-1", "node-2") as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        move = await client.migrate(kiosk, to="node-2")
        await kiosk.add()
        await client.rollback(move.migration, to="node-1")  # its message waits when node-1 claims the agent
        for as_json in (True, False):
            assert await records.log.work(Operator(client), Printer(as_json=as_json), "t") == 0
            assert "begins message 1 of client" in capsys.readouterr().out


async def told(operator: Operator, migration: str, capsys: pytest.CaptureFixture[str]) -> Any:
    assert await moves.show_migration(operator, Printer(as_json=True), migration) == 0
    return values(capsys)[-1]


async def listed_as(client: Client, migration: str, outcome: str) -> None:
    """Its journal says so: an undo is written there behind the answer."""
    async with asyncio.timeout(30):
        while {case.migration: case.outcome for case in await list_moves(client)}[migration] != outcome:
            await asyncio.sleep(0)


async def test_an_undone_migration_is_listed_as_undone_and_so_are_later_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        first = await client.migrate(kiosk, to="node-2")
        await kiosk.add(5)
        second = await client.migrate(kiosk, to="node-3")
        operator = Operator(client)
        assert (await told(operator, first.migration, capsys))["outcome"] == "completed"

        undone = await client.rollback(first.migration, to="node-1")

        for report in (first, second):
            story = await told(operator, report.migration, capsys)
            assert story["outcome"] == "undone"
            assert story["reason"] == f"its agent went back to record {undone.record} of its log"
        await listed_as(client, first.migration, "undone")
        assert await list_moves(client, failed=True) == []
        third = await client.migrate(kiosk, to="node-2")
        assert (await told(operator, third.migration, capsys))["outcome"] == "completed"


@pytest.mark.parametrize("garbage", [b"", b"of a later version", encode(PLANNED)])
async def test_unreadable_bytes_behind_a_journals_end_do_not_stop_showing_and_undoing_it(
    garbage: bytes, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes("node-1", "node-2") as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        report = await client.migrate(kiosk, to="node-2")
        await kiosk.add(5)
        subject, seq = (
            journal_subject("t", report.migration),
            (await journal.read(client.log, "t", report.migration)).seq,
        )
        await client.log.append(subject, garbage, seq)

        story = await told(Operator(client), report.migration, capsys)

        assert (story["outcome"], story["timeline"][-1]["what"]) == ("completed", "Ended")
        assert f"migration {report.migration} has ended" in caplog.text
        undone = await client.rollback(report.migration)
        assert (undone.ok, undone.replayed) == (True, 1)
        await listed_as(client, report.migration, "undone")
        assert await kiosk.add() == 6
