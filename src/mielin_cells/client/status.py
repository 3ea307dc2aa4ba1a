"""Describes agents that no node runs, and nodes that do not answer, from the logs and from other nodes."""

from __future__ import annotations

import asyncio
import contextlib
import time

from msgspec.structs import replace

from mielin_cells.agents.reports import AgentInfo, NodeInfo
from mielin_cells.client.requester import REQUEST_S, Requester
from mielin_cells.errors import NoSuchAgent, RecordInvalid, RetryError
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import Created, HandedOff, Snapshot, Terminated, named_owner
from mielin_cells.membership.members import ALIVE, SILENT, STARTING, Member, Status
from mielin_cells.rpc import requests
from mielin_cells.rpc.answers import Beat
from mielin_cells.settings import Settings
from mielin_cells.store.reader import load, read_record
from mielin_cells.tasks.together import together

STUCK = "stuck"

ASKED_MAX = 64
"""Nodes asked at the same time."""


async def class_of(client: Requester, agent: str) -> str:
    """The agent's class, from its log.  Raises `NoSuchAgent`."""
    last = await client.last_entry(agent)
    if last is None:
        raise NoSuchAgent.of(agent)
    record = await read_record(client.log, agent, last)
    if not isinstance(record, (Created, Snapshot)):
        entries = await client.log.read(log_subject(agent), max(record.snap - 1, 0), 1)
        record = await read_record(client.log, agent, entries[0] if entries else last)
    if isinstance(record, (Created, Snapshot)):
        return record.cls
    return (await load(client.log, agent)).cls  # trimmed in between


async def describe_unhosted(client: Requester, agent: str) -> AgentInfo | None:
    """An agent that no node runs, from the last record of its log; None if it has ended."""
    last = await client.log.last(log_subject(agent))
    if last is None:
        return None
    try:
        record = await read_record(client.log, agent, last)
        if isinstance(record, Terminated):
            return None
        return AgentInfo(
            id=agent, cls=await class_of(client, agent), version=0, node=named_owner(record), epoch=record.epoch,
            state="Migrating" if isinstance(record, HandedOff) else "unreachable", waiting=0, bytes=0, at=record.written,
        )  # fmt: skip
    except RecordInvalid as error:
        return AgentInfo(
            id=agent, cls="", version=0, node="", epoch=0, state="unreadable", waiting=0, bytes=0, error=str(error)
        )


def describe_fold(fold: Fold) -> AgentInfo:
    """An agent that no node runs, or that has ended."""
    error, is_ended = fold.lifecycle.error, fold.phase is Phase.TERMINATED
    return AgentInfo(
        id=fold.agent, cls=fold.cls, version=fold.version, node="" if is_ended else fold.owner, epoch=fold.epoch,
        state=fold.status.value if is_ended else "unreachable", waiting=0, bytes=fold.size_bytes, migration=fold.migration,
        dead=len(fold.ledger.dead), error=error.message if error is not None else "",
        code=error.code if error is not None else "", at=fold.written,
    )  # fmt: skip


async def describe_nodes(client: Requester) -> list[NodeInfo]:
    """Every node of the table of members, by name, as a node that listens to all hears it.

    One node is asked what it hears.  Only those that it does not hear are asked themselves, and all if nobody listens.
    """
    table, now = await client.members.read(), time.time()
    heard = {beat.node: beat for beat in await _list_beats(client, table.watchers)}
    limit = asyncio.Semaphore(ASKED_MAX)

    async def describe(member: Member) -> NodeInfo:
        beat = heard.get(member.name)
        info = _as_heard(client.settings, member, beat, now)
        if info.state != SILENT:
            return info
        async with limit:
            return await client.ping(member.name) or info

    infos = await together(describe(member) for member in table)
    return sorted(infos, key=lambda info: info.name)


async def _list_beats(client: Requester, nodes: list[str]) -> list[Beat]:
    """The last heartbeats that one of these nodes has received."""
    for node in nodes:
        with contextlib.suppress(RetryError):
            return await client.request(node, requests.ListBeats(), REQUEST_S)
    return []


def _as_heard(settings: Settings, member: Member, beat: Beat | None, now: float) -> NodeInfo:
    info = replace(member.info(now), agents=0)
    if member.status is Status.LEFT:
        return info
    if beat is None or beat.incarnation < member.incarnation:
        return replace(info, state=SILENT, since_s=0.0)
    if beat.ago_s > settings.heartbeat_s * settings.heartbeat_misses:
        return replace(info, state=SILENT, since_s=beat.ago_s)
    if beat.stuck_s > settings.heartbeat_s:
        return replace(info, state=STUCK, since_s=beat.stuck_s, agents=beat.agents)
    return replace(info, state=STARTING if beat.is_starting else ALIVE, agents=beat.agents)
