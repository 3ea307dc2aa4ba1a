"""Describes agents that no node runs, and nodes that do not answer, from the logs and from other nodes."""

from __future__ import annotations

import time

from mielin_cells.agents.reports import AgentInfo, NodeInfo
from mielin_cells.client.requester import REQUEST_S, Requester
from mielin_cells.errors import NoSuchAgent, RecordInvalid, RetryError
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import Created, HandedOff, Snapshot, Terminated, named_owner
from mielin_cells.membership.selection import STARTING
from mielin_cells.membership.table import Entered
from mielin_cells.rpc import requests
from mielin_cells.rpc.answers import Beat
from mielin_cells.settings import Settings
from mielin_cells.store.reader import load, read_record

ALIVE, STUCK, SILENT, STOPPED = "alive", "stuck", "silent", "stopped"


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


async def list_beats(client: Requester, nodes: list[str]) -> list[Beat]:
    """The last heartbeats that one of these nodes has received."""
    for node in nodes:
        try:
            return await client.request(node, requests.ListBeats(), REQUEST_S)
        except RetryError:
            continue
    return []


def describe_silent(settings: Settings, name: str, entered: Entered, beats: list[Beat]) -> NodeInfo:
    """A node that does not answer."""
    about = entered.about
    own = [beat for beat in beats if beat.node == name and beat.incarnation >= entered.incarnation]
    beat = min(own, key=lambda beat: beat.ago_s, default=None)
    state, since_s = SILENT, beat.ago_s if beat is not None else 0.0
    if entered.has_stopped:
        state, since_s = STOPPED, max(0.0, time.time() - about.at) if about.at else 0.0
    elif beat is None or beat.ago_s > settings.heartbeat_s * settings.heartbeat_misses:
        pass
    elif beat.is_starting or beat.stuck_s:  # else its process has just died: its last heartbeat knew nothing of it
        state, since_s = (STARTING if beat.is_starting else STUCK), beat.stuck_s
    return NodeInfo(
        name=name, incarnation=entered.incarnation, agents=0, state=state, since_s=since_s, is_cordoned=entered.is_cordoned,
        **{field: getattr(about, field) for field in about.__struct_fields__},
    )  # fmt: skip
