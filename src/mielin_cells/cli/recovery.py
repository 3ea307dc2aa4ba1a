"""`mielin recover` and `rollback`: deciding about a migration afterwards."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from mielin_cells.agents.reports import RollbackReport
from mielin_cells.cli.command import command
from mielin_cells.cli.moves import cases_text, print_report, show_migration
from mielin_cells.cli.options import choose_one
from mielin_cells.cli.show import Printer, counted
from mielin_cells.client.operator import Operator
from mielin_cells.client.recoveries import UNREADABLE, list_moves, retry_move, stay
from mielin_cells.client.undo import undo_move
from mielin_cells.deployment.codes import DONE, ROLLED_BACK
from mielin_cells.errors import ConfigError
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.rpc import answers

ONE = choose_one()


@command
async def recover(
    operator: Operator,
    printer: Printer,
    migration: Annotated[
        str | None, Parameter(help="A migration's id (m-...); without one, list the migrations that gave up.")
    ] = None,
    /,
    *,
    retry: Annotated[bool, Parameter(group=ONE, help="Try the move again.")] = False,
    to: Annotated[str | None, Parameter(help="With --retry: the target node.")] = None,
    rollback: Annotated[bool, Parameter(group=ONE, help="Resume the agent where it is.")] = False,
) -> int:
    if to is not None and not retry:
        raise ConfigError("--to needs --retry.", field="to", range="with --retry")
    if migration is None and (retry or rollback):
        raise ConfigError(
            "Name the migration; `mielin recover` lists those that gave up.", field="migration", range="an id, m-..."
        )
    if migration is None:
        return await _list_waiting(operator, printer)
    if rollback:
        info = await stay(operator.client, migration)
        printer.show(info, lambda: f"{info.id} is {info.state} on {info.node}, as before {migration}")
        return DONE
    if not retry:
        return await show_migration(operator, printer, migration)
    report = await retry_move(operator.client, migration, to=to)
    return print_report(printer, report, f"{report.source} -> {report.target}  ")


async def _list_waiting(operator: Operator, printer: Printer) -> int:
    """Lists the migrations that gave up and whose agents still wait for a decision."""
    running = {info.id for info in await operator.agents() if info.state == AgentState.RUNNING.value}
    waiting = [
        case for case in await list_moves(operator.client, failed=True)
        if case.outcome == UNREADABLE or (case.outcome == "gave_up" and case.agent not in running)
    ]  # fmt: skip
    printer.show(waiting, lambda: cases_text(waiting, "nothing to recover"))
    return DONE


@command
async def rollback(
    operator: Operator,
    printer: Printer,
    migration: Annotated[str, Parameter(help="A completed migration's id (m-...).")],
    /,
    *,
    to: Annotated[
        str | None,
        Parameter(help="The node where the agent continues (default: one with the old version of the class)."),
    ] = None,
    dry_run: Annotated[bool, Parameter(help="Print what would be taken again, and change nothing.")] = False,
    correct: Annotated[
        bool, Parameter(help="Send messages that now differ as corrections (default: the first ones stand).")
    ] = False,
) -> int:
    """Exits with 4 while the agent waits for the node that is to go on with it."""

    def print_rest(rest: answers.ReplayProgress) -> None:
        value = {"event": "replayed", "messages": rest.replayed.inputs, "left": rest.left}
        printer.show(value, lambda: f" {rest.replayed.inputs} taken again, {rest.left} to go")

    report = await undo_move(operator.client, migration, to, dry_run=dry_run, correct=correct, seen=print_rest)
    printer.show({"event": "report", "dry_run": dry_run, **asdict(report)}, lambda: _report_text(report, dry_run))
    return DONE if dry_run or report.ok else ROLLED_BACK


def _report_text(report: RollbackReport, dry_run: bool) -> str:
    version = f"version {report.version_then}"
    version += f" instead of {report.version}" if report.version != report.version_then else ""
    head = f"{report.agent}  {report.source} -> {report.target}  {version}, record {report.record} of its log"
    if dry_run:
        return (
            f"{head}: would take {counted(report.messages, 'message')} again; "
            f"{counted(report.sent, 'message')} that they sent, {counted(report.steps, 'step')} and "
            f"{counted(report.answered, 'answer')} would stand"
        )
    if report.trouble:
        return f"{head}: undone, but {report.trouble}"
    return (
        f"{head}: {counted(report.replayed, 'message')} taken again, {report.left} to go; of the messages that they had sent, "
        f"{report.same} were sent as before, {report.differing} differently, {report.missing} not at all"
        + (f", {report.corrected} corrected" if report.corrected else "")
        + (f"; {counted(report.dead, 'dead letter')}: mielin dead {report.agent}" if report.dead > 0 else "")
    )
