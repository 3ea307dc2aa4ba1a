"""`mielin top`: what the nodes do, again and again."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number

from mielin_cells.agents.reports import NodeInfo
from mielin_cells.cli.command import command
from mielin_cells.cli.live import live_table, open_live
from mielin_cells.cli.show import Printer, counted, duration, table
from mielin_cells.client.operator import Operator
from mielin_cells.deployment.codes import DONE
from mielin_cells.errors import RetryError
from mielin_cells.membership.members import ALIVE, STARTING, STOPPED
from mielin_cells.redaction import scrubbed

if TYPE_CHECKING:
    from rich.console import RenderableType

MOVES_MAX = 10
"""Open moves that are named."""

FIRST = {"stuck": 0, "silent": 1, STARTING: 2, ALIVE: 3, STOPPED: 4}
"""What needs somebody's eye comes first."""


class Look(msgspec.Struct, frozen=True):
    """What `mielin top --json` prints."""

    at: float
    """By this machine's clock."""
    leader: str
    """Of failover; "": nobody leads."""
    nodes: list[NodeInfo]
    agents: int
    waiting: int | None
    """Messages in inboxes; absent where no node has counted them yet."""
    messages_s: float | None
    moves: int
    """Open ones."""
    moves_s: float | None
    """Completed in a second since the look before; absent at the first look."""


@command
async def top(
    operator: Operator,
    printer: Printer,
    /,
    *,
    every: Annotated[float, Parameter(validator=Number(gte=0.2, lte=3600), help="Seconds between two looks.")] = 2.0,
    count: Annotated[int | None, Parameter(validator=Number(gte=1), help="End after so many looks.")] = None,
) -> int:
    live, last, looks, trouble = open_live(printer, transient=False), None, 0, ""
    try:
        while True:
            try:
                last = await take_look(operator, last)
            except RetryError as error:
                if error.message != trouble:
                    trouble = error.message
                    print(f"mielin: {scrubbed(trouble)} Trying again.", file=sys.stderr)
            else:
                trouble, looks = "", looks + 1
                if live is None:
                    look = last
                    printer.show(look, lambda look=look: look_text(look))  # type: ignore[misc]
                else:
                    live.update(_shown(last), refresh=True)
                if looks == count:
                    return DONE
            await asyncio.sleep(every)
    finally:
        if live is not None:
            live.stop()


async def take_look(operator: Operator, before: Look | None = None) -> Look:
    """Asks every node.  Raises a `RetryError` if the store does not answer."""
    nodes = await operator.look_at_nodes()
    nodes.sort(key=lambda node: (FIRST.get(node.state, 0), -(node.facts.cpu or 0.0), node.name))
    here = [node for node in nodes if node.state in (ALIVE, STARTING)]
    return Look(
        at=time.time(), leader=operator.client.members.table.leader[0], nodes=nodes, agents=sum(node.agents for node in here),
        waiting=_sum(node.facts.waiting for node in here), messages_s=_sum(node.facts.messages_s for node in here),
        moves=sum(node.moves_out for node in here), moves_s=_moves_s(before, here),
    )  # fmt: skip


def _sum(values: Any) -> Any:
    """Of those that are there; None if none is."""
    known = [value for value in values if value is not None]
    return round(sum(known), 1) if known else None


def _moves_s(before: Look | None, nodes: Sequence[NodeInfo]) -> float | None:
    if before is None or (passed_s := time.time() - before.at) <= 0:
        return None
    then = {(node.name, node.incarnation): node.moved for node in before.nodes}
    return round(sum(node.moved - then.get((node.name, node.incarnation), node.moved) for node in nodes) / passed_s, 1)


# ---- as text -----------------------------------------------------------------------------------------------------

NUMBERS = ("agents", "msg/s", "waiting", "oldest", "out", "in", "cpu", "mem", "disk", "temp", "store")


def look_text(look: Look) -> str:
    rows = [_row(node, look.leader) for node in look.nodes]
    lines = [head_text(look), table(rows) if rows else "no nodes", *_move_lines(look)]
    return "\n".join(lines) + "\n"


def head_text(look: Look) -> str:
    alive = sum(node.state == ALIVE for node in look.nodes)
    said = [f"{alive} of {counted(len(look.nodes), 'node')} alive", counted(look.agents, "agent")]
    if look.messages_s is not None:
        said.append(f"{look.messages_s:,.0f} messages/s")
    if look.waiting is not None:
        said.append(f"{look.waiting:,} waiting")
    said.append(f"{counted(look.moves, 'move')} open" + (f", {look.moves_s:g}/s" if look.moves_s is not None else ""))
    return f"{time.strftime('%H:%M:%S', time.localtime(look.at))}  " + ", ".join(said)


def _row(node: NodeInfo, leader: str) -> dict[str, Any]:
    facts, is_here = node.facts, node.state in (ALIVE, STARTING)
    state = node.state + (" cordoned" if node.is_cordoned else "") + (" leads" if node.name == leader else "")
    if not is_here:
        return {"node": node.name, "state": state, **dict.fromkeys(NUMBERS, ""), "more": ""}
    return {
        "node": node.name, "state": state, "agents": node.agents,
        "msg/s": _number(facts.messages_s, "{:,.0f}"), "waiting": _number(facts.waiting, "{:,}"),
        "oldest": duration(facts.oldest_s) if facts.oldest_s else "", "out": node.moves_out or "", "in": node.moves_in or "",
        "cpu": _number(facts.cpu, "{:.0f}%"), "mem": _number(facts.memory, "{:.0f}%"), "disk": _number(facts.disk, "{:.0f}%"),
        "temp": _number(facts.temperature_c, "{:.0f}°C"), "store": _number(facts.store_ms, "{:.1f} ms"),
        "more": ", ".join(_more(node)),
    }  # fmt: skip


def _number(value: float | None, form: str) -> str:
    """ "" for what is not known: it is no zero."""
    return form.format(value) if value is not None else ""


def _more(node: NodeInfo) -> list[str]:
    facts = node.facts
    power = "" if facts.mains is None else " on mains" if facts.mains else " on battery"
    said = [f"battery {facts.battery:.0f}%{power}"] if facts.battery is not None else [power.strip()] if power else []
    said += [f"{name}={value}" for name, value in (*node.labels.items(), *facts.sensors.items())]
    return said + [f"{name} fails" for name in facts.failing]


def _move_lines(look: Look) -> list[str]:
    moves = [f"{node.name}: {move}" for node in look.nodes for move in node.moves]
    more = look.moves - MOVES_MAX
    return moves[:MOVES_MAX] + ([f"and {counted(more, 'more move')}"] if more > 0 and len(moves) >= MOVES_MAX else [])


def _shown(look: Look) -> RenderableType:
    """For a terminal: rich cuts what does not fit."""
    from rich.console import Group
    from rich.text import Text

    rows = [_row(node, look.leader) for node in look.nodes]
    columns = list(rows[0]) if rows else ["node"]
    shown = live_table(head_text(look), columns, NUMBERS, (row.values() for row in rows))
    return Group(shown, *(Text(line) for line in _move_lines(look)))
