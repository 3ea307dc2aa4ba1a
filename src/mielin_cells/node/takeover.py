"""Agents whose nodes are gone are claimed by others, spread by load; by a keeper, or at an operator's wish.

Nothing is decided here: nodes are asked to claim, and each agent's log decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from mielin_cells.core.cluster import AgentInfo, NodeInfo
from mielin_cells.core.records import HandedOff, named_owner
from mielin_cells.errors import CellError, ClaimRefused, Fenced, from_wire
from mielin_cells.node import control, registry
from mielin_cells.node.reader import Seen, ends, known_agents
from mielin_cells.node.selector import Spread
from mielin_cells.node.together import together
from mielin_cells.substrate.ports import Log

logger = logging.getLogger("mielin_cells.keeper")

Ask: TypeAlias = Callable[[str, control.AnyRequest, float], Awaitable[msgspec.Raw]]
"""A node's answer to a request, within so many seconds."""

ASK_S = 1.0
LOT = 16
"""Claims in one request to a node."""
LOTS = 2
"""Such requests to one node at the same time."""
CLAIM_S = 5.0
"""A lot of claims: two reads and an append of each, and its hooks."""

FAILOVER = "failover"
"""A claim's cause begins with it."""


@dataclass(slots=True)
class Orphan:
    """An agent that its log gives to a node that is gone."""

    agent: str
    owner: str
    seen: Seen
    tried: list[str] = field(default_factory=list)
    why: str = "no node takes agents"


class Takeover:
    """`failed` says of each agent that the last `take` has left without an owner why."""

    def __init__(self, log: Log, ask: Ask, clock: Callable[[], float]) -> None:
        self._log = log
        self._ask = ask
        self._clock = clock
        self.failed: dict[str, str] = {}
        self._standing = defaultdict[str, list[str]](list)
        """By agent, the nodes that keep a copy of it."""

    async def take(self, gone: Collection[str], known: Mapping[str, registry.Entered]) -> int:
        """Has the agents of the nodes that are gone claimed by others of those known; how many were.

        Raises a `RetryError` while the store does not answer.
        """
        began = self._clock()
        infos, hosted, self._standing = await self._alive(gone, known)
        orphans = await self._orphans(gone, hosted)
        self.failed = {}
        await self._claimed(Spread(infos), known, orphans)
        done = len(orphans) - len(self.failed)
        if orphans:
            logger.warning(
                "%d of %d agents of %s were taken over in %.2f s%s", done, len(orphans), ", ".join(sorted(gone)),
                self._clock() - began, "".join(f"; {agent}: {why}" for agent, why in list(self.failed.items())[:3]),
            )  # fmt: skip
        return done

    async def _alive(
        self, gone: Collection[str], known: Mapping[str, registry.Entered]
    ) -> tuple[list[NodeInfo], set[str], defaultdict[str, list[str]]]:
        """The nodes that can take agents, the agents that they host, and by agent those that keep a copy of it."""
        infos, hosted, standing = list[NodeInfo](), set[str](), defaultdict[str, list[str]](list)

        async def one(name: str) -> None:
            try:
                data = await self._ask(name, control.Ping(), ASK_S)
                infos.append(msgspec.msgpack.decode(data, type=NodeInfo))
                after, more = "", True
                while more:
                    page = msgspec.msgpack.decode(
                        await self._ask(name, control.Hosted(after=after), ASK_S), type=list[AgentInfo]
                    )
                    hosted.update(info.id for info in page)
                    more, after = len(page) == control.HOSTED_MAX, page[-1].id if page else ""
                after, more = "", True
                while more:
                    ids = msgspec.msgpack.decode(await self._ask(name, control.Following(after), ASK_S), type=list[str])
                    for agent in ids:
                        standing[agent].append(name)
                    more, after = len(ids) == control.HOSTED_MAX, ids[-1] if ids else ""
            except CellError as error:  # stopping, or just now gone: what it owns is not claimed for that
                logger.info("node %s takes no agents now: %s", name, error)

        names = [name for name, entered in known.items() if name not in gone and not entered.has_stopped]
        await together(one(name) for name in names)
        return infos, hosted, standing

    async def _orphans(self, gone: Collection[str], hosted: Collection[str]) -> list[Orphan]:
        """Agents that the log gives to a node that is gone.  The log may be read late: who claims looks again."""
        found = list[Orphan]()
        agents = [agent for agent, _ in await known_agents(self._log) if agent not in hosted]
        for agent, record, seen in await ends(self._log, agents):
            owner = named_owner(record)
            # Handed over by a node that lives: that one claims it back.
            if owner in gone and not (isinstance(record, HandedOff) and record.node not in gone):
                found.append(Orphan(agent, owner, seen))
        return found

    async def _claimed(self, spread: Spread, known: Mapping[str, registry.Entered], orphans: list[Orphan]) -> None:
        """Has each claimed by one node after the other, until one has it; in lots, all nodes at the same time."""
        wishes = defaultdict[str, list[Orphan]](list)
        for orphan in orphans:
            self._wish(wishes, orphan, next(iter(self._standing[orphan.agent]), None) or spread.choose(()))
        while wishes:
            asked, wishes = wishes, defaultdict(list)
            answers = await together(self._lots(name, some) for name, some in asked.items())
            for (name, some), refusals in zip(asked.items(), answers, strict=True):
                for orphan, error in zip(some, refusals, strict=True):
                    if error is None or isinstance(error, Fenced):
                        continue  # it is owned, if by somebody who was first
                    orphan.why = error.message
                    orphan.tried.append(name)
                    spread.gives_back(name)
                    if isinstance(error, ClaimRefused):  # rolled back, to go on at one node alone
                        node = str(error.facts.get("node", ""))
                        self._wish(wishes, orphan, node if node not in orphan.tried and node in known else None)
                    else:
                        self._wish(wishes, orphan, spread.choose(orphan.tried))

    def _wish(self, wishes: dict[str, list[Orphan]], orphan: Orphan, node: str | None) -> None:
        if node is None:
            self.failed[orphan.agent] = orphan.why
        else:
            wishes[node].append(orphan)

    async def _lots(self, node: str, orphans: list[Orphan]) -> list[CellError | None]:
        """Asks one node to claim them; of each, in order, why it has not."""
        limit = asyncio.Semaphore(LOTS)

        async def one(some: list[Orphan]) -> list[CellError | None]:
            wishes = [
                control.Claim(orphan.agent, f"{FAILOVER}: {orphan.owner} is silent", of=orphan.owner, seen=orphan.seen)
                for orphan in some
            ]
            async with limit:
                try:
                    answer = await self._ask(node, control.Claims(wishes), CLAIM_S)
                except CellError as error:
                    return [error] * len(some)
            refusals = msgspec.msgpack.decode(answer, type=list[control.Refusal | None])
            return [from_wire(*refusal) if refusal is not None else None for refusal in refusals]

        lots = [orphans[start : start + LOT] for start in range(0, len(orphans), LOT)]
        return [error for some in await together(one(lot) for lot in lots) for error in some]
