"""Which agents have lost their node: read from the ends of their logs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from mielin_cells.errors import RecordInvalid
from mielin_cells.log.ids import log_subject
from mielin_cells.log.policy import DEFAULT, Policy, shared
from mielin_cells.log.records import AnyRecord, Created, HandedOff, Snapshot, named_owner
from mielin_cells.membership.members import Member
from mielin_cells.membership.table import is_known
from mielin_cells.policy.placement.values import Need, Places
from mielin_cells.store.reader import End, Seen, list_owned, list_owned_by_others, read_ends, read_record
from mielin_cells.substrate.ports import Log, Source
from mielin_cells.tasks.together import together

READS = 64
"""Logs read at the same time."""

ENDS = 1024
"""Ends of logs that are in memory at the same time."""


@dataclass(slots=True)
class Orphan:
    """An agent whose log names a node that is gone."""

    agent: str
    owner: str
    seen: Seen
    cls: str = ""
    """"": not known; either all nodes have the same classes, or a refusal names it."""
    version: int = 0
    """Of the class, that its state is of; at least this one."""
    tried: list[str] = field(default_factory=list)
    """Nodes that have refused it."""
    failures: int = 0
    """Claims of it that failed for a reason that may pass."""
    policy: Policy | None = None
    """Of the agent; None: not known, and the first node that is asked to claim it says so if it decides where."""
    bytes: int | None = None
    """Of its state; None: not known, and a node is asked that has loaded it, if its policy looks at that."""
    is_learnt: bool = False
    """A node has said what its log says of it."""
    resolved: Need | None = None
    """What selectors make of it, with its attributes."""
    places: Places = field(default_factory=dict)
    """Where the agents are that its policy looks at."""
    why: str = "no node takes agents"

    @classmethod
    def of(cls, end: End) -> Orphan:
        orphan = cls(end.agent, named_owner(end.record), end.seen)
        orphan.take(end.record)
        return orphan

    @property
    def need(self) -> Need:
        if self.resolved is not None:
            return self.resolved._replace(cls=self.cls, version=self.version)
        return Need(self.agent, self.cls, self.version, DEFAULT if self.policy is None else self.policy, self.bytes)

    def take(self, record: AnyRecord) -> None:
        """Takes in what a record says about the agent's class and policy."""
        if isinstance(record, (Created, Snapshot)):
            self.cls, self.version, self.policy = record.cls, record.version, shared(record.policy)


async def find_orphans(
    log: Log, gone: Collection[str], known: Mapping[str, Member], *, source: Source | None, reads_classes: bool
) -> list[Orphan]:
    """Agents whose logs name a node that is gone, first those that were at work when it was lost: their callers wait.

    `source`: the list in which they are looked for (`Log.owned`).  None: the names of all logs, where also those are found that name a
    node which was forgotten, since what it had sent landed late.  Only the logs of agents that such a list names are read.
    `reads_classes`: the nodes do not all have the same classes.  The logs may be read late: the node that claims an agent reads its
    log again.
    """
    if source is None:
        there = await list_owned_by_others(log, known.keys() - gone)
    else:
        there = sorted({agent for node in gone for agent in await list_owned(log, node, source)})
    orphans, forgotten = list[Orphan](), dict[str, bool]()
    for start in range(0, len(there), ENDS):
        for end in await read_ends(log, there[start : start + ENDS]):
            owner = named_owner(end.record)
            if source is None and owner and owner not in known and owner not in gone:
                if owner not in forgotten:
                    forgotten[owner] = not await is_known(log, owner)
                is_gone = forgotten[owner]
            else:
                is_gone = owner in gone
            if is_gone and not _is_returned(end.record, gone, known):
                orphans.append(Orphan.of(end))
    if reads_classes:
        await _read_classes(log, [orphan for orphan in orphans if not orphan.cls])
    orphans.sort(key=lambda orphan: -orphan.seen.seq)
    return orphans


def _is_returned(record: AnyRecord, gone: Collection[str], known: Mapping[str, Member]) -> bool:
    """True if a process that lives has handed the agent over to a node that is gone: it claims it back itself."""
    source = known.get(record.node) if isinstance(record, HandedOff) else None
    return source is not None and record.node not in gone and source.incarnation <= record.incarnation


async def _read_classes(log: Log, orphans: list[Orphan]) -> None:
    limit = asyncio.Semaphore(READS)

    async def read_one(orphan: Orphan) -> None:
        async with limit:
            await _read_class(log, orphan)

    await together(read_one(orphan) for orphan in orphans)


async def _read_class(log: Log, orphan: Orphan) -> None:
    """Reads the agent's class, its version and the policy, if the log has the record that says them."""
    entries = await log.read(log_subject(orphan.agent), max(orphan.seen.snap - 1, 0), 1)
    if entries:
        with contextlib.suppress(RecordInvalid):  # the node that claims it says so
            orphan.take(await read_record(log, orphan.agent, entries[0]))
