"""Agents whose nodes are gone are claimed by others, spread by load; by a keeper, or at an operator's wish.

Nothing is decided here: nodes are asked to claim, and each agent's log decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TypeAlias

import msgspec

from mielin_cells.core.cluster import AgentInfo, NodeInfo
from mielin_cells.core.ids import log_subject
from mielin_cells.core.records import HandedOff, named_owner
from mielin_cells.errors import CellError, ClaimRefused, Fenced, RecordInvalid
from mielin_cells.node import control, registry
from mielin_cells.node.reader import known_agents, record_of
from mielin_cells.node.selector import Spread
from mielin_cells.node.together import together
from mielin_cells.substrate.ports import Log

logger = logging.getLogger("mielin_cells.keeper")

Ask: TypeAlias = Callable[[str, control.AnyRequest, float], Awaitable[msgspec.Raw]]
"""A node's answer to a request, within so many seconds."""

READS = 64
"""Logs read, and claims asked for, at the same time."""

ASK_S = 1.0
CLAIM_S = 5.0
"""One agent's claim: two reads, an append, and its hooks."""

FAILOVER = "failover"
"""A claim's cause begins with it."""


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
        spread, limit = Spread(infos), asyncio.Semaphore(READS)
        self.failed = {}

        async def one(agent: str, owner: str) -> None:
            async with limit:
                trouble = await self._claimed(spread, known, agent, owner)
                if trouble:
                    self.failed[agent] = trouble

        await together(one(agent, owner) for agent, owner in orphans.items())
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

    async def _orphans(self, gone: Collection[str], hosted: Collection[str]) -> dict[str, str]:
        """Agents that the log gives to a node that is gone, with it."""
        log, found, limit = self._log, dict[str, str](), asyncio.Semaphore(READS)

        async def one(agent: str) -> None:
            async with limit:
                last = await log.last(log_subject(agent))
                if last is None:
                    return
                try:
                    record = await record_of(log, agent, last)
                except RecordInvalid as error:
                    logger.warning("agent %s is not taken over: %s", agent, error)
                    return
            owner = named_owner(record)
            # Handed over by a node that lives: that one claims it back.
            if owner in gone and not (isinstance(record, HandedOff) and record.node not in gone):
                found[agent] = owner

        await together(one(agent) for agent, _ in await known_agents(log) if agent not in hosted)
        return found

    async def _claimed(self, spread: Spread, known: Mapping[str, registry.Entered], agent: str, owner: str) -> str:
        """Has a node claim the agent; why nobody has, "" if one has."""
        why, tried = "no node takes agents", list[str]()
        wanted = next(iter(self._standing[agent]), None) or spread.choose(tried)
        while wanted is not None:
            tried.append(wanted)
            try:
                await self._ask(wanted, control.Claim(agent, f"{FAILOVER}: {owner} is silent"), CLAIM_S)
                return ""
            except Fenced:
                return ""  # somebody was first: it has an owner
            except ClaimRefused as error:  # rolled back, to go on at one node alone
                why, node = error.message, str(error.facts.get("node", ""))
                spread.gives_back(wanted)
                wanted = node if node not in tried and node in known else None
            except CellError as error:
                why = error.message
                spread.gives_back(wanted)
                wanted = spread.choose(tried)
        return why
