"""`mielin migrate`: the phases of a move as they pass, in real units."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mielin_cells.cli.codes import DONE, REFUSED, ROLLED_BACK
from mielin_cells.cli.show import Printer, duration, size
from mielin_cells.core.cluster import MigrationReport
from mielin_cells.errors import MigrationRefused
from mielin_cells.node import control
from mielin_cells.node.operator import Operator

NAMES = {
    "PLANNED": "plan", "PREPARING": "prepare", "COPYING": "copy", "PAUSED": "pause", "HANDING_OVER": "hand over",
    "IN_DOUBT": "in doubt", "VERIFYING": "verify",
}  # fmt: skip


class Watch:
    """Shows each phase once, when it is over."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._shown = 0

    def seen(self, progress: control.Progress) -> None:
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
        for name, seconds in report.phases[self._shown :]:
            self.phase(name, seconds, report.rounds, report.bytes)


async def migrate(operator: Operator, printer: Printer, agent: str, to: str | None, detach: bool) -> int:
    if detach:
        request, source = await operator.begin(agent, to)
        value = {
            "event": "begun",
            "agent": agent,
            "source": source,
            "target": request.to,
            "migration": request.migration,
        }
        printer.show(value, lambda: f"{agent}  {source} -> {request.to}  begun: mielin show {request.migration}")
        return DONE
    request, source = await operator.plan(agent, to)
    value = {"event": "planned", "agent": agent, "source": source, "target": request.to, "migration": request.migration}
    printer.show(value, lambda: f"{agent}  {source} -> {request.to}")
    watch = Watch(printer)
    report = await operator.watch(request, source, watch.seen)
    watch.rest(report)
    if report.code == "MigrationRefused":
        refusal = MigrationRefused(
            f"{report.target} cannot take agent {agent!r}, which runs on at {source}: {'; '.join(report.reasons)}.",
            agent=agent, migration=report.migration, reasons=list(report.reasons),
        )  # fmt: skip
        printer.fail(refusal)
        return REFUSED
    printer.show({"event": "report", **asdict(report)}, lambda: _end(report))
    return DONE if report.ok else ROLLED_BACK


def _end(report: MigrationReport) -> str:
    took = duration(sum(seconds for _, seconds in report.phases))
    paused = f"paused {report.pause_ms:.1f} ms, {report.held} messages held" if report.pause_ms else "never paused"
    if report.ok:
        return f"done in {took} · {paused} · {report.migration}"
    return f"rolled back after {took}: {report.reason} · {report.agent} runs on {report.source} · {paused} · {report.migration}"
