"""Failover: the agents of a node that is not heard any more are claimed by others.

Every node listens; one of them, the keeper, acts.  Who that is, is in a log of its own, appended conditionally.  Two keepers at
once, or a suspicion that was wrong, cost time and nothing else: a keeper only asks nodes to claim, and the agent's log decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

import msgspec

from mielin_cells.core.cluster import AgentInfo, NodeInfo
from mielin_cells.core.ids import LOGS, agent_of, control_subject, log_subject
from mielin_cells.core.message import UNREADABLE, framed, unframed
from mielin_cells.core.records import HandedOff, named_owner
from mielin_cells.errors import CellError, ClaimRefused, Fenced, RecordInvalid, RetryError
from mielin_cells.node import control, registry
from mielin_cells.node.heartbeat import Beat
from mielin_cells.node.reader import record_of
from mielin_cells.substrate.ports import Appended

if TYPE_CHECKING:
    from mielin_cells.node.node import Node

logger = logging.getLogger("mielin_cells.keeper")

SUBJECT = "keeper"
"""The log that says who keeps."""

READS = 64
"""Logs read, and claims asked for, at the same time."""

ASK_S = 1.0
CLAIM_S = 5.0
"""One agent's claim: two reads, an append, and its hooks."""

FAILOVER = "failover"
"""A claim's cause begins with it."""


class Term(msgspec.Struct, array_like=True, frozen=True):
    node: str
    incarnation: int
    number: int
    nonce: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Term)


# ---- decisions, pure -----------------------------------------------------------------------------------------


def suspected(me: str, nodes: Collection[str], beats: Iterable[Beat], listening_s: float, limit_s: float) -> set[str]:
    """Of the nodes those that have been silent for longer than `limit_s`.

    Nobody, while this node has not listened for as long, or does not hear itself: then it is the one that is cut off.
    """
    ages: dict[str, float] = {}
    for beat in beats:
        ages[beat.node] = min(beat.ago_s, ages.get(beat.node, beat.ago_s))
    if listening_s <= limit_s or ages.get(me, limit_s) >= limit_s:
        return set()
    return {node for node in nodes if node != me and ages.get(node, listening_s) > limit_s}


class Spread:
    """Chooses a node for one orphan after the other: the one with fewest agents, counting those it was just given."""

    def __init__(self, nodes: Iterable[NodeInfo]) -> None:
        self._loads = {info.name: info.agents for info in nodes}

    def choose(self, but: Collection[str]) -> str | None:
        able = [name for name in self._loads if name not in but]
        if not able:
            return None
        chosen = min(able, key=lambda name: (self._loads[name], name))
        self._loads[chosen] += 1
        return chosen

    def gives_back(self, node: str) -> None:
        """It has not taken the agent."""
        self._loads[node] -= 1


# ---- the keeper ----------------------------------------------------------------------------------------------


class Keeper:
    """Of one node that hears heartbeats.  `run` until the node stops."""

    def __init__(self, node: Node, heard: Callable[[], list[Beat]]) -> None:
        self._node = node
        self._heard = heard
        self._limit_s = node.settings.heartbeat_s * node.settings.heartbeat_misses
        self._since = self._ticked = node.clock()
        """When this node began to listen without a gap."""
        self._known: dict[str, registry.Entered] = {}
        self._known_at = -1e9
        self._begun: dict[str, float] = {}
        """Nodes that have begun, and were not heard since, with the time when that was first known: a heart beats a little later."""
        self._told: set[str] = set()
        """Suspects that were told of."""
        self._scanned_at = -1e9
        self._scanned: frozenset[str] = frozenset()
        self.taken = 0
        """Agents that were taken over at this keeper's wish."""

    async def run(self) -> None:
        node = self._node
        while not node.is_stopping:
            await asyncio.sleep(node.settings.heartbeat_s / 5)
            try:
                await self.look()
            except RetryError as error:
                logger.info("node %s keeps later: %s", node.name, error)

    async def look(self) -> None:
        """One round: who is silent, who keeps, and if that is this node: who takes over."""
        node, now = self._node, self._node.clock()
        if now - self._ticked > self._limit_s / 2:
            self._since = now  # this process was stopped: what it has not heard means nothing
        self._ticked = now
        if now - self._known_at > node.settings.reconcile_s:
            before, self._known, self._known_at = self._known, await registry.registered(node.home.log), now
            for name, entered in self._known.items():
                if name not in before or before[name].incarnation != entered.incarnation:
                    self._begun.setdefault(name, now)
        heard = set[str]()
        for beat in self._heard():
            if beat.ago_s < self._limit_s:
                heard.add(beat.node)
                if beat.node in self._known and beat.incarnation >= self._known[beat.node].incarnation:
                    self._begun.pop(beat.node, None)
        suspects = self._suspects()
        for name in self._told & heard:
            logger.warning("node %s is heard again", name)
        self._told -= heard
        if not await self._keeps(suspects):
            return
        for name in sorted(suspects - self._told):
            has_stopped = self._known[name].has_stopped
            logger.log(
                logging.INFO if has_stopped else logging.WARNING,
                "node %s %s: its agents are taken over", name, "has stopped" if has_stopped else "is silent",
            )  # fmt: skip
        self._told |= suspects
        is_new = not suspects <= self._scanned
        if suspects and (is_new or now - self._scanned_at > node.settings.reconcile_s):
            self._scanned, self._scanned_at = frozenset(suspects), now
            await self._take_over(suspects)
        elif not suspects:
            self._scanned = frozenset()

    def _suspects(self) -> set[str]:
        now = self._node.clock()
        silent = suspected(self._node.name, self._known.keys(), self._heard(), now - self._since, self._limit_s)
        return {name for name in silent if now - self._begun.get(name, self._since) > self._limit_s}

    async def _keeps(self, suspects: Collection[str]) -> bool:
        """True if the log names this incarnation, or does so now because it names nobody who is heard."""
        node, home = self._node, self._node.home
        last = await home.log.last(SUBJECT)
        term = self._term(last.data) if last is not None else None
        if term is not None and (term.node, term.incarnation) == (node.name, home.incarnation):
            return True
        if term is not None and term.node != node.name and term.node not in suspects and term.node in self._known:
            return False
        if node.clock() - self._since <= self._limit_s:
            return False  # it may only not have been heard yet
        number = term.number + 1 if term is not None else 1
        mine = Term(node.name, home.incarnation, number, home.rng.randbytes(12))
        outcome = await home.log.append(SUBJECT, framed(_encoder.encode(mine)), last.seq if last is not None else 0)
        if not isinstance(outcome, Appended):
            return False  # somebody else was first, or it is not known: the next round reads who
        await home.log.trim(SUBJECT, outcome.seq)
        logger.info("node %s keeps, term %d", node.name, number)
        return True

    def _term(self, data: bytes) -> Term | None:
        try:
            return _decoder.decode(unframed(data, "The keepers' log"))
        except (RecordInvalid, *UNREADABLE) as error:
            logger.warning("the keepers' log is gone on with behind what cannot be read: %s", error)
            return None

    # ---- taking over -----------------------------------------------------------------------------------------

    async def _take_over(self, suspects: Collection[str]) -> None:
        node, began = self._node, self._node.clock()
        infos, hosted = await self._alive(suspects)
        orphans = await self._orphans(suspects, hosted)
        if not orphans:
            return
        spread, limit, failed = Spread(infos), asyncio.Semaphore(READS), dict[str, str]()

        async def one(agent: str, owner: str) -> None:
            async with limit:
                trouble = await self._claimed(spread, agent, owner)
                if trouble:
                    failed[agent] = trouble

        await asyncio.gather(*(one(agent, owner) for agent, owner in orphans.items()))
        done = len(orphans) - len(failed)
        self.taken += done
        logger.warning(
            "%d of %d agents of %s were taken over in %.2f s%s", done, len(orphans), ", ".join(sorted(suspects)),
            node.clock() - began, "".join(f"; {agent}: {why}" for agent, why in list(failed.items())[:3]),
        )  # fmt: skip

    async def _alive(self, suspects: Collection[str]) -> tuple[list[NodeInfo], set[str]]:
        """The nodes that can take agents, and the agents that they host."""
        infos, hosted = list[NodeInfo](), set[str]()

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
            except CellError as error:  # stopping, or just now gone: what it owns is not claimed for that
                logger.info("node %s takes no agents now: %s", name, error)

        names = [name for name, entered in self._known.items() if name not in suspects and not entered.has_stopped]
        await asyncio.gather(*(one(name) for name in names))
        return infos, hosted

    async def _ask(self, name: str, request: control.AnyRequest, seconds: float) -> msgspec.Raw:
        wire = self._node.home.wire
        return control.result_of(await wire.request(control_subject(name), control.encode_request(request), seconds))

    async def _orphans(self, suspects: Collection[str], hosted: Collection[str]) -> dict[str, str]:
        """Agents that the log gives to a suspect, with it."""
        home, found, limit = self._node.home, dict[str, str](), asyncio.Semaphore(READS)

        async def one(agent: str) -> None:
            async with limit:
                last = await home.log.last(log_subject(agent))
                if last is None:
                    return
                try:
                    record = await record_of(home.log, agent, last)
                except RecordInvalid as error:
                    logger.warning("agent %s is not taken over: %s", agent, error)
                    return
            owner = named_owner(record)
            # Handed over by a node that lives: that one claims it back.
            if owner in suspects and not (isinstance(record, HandedOff) and record.node not in suspects):
                found[agent] = owner

        agents = []
        for subject, _ in await home.log.subjects(LOGS):
            try:
                agents.append(agent_of(subject))
            except UnicodeDecodeError:
                continue  # nobody's log
        await asyncio.gather(*(one(agent) for agent in agents if agent not in hosted))
        return found

    async def _claimed(self, spread: Spread, agent: str, owner: str) -> str:
        """Has a node claim the agent; why nobody has, "" if one has."""
        why, tried = "no node is left", list[str]()
        wanted = spread.choose(tried)
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
                wanted = node if node not in tried and node in self._known else None
            except CellError as error:
                why = error.message
                spread.gives_back(wanted)
                wanted = spread.choose(tried)
        return why
