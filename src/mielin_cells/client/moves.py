"""Moves an agent for a client: plans the move, begins it at the source, and watches it until its end is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from mielin_cells import tracing
from mielin_cells.agents.reference import Reference
from mielin_cells.agents.reports import MigrationReport
from mielin_cells.client.arguments import id_of, node_name
from mielin_cells.client.requester import REQUEST_S, Requester
from mielin_cells.errors import (
    AlreadyThere,
    AskTimeout,
    Fenced,
    MigrationInProgress,
    NoResponder,
    NoSuchAgent,
    NoSuchMigration,
    TooLateToCancel,
    WireTimeout,
)
from mielin_cells.log.records import HandedOff
from mielin_cells.rpc import requests
from mielin_cells.rpc.answers import Progress
from mielin_cells.store.ends import read_end

POLL_S = 1.0
"""How long a node holds back the answer to "has the migration ended?"; a lost request costs no more than that."""


async def plan_move(client: Requester, agent: Reference | str, to: str | None) -> tuple[requests.Migrate, str]:
    """The request that begins a move, and the source to send it to, which chooses the target unless it is named."""
    agent = id_of(agent)
    client.check_turn(agent, "migrate")
    to = node_name(to, "migrate") if to is not None else None
    source, epoch = await client.owner(agent)
    if to == source:  # only a settled read proves it: a replica that is behind names the owner before the last move
        source, epoch = await client.settled_owner(agent)
    if to == source:
        raise AlreadyThere(f"Agent {agent!r} is on {to} already.", agent=agent, node=to)
    if to is not None:
        await client.check_node(to)
    migration = f"m-{client.rng.randbytes(8).hex()}"
    trace = tracing.outgoing()
    text = trace.text if trace is not None else ""
    return requests.Migrate(agent, migration, epoch, to or "", POLL_S, trace=text), source


async def watch_move(
    client: Requester, request: requests.Migrate, source: str, seen: Callable[[Progress], None] | None = None
) -> MigrationReport:
    """Returns the report: from the source, from the agent's next owner if the source is gone, or from the logs (rule 7).

    `seen` is called with each answer, one every `request.wait` seconds.  Raises what kept both from answering for as long as a
    migration may take, and `AskTimeout` if they answer and nothing moves for so long: `mielin show` tells its end then.
    """
    clock = asyncio.get_running_loop().time
    patience = client.settings.migration_s + client.settings.probation_s
    deadline, coordinator = clock() + patience, source
    is_begun, before = False, None
    while True:
        try:
            progress = await client.request(coordinator, request, POLL_S * 2)
            is_begun, now = True, msgspec.structs.replace(progress, next_s=0.0)
            if now != before or progress.next_s:
                before, deadline = now, clock() + progress.next_s + patience
            elif clock() > deadline:
                raise AskTimeout(
                    f"Migration {request.migration} of agent {request.agent!r} has been {progress.phase} for {patience:g} s; it "
                    f"continues by itself: `mielin show {request.agent}` tells its end.", agent=request.agent,
                )  # fmt: skip
            if seen is not None:
                seen(progress)
            if progress.report is not None:
                return progress.report
            continue
        except (NoSuchAgent, Fenced, NoResponder, WireTimeout):
            if clock() > deadline:
                raise
        except MigrationInProgress:
            if not is_begun and coordinator == source:
                raise
        owner, report = await _read_logs(client, request, source)
        if report is not None:
            return report
        coordinator = owner if coordinator == source else source  # by turns: either may only be slow
        await asyncio.sleep(0.05)


async def _read_logs(
    client: Requester, request: requests.Migrate, source: str
) -> tuple[str, MigrationReport | None]:  # fmt: skip
    """The agent's owner, and the migration's end according to journal and log; None while it is open."""
    owner, end = await read_end(client.log, request.agent, request.migration, request.epoch, request.to)
    if end is None:
        return owner, None
    return owner, MigrationReport(
        migration=request.migration, agent=request.agent, source=source, target=end.target, outcome=end.outcome,
        reason=end.reason, code=end.code, error_type=end.error_type,
    )  # fmt: skip


async def abort_move(client: Requester, agent: str) -> str:
    """The id of the migration that is cancelled.  Raises `NoSuchMigration`, `TooLateToCancel`."""
    source, _ = await client.owner(agent)
    try:
        return await client.request(source, requests.Abort(agent), REQUEST_S)
    except NoSuchMigration:
        record = await client.last_record(agent)
        if not isinstance(record, HandedOff):
            raise
        raise TooLateToCancel(
            f"Migration {record.migration} of agent {agent!r} is handed over to {record.to}, which verifies it; the migration can "
            "no longer be cancelled.",
            agent=agent, migration=record.migration,
        ) from None  # fmt: skip
