"""`mielin migrate` and `migrations`: a move's phases as they pass, and the moves that were made."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from mielin_cells.agents.reports import MigrationReport
from mielin_cells.cli.command import command
from mielin_cells.cli.live import View, show_view
from mielin_cells.cli.options import Agent, Watch
from mielin_cells.cli.show import Printer, counted, duration, size, table, when
from mielin_cells.client.moves import plan_move
from mielin_cells.client.operator import Operator
from mielin_cells.client.recoveries import Case, Moment, list_moves, read_audit, read_case, timeline
from mielin_cells.deployment.codes import DONE, REFUSED, ROLLED_BACK
from mielin_cells.errors import MigrationRefused
from mielin_cells.migration.audit import AuditEntry
from mielin_cells.rpc import answers
from mielin_cells.rpc.answers import Prediction
from mielin_cells.store.journal import find

NAMES = {
    "PLANNED": "plan", "PREPARING": "prepare", "COPYING": "copy", "PAUSED": "pause", "HANDING_OVER": "hand over",
    "IN_DOUBT": "in doubt", "VERIFYING": "verify",
}  # fmt: skip


class PhasePrinter:
    """Prints each phase of a move once, when the phase is over."""

    def __init__(self, printer: Printer, plan: dict[str, Any]) -> None:
        self._printer = printer
        self._plan = plan
        """The migration as planned, until it is printed."""
        self._phases = self._failures = self._waits = 0
        """How many of each were printed."""

    def seen(self, progress: answers.Progress) -> None:
        self._print_failures(progress.failures)
        if progress.next_s and len(progress.failures) > self._waits:
            self._waits = len(progress.failures)
            text = f" waits     {duration(progress.next_s)} to the next attempt"
            self._printer.show({"event": "waiting", "next_s": progress.next_s}, lambda: text)
        if progress.target:
            self._print_plan(progress.target)
        if progress.report is None:  # else `finish` prints the rest
            self._print_phases(progress.passed, progress.rounds, progress.bytes)

    def finish(self, report: MigrationReport) -> None:
        self._print_plan(report.target)
        self._print_failures(report.failures)
        self._print_phases(report.phases, report.rounds, report.bytes)

    def _print_plan(self, target: str) -> None:
        if self._plan:
            plan, self._plan = {**self._plan, "target": target}, {}
            self._printer.show(plan, lambda: f"{plan['agent']}  {plan['source']} -> {target}")

    def _print_failures(self, failures: Sequence[str]) -> None:
        for failure in failures[self._failures :]:
            self._failures += 1
            self._phases = 0  # the next attempt passes the phases again
            self._printer.show({"event": "failed", "why": failure}, lambda: f" failed    {failure}")  # noqa: B023 - called at once

    def _print_phases(self, passed: Sequence[tuple[str, float]], rounds: int, count: int) -> None:
        for name, seconds in passed[self._phases :]:
            self._phases += 1
            value: dict[str, Any] = {"event": "phase", "phase": name, "ms": round(seconds * 1000, 3)}
            note = ""
            if name == "COPYING":
                value.update(rounds=rounds, bytes=count)
                note = f"  {counted(rounds, 'round')}, {size(count)} read"
            line = f" {NAMES.get(name, name):<10}{duration(seconds):>10}{note}"
            self._printer.show(value, lambda: line)  # noqa: B023 - called at once


@command
async def migrate(
    operator: Operator,
    printer: Printer,
    agent: Agent,
    /,
    *,
    to: Annotated[
        str | None, Parameter(help="The target node (default: the other node with the fewest agents).")
    ] = None,
    detach: Annotated[bool, Parameter(help="Do not wait for the end of the move.")] = False,
    dry_run: Annotated[bool, Parameter(help="Print what the move would take, and what stands against it.")] = False,
    retries: Annotated[int | None, Parameter(help="Retries after a failure (default: the node's setting).")] = None,
) -> int:
    recovery = {"max_retries": float(retries)} if retries is not None else None
    if dry_run:
        return await _dry_run(operator, printer, agent, to)
    if detach:
        return await begin_move(operator, printer, agent, to, recovery)
    request, source = await plan_move(operator.client, agent, to)
    request = msgspec.structs.replace(request, recovery=recovery)
    expected = await operator.predicted(agent, to)
    phases = PhasePrinter(
        printer, {"event": "planned", "agent": agent, "source": source, "migration": request.migration}
    )
    try:
        report = await operator.watch(request, source, phases.seen)
    except asyncio.CancelledError:
        print(
            f"mielin: the move of {agent} goes on: `mielin show {request.migration}` shows it, `mielin abort {agent}` cancels it",
            file=sys.stderr,
        )
        raise
    phases.finish(report)
    if report.code == "MigrationRefused":
        raise MigrationRefused(
            f"{report.target} cannot take agent {agent!r}, which runs on at {source}: {'; '.join(report.reasons)}.",
            agent=agent, migration=report.migration, reasons=list(report.reasons), kinds=list(report.kinds),
        )  # fmt: skip
    if expected is not None and report.ok:
        compared: dict[str, Any] = {
            "event": "predicted", "bytes": expected.bytes, "rounds": expected.rounds, "pause_ms": expected.pause_ms,
            "actual": {"bytes": report.bytes, "rounds": report.rounds, "pause_ms": report.pause_ms},
        }  # fmt: skip
        printer.show(compared, lambda: _comparison(expected, report))
    return print_report(printer, report)


async def begin_move(
    operator: Operator, printer: Printer, agent: str, to: str | None, recovery: dict[str, float] | None
) -> int:
    request, source, target = await operator.begin(agent, to, recovery)
    value = {"event": "begun", "agent": agent, "source": source, "target": target, "migration": request.migration}
    printer.show(value, lambda: f"{agent}  {source} -> {target}  begun; see `mielin show {request.migration}`")
    return DONE


async def _dry_run(operator: Operator, printer: Printer, agent: str, to: str | None) -> int:
    """Exits with 3 if the target would refuse now."""
    prediction = await operator.predict(agent, to)

    def text() -> str:
        line = (
            f"{agent}  {prediction.source} -> {prediction.target}  would read {size(prediction.bytes)} "
            f"in {counted(prediction.rounds, 'round')}, "
            f"and pause about {prediction.pause_ms:.1f} ms (from {prediction.basis})"
        )
        return "\n".join([line, *(f"refused: {reason}" for reason in prediction.reasons)])

    printer.show(prediction, text)
    return REFUSED if prediction.reasons else DONE


def _comparison(expected: Prediction, report: MigrationReport) -> str:
    return (
        f"predicted {size(expected.bytes)} in {counted(expected.rounds, 'round')}, paused {expected.pause_ms:.1f} ms; "
        f"actual {size(report.bytes)} in {report.rounds}, paused {report.pause_ms:.1f} ms"
    )


def print_report(printer: Printer, report: MigrationReport, route: str = "") -> int:
    printer.show({"event": "report", **asdict(report)}, lambda: route + _report_text(report))
    return DONE if report.ok else ROLLED_BACK


def _report_text(report: MigrationReport) -> str:
    took = duration(sum(seconds for _, seconds in report.phases))
    paused = (
        f"paused {report.pause_ms:.1f} ms, {counted(report.held, 'message')} held"
        if report.pause_ms
        else "never paused"
    )
    if report.ok:
        return f"done in {took} · {paused} · {report.migration}"
    if report.outcome == "gave_up":
        return (
            f"gave up after {counted(report.attempts, 'attempt')}: {report.reason} · "
            f"{report.agent} is safe, and suspended on {report.source} · "
            f"mielin recover {report.migration} --retry, or --rollback"
        )
    return f"rolled back after {took}: {report.reason} · {report.agent} runs on {report.source} · {paused} · {report.migration}"


# ---- the moves that were made --------------------------------------------------------------------------------


@command
async def migrations(
    operator: Operator,
    printer: Printer,
    /,
    *,
    failed: Annotated[bool, Parameter(help="Only the migrations that did not complete.")] = False,
    agent: Annotated[str | None, Parameter(help="Only the migrations of this agent.")] = None,
    watch: Watch = False,
) -> int:
    async def look() -> View:
        cases = await list_moves(operator.client, agent, failed=failed)
        return View(cases, lambda: cases_text(cases, "no migrations"), cases)

    return await show_view(printer, look, watch)


def cases_text(cases: Sequence[Case], none: str) -> str:
    rows = [
        {
            "migration": case.migration, "agent": case.agent, "from": case.source, "to": case.target, "outcome": case.outcome,
            "planned": when(case.at), "attempts": case.attempts,
            "failures": " ".join(f"{kind}:{count}" for kind, count in case.failures.items()), "reason": case.reason,
        }
        for case in cases
    ]  # fmt: skip
    return table(rows) if rows else none


async def show_migration(operator: Operator, printer: Printer, migration: str) -> int:
    """Prints the whole story of a migration."""
    journal = await find(operator.client.log, migration)
    case, moments = await read_case(operator.client, journal), timeline(journal)
    audit = await read_audit(operator.client, migration)
    value = {
        **msgspec.structs.asdict(case), "timeline": [msgspec.structs.asdict(moment) for moment in moments],
        "audit": [msgspec.to_builtins(entry) for entry in audit],
    }  # fmt: skip
    lines = [_case_line(case), *map(_moment_line, moments), *map(_audit_line, audit)]
    printer.show(value, lambda: "\n".join(lines))
    return DONE


def _case_line(case: Case) -> str:
    why = f": {case.reason}" if case.reason else ""
    planned = f"  planned {when(case.at)}" if case.at else ""
    return f"{case.migration}  {case.agent}  {case.source} -> {case.target}  {case.outcome}{why}{planned}"


def _moment_line(moment: Moment) -> str:
    facts = "  ".join(f"{name} {_fact(value)}" for name, value in moment.facts.items() if value not in ("", {}, None))
    return f" {duration(moment.after_s):>10}  {moment.node:<10} {moment.what.lower():<10} {facts}".rstrip()


def _fact(value: Any) -> str:
    return " ".join(f"{name}={part}" for name, part in value.items()) if isinstance(value, dict) else str(value)


def _audit_line(entry: AuditEntry) -> str:
    outcome = "ok" if entry.success else "failed"
    return f"{'audit':>11}  {entry.source or '':<10} {entry.event.value} {outcome}  {entry.details}".rstrip()
