"""`mielin spawn`, `ask` and `tell`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from mielin_cells.cli.command import command
from mielin_cells.cli.options import Agent, Fields, Handler, Timeout, Words
from mielin_cells.cli.show import Printer
from mielin_cells.client.operator import Operator
from mielin_cells.deployment.codes import DONE


@command
async def spawn(
    operator: Operator,
    printer: Printer,
    cls: Annotated[str, Parameter(name="CLASS", help="The agent's class.")],
    id: Annotated[str, Parameter(name="ID", help="Its id, unique in the deployment.")],
    /,
    *fields: Fields,
    on: Annotated[
        str | None, Parameter(help="The node to run it (default: the emptiest that knows the class).")
    ] = None,
) -> int:
    node, is_new = await operator.spawn(cls, id, list(fields), on)
    value = {"agent": id, "class": cls, "node": node, "new": is_new}
    unused = f"; its state is unchanged, and {' '.join(fields)} was not used" if fields else ""
    printer.show(value, lambda: f"{id} runs on {node}" if is_new else f"{id} exists already, on {node}{unused}")
    return DONE


@command
async def ask(
    operator: Operator, printer: Printer, agent: Agent, handler: Handler, /, *words: Words, timeout: Timeout = None
) -> int:
    printer.show(await operator.ask(agent, handler, list(words), timeout))
    return DONE


@command
async def tell(operator: Operator, printer: Printer, agent: Agent, handler: Handler, /, *words: Words) -> int:
    await operator.tell(agent, handler, list(words))
    printer.show({"agent": agent, "handler": handler, "stored": True}, lambda: f"stored in the inbox of {agent}")
    return DONE
