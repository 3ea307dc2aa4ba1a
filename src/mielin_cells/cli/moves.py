"""`mielin migrate`: the phases of a move as they pass, in real units."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from mielin_cells.agents.reports import MigrationReport, RollbackReport
from mielin_cells.cli.show import Printer, duration, size, table, when
from mielin_cells.cli.watch import Seen, watched
from mielin_cells.client.operator import Operator
from mielin_cells.client.recoveries import PARKED, Case, Cases, Moment, story
from mielin_cells.client.undo import rollback as undo
from mielin_cells.deployment.codes import DONE, REFUSED, ROLLED_BACK
from mielin_cells.errors import MigrationRefused
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.migration.audit import AuditEntry
from mielin_cells.rpc import answers
from mielin_cells.rpc.answers import Prediction

NAMES = {
    "PLANNED": "plan", "PREPARING": "prepare", "COPYING": "copy", "PAUSED": "pause", "HANDING_OVER": "hand over",
    "IN_DOUBT": "in doubt", "VERIFYING": "verify",
}  # fmt: skip


class Watch:
    """Shows each phase once, when it is over."""

    def __init__(self, printer: Printer, begun: dict[str, Any]) -> None:
        self._printer = printer
        self._begun = begun
        """The migration as it was planned, until it is shown."""
        self._shown = self._told = self._waited = 0

    def _head(self, target: str) -> None:
        if self._begun:
            value, self._begun = {**self._begun, "target": target}, {}
            self._printer.show(value, lambda: f"{value['agent']}  {value['source']} -> {target}")

    def _failed(self, failures: Sequence[str]) -> None:
        for failure in failures[self._told :]:
            self._told += 1
            self._shown = 0  # the next attempt passes the phases again
            self._printer.show({"event": "failed", "why": failure}, lambda: f" failed    {failure}")  # noqa: B023 - called at once

    def seen(self, progress: answers.Progress) -> None:
        self._failed(progress.failures)
        if progress.next_s and len(progress.failures) > self._waited:
            self._waited = len(progress.failures)
            wait_s = progress.next_s
            self._printer.show(
                {"event": "waiting", "next_s": wait_s}, lambda: f" waits     {duration(wait_s)} to the next attempt"
            )
        if progress.target:
            self._head(progress.target)
        if progress.report is not None:
            return  # `rest` has the whole of it
        for name, seconds in progress.passed[self._shown :]:
            self.phase(name, seconds, progress.rounds, progress.bytes)

    def phase(self, name: str, seconds: float, rounds: int, count: int) -> None:
        self._shown += 1
        value: dict[str, Any] = {"event": "phase", "phase": name, "ms": round(seconds * 1000, 3)}
        note = ""
        if name == "COPYING":
            value.update(rounds=rounds, bytes=count)
            note = f"  {rounds} round{'s' if rounds != 1 else ''}, {size(count)} read"
        self._printer.show(value, lambda: f" {NAMES.get(name, name):<10}{duration(seconds):>10}{note}")

    def rest(self, report: MigrationReport) -> None:
        self._head(report.target)
        self._failed(report.failures)
        for name, seconds in report.phases[self._shown :]:
            self.phase(name, seconds, report.rounds, report.bytes)


async def migrate(
    operator: Operator, printer: Printer, agent: str, to: str | None, detach: bool = False, dry_run: bool = False,
    recovery: dict[str, float] | None = None,
) -> int:  # fmt: skip
    if dry_run:
        return await _dry(operator, printer, agent, to)
    if detach:
        request, source, target = await operator.begin(agent, to, recovery or None)
        value = {"event": "begun", "agent": agent, "source": source, "target": target, "migration": request.migration}
        printer.show(value, lambda: f"{agent}  {source} -> {target}  begun: mielin show {request.migration}")
        return DONE
    request, source = await operator.plan(agent, to)
    request = msgspec.structs.replace(request, recovery=recovery or None)
    expected = await operator.predicted(agent, to)
    watch = Watch(printer, {"event": "planned", "agent": agent, "source": source, "migration": request.migration})
    try:
        report = await operator.watch(request, source, watch.seen)
    except asyncio.CancelledError:
        print(
            f"mielin: the move of {agent} goes on: `mielin show {request.migration}` tells of it, `mielin abort {agent}` cancels it",
            file=sys.stderr,
        )
        raise
    watch.rest(report)
    if report.code == "MigrationRefused":
        refusal = MigrationRefused(
            f"{report.target} cannot take agent {agent!r}, which runs on at {source}: {'; '.join(report.reasons)}.",
            agent=agent, migration=report.migration, reasons=list(report.reasons),
                kinds=list(report.kinds),
        )  # fmt: skip
        printer.fail(refusal)
        return REFUSED
    if expected is not None and report.ok:
        compared: dict[str, Any] = {
            "event": "predicted", "bytes": expected.bytes, "rounds": expected.rounds, "pause_ms": expected.pause_ms,
            "actual": {"bytes": report.bytes, "rounds": report.rounds, "pause_ms": report.pause_ms},
        }  # fmt: skip
        printer.show(compared, lambda: _compared(expected, report))
    printer.show({"event": "report", **asdict(report)}, lambda: _end(report))
    return DONE if report.ok else ROLLED_BACK


async def _dry(operator: Operator, printer: Printer, agent: str, to: str | None) -> int:
    """Exits with 3 if the target would refuse now."""
    found = await operator.predict(agent, to)

    def text() -> str:
        head = f"{agent}  {found.source} -> {found.target}  would read {size(found.bytes)} in {found.rounds} round"
        paused = f"and pause about {found.pause_ms:.1f} ms (from {found.basis})"
        return "\n".join([f"{head}, {paused}", *(f"refused: {reason}" for reason in found.reasons)])

    printer.show(found, text)
    return REFUSED if found.reasons else DONE


def _compared(expected: Prediction, report: MigrationReport) -> str:
    return (
        f"predicted {size(expected.bytes)} in {expected.rounds} round, paused {expected.pause_ms:.1f} ms; "
        f"it was {size(report.bytes)} in {report.rounds}, paused {report.pause_ms:.1f} ms"
    )


def _end(report: MigrationReport) -> str:
    took = duration(sum(seconds for _, seconds in report.phases))
    paused = f"paused {report.pause_ms:.1f} ms, {report.held} messages held" if report.pause_ms else "never paused"
    if report.ok:
        return f"done in {took} · {paused} · {report.migration}"
    if report.outcome == "gave_up":
        return (
            f"gave up after {report.attempts} attempts: {report.reason} · {report.agent} is suspended on {report.source}, and "
            f"safe · mielin recover {report.migration} --retry, or --rollback"
        )
    return f"rolled back after {took}: {report.reason} · {report.agent} runs on {report.source} · {paused} · {report.migration}"


# ---- what was ------------------------------------------------------------------------------------------------


async def migrations(operator: Operator, printer: Printer, agent: str | None, failed: bool, watch: bool = False) -> int:
    async def look() -> Seen:
        found = await Cases(operator.client).listed(agent, failed)
        return Seen(found, lambda: table([_row(case) for case in found]) if found else "no migrations", found)

    if watch:
        return await watched(printer, look)
    seen = await look()
    printer.show(seen.value, seen.text)
    return DONE


def _row(case: Case) -> dict[str, Any]:
    return {
        "migration": case.migration, "agent": case.agent, "from": case.source, "to": case.target, "outcome": case.outcome,
        "planned": when(case.at), "attempts": case.attempts,
        "failures": " ".join(f"{kind}:{count}" for kind, count in case.failures.items()),
        "reason": case.reason,
    }  # fmt: skip


async def show(operator: Operator, printer: Printer, migration: str) -> int:
    """A migration's whole story."""
    cases = Cases(operator.client)
    found = await cases.find(migration)
    case, moments, audit = await cases.case(found), story(found), await cases.audit(migration)
    value = {
        **msgspec.structs.asdict(case), "timeline": [msgspec.structs.asdict(moment) for moment in moments],
        "audit": [msgspec.to_builtins(entry) for entry in audit],
    }  # fmt: skip
    lines = [_headline(case), *(_moment(moment) for moment in moments), *(_audited(entry) for entry in audit)]
    printer.show(value, lambda: "\n".join(lines))
    return DONE


def _headline(case: Case) -> str:
    why = f": {case.reason}" if case.reason else ""
    planned = f"  planned {when(case.at)}" if case.at else ""
    return f"{case.migration}  {case.agent}  {case.source} -> {case.target}  {case.outcome}{why}{planned}"


def _moment(moment: Moment) -> str:
    facts = {name: value for name, value in moment.facts.items() if value not in ("", {}, None)}
    told = "  ".join(f"{name} {value}" for name, value in facts.items())
    return f" {duration(moment.after_s):>10}  {moment.node:<10} {moment.what.lower():<10} {told}".rstrip()


def _audited(entry: AuditEntry) -> str:
    outcome = "ok" if entry.success else "failed"
    return f"{'audit':>11}  {entry.source or '':<10} {entry.event.value} {outcome}  {entry.details}".rstrip()


async def recover(
    operator: Operator, printer: Printer, migration: str | None, retry: bool, to: str | None, rollback: bool
) -> int:
    """Without a migration: those that gave up, as far as their agents still wait."""
    cases = Cases(operator.client)
    if migration is None:
        running = {info.id for info in await operator.agents() if info.state == AgentState.RUNNING.value}
        found = [
            case for case in await cases.listed(failed=True)
            if case.outcome == PARKED or (case.outcome == "gave_up" and case.agent not in running)
        ]  # fmt: skip
        printer.show(found, lambda: table([_row(case) for case in found]) if found else "nothing to recover")
        return DONE
    if rollback:
        info = await cases.roll_back(migration)
        printer.show(info, lambda: f"{info.id} is {info.state} on {info.node}, as before {migration}")
        return DONE
    if not retry:
        return await show(operator, printer, migration)
    report = await cases.recover(migration, to=to)
    printer.show({"event": "report", **asdict(report)}, lambda: f"{report.source} -> {report.target}  {_end(report)}")
    return DONE if report.ok else ROLLED_BACK


async def rollback(
    operator: Operator, printer: Printer, migration: str, to: str | None, dry_run: bool, correct: bool
) -> int:
    """Exits with 4 while the agent waits for the node that is to go on."""

    def seen(rest: answers.ReplayProgress) -> None:
        value = {"event": "replayed", "messages": rest.replayed.inputs, "left": rest.left}
        printer.show(value, lambda: f" {rest.replayed.inputs} taken again, {rest.left} to go")

    report = await undo(operator.client, migration, to, dry_run=dry_run, correct=correct, seen=seen)
    printer.show({"event": "report", "dry_run": dry_run, **asdict(report)}, lambda: _undone(report, dry_run))
    return DONE if dry_run or report.ok else ROLLED_BACK


def _undone(report: RollbackReport, dry_run: bool) -> str:
    version = f"version {report.version_then}"
    version += f" instead of {report.version}" if report.version != report.version_then else ""
    head = f"{report.agent}  {report.source} -> {report.target}  {version}, record {report.record} of its log"
    if dry_run:
        return (
            f"{head}: {report.messages} messages would be taken again; {report.sent} messages that they sent, "
            f"{report.steps} steps and {report.answered} answers stand"
        )
    if report.trouble:
        return f"{head}: undone, and {report.trouble}"
    sent = f"{report.same} as before, {report.differing} otherwise, {report.missing} not at all"
    return (
        f"{head}: {report.replayed} messages taken again, {report.left} to go; of what they had sent {sent}"
        + (f", {report.corrected} corrected" if report.corrected else "")
        + (f"; {report.dead} dead letters: mielin dead {report.agent}" if report.dead > 0 else "")
    )
