"""Migrations as operators see them: the list, one migration in full, and a new attempt after one that gave up."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from typing import Any

import msgspec

from mielin_cells.agents.reports import AgentInfo, MigrationReport
from mielin_cells.client.client import Client
from mielin_cells.client.moves import plan_move, watch_move
from mielin_cells.client.requester import REQUEST_S
from mielin_cells.errors import CellError, MigrationInProgress, RetryError, UsageError, never
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.migration.audit import AuditEntry
from mielin_cells.migration.journal import (
    AnyRecord,
    Attempted,
    Cancelled,
    Decided,
    Ended,
    Failed,
    Journal,
    Planned,
    Reached,
    TakenBack,
)
from mielin_cells.rpc import requests
from mielin_cells.store import journal
from mielin_cells.store.reader import load

logger = logging.getLogger("mielin_cells.migration")

OPEN = "open"
UNDONE = "undone"
"""It had completed, and an operator has undone it since."""

UNREADABLE = "unreadable"
"""Its journal cannot be read; nothing is done about it until an operator decides."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One migration in a list."""

    migration: str
    agent: str
    source: str
    target: str
    outcome: str
    """completed, undone, rolled_back, gave_up; open, or unreadable."""
    attempts: int
    failures: dict[str, int] = {}
    reason: str = ""
    at: float = 0.0
    """When it was planned, in wall seconds."""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a migration's story.  `after_s` counts from its plan."""

    after_s: float
    node: str
    what: str
    facts: dict[str, Any]


def case_of(own: Journal) -> Case:
    planned, end = _plan_of(own), own.end
    failures = Counter(record.kind for record in own.records if isinstance(record, Failed))
    targets = [attempt.target for attempt in own.attempts]
    case = Case(
        migration=own.migration, agent=planned.agent, source=planned.source,
        target=end.target if end is not None else targets[-1] if targets else planned.target,
        outcome=end.outcome if end is not None else OPEN, attempts=len(targets), failures=dict(failures),
        reason=end.reason if end is not None else "", at=planned.at,
    )  # fmt: skip
    last = own.records[-1]
    return _undone(case, last.record) if isinstance(last, TakenBack) else case


def _plan_of(own: Journal) -> Planned:
    if own.planned is None:
        raise never("a journal that was read has a plan")
    return own.planned


def _undone(case: Case, record: int) -> Case:
    return msgspec.structs.replace(case, outcome=UNDONE, reason=f"its agent went back to record {record} of its log")


SHOWN: dict[type[AnyRecord], tuple[str, ...]] = {
    Planned: ("source", "target", "epoch", "parent"),
    Attempted: ("number", "target", "strategy", "epoch"),
    Reached: ("number", "phases", "rounds", "bytes", "pause_ms"),
    Failed: ("number", "kind", "target", "code", "message"),
    Decided: ("strategy", "rule", "delay_s"),
    Cancelled: (),
    TakenBack: ("goes_to", "record", "messages", "sent"),
    Ended: ("outcome", "target", "code", "reason", "restored"),
}
"""Fields of each kind of record that a timeline shows."""

SHOWN_AS = {"kind": "type", "goes_to": "to"}


def timeline(own: Journal) -> list[Moment]:
    """Attempts, phases, failures, and decisions with the rules that made them."""
    began = _plan_of(own).at
    return [
        Moment(
            after_s=max(0.0, record.at - began), node=record.node, what=type(record).__name__,
            facts={SHOWN_AS.get(name, name): _shown(getattr(record, name)) for name in SHOWN[type(record)]},
        )
        for record in own.records
    ]  # fmt: skip


def _shown(value: Any) -> Any:
    """A field's value; phases are pairs of name and seconds, and shown in milliseconds."""
    if isinstance(value, float):
        return round(value, 3)
    return {name: round(s * 1000, 3) for name, s in value} if isinstance(value, list) else value


async def list_moves(client: Client, agent: str | None = None, *, failed: bool = False) -> list[Case]:
    """Migrations, the newest last; with `failed` those that did not complete, or whose journals cannot be read."""
    journals, unreadable = await journal.all_of(client.log, agent)
    cases = [case_of(one) for one in journals]
    agents = {name: of for of, name in await journal.listed(client.log, agent)} if unreadable else {}
    cases += [
        Case(
            migration=name, agent=agents.get(name, ""), source="", target="", outcome=UNREADABLE, attempts=0,
            reason=error.message,
        )
        for name, error in unreadable
    ]  # fmt: skip
    return [case for case in cases if not failed or case.outcome not in ("completed", UNDONE, OPEN)]


async def read_case(client: Client, own: Journal) -> Case:
    """As `case_of`, completed from the agent's log: an undo of an earlier migration also undoes later ones, and an undo may be
    missing in a journal that could not be written."""
    case = case_of(own)
    if case.outcome != "completed":
        return case
    try:
        fold = await load(client.log, case.agent)
    except CellError as error:
        logger.warning("migration %s: checking whether it was undone failed: %s", own.migration, error)
        return case
    handed = [fold.handed[attempt.id] for attempt in own.attempts if attempt.id in fold.handed]
    undone = [to for to, by in fold.undone for seq in handed if to <= seq < by]
    return _undone(case, undone[-1]) if undone else case


async def read_audit(client: Client, migration: str) -> list[AuditEntry]:
    """The audit entries of the nodes that answer, since their start."""
    entries: list[AuditEntry] = []
    for node in (await client.members.read()).infos():
        with contextlib.suppress(RetryError):
            entries += await client.request(node.name, requests.ReadAudit(migration), REQUEST_S)
    return entries


async def retry_move(client: Client, migration: str, *, to: str | None) -> MigrationReport:
    """Begins a new migration in place of one that gave up or was rolled back.

    An agent that is suspended because the migration gave up is resumed once it has arrived.  Raises `MigrationInProgress`
    for one that is open, `UsageError` for one that completed, and what `Cluster.migrate` raises.
    """
    agent, is_suspended = await _find_suspended(client, migration)
    request, source = await plan_move(client, agent, to)
    report = await watch_move(client, msgspec.structs.replace(request, parent=migration), source)
    if report.ok and is_suspended:
        await client.resume(agent)
    return report


async def stay(client: Client, migration: str) -> AgentInfo:
    """Lets the agent of a migration that gave up run again where it is.  Raises as `retry_move`."""
    agent, is_suspended = await _find_suspended(client, migration)
    if is_suspended:
        await client.resume(agent)
    return await client.show(agent)


async def _find_suspended(client: Client, migration: str) -> tuple[str, bool]:
    """The agent, and whether it is suspended because the migration gave up.  Other suspensions are not ended."""
    own = await journal.find(client.log, migration)
    agent, end = _plan_of(own).agent, own.end
    if end is None:
        raise MigrationInProgress(
            f"Migration {migration} of agent {agent!r} is open: it continues by itself. See `mielin show {migration}`, or "
            f"cancel it with `mielin abort {agent}`.", agent=agent, migration=migration,
        )  # fmt: skip
    if end.outcome == "completed":
        raise UsageError(f"Migration {migration} of agent {agent!r} completed; there is nothing to recover.")
    info = await client.show(agent)
    return agent, end.outcome == "gave_up" and info.state == AgentState.SUSPENDED.value
