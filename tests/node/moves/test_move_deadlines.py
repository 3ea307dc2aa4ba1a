"""Each phase of an attempt has its deadline, and all attempts together have one: in virtual time, so the figures are exact."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from support.crash_story import RECOVERY, SETTINGS, Ledger, Story, told

import mielin_cells as cells
from mielin_cells.migration.journal import Failed, Journal, Reached
from mielin_cells.testing.faults import Fault, Faults, Kind

ONCE = replace(RECOVERY, max_retries=0)
NEVER_S = 1000.0


def hangs(step: str) -> Faults:
    return Faults(0, Fault(step, Kind.DELAY, delay_s=NEVER_S, most=1))


def spent(report: cells.MigrationReport | None) -> tuple[str, float]:
    """The last phase of an attempt that failed, and its seconds."""
    assert report is not None
    assert report.outcome == "rolled_back"
    return report.phases[-1]


def kinds(found: Journal) -> list[str]:
    return [record.kind for record in found.records if isinstance(record, Failed)]


async def until(story: Story, kind: str) -> None:
    while not story.seen[kind]:
        await asyncio.sleep(0.001)


async def deaf_target(story: Story) -> None:
    story.world.cut("node-2", 3 * SETTINGS.prepare_s)


async def dead_target(story: Story) -> None:
    await until(story, "HandedOff")
    story.world.crash("node-2")


async def long_turn(story: Story) -> None:
    ref = story.client.get(Ledger, "a")
    await story.view.process.run(ref.rest(SETTINGS.pause_s + 3))


@pytest.mark.parametrize(
    ("phase", "limit_s", "kind", "faults", "besides"),
    [
        ("PREPARING", SETTINGS.prepare_s, "TargetUnreachable", Faults(0), deaf_target),
        ("COPYING", SETTINGS.migration_s, "Timeout", hangs("copy"), None),
        ("PAUSED", SETTINGS.pause_s, "Timeout", Faults(0), long_turn),
        ("VERIFYING", SETTINGS.probation_s / 2, "Timeout", hangs("probe"), None),
        ("VERIFYING", SETTINGS.probation_s, "Timeout", Faults(0), dead_target),
    ],
)
def test_a_phase_that_does_not_end_fails_the_attempt_at_its_deadline(
    phase: str, limit_s: float, kind: str, faults: Faults, besides: Callable[[Story], Coroutine[Any, Any, None]] | None
) -> None:
    found, report, _ = told(to="node-2", faults=faults, recovery=ONCE, besides=besides)
    last, seconds = spent(report)
    assert report is not None
    assert last == phase
    assert seconds == pytest.approx(limit_s, abs=0.1)
    assert (kinds(found), report.error_type) == ([kind], kind)


lingering = {"seconds": NEVER_S}


class Lingers(cells.Agent):
    @cells.handler
    async def here(self) -> str:
        return cells.this().node

    async def on_depart(self) -> None:
        await asyncio.sleep(lingering["seconds"])


async def test_a_hook_that_does_not_end_before_the_agent_leaves_fails_the_attempt() -> None:
    async with cells.local(nodes=2, recovery=ONCE, settings=cells.Settings(pause_s=0.05)) as cluster:
        agent = await cluster.spawn(Lingers, "l")
        report = await cluster.migrate(agent, to="node-2")
        lingering["seconds"] = 0.0
        assert (spent(report)[0], report.code) == ("PAUSED", "Timeout")
        assert await agent.here() == "node-1"


def test_a_handover_without_an_answer_is_settled_by_a_claim_at_its_deadline() -> None:
    found, report, _ = told(
        to="node-2", faults=Faults(0, Fault("handed_off", Kind.TIMEOUT, delay_s=NEVER_S)), recovery=ONCE
    )
    assert report is not None
    phases = dict(report.phases)
    assert phases["HANDING_OVER"] == pytest.approx(SETTINGS.handover_s, abs=0.1)
    assert (report.outcome, list(phases)[-1], kinds(found)) == ("rolled_back", "IN_DOUBT", ["Timeout"])


def test_the_time_for_all_attempts_ends_the_one_that_runs() -> None:
    """The first fails at once; the second would hang until its own deadline, which is later."""
    faults = Faults(
        0, Fault("probe", Kind.TIMEOUT, most=1), Fault("copy", Kind.DELAY, delay_s=0.0, most=1),
        Fault("copy", Kind.DELAY, delay_s=NEVER_S),
    )  # fmt: skip
    short = replace(RECOVERY, recovery_timeout_secs=4)
    found, report, _ = told(to="node-2", faults=faults, recovery=short)
    assert report is not None
    assert (report.outcome, report.code) == ("rolled_back", "Timeout")
    failed = [record for record in found.records if isinstance(record, Failed)]
    assert found.end is not None
    assert found.end.at - failed[0].at == pytest.approx(4.0, abs=0.1)
    assert "the time for all attempts has run out" in failed[-1].message
    assert any(isinstance(record, Reached) for record in found.records)
