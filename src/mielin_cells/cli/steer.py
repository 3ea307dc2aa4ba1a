"""Commands that change what an agent does: its lifecycle, its owner, its timers and its copies."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from mielin_cells.agents.reports import AgentInfo
from mielin_cells.cli.command import command, confirm, operate
from mielin_cells.cli.options import HERE, Agent, Reason, Server, Yes
from mielin_cells.cli.show import Printer, counted
from mielin_cells.client.operator import Operator
from mielin_cells.deployment.codes import DONE


@command
async def standby(
    operator: Operator,
    printer: Printer,
    agent: Agent,
    copies: Annotated[int, Parameter(help="How many other nodes follow its log.")] = 1,
    /,
) -> int:
    await operator.client.standby(agent, copies)
    value = {"agent": agent, "copies": copies}
    printer.show(value, lambda: f"up to {counted(copies, 'other node')} may follow the log of {agent}")
    return DONE


@command
async def cancel(
    operator: Operator,
    printer: Printer,
    agent: Agent,
    what: Annotated[str, Parameter(name="CALL|TIMER", help="Its id: see `mielin calls` and `mielin timers`.")],
    /,
) -> int:
    kind = await operator.cancel(agent, what)
    done = "is cancelled" if kind == "timer" else "is cancelled, unless it has taken effect"
    printer.show({"agent": agent, kind: what, "cancelled": True}, lambda: f"{kind} {what} of {agent} {done}")
    return DONE


@command
async def abort(operator: Operator, printer: Printer, agent: Agent, /) -> int:
    migration = await operator.client.abort(agent)
    printer.show({"agent": agent, "migration": migration}, lambda: f"{migration} of {agent} is cancelled")
    return DONE


@command
async def claim(
    operator: Operator,
    printer: Printer,
    agent: Agent,
    /,
    *,
    to: Annotated[str, Parameter(help="The node that takes the agent over.")],
    force: Annotated[bool, Parameter(help="Claim even if the owner answers; the owner is then fenced.")] = False,
) -> int:
    former = await operator.claim(agent, to, force)
    fenced = f"; {former} is fenced" if former != to else ""
    printer.show({"agent": agent, "node": to, "former": former}, lambda: f"{agent} runs on {to}{fenced}")
    return DONE


@command
async def suspend(operator: Operator, printer: Printer, agent: Agent, /, *, reason: Reason = "") -> int:
    await operator.client.suspend(agent, reason)
    return await _show_state(operator, printer, agent)


@command
async def pause(operator: Operator, printer: Printer, agent: Agent, /, *, reason: Reason = "") -> int:
    await operator.client.pause(agent, reason)
    return await _show_state(operator, printer, agent)


@command
async def resume(operator: Operator, printer: Printer, agent: Agent, /) -> int:
    await operator.client.resume(agent)
    return await _show_state(operator, printer, agent)


def terminate(agent: Agent, /, *, yes: Yes = False, server: Server = HERE) -> int:
    refused = None if yes else confirm(f"End agent {agent!r} for good?", server.json)
    return operate(server, lambda operator, printer: end(operator, printer, agent)) if refused is None else refused


async def end(operator: Operator, printer: Printer, agent: str) -> int:
    await operator.client.terminate(agent)
    return await _show_state(operator, printer, agent)


async def _show_state(operator: Operator, printer: Printer, agent: str) -> int:
    info = await operator.show(agent)
    error = f": {info.error}" if isinstance(info, AgentInfo) and info.error else ""
    printer.show(info, lambda: f"{agent} is {info.state}{error}")
    return DONE
