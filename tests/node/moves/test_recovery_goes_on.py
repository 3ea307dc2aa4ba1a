"""A recovery outlives whoever was doing it: at each moment its source ends, and whoever owns the agent next goes on.

What every story has in common is checked by `crash_story`: one end, the one that the agent's log tells; the client is told it, too;
and the agent has lost and doubled nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support.crash_story import RECOVERY, Story, Strike, told
from support.failed_moves import Kiosk
from support.nodes import deployment

from mielin_cells.client.recoveries import case_of
from mielin_cells.errors import MigrationInProgress, NoSuchMigration
from mielin_cells.migration.journal import Decided, Failed, Journal
from mielin_cells.testing.faults import Fault, Faults, Kind

COPY_S = 0.1
ONCE = replace(RECOVERY, max_retries=1)


def slow(most: int = 1, node: str = "node-2") -> Faults:
    """So many attempts come back, and each is to be made again with the same target.  A copy takes a while."""
    return Faults(
        0, Fault("probe", Kind.TIMEOUT, most=most, node=node), Fault("copy", Kind.DELAY, delay_s=COPY_S)
    )  # fmt: skip


def unfit(most: int | None = 1, node: str = "node-2") -> Faults:
    """So many attempts come back because the agent cannot run there: another target is to be chosen."""
    return Faults(0, Fault("probe", Kind.REFUSE, most=most, node=node))


def failures(found: Journal) -> list[str]:
    return [f"{record.code} {record.kind}" for record in found.records if isinstance(record, Failed)]


def attempts(found: Journal) -> list[tuple[int, str, str]]:
    """Number, who made it, and where to."""
    return [(record.number, record.node, record.target) for record in found.attempts]


def rules(found: Journal) -> list[str]:
    return [record.rule for record in found.records if isinstance(record, Decided)]


LOST = "SourceLost NetworkTransient"
SLOW = "Returned Timeout"


# ---- at each moment ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heir", ["node-1", "node-3"])
@pytest.mark.parametrize(
    ("at", "nth", "after_s", "failed", "tried"),
    [
        ("Attempted", 1, 0.0, [LOST, SLOW], 3),
        ("Attempted", 1, COPY_S / 2, [LOST, SLOW], 3),
        ("HandedOff", 1, 0.0, [SLOW], 2),  # the target's verdict is in the agent's log, and counts
        ("Failed", 1, 0.0, [SLOW], 2),
        ("Decided", 1, 0.0, [SLOW, LOST], 2),
        ("Decided", 1, 0.5, [SLOW, LOST], 2),
        ("Attempted", 2, 0.0, [SLOW, LOST], 3),
        ("Attempted", 2, COPY_S / 2, [SLOW, LOST], 3),
        ("HandedOff", 2, 0.0, [SLOW], 2),
        ("Ended", 1, 0.0, [SLOW], 2),
    ],
)
def test_a_migration_survives_its_source_at_any_moment(
    at: str, nth: int, after_s: float, failed: list[str], tried: int, heir: str
) -> None:
    then = "restart" if heir == "node-1" else f"claim {heir}"
    found, report, story = told(Strike(at, nth, after_s, then), to="node-2", faults=slow())
    assert story.struck == 1
    assert found.end is not None
    assert (found.end.outcome, failures(found)) == ("completed", failed)
    assert [number for number, _, _ in attempts(found)] == list(range(1, tried + 1))
    assert {target for _, _, target in attempts(found)} == {"node-2"}
    before = 2 if at == "Ended" else nth
    assert all(node == heir for number, node, _ in attempts(found) if number > before)
    assert report is not None
    assert report.failures == () or len(report.failures) == len(failed)


@pytest.mark.parametrize("at", ["Attempted", "HandedOff", "Failed", "Decided"])
def test_two_sources_in_a_row(at: str) -> None:
    found, _, story = told(Strike(at, 1, 0.0, "restart", times=2), to="node-2", faults=slow(2))
    assert story.struck == 2
    assert found.end is not None
    assert found.end.outcome == "completed"
    assert [number for number, _, _ in attempts(found)] == list(range(1, len(attempts(found)) + 1))


def test_a_migration_survives_two_lost_owners() -> None:
    found, report, story = told(
        Strike("Attempted", 1, 0.0, "claim node-3"), Strike("Attempted", 2, 0.0, "restart"), to="node-2"
    )
    assert [node for _, node, _ in attempts(found)] == ["node-1", "node-3", "node-3"]
    assert failures(found) == [LOST, LOST]
    assert report is not None
    assert (report.outcome, report.attempts, report.source, len(report.failures)) == ("completed", 3, "node-3", 2)
    assert story.owners == ["node-1#1", "node-3#1", "node-3#2"]


# ---- what was decided stands ---------------------------------------------------------------------------------


def test_a_retry_that_was_decided_and_not_made_is_made_when_it_is_due_and_costs_nothing() -> None:
    found, _, _ = told(Strike("Decided", 1, 0.3), to="node-2", faults=slow(), recovery=ONCE)
    assert found.end is not None
    assert found.end.outcome == "completed"
    made, again = (record for record in found.records if isinstance(record, Decided))
    assert made.strategy == again.strategy == "RetryOnSameTarget"
    assert again.at + again.delay_s == pytest.approx(made.at + made.delay_s)
    assert found.attempts[1].at >= made.at + made.delay_s


def test_the_targets_reason_counts_even_if_the_source_did_not_hear_it() -> None:
    found, _, _ = told(Strike("HandedOff"), to="node-2", faults=unfit())
    assert failures(found) == ["Returned IncompatibleTarget"]
    assert attempts(found) == [(1, "node-1", "node-2"), (2, "node-1", "node-3")]


def test_a_node_that_failed_before_is_avoided_after() -> None:
    found, _, _ = told(Strike("Decided", 1), Strike("Attempted", 2), to="node-2", faults=unfit(None))
    assert [target for _, _, target in attempts(found)] == ["node-2", "node-3", "node-3"]
    assert found.end is not None
    assert (found.end.outcome, found.end.target) == ("completed", "node-3")


def test_retries_that_are_used_up_stay_used_up() -> None:
    found, _, story = told(Strike("Attempted", 1, times=9), to="node-2", recovery=ONCE)
    assert story.struck == 2
    assert found.end is not None
    assert (found.end.outcome, found.end.code) == ("rolled_back", "SourceLost")
    assert failures(found) == [LOST, LOST]
    assert rules(found)[-1] == "NetworkTransient with 1 of 1 retries used"


def test_a_rollback_that_was_decided_is_done() -> None:
    found, _, _ = told(Strike("Decided"), to="node-2", faults=unfit(), recovery=replace(RECOVERY, max_retries=0))
    assert found.end is not None
    assert (found.end.outcome, found.end.code, found.end.node) == ("rolled_back", "Returned", "node-1")
    assert found.end.restored["version"] == "1"
    assert len(found.attempts) == len(rules(found)) == 1


def test_a_decision_to_give_up_is_carried_out_by_the_next_owner() -> None:
    keeps = replace(RECOVERY, max_retries=0, auto_rollback=False)
    found, report, story = told(Strike("Decided", then="claim node-3"), to="node-2", faults=unfit(), recovery=keeps)
    assert found.end is not None
    assert (found.end.outcome, found.end.node) == ("gave_up", "node-3")
    assert story.seen["Suspended"] == 1
    assert report is not None
    assert report.outcome == "gave_up"


def test_without_automatic_rollback_and_retries_a_lost_source_suspends_the_agent() -> None:
    keeps = replace(RECOVERY, max_retries=0, auto_rollback=False)
    found, _, story = told(Strike("Attempted"), to="node-2", recovery=keeps)
    assert found.end is not None
    assert (found.end.outcome, found.end.code) == ("gave_up", "SourceLost")
    assert story.seen["Suspended"] == 1


# ---- what must not go on -------------------------------------------------------------------------------------


def test_a_plan_that_nothing_was_begun_of_is_dropped() -> None:
    found, report, _ = told(Strike("Planned"), to="node-2")
    assert [type(record).__name__ for record in found.records] == ["Planned", "Ended"]
    assert report is not None
    assert (report.outcome, report.code) == ("rolled_back", "SourceLost")


@pytest.mark.parametrize("at", ["Attempted", "Decided"])
def test_an_agent_that_is_claimed_to_where_it_was_to_go_stays_there(at: str) -> None:
    found, report, _ = told(Strike(at, then="claim node-2"), to="node-2", faults=slow())
    assert found.end is not None
    assert (found.end.outcome, found.end.node, len(found.attempts)) == ("rolled_back", "node-2", 1)
    assert "node-2, where the agent was to go" in found.end.reason
    assert report is not None
    assert report.code == "SourceLost"


def test_the_time_of_a_recovery_goes_on_while_nobody_does() -> None:
    found, _, _ = told(Strike("Decided", down_s=RECOVERY.recovery_timeout_secs + 1), to="node-2", faults=slow())
    assert found.end is not None
    assert (found.end.outcome, len(found.attempts)) == ("rolled_back", 1)
    assert rules(found)[-1] == "recovery took longer than 60 s"


def test_before_the_first_failure_time_counts_from_when_the_source_was_last_heard_of() -> None:
    found, _, _ = told(Strike("Attempted", down_s=RECOVERY.recovery_timeout_secs + 1), to="node-2")
    assert found.end is not None
    assert found.end.outcome == "rolled_back"
    assert rules(found) == ["recovery took longer than 60 s"]


@pytest.mark.parametrize(("hours", "outcome"), [(-1, "completed"), (1, "rolled_back")])
def test_a_clock_that_is_wrong_ends_a_recovery_early_or_not_at_all_but_harms_nothing(hours: int, outcome: str) -> None:
    found, _, _ = told(
        Strike("Decided", then="claim node-3"), to="node-2", faults=slow(), clocks={"node-3": hours * 3600.0}
    )
    assert found.end is not None
    assert found.end.outcome == outcome


def test_a_cancel_outlives_the_source_that_recorded_it() -> None:
    async def cancels(story: Story) -> None:
        while not story.seen["Decided"]:
            await asyncio.sleep(0.05)
        with contextlib.suppress(NoSuchMigration):  # the answer is lost, and asked again it has ended
            await story.call(lambda: story.client.abort("a"))

    found, report, story = told(Strike("Cancelled"), to="node-2", faults=slow(), besides=cancels)
    assert story.struck == 1
    assert found.end is not None
    assert (found.end.outcome, found.end.code, len(found.attempts)) == ("rolled_back", "Cancelled", 1)
    assert report is not None
    assert report.code == "Cancelled"


# ---- two at once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["Attempted", "HandedOff", "Failed", "Decided"])
def test_a_source_that_was_only_asleep_finds_its_migration_continued(at: str) -> None:
    """It is claimed away while it is stopped; when it wakes both are alive, and one of them coordinates."""
    found, report, story = told(Strike(at, then="pause node-3"), to="node-2", faults=slow())
    assert story.struck == 1
    assert found.end is not None
    assert (found.end.outcome, found.end.node) == ("completed", "node-3")
    assert report is not None
    assert report.source in ("node-1", "node-3")


def test_no_other_migration_begins_before_the_open_one_has_gone_on() -> None:
    seen = []

    async def asks(story: Story) -> None:
        while not story.seen["agent's Claimed"]:
            await asyncio.sleep(0.001)
        try:
            await story.view.process.run(story.client.migrate("a", to="node-1"))
        except MigrationInProgress as error:
            seen.append(error.facts["migration"])

    late = replace(RECOVERY, initial_retry_delay_secs=20, max_retry_delay_secs=20)
    found, _, _ = told(Strike("Decided", then="claim node-3"), to="node-2", faults=slow(), besides=asks, recovery=late)
    assert seen == [found.migration]


# ---- what is told --------------------------------------------------------------------------------------------


def test_operators_see_one_story_of_all_who_had_a_part_in_it() -> None:
    found, _, _ = told(Strike("Decided", then="claim node-3"), to="node-2", faults=slow())
    case = case_of(found)
    assert (case.source, case.target, case.outcome, case.attempts) == ("node-1", "node-2", "completed", 2)
    assert case.failures == {"Timeout": 1, "NetworkTransient": 1}


def test_the_next_owner_shows_progress_and_can_cancel() -> None:
    async def cancels(story: Story) -> None:
        while not any(record.startswith("node-3") for record in story.owners):
            await asyncio.sleep(0.05)
        assert (await story.call(lambda: story.client.show("a"))).migration
        await story.call(lambda: story.client.abort("a"))

    late = replace(RECOVERY, initial_retry_delay_secs=20, max_retry_delay_secs=20)
    found, report, _ = told(
        Strike("Decided", then="claim node-3"), to="node-2", faults=slow(), besides=cancels, recovery=late
    )
    assert found.end is not None
    assert (found.end.code, found.end.node) == ("Cancelled", "node-3")
    assert report is not None
    assert (report.code, report.attempts) == ("Cancelled", 1)


async def test_a_migration_that_ends_while_its_journal_is_read_is_not_settled_by_what_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was read says that it is open: another recovery of it would be begun, and decide anew."""
    async with deployment("node-1") as at:
        await at.client.on("node-1").spawn(Kiosk, "r")
        settling, settled = at.nodes["node-1"].migrations.settling, list[str]()
        running: Any = SimpleNamespace(migration="m-1")
        settling._open["r"] = running

        async def read_before_its_end(name: str) -> list[Journal]:
            del settling._open[name]
            return [Journal("m-1")]

        async def settle(found: Journal, *_: object) -> bool:
            settled.append(found.migration)
            return True

        monkeypatch.setattr(settling, "_journals", read_before_its_end)
        monkeypatch.setattr(settling, "_settle", settle)
        assert await settling.settle("r")
        assert settled == []
