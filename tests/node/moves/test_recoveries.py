"""Failed migrations in the running system: retried, rerouted, rolled back or given up, as their journals say."""

from __future__ import annotations

import asyncio
import time
from random import Random
from typing import Any

import pytest
from support.failed_moves import QUICK, SOON, Kiosk, nodes

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.client.moves import plan_move, watch_move
from mielin_cells.client.recoveries import list_moves, read_audit
from mielin_cells.log.ids import journal_subject
from mielin_cells.log.lifecycle import Phase
from mielin_cells.membership import selection
from mielin_cells.migration import admission
from mielin_cells.migration.admission import Facts, Offer
from mielin_cells.migration.case import EXCLUDED_DELAYS
from mielin_cells.migration.journal import Attempted, Decided, Ended, Failed, Planned, Reached
from mielin_cells.migration.progress import CollectingCallback
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.migration.refusal import Refusal, RefusalKind, refusal
from mielin_cells.node.moves import admission as admit
from mielin_cells.node.moves import settling
from mielin_cells.node.moves.journal import JournalWriter
from mielin_cells.node.node import Node
from mielin_cells.policy.placement.values import Need
from mielin_cells.rpc import requests
from mielin_cells.store import journal
from mielin_cells.store.reader import load
from mielin_cells.testing.faults import Fault, Faults, Kind


async def told(client: Client, report: cells.MigrationReport) -> list[str]:
    found = await journal.read(client.log, report.agent, report.migration)
    return [type(record).__name__ for record in found.records]


async def test_a_refusal_is_rerouted_and_the_attempt_names_the_node_that_was_chosen() -> None:
    faults = Faults(0, Fault("prepare", Kind.REFUSE, node="node-2"))
    async with nodes("node-1", "node-2", "node-3", faults=faults) as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        await kiosk.add(5)

        report = await client.migrate(kiosk)

        assert (report.outcome, report.target, report.attempts) == ("completed", "node-3", 2)
        assert await kiosk.add() == 6
        found = await journal.read(client.log, "t", report.migration)
        assert [r.target for r in found.records if isinstance(r, Attempted)] == ["node-2", "node-3"]
        assert [r.target for r in found.records if isinstance(r, Failed)] == ["node-2"]
        assert isinstance(found.records[0], Planned)
        assert isinstance(found.records[-1], Ended)
        decided = [r for r in found.records if isinstance(r, Decided)]
        assert [r.strategy for r in decided] == ["RetryOnDifferentTarget"]
        assert all(r.rule for r in decided)


async def test_a_node_that_refused_in_a_passing_way_is_asked_again_after_its_delays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = list[float]()
    real = admission.refusals

    def full_at_first(offer: Offer, node: Facts) -> tuple[Refusal, ...]:
        asked.append(time.monotonic())
        return (refusal(RefusalKind.MEMORY, node=node.name, need=9, left=0),) if len(asked) == 1 else real(offer, node)

    monkeypatch.setattr(admit, "refusals", full_at_first)
    delay_s = 0.05
    recovery = RecoveryConfig(
        max_retries=10, initial_retry_delay_secs=delay_s, max_retry_delay_secs=delay_s, use_exponential_backoff=False,
        recovery_timeout_secs=20,
    )  # fmt: skip
    async with nodes("node-1", "node-2", recovery=recovery) as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")

        report = await client.migrate(kiosk)

        assert (report.outcome, report.target, report.attempts, len(asked)) == ("completed", "node-2", 2, 2)
        assert asked[1] - asked[0] >= EXCLUDED_DELAYS * delay_s


async def test_a_named_target_that_refuses_is_reported_at_once_with_every_reason() -> None:
    faults = Faults(0, Fault("prepare", Kind.REFUSE, node="node-2"))
    async with nodes("node-1", "node-2", "node-3", faults=faults) as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        with pytest.raises(cells.MigrationRefused, match="injected"):
            await client.migrate(kiosk, to="node-2")
        assert (await client.show(kiosk)).node == "node-1"
        assert await kiosk.add() == 1


async def test_a_slow_turn_is_retried_on_the_same_target() -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        busy = asyncio.create_task(kiosk.slow(0.5))
        async with asyncio.timeout(30):
            while not (await client.show(kiosk)).waiting:
                await asyncio.sleep(0)

        report = await client.migrate(kiosk, to="node-3")

        await busy
        assert (report.outcome, report.target) == ("completed", "node-3")
        assert report.attempts > 1
        assert all(failure.startswith("Timeout") for failure in report.failures)


async def test_a_retry_on_the_same_target_goes_on_with_what_is_copied_there() -> None:
    async with nodes("node-1", "node-2") as (client, running):
        kiosk = await client.on("node-1").spawn(Kiosk, "t", stock=b"x" * 1_000_000)
        busy = asyncio.create_task(kiosk.slow(0.4))
        async with asyncio.timeout(30):
            while not (await client.show(kiosk)).waiting:
                await asyncio.sleep(0)

        report = await client.migrate(kiosk, to="node-2")

        await busy
        assert (report.outcome, report.target) == ("completed", "node-2")
        assert report.attempts > 1
        found = await journal.read(client.log, "t", report.migration)
        first, *later = [record.bytes for record in found.records if isinstance(record, Reached)]
        assert first > 1_000_000
        assert sum(later) < 100_000
        assert running["node-2"].copies.by_agent == {}
        assert await kiosk.add() == 1


async def test_a_copy_that_was_made_in_another_epoch_is_made_anew() -> None:
    async with nodes("node-1", "node-2") as (client, running):
        await client.on("node-1").spawn(Kiosk, "t")
        node = running["node-2"]

        def asked(attempt: str, epoch: int) -> requests.Prepare:
            return requests.Prepare("t", attempt, "node-1", "Kiosk", 1, 10, epoch)

        assert node.copies.prepare(asked("m-1.1", 1)).reasons == []
        first = node.copies.by_agent["t"]
        assert node.copies.prepare(asked("m-1.2", 1)).reasons == []
        assert (node.copies.by_agent["t"], first.migration) == (first, "m-1.2")
        for attempt, epoch in (("m-1.3", 2), ("m-2.1", 2)):
            before = node.copies.by_agent["t"]
            assert node.copies.prepare(asked(attempt, epoch)).reasons == []
            assert node.copies.by_agent["t"] is not before
            assert node.copies.by_agent["t"].migration == attempt


async def test_when_retries_are_used_up_the_agent_is_back_and_the_report_is_complete() -> None:
    async with nodes("node-1", "node-2", faults=Faults(0, Fault("probe", Kind.REFUSE))) as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        await kiosk.add(5)

        report = await client.migrate(kiosk)

        assert report.outcome == "rolled_back"
        assert len(report.failures) == SOON.max_retries + 1
        assert (await client.show(kiosk)).node == "node-1"
        assert await kiosk.add() == 6
        steps = await told(client, report)
        assert steps[-1] == "Ended"
        assert steps.count("Failed") == steps.count("Decided") == SOON.max_retries + 1


async def test_a_rollback_behind_the_handover_is_verified_and_says_what_was_restored() -> None:
    once = RecoveryConfig(max_retries=0)
    async with nodes("node-1", "node-2", faults=Faults(0, Fault("probe", Kind.REFUSE)), recovery=once) as (
        client,
        running,
    ):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        await kiosk.add(5)
        cursor = running["node-1"].activations.live["t"].fold.ledger.cursor

        report = await client.migrate(kiosk, to="node-2")

        assert (report.outcome, report.code) == ("rolled_back", "Returned")
        assert report.restored["cursor"] == str(cursor)
        assert report.restored["state"] == "Running"
        found = await journal.read(client.log, "t", report.migration)
        assert found.end is not None
        assert found.end.restored == report.restored
        assert await kiosk.add() == 6


async def test_without_automatic_rollback_the_agent_is_suspended_and_can_be_resumed_or_claimed() -> None:
    config = RecoveryConfig(max_retries=0, auto_rollback=False)
    async with nodes("node-1", "node-2", faults=Faults(0, Fault("probe", Kind.REFUSE)), recovery=config) as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        await kiosk.add(5)

        report = await client.migrate(kiosk, to="node-2")

        assert report.outcome == "gave_up"
        assert (await client.show(kiosk)).state == "Suspended"
        await client.claim(kiosk, to="node-2")
        await client.resume(kiosk)
        assert await kiosk.add() == 6


async def test_a_migration_that_waits_for_its_retry_is_cancelled() -> None:
    late = RecoveryConfig(initial_retry_delay_secs=100)
    async with nodes("node-1", "node-2", faults=Faults(0, Fault("prepare", Kind.REFUSE)), recovery=late) as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        moving = asyncio.create_task(client.migrate(kiosk))
        async with asyncio.timeout(30):
            while not (await client.show(kiosk)).migration:
                await asyncio.sleep(0.01)
            with pytest.raises(cells.errors.MigrationInProgress):
                await client.migrate(kiosk)
            while not any(
                isinstance(found.records[-1], Decided) for found in (await journal.all_of(client.log, "t"))[0]
            ):
                await asyncio.sleep(0.01)
        migration = await client.abort(kiosk)
        report = await moving
        assert (report.outcome, report.code, report.migration) == ("rolled_back", "Cancelled", migration)
        assert await kiosk.add() == 1


async def test_whoever_owns_the_agent_ends_the_migration_of_a_source_that_died() -> None:
    late = RecoveryConfig(initial_retry_delay_secs=100)
    async with nodes("node-1", "node-2", faults=Faults(0, Fault("prepare", Kind.REFUSE)), recovery=late) as (
        client,
        running,
    ):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        await kiosk.add(5)
        request, source = await plan_move(client, kiosk, None)
        await client.request(source, requests.Migrate(request.agent, request.migration, request.epoch, "", 0.2), 5.0)
        running["node-1"].kill()

        await client.claim(kiosk, to="node-2")

        async with asyncio.timeout(30):
            while (found := await journal.read(client.log, "t", request.migration)).end is None:
                await asyncio.sleep(0.02)
        assert (found.end.outcome, found.end.node) == ("rolled_back", "node-2")
        assert await kiosk.add() == 6
        await running["node-2"].migrations.settling.settle("t")  # twice is as once
        assert (await journal.read(client.log, "t", request.migration)).records == found.records
        fold = await load(client.log, "t")
        assert (fold.owner, fold.phase) == ("node-2", Phase.RUN)


async def test_of_two_migrations_at_once_one_begins_and_the_other_names_it() -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        busy = asyncio.create_task(kiosk.slow(0.1))
        plans = [
            await plan_move(client, kiosk, None) for _ in range(2)
        ]  # both have the source ask the others for a target
        results = await asyncio.gather(*(watch_move(client, *plan) for plan in plans), return_exceptions=True)
        await busy
        [report] = [result for result in results if isinstance(result, cells.MigrationReport)]
        [error] = [result for result in results if isinstance(result, cells.errors.MigrationInProgress)]
        assert report.outcome == "completed"
        assert error.facts["migration"] == report.migration


async def test_a_bug_in_the_coordinator_leaves_the_migration_open_and_its_end_is_what_the_log_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with nodes("node-1", "node-2") as (client, running):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")

        def broken(*_: object) -> None:
            raise RuntimeError("a slip")

        monkeypatch.setattr(running["node-1"].migrations.attempts, "begin", broken)
        report = await client.migrate(kiosk)
        assert (report.outcome, report.code) == ("rolled_back", "InternalError")
        assert "a slip" in report.reason
        assert await told(client, report) == ["Planned", "Attempted", "Ended"]
        monkeypatch.undo()
        assert (await client.migrate(kiosk)).ok
        assert await kiosk.add() == 1


@pytest.mark.parametrize("is_claimed", [False, True])
async def test_the_migration_of_an_agent_that_is_terminated_ends_with_it(is_claimed: bool) -> None:
    late = RecoveryConfig(initial_retry_delay_secs=100)
    async with nodes("node-1", "node-2", "node-3", faults=Faults(0, Fault("prepare", Kind.REFUSE)), recovery=late) as (
        client,
        running,
    ):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        request, source = await plan_move(client, kiosk, None)
        await client.request(source, requests.Migrate(request.agent, request.migration, request.epoch, "", 0.2), 5.0)
        if is_claimed:
            running["node-1"].kill()
            await client.claim(kiosk, to="node-3")
        await client.terminate(kiosk)
        async with asyncio.timeout(30):
            while (found := await journal.read(client.log, "t", request.migration)).end is None:
                await asyncio.sleep(0.02)
        assert (found.end.outcome, found.end.code) == ("rolled_back", "AgentTerminated")


async def test_two_looks_at_once_settle_a_migration_once() -> None:
    late = RecoveryConfig(initial_retry_delay_secs=0.2, max_retry_delay_secs=0.2)
    faults = Faults(0, Fault("probe", Kind.TIMEOUT, most=1))
    async with nodes("node-1", "node-2", "node-3", faults=faults, recovery=late) as (client, running):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        request, source = await plan_move(client, kiosk, "node-2")
        waiting = asyncio.create_task(watch_move(client, request, source))
        async with asyncio.timeout(30):
            while not any(
                isinstance(found.records[-1], Decided) for found in (await journal.all_of(client.log, "t"))[0]
            ):
                await asyncio.sleep(0.01)
        running["node-1"].kill()
        await client.claim(kiosk, to="node-3")
        settling = running["node-3"].migrations.settling
        await asyncio.gather(*(settling.settle("t") for _ in range(3)))
        report = await waiting
        assert (report.outcome, report.target, report.source) == ("completed", "node-2", "node-3")
        assert await told(client, report) == [
            "Planned", "Attempted", "Reached", "Failed", "Decided", "Failed", "Decided", "Attempted", "Reached", "Ended",
        ]  # fmt: skip
        assert await kiosk.add() == 1


async def test_a_journal_that_cannot_be_read_is_listed_and_does_not_stop_other_work() -> None:
    late = RecoveryConfig(initial_retry_delay_secs=100)
    async with nodes("node-1", "node-2", "node-3", faults=Faults(0, Fault("prepare", Kind.REFUSE)), recovery=late) as (
        client,
        running,
    ):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        request, source = await plan_move(client, kiosk, None)
        await client.request(source, requests.Migrate(request.agent, request.migration, request.epoch, "", 0.2), 5.0)
        running["node-1"].kill()
        seq = (await journal.read(client.log, "t", request.migration)).seq
        await client.log.append(journal_subject("t", request.migration), b"of a later version", seq)
        await client.claim(kiosk, to="node-3")
        assert await running["node-3"].migrations.settling.settle("t")
        [case] = await list_moves(client)
        assert (case.migration, case.agent, case.outcome) == (request.migration, "t", "unreadable")
        assert case.reason
        with pytest.raises(cells.errors.RecordInvalid):
            await watch_move(client, request, source)
        assert running["node-3"].migrations.open == {}
        assert await kiosk.add() == 1


async def test_a_migration_that_is_asked_for_again_is_not_made_again() -> None:
    async with nodes("node-1", "node-2") as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        request, source = await plan_move(client, kiosk, "node-2")
        first = await watch_move(client, request, source)
        again = await watch_move(client, request, source)
        assert (first.outcome, again.outcome) == ("completed", "completed")
        assert (await client.show(kiosk)).node == "node-2"
        assert len((await journal.read(client.log, "t", request.migration)).attempts) == 1


async def test_damaged_bytes_are_read_again_before_anything_fails() -> None:
    faults = Faults(3, Fault("read", Kind.CORRUPT, node="node-2", most=2))
    async with nodes("node-1", "node-2", faults=faults) as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        await kiosk.add(5)
        report = await client.migrate(kiosk, to="node-2")
        assert (report.outcome, report.attempts, report.failures) == ("completed", 1, ())
        assert faults.counts == {("read", "corrupt"): 2}
        assert await kiosk.add() == 6


async def test_damage_that_stays_is_corruption_and_is_rolled_back_without_a_retry() -> None:
    faults = Faults(3, Fault("read", Kind.CORRUPT, node="node-2"))
    async with nodes("node-1", "node-2", faults=faults) as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        await kiosk.add(5)
        report = await client.migrate(kiosk, to="node-2")
        assert (report.outcome, report.attempts) == ("rolled_back", 1)
        assert report.failures[0].startswith("StateCorruption")
        assert await kiosk.add() == 6


async def test_a_recovery_ends_within_its_time() -> None:
    short = RecoveryConfig(
        max_retries=1000, initial_retry_delay_secs=0.01, max_retry_delay_secs=0.01, recovery_timeout_secs=0.2
    )
    async with nodes("node-1", "node-2", faults=Faults(0, Fault("probe", Kind.REFUSE)), recovery=short) as (
        client,
        _,
    ):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        report = await client.migrate(kiosk)
        assert report.outcome == "rolled_back"
        assert 1 <= len(report.failures) < 1000
        assert await kiosk.add() == 1


class Hasty(cells.Agent, recovery={"max_retries": -1}):
    pass


class Hurried(cells.Agent, recovery={"initial_retry_delay_secs": 60}):
    pass


async def test_settings_of_a_class_that_cannot_be_on_a_node_are_said_when_an_agent_is_made_there() -> None:
    short = RecoveryConfig(max_retry_delay_secs=20)
    async with nodes("node-1", "node-2", recovery=short) as (client, _):
        for cls, says in ((Hasty, "max_retries = -1"), (Hurried, "max_retry_delay_secs = 20")):
            with pytest.raises(cells.ConfigError, match=f"settings of class {cls.__name__} are invalid: .*{says}"):
                await client.on("node-1").spawn(cls, "r")
        with pytest.raises(cells.NoSuchAgent):
            await client.show("r")
    async with nodes("node-1", "node-2", recovery=RecoveryConfig()) as (client, _):
        hurried = await client.on("node-1").spawn(Hurried, "r")
        assert (await client.migrate(hurried)).ok


async def test_settings_of_one_call_are_checked_before_anything_begins() -> None:
    async with nodes("node-1", "node-2") as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"max_retires": 1}, "max_retires"), ({"max_retries": -1}, "max_retries"), ({"max_retries": "no"}, "a number"),
        ]  # fmt: skip
        for recovery, says in wrong:
            with pytest.raises(cells.ConfigError, match=says):
                await client.migrate(kiosk, to="node-2", recovery=recovery)
        assert (await client.show(kiosk)).node == "node-1"


async def test_settings_of_one_call_are_that_call_s_alone() -> None:
    faults = Faults(0, Fault("probe", Kind.REFUSE))
    async with nodes("node-1", "node-2", "node-3", faults=faults) as (client, _):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        report = await client.migrate(kiosk, recovery={"max_retries": 0})
        assert (report.outcome, len(report.failures)) == ("rolled_back", 1)
        report = await client.migrate(kiosk)
        assert report.outcome == "rolled_back"
        assert len(report.failures) > 1


def test_a_node_of_an_architecture_that_the_agent_does_not_run_on_is_not_chosen() -> None:
    found = [
        cells.NodeInfo(name=name, incarnation=1, agents=agents, architecture=architecture)
        for name, agents, architecture in (("n1", 0, "riscv64"), ("n2", 5, "x86_64"), ("n3", 9, ""))
    ]

    def choose(but: tuple[str, ...], *architectures: str) -> str | None:
        return selection.Spread(found).choose(but, Need(policy=cells.Policy(preferred_architectures=architectures)))

    assert choose(()) == "n1"
    assert choose((), "x86_64", "aarch64") == "n2"
    assert choose(("n2",), "x86_64") is None  # n3 has not said what it is
    assert choose((), "ppc64") is None


# ---- what is told --------------------------------------------------------------------------------------------


async def test_the_running_system_reports_audit_and_progress_in_order() -> None:
    collected = CollectingCallback()
    async with nodes("node-1", "node-2") as (client, running):
        running["node-1"].migrations.watchers.add(collected)
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        report = await client.migrate(kiosk, to="node-2")
        audit = running["node-1"].migrations.manager.validator.audit.by_migration(report.migration)
        assert [(entry.event.value, entry.success) for entry in audit] == [
            ("MigrationStarted", True), ("ValidationCompleted", True), ("TransferStarted", True),
            ("TransferCompleted", True), ("SnapshotCaptured", True), ("VerificationCompleted", True),
            ("MigrationCompleted", True),
        ]  # fmt: skip
        assert audit == await read_audit(client, report.migration)
        await asyncio.sleep(0)
        names = [type(event).__name__ for event in collected.events]
        assert names == ["Started", "CapturingState", "TransferProgress", "Validating", "Restoring", "Completed"]
        assert {event.migration_id for event in collected.events} == {report.migration}


async def test_the_target_checks_and_verifies_with_its_own_validator() -> None:
    async with nodes("node-1", "node-2") as (client, running):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        report = await client.migrate(kiosk, to="node-2")
        noted = running["node-2"].migrations.manager.validator.audit.by_migration(f"{report.migration}.1")
        assert [(entry.event.value, entry.success) for entry in noted] == [
            ("ValidationCompleted", True), ("VerificationCompleted", True),
        ]  # fmt: skip
        assert running["node-1"].migrations.manager.validator.rollback_info(report.migration) is None


async def test_a_rollback_is_audited_after_it_was_done_and_a_raising_watcher_harms_nothing() -> None:
    def broken(event: object) -> None:
        raise RuntimeError("the watcher's own")

    once, faults = RecoveryConfig(max_retries=0), Faults(0, Fault("probe", Kind.REFUSE))
    async with nodes("node-1", "node-2", faults=faults, recovery=once) as (client, running):
        running["node-1"].migrations.watchers.add(broken)
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        report = await client.migrate(kiosk, to="node-2")
        audit = running["node-1"].migrations.manager.validator.audit.by_migration(report.migration)
        assert [(entry.event.value, entry.success) for entry in audit][-4:] == [
            ("VerificationCompleted", False), ("RollbackStarted", True), ("RollbackCompleted", True),
            ("MigrationFailed", False),
        ]  # fmt: skip
        assert "digest" in audit[-2].details
        assert await kiosk.add() == 1


async def test_an_upgrade_whose_probe_fails_rolls_back_to_the_older_class_by_itself() -> None:
    class Older(cells.Agent, name="RecoveredDoc"):
        text: str = ""

        @cells.handler
        async def write(self, text: str) -> str:
            self.text += text
            return self.text

    class Newer(cells.Agent, name="RecoveredDoc", version=2):
        lines: list[str] = []

        @cells.upgrade(from_version=1)
        def _split(cls, old: dict[str, object]) -> dict[str, object]:
            return {"lines": str(old["text"]).split()}

        async def healthy(self) -> bool:
            return False

    async with nodes("node-1", recovery=RecoveryConfig(max_retries=0)) as (client, running):
        running["node-1"].activations._classes = {"RecoveredDoc": Older}.get
        newer = Node(
            "node-2",
            client.log,
            client.wire,
            {"RecoveredDoc": Newer}.get,
            settings=QUICK,
            rng=Random(2),
            wall=time.time,
        )
        await newer.start()
        running["node-2"] = newer
        doc = await client.on("node-1").spawn(Older, "d")
        assert await doc.write("a b") == "a b"

        report = await client.migrate(doc, to="node-2")

        assert (report.outcome, report.restored["version"]) == ("rolled_back", "1")
        assert "healthy" in report.reason
        assert await doc.write(" c") == "a b c"
        shown = await client.show(doc)
        assert (shown.node, shown.version) == ("node-1", 1)


async def test_an_open_migration_is_ended_before_its_agent_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its source was lost, and the new owner has not read the journals yet: nobody comes after it (seed 70002812)."""
    monkeypatch.setattr(settling, "GATHER_S", 600.0)
    async with nodes("node-1", "node-2") as (client, running):
        kiosk = await client.on("node-1").spawn(Kiosk, "t")
        writer = JournalWriter(running["node-1"].home, "t", "m-lost")
        await writer.write(lambda h: Planned(**h, source="node-1", target="node-2", epoch=1, config={}))
        await client.claim(kiosk, "node-2")
        await client.terminate(kiosk)
        end = (await journal.read(client.log, "t", "m-lost")).end
        assert end is not None
        assert end.outcome == "rolled_back"
