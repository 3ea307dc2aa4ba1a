"""A takeover has the agents of nodes that are gone claimed by other nodes, spread by load.

The leader of failover begins one, or an operator does.  It decides nothing: it asks nodes to claim, and each agent's log decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from mielin_cells.agents.reports import NodeInfo
from mielin_cells.errors import CellError, ClaimRefused, Fenced, RecordInvalid, RetryError, UnknownClass, from_wire
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import Created, HandedOff, Snapshot, named_owner
from mielin_cells.membership import selection, table
from mielin_cells.membership.selection import Spread
from mielin_cells.rpc import requests
from mielin_cells.rpc.call import call, call_pages
from mielin_cells.store.reader import End, Seen, ends, known_agents, record_of
from mielin_cells.substrate.ports import Log, Wire
from mielin_cells.tasks.together import prompt, together

logger = logging.getLogger("mielin_cells.failover")

ASK_S = 2.0
"""For a node to answer that it is alive."""
ASK_ROUNDS = 3
"""How often all nodes are asked if none of them answers."""
LOT = 16
"""Claims in one request to a node."""
LOTS = 2
"""Lots that one node is asked for at the same time."""
CLAIM_S = 5.0
"""A lot of claims: two reads and an append of each, and its hooks."""
SLOW_S = 1.0
"""A node that has not answered for longer is slow: idle nodes get the agents that wait for it."""
REST_S = 1.0
"""A node that did not answer is asked again after this, unless others have taken the agents by then; doubles."""
FAILURES_MAX = 4
"""Claims of one agent that may fail for reasons that pass, before it is left to the next takeover."""
READS = 64
"""Logs read at the same time."""

FAILOVER = "failover"
"""A claim's cause begins with it."""


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


class Takeover:
    """After a `take`, `failed` holds the agents that were not taken over, with the reason, and `owners` who owns them."""

    def __init__(self, log: Log, wire: Wire, clock: Callable[[], float]) -> None:
        self._log = log
        self._wire = wire
        self._clock = clock
        self.failed: dict[str, str] = {}
        self.owners: dict[str, str] = {}
        self._known: Mapping[str, table.Entered] = {}
        self._takes_strays = False
        self._differ = False
        """The nodes do not all know the same classes."""

    async def take(
        self, gone: Collection[str], known: Mapping[str, table.Entered], *, force: bool = False, strays: bool = False
    ) -> int:
        """Has the agents of the nodes that are gone claimed by other known nodes, and returns how many were.

        `force`: also those that were rolled back to go on at one of the nodes that are gone.  `strays`: also those of nodes that
        were forgotten.  Raises a `RetryError` while the store does not answer.
        """
        began = self._clock()
        self.failed, self.owners = {}, {}
        infos, standing = await self._alive(gone, known)
        self._known, self._takes_strays = known, strays
        self._differ = len({frozenset(info.classes) for info in infos}) > 1
        orphans = await self._orphans(gone, ())
        if not orphans:
            return 0
        failed = await _Claims(self._wire, Spread(infos), standing, known.keys(), force).run(orphans)
        self.failed = {orphan.agent: orphan.why for orphan in failed}
        self.owners = {orphan.agent: orphan.owner for orphan in failed}
        done = len(orphans) - len(failed)
        logger.warning(
            "%d of %d agents of %s were taken over in %.2f s%s", done, len(orphans),
            ", ".join(sorted({orphan.owner for orphan in orphans})), self._clock() - began,
            "".join(f"; {agent}: {why}" for agent, why in list(self.failed.items())[:3]),
        )  # fmt: skip
        return done

    # ---- looking ---------------------------------------------------------------------------------------------

    async def _orphans(self, gone: Collection[str], hosted: Collection[str]) -> list[Orphan]:
        """Agents whose logs name a node that is gone.  The logs may be read late: the node that claims reads them again."""
        agents = [agent for agent, _ in await known_agents(self._log) if agent not in hosted]
        last = await ends(self._log, agents)
        gone = await self._strays(last, gone)
        found = [_orphan(end) for end in last if self._is_orphan(end, gone)]
        if self._differ:
            await self._read_classes(found)
        # First the agents that were at work when their node was lost: their callers wait.
        found.sort(key=lambda orphan: -orphan.seen.seq)
        return found

    async def _strays(self, last: list[End], gone: Collection[str]) -> Collection[str]:
        """The nodes that are gone, and those that own agents and have certainly been forgotten: what they sent landed late."""
        if not self._takes_strays:
            return gone
        owners = {named_owner(end.record) for end in last} - {"", *self._known, *gone}
        return {*gone, *[owner for owner in owners if not await table.is_known(self._log, owner)]}

    def _is_orphan(self, end: End, gone: Collection[str]) -> bool:
        record = end.record
        if named_owner(record) not in gone:
            return False
        source = self._known.get(record.node) if isinstance(record, HandedOff) else None
        # A process that lives has handed it over, and claims it back itself.
        return source is None or record.node in gone or source.incarnation > record.incarnation

    async def _read_classes(self, orphans: list[Orphan]) -> None:
        """Reads the class of each agent, since the nodes do not have the same ones."""
        limit = asyncio.Semaphore(READS)

        async def one(orphan: Orphan) -> None:
            async with limit:
                found = await self._log.read(log_subject(orphan.agent), max(orphan.seen.snap - 1, 0), 1)
                if not found:
                    return
                try:
                    record = await record_of(self._log, orphan.agent, found[0])
                except RecordInvalid:  # the node that claims it says so
                    return
                if isinstance(record, (Created, Snapshot)):
                    orphan.cls = record.cls

        await together(one(orphan) for orphan in orphans if not orphan.cls)

    async def _alive(
        self, gone: Collection[str], known: Mapping[str, table.Entered]
    ) -> tuple[list[NodeInfo], dict[str, list[str]]]:
        """The nodes that can take agents, and by agent those that keep a copy of it.  A frozen node is not waited for."""
        names = [name for name, entered in known.items() if name not in gone and not entered.has_stopped]
        infos, standing = list[NodeInfo](), defaultdict[str, list[str]](list)

        async def one(name: str) -> tuple[NodeInfo, list[str]] | None:
            try:
                info = await call(self._wire, name, requests.Ping(), ASK_S)
                pages = call_pages(self._wire, name, requests.ListCopies(), str, ASK_S)
                copies = [agent async for page in pages for agent in page]
            except CellError as error:  # what it owns is not claimed for that
                logger.info("node %s cannot take agents now: %s", name, error)
                return None
            return info, copies

        for _ in range(ASK_ROUNDS):
            for info, copies in await prompt((one(name) for name in names), selection.PATIENCE_S):
                infos.append(info)
                for agent in copies:
                    standing[agent].append(info.name)
            if infos or not names:
                break
        infos.sort(key=lambda info: info.name)
        return infos, standing


def _orphan(end: End) -> Orphan:
    cls = end.record.cls if isinstance(end.record, (Created, Snapshot)) else ""
    return Orphan(end.agent, named_owner(end.record), end.seen, cls)


@dataclass(slots=True)
class _Taker:
    """A node that is asked to claim.  It has a queue of its own, so that no node waits for another."""

    name: str
    queue: deque[Orphan] = field(default_factory=deque)
    asked_at: dict[asyncio.Task[list[CellError | None]], float] = field(default_factory=dict)
    """Requests without an answer yet, and when each was sent."""
    failures: int = 0
    """Requests without an answer in time, one after the other."""
    rests_until: float = 0.0

    def is_slow(self, now: float) -> bool:
        return now < self.rests_until or any(now - at > SLOW_S for at in self.asked_at.values())


class _Claims:
    """The requests of one takeover."""

    def __init__(
        self, wire: Wire, spread: Spread, standing: Mapping[str, list[str]], known: Collection[str], force: bool
    ) -> None:  # fmt: skip
        self._force = force
        self._wire = wire
        self._spread = spread
        self._standing = standing
        self._known = known
        self._takers: dict[str, _Taker] = {name: _Taker(name) for name in spread.names}
        self._lots: dict[asyncio.Task[list[CellError | None]], tuple[_Taker, list[Orphan]]] = {}
        self._failed: list[Orphan] = []
        self._clock = asyncio.get_running_loop().time

    async def run(self, orphans: list[Orphan]) -> list[Orphan]:
        """Has each agent claimed by one node after the other, until one has it.  Returns those that no node has taken."""
        for orphan in orphans:
            copy = next(iter(self._standing.get(orphan.agent, ())), None)
            self._give(orphan, copy or self._spread.choose((), orphan.cls))
        try:
            while self._lots or any(taker.queue for taker in self._takers.values()):
                self._send()
                rests = [taker.rests_until - self._clock() for taker in self._takers.values() if taker.queue]
                wait_s = max(0.01, min((SLOW_S / 4, *rests))) if rests else None
                if self._lots:
                    await asyncio.wait(self._lots, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(wait_s or 0.0)
                for task in [task for task in self._lots if task.done()]:
                    self._receive(task, *self._lots.pop(task))
        finally:
            for task in self._lots:
                task.cancel()
            if self._lots:
                await asyncio.wait(self._lots)
        return self._failed

    def _give(self, orphan: Orphan, node: str | None) -> None:
        if node is None:
            self._failed.append(orphan)
        else:
            self._takers.setdefault(node, _Taker(node)).queue.append(orphan)

    def _send(self) -> None:
        now = self._clock()
        for taker in self._takers.values():
            if not taker.queue and not taker.asked_at and not taker.is_slow(now):
                self._relieve(taker, now)
            while taker.queue and len(taker.asked_at) < LOTS and now >= taker.rests_until:
                lot = [taker.queue.popleft() for _ in range(min(LOT, len(taker.queue)))]
                task = asyncio.ensure_future(self._request(taker.name, lot))
                taker.asked_at[task] = now
                self._lots[task] = taker, lot

    def _relieve(self, idle: _Taker, now: float) -> None:
        """Gives an idle node the agents that wait for a slow one."""
        for slow in self._takers.values():
            if slow is idle or not slow.queue or not slow.is_slow(now):
                continue
            for orphan in list(slow.queue):
                if len(idle.queue) >= LOT:
                    return
                if idle.name not in orphan.tried and self._spread.fits(idle.name, orphan.cls):
                    slow.queue.remove(orphan)
                    self._spread.gives_back(slow.name)
                    self._spread.takes(idle.name)
                    idle.queue.append(orphan)

    async def _request(self, node: str, orphans: list[Orphan]) -> list[CellError | None]:
        """Asks a node to claim the agents; returns for each, in order, why it did not."""
        wishes = [
            requests.Claim(
                orphan.agent, f"{FAILOVER}: {orphan.owner} is silent", self._force, of=orphan.owner, seen=orphan.seen
            )
            for orphan in orphans
        ]
        refusals = await call(self._wire, node, requests.Claims(wishes), CLAIM_S)
        if len(refusals) != len(orphans):
            raise RecordInvalid(
                f"Node {node} was asked to claim {len(orphans)} agents and answered for {len(refusals)}."
            )
        return [from_wire(*refusal) if refusal is not None else None for refusal in refusals]

    def _receive(self, task: asyncio.Task[list[CellError | None]], taker: _Taker, lot: list[Orphan]) -> None:
        del taker.asked_at[task]
        try:
            refusals = task.result()
        except (
            RetryError
        ) as error:  # it may have claimed some of them all the same: the log refuses a second claim then
            taker.failures += 1
            taker.rests_until = self._clock() + REST_S * 2 ** (taker.failures - 1)
            for orphan in lot:
                self._retry(orphan, taker, error)
            return
        except CellError as error:
            refusals = [error] * len(lot)
        taker.failures, taker.rests_until = 0, 0.0
        for orphan, refusal in zip(lot, refusals, strict=True):
            if refusal is None or isinstance(refusal, Fenced):
                continue  # it has an owner: this node, or one that was first
            if isinstance(refusal, RetryError):
                self._retry(orphan, taker, refusal)
            else:
                self._refused(orphan, taker.name, refusal)

    def _retry(self, orphan: Orphan, taker: _Taker, error: CellError) -> None:
        """The node did not claim the agent for a reason that may pass: another one is asked, or later the same one."""
        orphan.why = error.message
        orphan.failures += 1
        self._spread.gives_back(taker.name)
        resting = [other.name for other in self._takers.values() if other.failures]
        chosen = self._spread.choose((*orphan.tried, taker.name, *resting), orphan.cls)
        if chosen is None and orphan.failures < FAILURES_MAX:
            chosen = taker.name
            self._spread.takes(chosen)
        self._give(orphan, chosen)

    def _refused(self, orphan: Orphan, node: str, error: CellError) -> None:
        orphan.why = error.message
        orphan.tried.append(node)
        self._spread.gives_back(node)
        if isinstance(error, ClaimRefused):  # rolled back, to go on at one node alone
            goes_to = str(error.facts.get("node", ""))
            self._give(orphan, goes_to if goes_to not in orphan.tried and goes_to in self._known else None)
            return
        if isinstance(error, UnknownClass):
            orphan.cls = orphan.cls or str(error.facts.get("name", ""))
        self._give(orphan, self._spread.choose(orphan.tried, orphan.cls))
