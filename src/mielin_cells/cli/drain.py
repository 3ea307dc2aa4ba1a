"""`mielin drain`, `cordon`, `uncordon`: taking a node out of service, and what is seen of it meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mielin_cells.agents.reports import DrainReport
from mielin_cells.cli.show import Printer, duration, size, table
from mielin_cells.client import cordon as cordons
from mielin_cells.client.operator import Operator
from mielin_cells.deployment.codes import DONE, FAILED, REFUSED
from mielin_cells.errors import ConfigError
from mielin_cells.rpc.answers import DrainProgress, Row

if TYPE_CHECKING:
    from types import TracebackType

UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)")
DEADLINE_S_MAX = 1e6

ROWS_SHOWN = 12
"""Of the live table; the rest is a number."""

PLAIN_S = 2.0
"""Without a terminal, a line this often."""


def seconds_of(option: str, text: str) -> float:
    """30, 30s, 2m, 1.5h, 500ms.  Raises `ConfigError`."""
    found = DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * UNITS[found[2]] if found else math.nan
    if not 0 < seconds <= DEADLINE_S_MAX:
        wanted = "a duration above 0, such as 30s, 2m or 500ms"
        raise ConfigError(f"--{option} {text!r} cannot be used; wanted: {wanted}.", field=option, range=wanted)
    return seconds


async def cordon(operator: Operator, printer: Printer, node: str, is_cordoned: bool) -> int:
    await cordons.cordon(operator.client, node, is_cordoned)
    now = "keeps its agents and takes no others" if is_cordoned else "takes agents again"
    printer.show({"node": node, "is_cordoned": is_cordoned}, lambda: f"{node} {now}")
    return DONE


async def drain(operator: Operator, printer: Printer, node: str, deadline_s: float, dry_run: bool) -> int:
    """0: the node may be taken away; 1: agents stay, which are told with what keeps them."""
    if dry_run:
        plan = await cordons.plan(operator.client, node)
        printer.show(plan, lambda: _plan(plan))
        return REFUSED if plan.left else DONE
    with _Live(printer) as live:
        try:
            report = await cordons.evacuate(operator.client, node, deadline_s, live.seen)
        except asyncio.CancelledError:
            live.end()
            print(f"mielin: the drain of {node} goes on; `mielin uncordon {node}` stops it", file=sys.stderr)
            raise
    printer.show({"event": "report", **asdict(report)}, lambda: _report(report))
    return DONE if report.ok else FAILED


# ---- text ----------------------------------------------------------------------------------------------------


def _headline(told: DrainProgress) -> str:
    head = f"{told.node}: {told.moved} of {told.agents} agents have gone"
    eta = f", about {duration(told.eta_s)} to go" if told.eta_s else ""
    return f"{head}{eta}, deadline in {duration(told.left_s)}"


def _row(row: Row) -> dict[str, Any]:
    return {
        "agent": row.agent, "state": row.phase.lower() or row.state, "target": row.target, "waiting": row.messages,
        "size": size(row.bytes), "blocker": row.blocker,
    }  # fmt: skip


def _plan(plan: DrainProgress) -> str:
    if not plan.rows:
        return f"{plan.node} has no agents"
    more = f"\n... and {plan.agents - len(plan.rows)} more" if plan.agents > len(plan.rows) else ""
    head = f"{plan.node}: {plan.agents} agents, of which {plan.left} could not go now"
    return f"{head}\n{table([_row(row) for row in plan.rows])}{more}"


def _report(report: DrainReport) -> str:
    took = duration(report.seconds)
    how = {"done": "drained", "over": "the deadline came", "stopped": "uncordoned, so stopped"}[report.state]
    gone = f"{report.moved} moved" + (f", {report.claimed} claimed by others" if report.claimed else "")
    head = f"{report.node} {how} after {took}: {gone} of {report.agents} agents"
    if not report.left:
        return f"{head}; it can be taken away"
    kept = [f"  {agent}: {why}" for agent, why in report.blocked]
    if report.left > len(kept):
        kept.append(f"  and {report.left - len(kept)} more: mielin agents --node {report.node}")
    return "\n".join([f"{head}; {report.left} stay, and are claimable once it has stopped", *kept])


class _Live:
    """A table that stays, on a terminal; JSON values; or else a line every few seconds."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._live: Any = None
        self._told_at = -math.inf
        self._moved = -1

    def __enter__(self) -> _Live:
        if sys.stdout.isatty() and not self._printer.as_json:
            from rich.live import Live

            self._live = Live(auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        if self._live is not None:
            with contextlib.suppress(Exception):  # the terminal may be gone, and the outcome is what matters
                self._live.stop()
            self._live = None

    def seen(self, told: DrainProgress) -> None:
        if self._live is not None:
            self._live.update(self._table(told), refresh=True)
            return
        now = asyncio.get_running_loop().time()
        if told.moved != self._moved and now - self._told_at >= PLAIN_S:
            self._told_at, self._moved = now, told.moved
            self._printer.show(
                {
                    "event": "draining",
                    **{name: getattr(told, name) for name in told.__struct_fields__ if name != "rows"},
                },
                lambda: _headline(told),
            )

    def _table(self, told: DrainProgress) -> Any:
        from rich.table import Table
        from rich.text import Text

        shown = Table(title=Text(_headline(told)), title_justify="left")
        for name in ("agent", "state", "target", "waiting", "size", "blocker"):
            shown.add_column(name, justify="right" if name in ("waiting", "size") else "left", overflow="fold")
        for row in told.rows[:ROWS_SHOWN]:
            shown.add_row(*(Text(str(value)) for value in _row(row).values()))
        if told.left > ROWS_SHOWN:
            shown.caption = f"and {told.left - ROWS_SHOWN} more"
        return shown
