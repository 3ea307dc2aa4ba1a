"""What the operator's commands do: each calls the deployment, shows values, and returns the exit code."""

from __future__ import annotations

import contextlib
import shlex
from typing import Any, NamedTuple

import msgspec

from mielin_cells.agents.reports import AgentInfo, NodeInfo
from mielin_cells.cli.link import tell_of_store
from mielin_cells.cli.show import Printer, clock, duration, record, size, table, when
from mielin_cells.cli.watch import Seen, watched
from mielin_cells.client.operator import ALIVE, Operator
from mielin_cells.deployment.codes import DONE
from mielin_cells.errors import ConfigError, NoSuchMigration, RecordInvalid, UnknownClass, UnknownNode, never
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.log.message import sender_text
from mielin_cells.log.records import (
    Asked,
    Claimed,
    Cleared,
    Commit,
    Committed,
    Created,
    Failed,
    HandedOff,
    Returned,
    Snapshot,
    Spilled,
    StandbySet,
    Stepped,
)
from mielin_cells.redaction import scrubbed


async def spawn(
    operator: Operator, printer: Printer, cls: str, id: str, words: list[str], on: str | None
) -> int:  # fmt: skip
    node, is_new = await operator.spawn(cls, id, words, on)
    value = {"agent": id, "class": cls, "node": node, "new": is_new}
    unused = f"; it stays as it is, without what was given ({' '.join(words)})" if words else ""
    printer.show(value, lambda: f"{id} runs on {node}" if is_new else f"{id} is there already, on {node}{unused}")
    return DONE


async def ask(
    operator: Operator, printer: Printer, agent: str, handler: str, words: list[str], timeout: float | None
) -> int:  # fmt: skip
    printer.show(await operator.ask(agent, handler, words, timeout))
    return DONE


async def tell(operator: Operator, printer: Printer, agent: str, handler: str, words: list[str]) -> int:
    await operator.tell(agent, handler, words)
    printer.show({"agent": agent, "handler": handler, "stored": True}, lambda: f"stored in the inbox of {agent}")
    return DONE


class Which(NamedTuple):
    """Of all agents, those that are wanted."""

    node: str | None = None
    cls: str | None = None
    state: str | None = None
    after: str = ""
    limit: int | None = None


ALL = Which()


async def agents(
    operator: Operator, printer: Printer, which: Which | None = None, count: bool = False, watch: bool = False
) -> int:
    """Raises `UnknownNode`, `UnknownClass` or `ConfigError` for a filter that nothing can fit."""
    which = which or ALL
    state = _state(which.state)

    async def look() -> Seen:
        every = await operator.agents()
        found = [
            info for info in every
            if which.node in (None, info.node) and which.cls in (None, info.cls) and state in (None, info.state)
        ]  # fmt: skip
        if not found:
            await _check(operator, which, every)
        if count:
            return Seen({"count": len(found)}, lambda: str(len(found)), len(found))
        page = [info for info in found if info.id > which.after]
        rest = len(page) - which.limit if which.limit is not None else 0
        return Seen(page[: which.limit], lambda: _listed(page[: which.limit], rest), page)

    if watch:
        return await watched(printer, look)
    seen = await look()
    printer.show(seen.value, seen.text)
    return DONE


def _state(word: str | None) -> str | None:
    """A state as agents say it.  Raises `ConfigError`."""
    known: list[str] = [
        *(state.value for state in AgentState if state is not AgentState.TERMINATED),
        "unreachable",
        "unreadable",
    ]
    for state in known:
        if word is not None and word.lower() == state.lower():
            return state
    if word is not None:
        wanted = ", ".join(known)
        raise ConfigError(f"--state {word!r} is no state of an agent; wanted: {wanted}.", field="state", range=wanted)
    return None


async def _check(operator: Operator, which: Which, every: list[AgentInfo]) -> None:
    """That there are none may be because there is no such node or class."""
    if which.node is not None or which.cls is not None:
        nodes = await operator.nodes()
        names = [node.name for node in nodes]
        if which.node is not None and which.node not in names:
            raise UnknownNode(
                f"There is no node {which.node!r}; there are {', '.join(names) or 'none'}.",
                node=which.node,
                nodes=names,
            )
        classes = sorted({name for node in nodes for name in node.classes} | {info.cls for info in every if info.cls})
        if which.cls is not None and which.cls not in classes:
            raise UnknownClass(
                f"There is no class {which.cls!r} on any node; there are {', '.join(classes) or 'none'}.",
                name=which.cls,
            )


def _listed(page: list[AgentInfo], rest: int) -> str:
    rows = [
        {
            "agent": info.id, "class": info.cls, "node": info.node, "state": info.state, "epoch": info.epoch,
            "waiting": info.waiting, "size": size(info.bytes), "dead": info.dead, "last record": when(info.at),
            "migration": info.migration,
        }
        for info in page
    ]  # fmt: skip
    more = f"\n{rest} more: --after {shlex.quote(page[-1].id)}" if rest > 0 and page else ""
    return table(rows) + more if rows else "no agents"


async def standby(operator: Operator, printer: Printer, agent: str, copies: int) -> int:
    await operator.client.standby(agent, copies)
    value = {"agent": agent, "copies": copies}
    printer.show(value, lambda: f"{agent} is followed by {copies} other nodes, if there are so many")
    return DONE


async def nodes(operator: Operator, printer: Printer, watch: bool = False) -> int:
    async def look() -> Seen:
        found = await operator.nodes()
        key = [(node.name, node.incarnation, node.state, node.agents, node.is_cordoned) for node in found]
        return Seen(found, lambda: table([_node_row(node) for node in found]) if found else "no nodes", key)

    if watch:
        return await watched(printer, look)
    seen = await look()
    printer.show(seen.value, seen.text)
    return DONE


def _node_row(node: NodeInfo) -> dict[str, Any]:
    state = node.state + (" (cordoned)" if node.is_cordoned else "")
    agents = node.agents if node.state == ALIVE else ""  # of the others nobody has told
    return {
        "node": node.name, "state": state, "for": duration(node.since_s) if node.since_s else "",
        "entered": when(node.at), "incarnation": node.incarnation, "agents": agents, "cores": node.cores,
        "memory": size(node.memory_bytes), "arch": node.architecture, "classes": _versions(node),
        "labels": " ".join(f"{name}={value}" for name, value in node.labels.items()),
    }  # fmt: skip


def _versions(node: NodeInfo) -> str:
    return " ".join(f"{name}:{version}" for name, version in node.classes.items())


async def show(operator: Operator, printer: Printer, thing: str) -> int:
    if thing.startswith("m-"):
        from mielin_cells.cli import moves

        with contextlib.suppress(NoSuchMigration):  # an agent may have such an id, too
            return await moves.show(operator, printer, thing)
    found = await operator.show(thing)

    def text() -> str:
        match found:
            case NodeInfo():
                plain = _node_row(found)
                plain.update(host=found.host, process=found.process, python=found.python, package=found.package)
                return record(plain)
            case AgentInfo():
                return record({
                    "agent": found.id, "class": f"{found.cls} version {found.version}", "node": found.node,
                    "state": found.state, "epoch": found.epoch, "waiting": found.waiting, "size": size(found.bytes),
                    "dead letters": found.dead, "last record": when(found.at), "migration": found.migration, "error": found.error,
                    "code": found.code, "standby": ", ".join(found.standby),
                    "arch": ", ".join(found.policy.preferred_architectures) or "any",
                    "running": f"{found.running}, for {duration(found.running_s)}" if found.running else "",
                })  # fmt: skip

    printer.show(found, text)
    return DONE


async def log(operator: Operator, printer: Printer, agent: str, after: int, follow: bool) -> int:
    if follow:
        tell_of_store()
    async for seq, count, entry in operator.records(agent, after, follow):
        if isinstance(entry, RecordInvalid):
            value: dict[str, Any] = {"seq": seq, "at": 0.0, "bytes": count, "kind": entry.code, "what": entry.message}
            printer.show(value, lambda: f"{seq:>8}  {entry.code}: {entry.message}")  # noqa: B023 - called at once
            continue
        value = {
            "seq": seq, "at": entry.written, "bytes": count, "kind": type(entry).__name__, "epoch": entry.epoch, "node": entry.node,
            "incarnation": entry.incarnation, "what": _what(entry),
        }  # fmt: skip
        printer.show(value, lambda: _line(value))  # noqa: B023 - called at once
    return DONE


def _line(value: dict[str, Any]) -> str:
    by, at = f"{value['node']}.{value['incarnation']}", clock(value["at"])
    what = f"{value['kind']:<10} {value['epoch']:>4}  {by:<12} {value['bytes']:>8}  {value['what']}"
    return f"{value['seq']:>8}  {at:<23}  {what}".rstrip()


def _what(entry: Any) -> str:
    match entry:
        case Created():
            return f"{entry.cls} version {entry.version}"
        case Committed():
            return _commit(entry.commit)
        case Asked():
            return f"asks {entry.out.to}.{entry.out.handler} ({entry.at + len(entry.made)} in this turn)"
        case Stepped(made=[]):
            return f"begins message {entry.input} of {sender_text(entry.sender)}"
        case Stepped():
            return f"{entry.made[-1].label} ({entry.at + len(entry.made)} in this turn)"
        case Snapshot():
            return f"of {len(entry.parts)} parts" if entry.parts else "in itself"
        case HandedOff():
            seal = f", with {_commit(entry.seal)}" if entry.seal is not None else ""
            return f"to {entry.to} by {entry.migration}{seal}"
        case Returned() | Claimed():
            return str(entry.cause)
        case Failed():
            return scrubbed(entry.error.message)
        case Cleared():
            return f"{len(entry.letters)} dead letters"
        case StandbySet():
            return f"{entry.copies} copies"
        case Spilled():
            return f"{len(entry.parts)} parts"
        case _:
            return str(getattr(entry, "reason", "") or getattr(entry, "migration", ""))


def _commit(commit: Commit) -> str:
    counts = {"messages": len(commit.taken), "sent": len(commit.outs), "dead": len(commit.dead)}
    state = "state" if commit.state is not None else ""
    return ", ".join([*(f"{count} {name}" for name, count in counts.items() if count), *([state] if state else [])])


async def timers(operator: Operator, printer: Printer, agent: str) -> int:
    found = await operator.timers(agent)
    rows = [
        {
            "timer": timer.id, "handler": timer.handler + ("" if timer.is_known else " (gone)"), "due": when(timer.due),
            "every": f"{timer.every:g} s" if timer.every else "once",
        }
        for timer in found
    ]  # fmt: skip
    printer.show(found, lambda: table(rows) if rows else f"{agent} has no timers")
    return DONE


async def cancel(operator: Operator, printer: Printer, agent: str, timer: str) -> int:
    await operator.cancel_timer(agent, timer)
    printer.show({"agent": agent, "timer": timer, "cancelled": True}, lambda: f"timer {timer} of {agent} is taken away")
    return DONE


async def abort(operator: Operator, printer: Printer, agent: str) -> int:
    migration = await operator.client.abort(agent)
    printer.show({"agent": agent, "migration": migration}, lambda: f"{migration} of {agent} is cancelled")
    return DONE


async def claim(operator: Operator, printer: Printer, agent: str, to: str, force: bool) -> int:
    former = await operator.claim(agent, to, force)
    value = {"agent": agent, "node": to, "former": former}
    printer.show(
        value, lambda: f"{agent} runs on {to}; {former} is fenced" if former != to else f"{agent} runs on {to}"
    )
    return DONE


async def order(operator: Operator, printer: Printer, agent: str, what: str, reason: str) -> int:
    """suspend, pause, resume or terminate."""
    client = operator.client
    match what:
        case "suspend":
            await client.suspend(agent, reason)
        case "pause":
            await client.pause(agent, reason)
        case "resume":
            await client.resume(agent)
        case _:
            await client.terminate(agent)
    info = await operator.show(agent)
    if not isinstance(info, AgentInfo):
        raise never("isinstance(info, AgentInfo) does not hold")
    printer.show(info, lambda: f"{agent} is {info.state}" + (f": {info.error}" if info.error else ""))
    return DONE


async def dead(
    operator: Operator, printer: Printer, agent: str, which: str | None, replay: bool, purge: bool
) -> int:  # fmt: skip
    """Lists dead letters, shows one, replays one, or purges one or all."""
    if replay:
        if which is None:
            raise never("which is not None does not hold")
        letter = await operator.replay(agent, which)
        printer.show(
            {"agent": agent, "letter": letter.id, "replayed": True},
            lambda: f"{letter.handler} of {letter.sender} is sent again; should it fail again, it is a new dead letter",
        )
    elif purge:
        count = await operator.purge(agent, which)
        printer.show({"agent": agent, "purged": count}, lambda: f"{count} dead letters of {agent} are removed")
    else:
        found = await operator.letters(agent)
        if which is not None:
            letter = operator.letter(agent, which, found)
            printer.show(letter, lambda: record({**msgspec.structs.asdict(letter), "at": when(letter.at)}))
        else:
            names = ("number", "id", "handler", "sender", "tries", "cause")
            rows = [{"at": when(letter.at), **{name: getattr(letter, name) for name in names}} for letter in found]
            printer.show(found, lambda: table(rows) if rows else f"{agent} has no dead letters")
    return DONE
