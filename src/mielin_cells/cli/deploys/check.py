"""`mielin check`: whether new code can go on with every agent that there is."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from mielin_cells.cli.command import command
from mielin_cells.cli.options import App, Config
from mielin_cells.cli.show import Printer, counted, table
from mielin_cells.client.operator import Operator
from mielin_cells.deployment.check.check import CheckReport, ClassCheck, Trouble, check_app
from mielin_cells.deployment.check.sandbox import AGENT_S, IMPORT_S
from mielin_cells.deployment.codes import DONE, FAILED

SHOWN = 20
"""Agents that the text names; JSON has all."""

Seconds = Number(gt=0, lte=86_400)


@command
async def check(
    operator: Operator,
    printer: Printer,
    /,
    *,
    app: App,
    cls: Annotated[
        list[str] | None, Parameter(name="--class", help="Only agents of this class; may be repeated.")
    ] = None,
    config: Config = None,
    import_timeout: Annotated[
        float, Parameter(validator=Seconds, help="Seconds for the app to be imported.")
    ] = IMPORT_S,
    agent_timeout: Annotated[float, Parameter(validator=Seconds, help="Seconds for an agent to be loaded.")] = AGENT_S,
) -> int:
    """Exits with 1 if an agent would not load, or could not take what waits for it; with 2 if the app cannot be imported."""
    report = await check_app(operator.log, app, config, cls or (), import_s=import_timeout, agent_s=agent_timeout)
    printer.show(facts_of(report), lambda: report_text(report))
    return DONE if report.ok else FAILED


def facts_of(report: CheckReport) -> dict[str, object]:
    """As JSON has it."""
    classes = [
        {
            "class": one.cls, "agents": one.agents, "stored": one.stored, "version": one.version, "rises": one.rises,
            "fails": one.fails, "calls": one.calls,
        }
        for one in report.classes
    ]  # fmt: skip
    return {
        "app": report.app, "ok": report.ok, "agents": report.agents, "classes": classes, "troubles": report.troubles,
        "unreadable": report.unreadable,
    }  # fmt: skip


def report_text(report: CheckReport) -> str:
    """What was found, first in one sentence."""
    rows = [_row(one) for one in report.classes]
    lines = [_head(report), *([table(rows)] if rows else [])]
    lines += _named("would not load, or could not take what waits for them", report.troubles)
    lines += _named("cannot be read by any code, and stay as they are", report.unreadable)
    rising = [one.cls for one in report.classes if one.rises]
    if rising:
        lines.append(
            f"{', '.join(rising)}: the app raises the version. An agent that it has taken no longer loads in older code; a deploy is "
            "undone by taking it back to what it was before."
        )
    return "\n".join(lines)


def _row(one: ClassCheck) -> dict[str, object]:
    return {
        "class": one.cls, "agents": one.agents, "stored as": ", ".join(map(str, one.stored)),
        "app has": "no such class" if one.version is None else one.version, "do not load": one.fails,
        "calls do not fit": one.calls,
    }  # fmt: skip


def _line(one: Trouble) -> str:
    return f"  {one.agent} ({one.cls or 'class unknown'} {one.version}, on {one.node or 'no node'}): {one.why}"


def _head(report: CheckReport) -> str:
    bad = len(report.troubles)
    if not bad:
        return f"{report.app}: all of {counted(report.agents, 'agent')} load, and can take what waits for them"
    return f"{report.app}: {bad} of {counted(report.agents, 'agent')} cannot go on with it"


def _named(what: str, troubles: list[Trouble]) -> list[str]:
    if not troubles:
        return []
    lines = [_line(one) for one in troubles[:SHOWN]]
    more = [f"  and {len(troubles) - SHOWN} more; --json names them all"] if len(troubles) > SHOWN else []
    return [f"{counted(len(troubles), 'agent')} {what}:", *lines, *more]
