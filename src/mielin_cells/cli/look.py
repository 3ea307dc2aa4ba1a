"""`mielin agents`, `nodes`, `show` and `timers`."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number

from mielin_cells.agents.finding.found import Found
from mielin_cells.agents.finding.where import text_of
from mielin_cells.agents.reports import AgentInfo, NodeInfo, WaitInfo
from mielin_cells.cli.command import command
from mielin_cells.cli.live import View, show_view
from mielin_cells.cli.moves import show_migration
from mielin_cells.cli.nodes.facts import facts_text
from mielin_cells.cli.options import Agent, Watch, choose_one
from mielin_cells.cli.show import Printer, counted, duration, record, size, table, when
from mielin_cells.client.finding.find import PAGE_MAX, Search
from mielin_cells.client.operator import Operator
from mielin_cells.deployment.codes import DONE
from mielin_cells.errors import ConfigError, NoSuchMigration, UnknownClass, UnknownNode
from mielin_cells.log.attributes.values import Value
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.membership.members import ALIVE
from mielin_cells.rpc.pages import Which
from mielin_cells.store.attributes import read_place
from mielin_cells.store.family import Branch

STATES: list[str] = [
    *(state.value for state in AgentState if state is not AgentState.TERMINATED),
    "unreachable",
    "unreadable",
]
COUNT_OR_AFTER, COUNT_OR_LIMIT = choose_one(), choose_one()


@command
async def agents(
    operator: Operator,
    printer: Printer,
    /,
    *,
    node: Annotated[str | None, Parameter(help="Only the agents on this node.")] = None,
    cls: Annotated[str | None, Parameter(name="--class", help="Only the agents of this class.")] = None,
    state: Annotated[
        str | None, Parameter(help="Only the agents in this state: Running, Suspended, Error, ...")
    ] = None,
    after: Annotated[str, Parameter(group=COUNT_OR_AFTER, help="Only the agents whose ids come after this one.")] = "",
    limit: Annotated[
        int | None, Parameter(group=COUNT_OR_LIMIT, validator=Number(gte=1), help="At most this many agents.")
    ] = None,
    where: Annotated[
        str | None, Parameter(help="Only the agents whose attributes meet this: 'region == \"eu\" and load < 3'.")
    ] = None,
    count: Annotated[
        bool, Parameter(group=(COUNT_OR_AFTER, COUNT_OR_LIMIT), help="Print only how many there are.")
    ] = False,
    watch: Watch = False,
) -> int:
    """Raises `UnknownNode`, `UnknownClass` or `ConfigError` for a filter that matches nothing that exists."""
    state = _state(state)
    search = operator.client.find_named(cls, where, node, state) if where is not None else None

    async def look() -> View:
        if search is not None:
            return await found_view(search, after, limit, count=count)
        which = Which(cls or "", state or "")
        infos = await operator.agents(node, which, after, limit + 1 if limit is not None else None)
        if not infos and not after and (node is not None or cls is not None):
            await _check_filter(operator, node, cls)
        if count:
            return View({"count": len(infos)}, lambda: str(len(infos)), len(infos))
        return View(infos[:limit], lambda: _agents_text(infos[:limit], has_more=len(infos) > len(infos[:limit])), infos)

    return await show_view(printer, look, watch)


async def found_view(search: Search[Any], after: str, limit: int | None, *, count: bool) -> View:
    """What a search by attributes gives."""
    if count:
        number = await search.count()
        return View({"count": number}, lambda: str(number), number)
    items, unheard, more = list[Found[Any]](), list[str](), True
    while more and (limit is None or len(items) < limit):
        page = await search.page(after, PAGE_MAX if limit is None else min(limit - len(items), PAGE_MAX))
        items, unheard, after, more = items + page.items, page.unheard, page.next, bool(page.next)
    plain = [
        {
            "id": one.id, "cls": one.cls, "node": one.node, "state": one.state, "attributes": one.attributes,
            "revision": one.revision,
        }
        for one in items
    ]  # fmt: skip
    return View(plain, lambda: _found_text(items, unheard, has_more=more), items)


def _found_text(items: list[Found[Any]], unheard: list[str], *, has_more: bool) -> str:
    rows = [
        {
            "agent": one.id, "class": one.cls, "node": one.node, "state": one.state,
            "attributes": _attributes_text(one.attributes),
        }
        for one in items
    ]  # fmt: skip
    text = table(rows) if rows else "no agents"
    if has_more:
        text += f"\nmore: --after {shlex.quote(items[-1].id)}"
    return text + (f"\nwithout the agents of {', '.join(unheard)}, which did not answer" if unheard else "")


def _attributes_text(values: Mapping[str, Value]) -> str:
    return " ".join(f"{name}={text_of(value)}" for name, value in values.items())


def _state(word: str | None) -> str | None:
    if word is None:
        return None
    for state in STATES:
        if word.lower() == state.lower():
            return state
    wanted = ", ".join(STATES)
    raise ConfigError(f"--state {word!r} is not a state of an agent; wanted: {wanted}.", field="state", range=wanted)


async def _check_filter(operator: Operator, node: str | None, cls: str | None) -> None:
    nodes = await operator.nodes()
    names = [info.name for info in nodes]
    if node is not None and node not in names:
        raise UnknownNode.of(node, names)
    classes = sorted({name for info in nodes for name in info.classes})
    if cls is not None and cls not in classes:
        raise UnknownClass(
            f"There is no class {cls!r} on any node; there are {', '.join(classes) or 'none'}.", name=cls
        )


def _agents_text(page: list[AgentInfo], *, has_more: bool) -> str:
    rows = [
        {
            "agent": info.id, "class": info.cls, "node": info.node, "state": info.state, "epoch": info.epoch,
            "waiting": info.waiting, "size": size(info.bytes), "dead": info.dead, "last record": when(info.at),
            "migration": info.migration,
        }
        for info in page
    ]  # fmt: skip
    if any(info.waits for info in page):
        for row, info in zip(rows, page, strict=True):
            row["waits for"] = ", ".join(wait.name for wait in info.waits)
    more = f"\nmore: --after {shlex.quote(page[-1].id)}" if has_more else ""
    return table(rows) + more if rows else "no agents"


@command
async def nodes(operator: Operator, printer: Printer, /, *, watch: Watch = False) -> int:
    async def look() -> View:
        infos = await operator.nodes()
        key = [
            (node.name, node.incarnation, node.state, node.agents, node.is_cordoned, node.is_reserved, node.facts)
            for node in infos
        ]
        return View(infos, lambda: table([node_row(node) for node in infos]) if infos else "no nodes", key)

    return await show_view(printer, look, watch)


_CORDON = {False: " (cordoned)", True: " (reserved)"}
"""By whether the node takes agents that are moved to it by name."""


def node_row(node: NodeInfo) -> dict[str, Any]:
    return {
        "node": node.name, "state": node.state + (_CORDON[node.is_reserved] if node.is_cordoned else ""),
        "for": duration(node.since_s) if node.since_s else "", "entered": when(node.at), "incarnation": node.incarnation,
        "agents": node.agents if node.state == ALIVE else "",  # only a node that answers knows
        "cores": node.cores, "memory": size(node.memory_bytes), "arch": node.architecture,
        "classes": " ".join(f"{name}:{version}" for name, version in node.classes.items()),
        "labels": " ".join(f"{name}={value}" for name, value in node.labels.items()),
        "facts": facts_text(node.facts) if node.state == ALIVE else "",
    }  # fmt: skip


@command
async def show(
    operator: Operator,
    printer: Printer,
    thing: Annotated[str, Parameter(help="An agent's id, a node's name, or a migration's id (m-...).")],
    /,
) -> int:
    if thing.startswith("m-"):
        with contextlib.suppress(NoSuchMigration):  # an agent may have such an id
            return await show_migration(operator, printer, thing)
    info, shown = await operator.show(thing), None
    fields = _agent_record(info) if isinstance(info, AgentInfo) else _node_record(info)
    if isinstance(info, AgentInfo):
        written = (await read_place(operator.log, info.id, is_settled=False)).listing
        if written is not None and written.values:  # as searches find them
            fields["attributes"] = _attributes_text(written.values)
            shown = {**msgspec.to_builtins(info), "attributes": written.values}
    printer.show(shown or info, lambda: record({name: value for name, value in fields.items() if value != ""}))
    return DONE


def _node_record(node: NodeInfo) -> dict[str, Any]:
    return {
        **node_row(node), "host": node.host, "process": node.process, "python": node.python, "package": node.package,
        **{f"sensor {name}": f"fails: {why}" for name, why in node.facts.failing.items()},
    }  # fmt: skip


def _agent_record(agent: AgentInfo) -> dict[str, Any]:
    return {
        "agent": agent.id, "class": f"{agent.cls} version {agent.version}", "node": agent.node, "state": agent.state,
        "epoch": agent.epoch, "waiting": agent.waiting, "size": size(agent.bytes), "dead letters": agent.dead,
        "last record": when(agent.at), "migration": agent.migration, "error": agent.error, "code": agent.code,
        "standby": ", ".join(agent.standby), "arch": ", ".join(agent.policy.preferred_architectures) or "any",
        "running": f"{agent.running}, for {duration(agent.running_s)}" if agent.running else "",
        "waits for": "; ".join(map(_wait_text, agent.waits)),
    }  # fmt: skip


def _wait_text(wait: WaitInfo) -> str:
    until = f" until {when(wait.until)}" if wait.until else ""
    what = f", token {wait.token}" if wait.token else f", then {wait.handler}" if wait.handler else ""
    return f"{wait.name}{until}{what}"


@command
async def tree(
    operator: Operator,
    printer: Printer,
    agent: Annotated[str | None, Parameter(help="Only this agent and those below it.")] = None,
    /,
) -> int:
    tops = await operator.tree(agent)
    printer.show(
        tops, lambda: "\n".join(line for top in tops for line in _branch_lines(top)) or "no agent has children"
    )
    return DONE


def _branch_lines(top: Branch, head: str = "", below: str = "") -> Iterator[str]:
    about = [f"on {top.node}"] if top.node else []
    if top.status not in ("", "running"):
        about.append(top.status)
    if top.order:
        about.append(f"to {top.order}")
    if top.restarts:
        about.append(f"restarted {counted(top.restarts, 'time')}")
    if top.error:
        about.append(top.error)
    yield f"{head}{top.agent}  {top.cls}  {top.state or 'not made yet'}" + (f" ({'; '.join(about)})" if about else "")
    for place, child in enumerate(top.children):
        is_last = place == len(top.children) - 1
        yield from _branch_lines(child, below + ("└─ " if is_last else "├─ "), below + ("   " if is_last else "│  "))


@command
async def timers(operator: Operator, printer: Printer, agent: Agent, /) -> int:
    infos = await operator.timers(agent)
    rows = [
        {
            "timer": timer.id, "handler": timer.handler + ("" if timer.is_known else " (gone)"), "due": when(timer.due),
            "every": f"{timer.every:g} s" if timer.every else timer.cron or "once",
        }
        for timer in infos
    ]  # fmt: skip
    printer.show(infos, lambda: table(rows) if rows else f"{agent} has no timers")
    return DONE


@command
async def calls(operator: Operator, printer: Printer, agent: Agent, /) -> int:
    infos = await operator.calls(agent)
    rows = [
        {
            "call": one.id, "handler": one.handler, "state": one.state, "kind": "ask" if one.is_ask else "tell",
            "priority": one.priority, "sender": one.sender,
        }
        for one in infos
    ]  # fmt: skip
    printer.show(infos, lambda: table(rows) if rows else f"{agent} has no calls that wait")
    return DONE
