"""`mielin group`: who is in a group, and orders for all members."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from mielin_cells.agents.groups.report import GroupReport, Order
from mielin_cells.cli.command import command, confirm
from mielin_cells.cli.options import Yes
from mielin_cells.cli.show import Printer, table
from mielin_cells.client.operator import Operator
from mielin_cells.client.status import class_of
from mielin_cells.deployment.codes import DONE, FAILED

Team = Annotated[str, Parameter(name="GROUP", help="The group's id.")]
Role = Annotated[str, Parameter(help="member, leader, observer, or group.")]
OF_ROLE = Annotated[str, Parameter(name="--role", help="Only the members in this role.")]


@command
async def group_show(
    operator: Operator,
    printer: Printer,
    group: Team,
    /,
    *,
    all: Annotated[bool, Parameter(help="Those of its groups, too.")] = False,
) -> int:
    members: dict[str, Any] = (
        (await operator.ask(group, "below", []))[0] if all else await operator.ask(group, "own", [])
    )
    rows = [{"agent": agent, "class": one["cls"], "role": one["role"]} for agent, one in sorted(members.items())]
    printer.show(rows, lambda: table(rows) if rows else f"{group} has no members")
    return DONE


@command
async def group_add(operator: Operator, printer: Printer, group: Team, /, *agents: str, role: Role = "member") -> int:
    added = {
        agent: await operator.ask(group, "add", [agent, await class_of(operator.client, agent), role])
        for agent in agents
    }
    printer.show(
        added,
        lambda: "\n".join(f"{agent} is {'now ' if new else ''}a {role} of {group}" for agent, new in added.items()),
    )
    return DONE


@command
async def group_remove(operator: Operator, printer: Printer, group: Team, /, *agents: str) -> int:
    removed = {agent: await operator.ask(group, "remove", [agent]) for agent in agents}
    printer.show(
        removed,
        lambda: "\n".join(f"{agent} {'left' if was else 'was not in'} {group}" for agent, was in removed.items()),
    )
    return DONE


async def _order(operator: Operator, printer: Printer, group: str, order: Order, role: str, **where: str) -> int:
    """Exits with 1 if it failed: what was done is taken back."""
    agents = [*await operator.ask(group, "all", [role] if role else [])]
    report = await operator.client.order_all(agents, order, **where)
    printer.show(report, lambda: _text(report))
    return DONE if report.ok else FAILED


def _text(report: GroupReport) -> str:
    lines = [f"{report.order}: {len(report.done)} agents, {len(report.unchanged)} had it already"]
    lines += [f"{agent} failed: {why}" for agent, why in sorted(report.failed.items())]
    if report.undone:
        lines.append(f"taken back: {', '.join(report.undone)}")
    return "\n".join(lines + [f"{agent} could not be put back: {why}" for agent, why in sorted(report.stuck.items())])


@command
async def group_suspend(operator: Operator, printer: Printer, group: Team, /, *, role: OF_ROLE = "") -> int:
    return await _order(operator, printer, group, "suspend", role)


@command
async def group_resume(operator: Operator, printer: Printer, group: Team, /, *, role: OF_ROLE = "") -> int:
    return await _order(operator, printer, group, "resume", role)


@command
async def group_migrate(
    operator: Operator, printer: Printer, group: Team, /, *, to: Annotated[str, Parameter(help="The node that they go to.")],
    role: OF_ROLE = "",
) -> int:  # fmt: skip
    return await _order(operator, printer, group, "migrate", role, to=to)


@command
async def group_drain(
    operator: Operator, printer: Printer, group: Team, /, *, node: Annotated[str, Parameter(help="The node that they leave.")],
    role: OF_ROLE = "",
) -> int:  # fmt: skip
    return await _order(operator, printer, group, "drain", role, node=node)


@command
async def group_stop(
    operator: Operator, printer: Printer, group: Team, /, *, role: OF_ROLE = "", yes: Yes = False
) -> int:
    refused = None if yes else confirm(f"End all members of {group} for good?", printer.as_json)
    return refused if refused is not None else await _order(operator, printer, group, "stop", role)
