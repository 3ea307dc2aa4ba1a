"""`mielin log`: the records of an agent's log, a line each; and `mielin watch`: its committed states."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from mielin_cells.agents.values.wire import plain
from mielin_cells.cli.command import command
from mielin_cells.cli.options import Agent
from mielin_cells.cli.show import Printer, as_json, clock, counted
from mielin_cells.client.operator import Operator
from mielin_cells.client.watch import watch_log
from mielin_cells.deployment.codes import DONE
from mielin_cells.errors import RecordInvalid
from mielin_cells.log import records
from mielin_cells.log.attributes.values import FIELD, decode
from mielin_cells.log.commit import Commit
from mielin_cells.log.ids import AgentId
from mielin_cells.log.inboxes.lines import line_text
from mielin_cells.log.message import sender_text
from mielin_cells.log.state import StoredState
from mielin_cells.log.stores import BUCKETS
from mielin_cells.log.waits.kept import Stood
from mielin_cells.redaction import scrubbed


@command
async def log(
    operator: Operator,
    printer: Printer,
    agent: Agent,
    /,
    *,
    after: Annotated[int, Parameter(validator=Number(gte=0), help="Only the records after this sequence.")] = 0,
    follow: Annotated[bool, Parameter(help="Keep printing new records as they are appended.")] = False,
) -> int:
    if follow:  # say so while the store does not answer, instead of waiting silently
        logging.getLogger("mielin_cells.jetstream").setLevel(logging.WARNING)
    async for seq, size, entry in operator.records(agent, after, follow):
        if isinstance(entry, RecordInvalid):
            printer.show(
                {"seq": seq, "at": 0.0, "bytes": size, "kind": entry.code, "what": entry.message},
                lambda: f"{seq:>8}  {entry.code}: {entry.message}",  # noqa: B023 - called at once
            )
            continue
        value = {
            "seq": seq, "at": entry.written, "bytes": size, "kind": type(entry).__name__, "epoch": entry.epoch, "node": entry.node,
            "incarnation": entry.incarnation, "what": describe(entry),
        }  # fmt: skip
        printer.show(value, lambda: _line(value))  # noqa: B023 - called at once
    return DONE


@command
async def watch(
    operator: Operator,
    printer: Printer,
    agent: Agent,
    /,
    *,
    after: Annotated[int, Parameter(validator=Number(gte=0), help="Only states newer than this revision.")] = 0,
) -> int:
    logging.getLogger("mielin_cells.client").setLevel(logging.INFO)  # says so while the store does not answer
    async for stored in watch_log(operator.log, str(AgentId(agent)), after):
        value: dict[str, Any] = {"revision": stored.revision, "at": stored.at, "state": plain_state(stored.state)}
        printer.show(value, lambda: f"{value['revision']:>8}  {clock(value['at']):<23}  {as_json(value['state'])}")  # noqa: B023 - called at once
    return DONE


def plain_state(state: StoredState) -> dict[str, Any]:
    """The fields as plain data; a buffer as the number of its bytes."""
    fields: dict[str, Any] = {
        name: decode(data).values if name == FIELD else plain(data) for name, data in state.plain.items()
    }
    for name, table in state.tables.items():
        fields[name] = {
            _key(key): plain(data) for number in range(BUCKETS) for key, data in sorted(table.items_in(number))
        }
    fields.update({name: f"{counted(buffer.size, 'byte')}" for name, buffer in state.buffers.items()})
    return fields


def _key(data: bytes) -> Any:
    key = plain(data)
    return key if isinstance(key, (str, int, float, bool)) else repr(key)


def _line(value: dict[str, Any]) -> str:
    by, at = f"{value['node']}.{value['incarnation']}", clock(value["at"])
    what = f"{value['kind']:<10} {value['epoch']:>4}  {by:<12} {value['bytes']:>8}  {value['what']}"
    return f"{value['seq']:>8}  {at:<23}  {what}".rstrip()


def describe(record: Any) -> str:
    match record:
        case records.Created():
            return f"{record.cls} version {record.version}"
        case records.Committed():
            return _describe_commit(record.commit)
        case records.Asked():
            return (
                f"asks {line_text(record.out.to)}.{record.out.handler} ({record.at + len(record.calls)} in this turn)"
            )
        case records.Stepped(calls=[]):
            return f"begins message {record.input} of {sender_text(record.sender)}"
        case records.Stepped():
            return f"{record.calls[-1].label} ({record.at + len(record.calls)} in this turn)"
        case records.Snapshot():
            return f"in {counted(len(record.parts), 'part')}" if record.parts else "in one record"
        case records.HandedOff():
            seal = f", with {_describe_commit(record.seal)}" if record.seal is not None else ""
            return f"to {record.to} by {record.migration}{seal}"
        case records.Returned() | records.Claimed():
            return str(record.cause)
        case records.Failed():
            return scrubbed(record.error.message)
        case records.Cleared():
            return counted(len(record.letters), "dead letter")
        case records.StandbySet():
            return "1 copy" if record.copies == 1 else f"{record.copies} copies"
        case records.Spilled():
            return counted(len(record.parts), "part")
        case _:
            return str(getattr(record, "reason", "") or getattr(record, "migration", ""))


def _describe_commit(commit: Commit) -> str:
    parts = [counted(len(commit.inputs), "message")] if commit.inputs else []
    ended = sum(isinstance(change, Stood) for change in commit.changes)
    parts += [f"{counted(ended, 'wait')} ended"] if ended else []
    parts += [f"{count} {name}" for name, count in (("sent", len(commit.outs)), ("dead", len(commit.dead))) if count]
    return ", ".join(parts + (["state"] if commit.state is not None else []))
