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

from mielin_cells.core.ids import control_subject
from mielin_cells.core.message import UNREADABLE, framed, unframed
from mielin_cells.errors import RecordInvalid, RetryError
from mielin_cells.node import control, registry
from mielin_cells.node.heartbeat import Beat
from mielin_cells.node.supervision import supervised
from mielin_cells.node.takeover import Takeover
from mielin_cells.substrate.ports import Appended

if TYPE_CHECKING:
    from mielin_cells.node.node import Node

logger = logging.getLogger("mielin_cells.keeper")

SUBJECT = "keeper"
"""The log that says who keeps."""


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


# ---- the keeper ----------------------------------------------------------------------------------------------


class Keeper:
    """Of one node that hears heartbeats.  `run` until the node stops."""

    def __init__(self, node: Node, heard: Callable[[], list[Beat]]) -> None:
        self._node = node
        self._heard = heard
        self._takeover = Takeover(node.home.log, self._ask, node.clock)
        self._limit_s = node.settings.heartbeat_s * node.settings.heartbeat_misses
        self._since = self._ticked = node.clock()
        """When this node began to listen without a gap."""
        self._known: dict[str, registry.Entered] = {}
        self._known_at = -1e9
        self._strange: set[str] = set()
        """Heard, and by then not registered: a name on the wire need not be a node's."""
        self._begun: dict[str, float] = {}
        """Nodes that have begun, and were not heard since, with the time when that was first known: a heart beats a little later."""
        self._silent: set[str] = set()
        """Suspects of the last round: a new one may just have said that it stops."""
        self._told: set[str] = set()
        """Suspects that were told of."""
        self._scanned_at = -1e9
        self._scanned: frozenset[str] = frozenset()
        self.taken = 0
        """Agents that were taken over at this keeper's wish."""

    async def run(self) -> None:
        node = self._node
        await supervised(f"node {node.name}: failover", self._look_for_ever, failures=node.failures)

    async def _look_for_ever(self) -> None:
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
        silent, names = self._suspects(), {beat.node for beat in self._heard()}
        is_new = not names - self._strange <= self._known.keys()
        if is_new or now - self._known_at > node.settings.reconcile_s or not silent <= self._silent:
            before, self._known, self._known_at = self._known, await registry.registered(node.home.log), now
            self._strange = names - self._known.keys()
            for name, entered in self._known.items():
                if name not in before or before[name].incarnation != entered.incarnation:
                    self._begun.setdefault(name, now)
        heard = set[str]()
        for beat in self._heard():
            if beat.ago_s < self._limit_s:
                heard.add(beat.node)
                if beat.node in self._known and beat.incarnation >= self._known[beat.node].incarnation:
                    self._begun.pop(beat.node, None)
        suspects = self._silent = self._suspects()
        for name in self._told & heard:
            logger.warning("node %s is heard again", name)
        self._told -= heard
        if not await self._keeps(suspects):
            return
        for name in sorted(suspects - self._told):
            if not self._known[name].has_stopped:
                logger.warning("node %s is silent: its agents are taken over", name)
        self._told |= suspects
        if suspects and (not suspects <= self._scanned or now - self._scanned_at > node.settings.reconcile_s):
            self._scanned, self._scanned_at = frozenset(suspects), now
            self.taken += await self._takeover.take(suspects, self._known)
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

    async def _ask(self, name: str, request: control.AnyRequest, seconds: float) -> msgspec.Raw:
        wire = self._node.home.wire
        return control.result_of(await wire.request(control_subject(name), control.encode_request(request), seconds))

    def _term(self, data: bytes) -> Term | None:
        try:
            return _decoder.decode(unframed(data, "The keepers' log"))
        except (RecordInvalid, *UNREADABLE) as error:
            logger.warning("the keepers' log is gone on with behind what cannot be read: %s", error)
            return None
