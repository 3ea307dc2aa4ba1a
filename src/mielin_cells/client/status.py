"""Describes agents that no node runs, and nodes that do not answer, from the logs and from other nodes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from mielin_cells.agents.reports import AgentInfo, NodeInfo
from mielin_cells.client.requester import REQUEST_S, Requester
from mielin_cells.errors import NoResponder, NoSuchAgent, RecordInvalid, RetryError, WireTimeout
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import Created, HandedOff, Snapshot, Terminated, named_owner
from mielin_cells.membership.members import ALIVE, SILENT, STARTING, Member, Status
from mielin_cells.metrics.families import Sample
from mielin_cells.policy.facts import unpacked
from mielin_cells.rpc import requests
from mielin_cells.rpc.answers import Beat
from mielin_cells.rpc.call import call_pages
from mielin_cells.rpc.metrics import ReadMetrics
from mielin_cells.rpc.pages import EVERY, PAGE_MAX, Which
from mielin_cells.settings import Settings
from mielin_cells.store.reader import list_owned, list_owned_by_others, load, read_record
from mielin_cells.substrate.ports import Log
from mielin_cells.tasks.together import together

STUCK = "stuck"

UNHOSTED = ("Migrating", "unreachable", "unreadable")
"""The states of agents that no node runs."""

ASKED_MAX = 64
"""Nodes asked at the same time."""

READS_MAX = 64
"""Logs read at the same time."""


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


async def list_hosted(
    client: Requester, node: str | None = None, which: Which = EVERY, after: str = "", limit: int | None = None
) -> list[AgentInfo]:
    """The agents that nodes run, by id, at most the first `limit` after `after`; `node`: only those of this node.

    Of two nodes that run one agent, the one of the newer epoch; a former owner may still describe it for a few seconds.
    """
    newest, size = dict[str, AgentInfo](), PAGE_MAX if limit is None else min(limit, PAGE_MAX)

    async def ask(name: str) -> None:
        request, count = requests.ListAgents(after, which, size), 0
        async for page in call_pages(client.wire, name, request, lambda info: info.id, REQUEST_S, size):
            for info in page:
                if which.has(info) and (info.id not in newest or info.epoch > newest[info.id].epoch):
                    newest[info.id] = info
            count += len(page)
            if limit is not None and count >= limit:
                return

    await _ask_nodes(client, node, ask)
    return [newest[name] for name in sorted(newest)][:limit]


async def list_hosted_ids(client: Requester, node: str | None, after: str, upto: str | None) -> set[str]:
    """The ids of the agents that nodes run, those up to `upto` at least (None: all) that come after `after`."""
    ids = set[str]()

    async def ask(name: str) -> None:
        async for page in call_pages(client.wire, name, requests.ListIds(after), str, REQUEST_S):
            ids.update(page)
            if upto is not None and page and page[-1] >= upto:
                return

    await _ask_nodes(client, node, ask)
    return ids


async def _ask_nodes(client: Requester, node: str | None, ask: Callable[[str], Awaitable[None]]) -> None:
    """Asks all nodes, or one, some at the same time; a node that does not answer is left out."""
    limit = asyncio.Semaphore(ASKED_MAX)

    async def one(name: str) -> None:
        async with limit:
            with contextlib.suppress(NoResponder, WireTimeout):
                await ask(name)

    table = await client.members.read()
    await together(one(info.name) for info in table.infos() if node in (None, info.name))


async def describe_agents(
    client: Requester, log: Log, node: str | None, which: Which, after: str, limit: int | None
) -> list[AgentInfo]:
    """The agents that have not ended, by id (`Operator.agents`).

    Nodes look for what is wanted, and send that alone.  Those that no node runs are found by the names of all logs, or by the index of
    owners if one node's are wanted, without those that nodes run; only their logs are read.
    """
    infos = await list_hosted(client, node, which, after, limit)
    if which.state not in ("", *UNHOSTED):
        return infos
    upto = infos[-1].id if limit is not None and len(infos) == limit else None
    there = await (list_owned_by_others(log, ()) if node is None else list_owned(log, node))
    hosted = {info.id for info in infos}
    if which != EVERY:
        hosted |= await list_hosted_ids(client, node, after, upto)
    missing = [name for name in there if after < name and (upto is None or name < upto) and name not in hosted]
    unhosted = list[AgentInfo]()
    for start in range(0, len(missing), READS_MAX):
        some = await together(describe_unhosted(client, agent) for agent in missing[start : start + READS_MAX])
        unhosted += [info for info in some if info is not None and node in (None, info.node) and which.has(info)]
        if limit is not None and len(unhosted) >= limit:
            break
    return sorted((*infos, *unhosted), key=lambda info: info.id)[:limit]


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


async def describe_nodes(client: Requester, *, asks_all: bool = False) -> list[NodeInfo]:
    """Every node of the table of members, by name, as a node that listens to all hears it.

    One node is asked what it hears.  Only those that it does not hear are asked themselves, and all if nobody listens, or with
    `asks_all`: then each that answers says what it measures now.
    """
    table, now = await client.members.read(), time.time()
    heard = {beat.node: beat for beat in await _list_beats(client, table.watchers)}
    limit = asyncio.Semaphore(ASKED_MAX)

    async def describe(member: Member) -> NodeInfo:
        beat = heard.get(member.name)
        info = _as_heard(client.settings, member, beat, now)
        if info.state not in ((SILENT, ALIVE, STARTING) if asks_all else (SILENT,)):
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
    if beat is not None and beat.incarnation == member.incarnation and (facts := unpacked(beat.facts)) is not None:
        info = replace(info, facts=facts)  # newer than what the table says
    if member.status is Status.LEFT:
        return info
    if beat is None or beat.incarnation < member.incarnation:
        return replace(info, state=SILENT, since_s=0.0)
    if beat.ago_s > settings.heartbeat_s * settings.heartbeat_misses:
        return replace(info, state=SILENT, since_s=beat.ago_s)
    if beat.stuck_s > settings.heartbeat_s:
        return replace(info, state=STUCK, since_s=beat.stuck_s, agents=beat.agents)
    return replace(info, state=STARTING if beat.is_starting else ALIVE, agents=beat.agents)


async def read_metrics(client: Requester) -> dict[str, list[Sample]]:
    """By node, its metrics; of one that does not answer, that it is not up.  Nodes that have left are not asked."""
    limit, found = asyncio.Semaphore(ASKED_MAX), dict[str, list[Sample]]()

    async def ask(node: str) -> None:
        async with limit:
            try:
                found[node] = await client.request(node, ReadMetrics(), REQUEST_S)
            except (NoResponder, WireTimeout):
                found[node] = [Sample("mielin_node_up", 0)]

    table = await client.members.read()
    await together(ask(member.name) for member in table if member.status is not Status.LEFT)
    return {node: found[node] for node in sorted(found)}
