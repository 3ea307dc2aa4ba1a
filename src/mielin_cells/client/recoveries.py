"""Migrations as operators see them: listed, told in full, and taken up again where they gave up."""

from __future__ import annotations

import contextlib
import logging
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
"""It had completed, and the agent was put back to before it on purpose."""

PARKED = "parked"
"""Its journal cannot be read; nothing is done about it until somebody looks."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One migration in a list."""

    migration: str
    agent: str
    source: str
    target: str
    outcome: str
    """completed, undone, rolled_back, gave_up; open, or parked."""
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


def case_of(found: Journal) -> Case:
    planned, end = found.planned, found.end
    if planned is None:
        raise never("planned is not None does not hold")
    failures: dict[str, int] = {}
    for record in found.records:
        if isinstance(record, Failed):
            failures[record.kind] = failures.get(record.kind, 0) + 1
    tried = [attempt.target for attempt in found.attempts]
    case = Case(
        migration=found.migration, agent=planned.agent, source=planned.source,
        target=end.target if end is not None else tried[-1] if tried else planned.target,
        outcome=end.outcome if end is not None else OPEN, attempts=len(tried), failures=failures,
        reason=end.reason if end is not None else "", at=planned.at,
    )  # fmt: skip
    last = found.records[-1]
    return _undone(case, last.record) if isinstance(last, TakenBack) else case


def _undone(case: Case, record: int) -> Case:
    return msgspec.structs.replace(case, outcome=UNDONE, reason=f"its agent went back to record {record} of its log")


def story(found: Journal) -> list[Moment]:
    """The timeline: attempts, phases, failures, and decisions with the rules that made them."""
    if found.planned is None:
        raise never("found.planned is not None does not hold")
    began = found.planned.at
    return [
        Moment(after_s=max(0.0, record.at - began), node=record.node, what=type(record).__name__, facts=_facts(record))
        for record in found.records
    ]


def _facts(record: AnyRecord) -> dict[str, Any]:
    match record:
        case Planned():
            return {"source": record.source, "target": record.target, "epoch": record.epoch, "parent": record.parent}
        case Attempted():
            return {
                "number": record.number, "target": record.target, "strategy": record.strategy, "epoch": record.epoch,
            }  # fmt: skip
        case Reached():
            return {
                "number": record.number, "phases": {name: round(s * 1000, 3) for name, s in record.phases},
                "rounds": record.rounds, "bytes": record.bytes, "pause_ms": round(record.pause_ms, 3),
            }  # fmt: skip
        case Failed():
            return {
                "number": record.number, "type": record.kind, "target": record.target, "code": record.code,
                "message": record.message,
            }  # fmt: skip
        case Decided():
            return {"strategy": record.strategy, "rule": record.rule, "delay_s": round(record.delay_s, 3)}
        case Cancelled():
            return {}
        case TakenBack():
            return {"to": record.goes_to, "record": record.record, "messages": record.messages, "sent": record.sent}
        case Ended():
            return {
                "outcome": record.outcome, "target": record.target, "code": record.code, "reason": record.reason,
                "restored": record.restored,
            }  # fmt: skip


class Cases:
    """Over a client that is open."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def listed(self, agent: str | None = None, failed: bool = False) -> list[Case]:
        """Migrations, the newest last; with `failed` those that did not complete, or cannot be read."""
        found, parked = await journal.all_of(self._client.log, agent)
        cases = [case_of(one) for one in found]
        whose = {name: of for of, name in await journal.listed(self._client.log, agent)} if parked else {}
        cases += [
            Case(
                migration=name, agent=whose.get(name, ""), source="", target="", outcome=PARKED, attempts=0,
                reason=error.message,
            )
            for name, error in parked
        ]  # fmt: skip
        return [case for case in cases if not failed or case.outcome not in ("completed", UNDONE, OPEN)]

    async def find(self, migration: str) -> Journal:
        """Raises `NoSuchMigration`, and what keeps its journal from being read."""
        return await journal.find(self._client.log, migration)

    async def case(self, found: Journal) -> Case:
        """As `case_of`, and with what the agent's log says: a rollback of an earlier migration undoes those behind it, too, and a
        journal that could not be written does not tell of its own."""
        case = case_of(found)
        if case.outcome != "completed":
            return case
        try:
            fold = await load(self._client.log, case.agent)
        except CellError as error:
            logger.warning("migration %s: whether it was undone is not known: %s", found.migration, error)
            return case
        handed = [fold.handed[attempt.id] for attempt in found.attempts if attempt.id in fold.handed]
        gone = [to for to, by in fold.undone for seq in handed if to <= seq < by]
        return _undone(case, gone[-1]) if gone else case

    async def audit(self, migration: str) -> list[AuditEntry]:
        """What the nodes that answer have noted of it since they began."""
        found: list[AuditEntry] = []
        for node in await self._client.nodes():
            with contextlib.suppress(RetryError):
                found += await self._client.request(node.name, requests.ReadAudit(migration), REQUEST_S)
        return found

    async def recover(self, migration: str, *, to: str | None) -> MigrationReport:
        """Takes a migration that gave up, or was rolled back, up again: as a new one, by the same door.

        An agent that was parked runs again once it has arrived.  Raises `MigrationInProgress` for one that is open,
        `UsageError` for one that completed, and what `Cluster.migrate` raises.
        """
        agent, is_parked = await self._parked(migration)
        request, source = await plan_move(self._client, agent, to)
        report = await watch_move(self._client, msgspec.structs.replace(request, parent=migration), source)
        if report.ok and is_parked:
            await self._client.resume(agent)
        return report

    async def roll_back(self, migration: str) -> AgentInfo:
        """A migration that gave up: its agent runs again where it is.  Raises as `recover`."""
        agent, is_parked = await self._parked(migration)
        if is_parked:
            await self._client.resume(agent)
        return await self._client.show(agent)

    async def _parked(self, migration: str) -> tuple[str, bool]:
        """The agent, and whether it is stopped because the migration gave up: one that a person has stopped stays so."""
        found = await self.find(migration)
        if found.planned is None:
            raise never("found.planned is not None does not hold")
        agent = found.planned.agent
        if found.end is None:
            raise MigrationInProgress(
                f"Migration {migration} of agent {agent!r} is open: it goes on by itself. See `mielin show {migration}`, or "
                f"cancel it with `mielin abort {agent}`.", agent=agent, migration=migration,
            )  # fmt: skip
        if found.end.outcome == "completed":
            raise UsageError(f"Migration {migration} of agent {agent!r} completed; there is nothing to recover.")
        info = await self._client.show(agent)
        return agent, found.end.outcome == "gave_up" and info.state == AgentState.SUSPENDED.value
