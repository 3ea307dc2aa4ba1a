"""`mielin rebalance`: spreading the agents over the nodes by what they do."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from mielin_cells.cli.command import command
from mielin_cells.cli.show import Printer, counted, size, table
from mielin_cells.client.operator import Operator
from mielin_cells.client.plans.rebalance import rebalance as rebalance_agents
from mielin_cells.client.plans.rebalance import stop_plans
from mielin_cells.deployment.codes import DONE, FAILED
from mielin_cells.policy.rebalance.proposal import unevenness
from mielin_cells.rpc import plans
from mielin_cells.rpc.plans import Rebalanced

ROWS_MAX = 40


@command
async def rebalance(
    operator: Operator,
    printer: Printer,
    /,
    *,
    dry_run: Annotated[bool, Parameter(help="Print which moves it would make and why, and make none.")] = False,
    stop: Annotated[bool, Parameter(help="Stop what is planned: rebalancings, and moves of policies.")] = False,
) -> int:
    """Exits with 1 if the agents are not spread evenly at the end."""
    if stop:
        runs = await stop_plans(operator.client)
        printer.show({"stopped": runs}, lambda: f"stopped: {', '.join(runs)}" if runs else "no plan was open")
        return DONE
    report = await rebalance_agents(operator.client, is_dry=dry_run)
    printer.show(_data(report, dry_run), lambda: _text(report, dry_run))
    return DONE if dry_run or report.state in (plans.DONE, plans.EVEN) else FAILED


def _data(report: Rebalanced, dry_run: bool) -> dict[str, Any]:
    proposal = report.proposal
    return {
        "name": report.name, "state": "dry run" if dry_run else report.state, "moved": report.moved, "failed": report.failed,
        "why": report.why, "uneven_before": round(unevenness(proposal.before), 4),
        "uneven": round(unevenness(proposal.after if dry_run else report.now), 4), "before": proposal.before,
        "after": proposal.after if dry_run else report.now, "messages_per_s": proposal.rates,
        "bytes": proposal.bytes,
        "moves": [
            {"agent": move.agent, "source": move.source, "target": move.target, "messages_per_s": move.rate, "bytes": move.size_bytes,
             "why": move.why}
            for move in proposal.moves
        ],
    }  # fmt: skip


def _text(report: Rebalanced, dry_run: bool) -> str:
    proposal, now = report.proposal, report.proposal.after if dry_run else report.now
    nodes = [
        {
            "node": name, "messages/s": f"{proposal.rates.get(name, 0.0):.1f}", "before": f"{part:.1%}",
            "after": f"{now.get(name, 0.0):.1%}", "states": size(proposal.bytes.get(name, 0)),
        }
        for name, part in proposal.before.items()
    ]  # fmt: skip
    lines = [table(nodes), ""]
    if dry_run:
        moves = [{"agent": m.agent, "from": m.source, "to": m.target, "why": m.why} for m in proposal.moves[:ROWS_MAX]]
        more = len(proposal.moves) - len(moves)
        lines += [table(moves), *([f"... and {more} more"] if more else [])] if moves else ["nothing would be moved"]
    else:
        lines.append(f"{report.state}: {counted(report.moved, 'agent')} moved{f'; {report.why}' if report.why else ''}")
        lines += report.failed
    return "\n".join(lines)
