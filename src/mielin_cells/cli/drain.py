"""`mielin drain`, `cordon` and `uncordon`: taking a node out of service."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import sys
from dataclasses import asdict
from types import TracebackType
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from mielin_cells.agents.reports import DrainReport
from mielin_cells.cli.command import command
from mielin_cells.cli.live import live_table, open_live
from mielin_cells.cli.options import Node
from mielin_cells.cli.show import Printer, counted, duration, size, table
from mielin_cells.client.drain import drain_node, plan_drain
from mielin_cells.client.operator import Operator
from mielin_cells.deployment.codes import DONE, FAILED, REFUSED
from mielin_cells.errors import ConfigError
from mielin_cells.rpc.answers import DrainProgress, Row

UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)")
DEADLINE_S_MAX = 1e6

ROWS_MAX = 12
"""Rows of the live table; the caption counts the others."""

PLAIN_S = 2.0
"""Without a terminal, a line this often."""

COLUMNS = ("agent", "state", "target", "waiting", "size", "blocker")


def seconds_of(option: str, text: str) -> float:
    """30, 30s, 2m, 1.5h or 500ms in seconds.  Raises `ConfigError`."""
    match = DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * UNITS[match[2]] if match else math.nan
    if not 0 < seconds <= DEADLINE_S_MAX:
        wanted = "a duration above 0, such as 30s, 2m or 500ms"
        raise ConfigError(f"--{option} {text!r} is not a duration; wanted: {wanted}.", field=option, range=wanted)
    return seconds


@command
async def cordon(operator: Operator, printer: Printer, node: Node, /) -> int:
    await operator.client.cordon(node)
    printer.show({"node": node, "is_cordoned": True}, lambda: f"{node} keeps its agents and takes no others")
    return DONE


@command
async def uncordon(operator: Operator, printer: Printer, node: Node, /) -> int:
    await operator.client.uncordon(node)
    printer.show({"node": node, "is_cordoned": False}, lambda: f"{node} takes agents again")
    return DONE


@command
async def drain(
    operator: Operator,
    printer: Printer,
    node: Node,
    /,
    *,
    deadline: Annotated[str, Parameter(help="How long to try: 30s, 2m, ...")] = "30s",
    dry_run: Annotated[bool, Parameter(help="Print where each agent would go, or why it would stay.")] = False,
) -> int:
    """Exits with 1 if agents stay, and with 3 from a dry run if some would."""
    deadline_s = seconds_of("deadline", deadline)
    if dry_run:
        plan = await plan_drain(operator.client, node)
        printer.show(plan, lambda: _plan_text(plan))
        return REFUSED if plan.left else DONE
    with _Progress(printer) as progress:
        try:
            report = await drain_node(operator.client, node, deadline_s, progress.seen)
        except asyncio.CancelledError:
            progress.end()
            print(f"mielin: the drain of {node} goes on; `mielin uncordon {node}` stops it", file=sys.stderr)
            raise
    printer.show({"event": "report", **asdict(report)}, lambda: _report_text(report))
    return DONE if report.ok else FAILED


# ---- text ----------------------------------------------------------------------------------------------------


def _progress_text(drain: DrainProgress) -> str:
    eta = f", about {duration(drain.eta_s)} to go" if drain.eta_s else ""
    return f"{drain.node}: {drain.moved} of {counted(drain.agents, 'agent')} moved{eta}, deadline in {duration(drain.left_s)}"


def _row(row: Row) -> dict[str, Any]:
    values = (row.agent, row.phase.lower() or row.state, row.target, row.messages, size(row.bytes), row.blocker)
    return dict(zip(COLUMNS, values, strict=True))


def _plan_text(plan: DrainProgress) -> str:
    if not plan.rows:
        return f"{plan.node} has no agents"
    more = f"\n... and {plan.agents - len(plan.rows)} more" if plan.agents > len(plan.rows) else ""
    head = f"{plan.node}: {counted(plan.agents, 'agent')}, of which {plan.left} cannot move now"
    return f"{head}\n{table([_row(row) for row in plan.rows])}{more}"


def _report_text(report: DrainReport) -> str:
    state = {"done": "drained in", "over": "reached the deadline after", "stopped": "was uncordoned after"}[
        report.state
    ]
    claimed = f", {report.claimed} claimed by others" if report.claimed else ""
    head = f"{report.node} {state} {duration(report.seconds)}: {report.moved} of {counted(report.agents, 'agent')} moved{claimed}"
    if not report.left:
        return f"{head}; the node can be taken away"
    reasons = [f"  {agent}: {why}" for agent, why in report.blocked]
    if report.left > len(reasons):
        reasons.append(f"  and {report.left - len(reasons)} more: mielin agents --node {report.node}")
    return "\n".join([f"{head}; {report.left} stay, and can be claimed once the node has stopped", *reasons])


class _Progress:
    """Shows a drain: as a live table on a terminal, else as a value every few seconds."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._live = open_live(printer, transient=True)
        self._printed_at = -math.inf
        self._moved = -1

    def __enter__(self) -> _Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(Exception):  # the terminal may be gone; the outcome is what matters
                live.stop()

    def seen(self, drain: DrainProgress) -> None:
        if self._live is not None:
            rows = [_row(row).values() for row in drain.rows[:ROWS_MAX]]
            shown = live_table(_progress_text(drain), COLUMNS, ("waiting", "size"), rows)
            if drain.left > ROWS_MAX:
                shown.caption = f"and {drain.left - ROWS_MAX} more"
            self._live.update(shown, refresh=True)
            return
        now = asyncio.get_running_loop().time()
        if drain.moved != self._moved and now - self._printed_at >= PLAIN_S:
            self._printed_at, self._moved = now, drain.moved
            facts = msgspec.structs.asdict(drain)
            del facts["rows"]
            self._printer.show({"event": "draining", **facts}, lambda: _progress_text(drain))
