"""Which agents have lost their node: read from the ends of their logs."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from mielin_cells.errors import RecordInvalid
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import Created, HandedOff, Snapshot, named_owner
from mielin_cells.membership.members import Member
from mielin_cells.membership.table import is_known
from mielin_cells.store.reader import End, Seen, list_agents, list_owned, read_ends, read_record
from mielin_cells.substrate.ports import Log
from mielin_cells.tasks.together import together

READS = 64
"""Logs read at the same time."""


@dataclass(slots=True)
class Orphan:
    """An agent whose log names a node that is gone."""

    agent: str
    owner: str
    seen: Seen
    cls: str = ""
    """"": not known; either all nodes have the same classes, or a refusal names it."""
    tried: list[str] = field(default_factory=list)
    """Nodes that have refused it."""
    failures: int = 0
    """Claims of it that failed for a reason that may pass."""
    why: str = "no node takes agents"

    @classmethod
    def of(cls, end: End) -> Orphan:
        name = end.record.cls if isinstance(end.record, (Created, Snapshot)) else ""
        return cls(end.agent, named_owner(end.record), end.seen, name)


async def find_orphans(
    log: Log,
    gone: Collection[str],
    known: Mapping[str, Member],
    *,
    by_index: bool,
    strays: bool,
    reads_classes: bool,
) -> list[Orphan]:
    """Agents whose logs name a node that is gone, first those that were at work when it was lost: their callers wait.

    `by_index`: only those that the store's index gives to one of them, which may be late or incomplete; otherwise the logs of all
    agents are read.  `strays`: also those that name a node which was forgotten, which no list by index finds.  `reads_classes`: the
    nodes do not all have the same classes.  The logs may be read late: the node that claims an agent reads its log again.
    """
    if by_index:
        last = await read_ends(log, {agent for node in gone for agent in await list_owned(log, node)})
    else:
        last = await read_ends(log, [agent for agent, _ in await list_agents(log)])
    if strays:
        gone = {*gone, *await _list_forgotten(log, last, {*gone, *known})}
    orphans = [Orphan.of(end) for end in last if _is_orphan(end, gone, known)]
    if reads_classes:
        await _read_classes(log, [orphan for orphan in orphans if not orphan.cls])
    orphans.sort(key=lambda orphan: -orphan.seen.seq)
    return orphans


async def _list_forgotten(log: Log, last: list[End], named: Collection[str]) -> list[str]:
    """Owners that are none of `named`, and that have certainly been forgotten: what they sent landed late."""
    owners = {named_owner(end.record) for end in last} - {"", *named}
    return [owner for owner in owners if not await is_known(log, owner)]


def _is_orphan(end: End, gone: Collection[str], known: Mapping[str, Member]) -> bool:
    record = end.record
    if named_owner(record) not in gone:
        return False
    source = known.get(record.node) if isinstance(record, HandedOff) else None
    # A process that lives has handed it over, and claims it back itself.
    return source is None or record.node in gone or source.incarnation > record.incarnation


async def _read_classes(log: Log, orphans: list[Orphan]) -> None:
    limit = asyncio.Semaphore(READS)

    async def read_one(orphan: Orphan) -> None:
        async with limit:
            orphan.cls = await _read_class(log, orphan)

    await together(read_one(orphan) for orphan in orphans)


async def _read_class(log: Log, orphan: Orphan) -> str:
    """The agent's class; "" if its log does not say."""
    entries = await log.read(log_subject(orphan.agent), max(orphan.seen.snap - 1, 0), 1)
    if not entries:
        return ""
    try:
        record = await read_record(log, orphan.agent, entries[0])
    except RecordInvalid:  # the node that claims it says so
        return ""
    return record.cls if isinstance(record, (Created, Snapshot)) else ""
