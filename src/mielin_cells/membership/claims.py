"""The requests of a takeover: each node is asked to claim agents, in lots, and no node waits for another.

A node that does not answer, or refuses an agent, loses it to another.  Which node has claimed an agent is for its log to say.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import msgspec

from mielin_cells.agents.reports import NodeInfo
from mielin_cells.errors import (
    CellError,
    ClaimRefused,
    Fenced,
    NoNodeFits,
    NotPlaced,
    RecordInvalid,
    RetryError,
    StateTooNew,
    UnknownClass,
    from_wire,
)
from mielin_cells.log.policy import Policy
from mielin_cells.membership.orphans import Orphan
from mielin_cells.membership.selection import UNREAD, Spread, nowhere
from mielin_cells.membership.whereabouts import Whereabouts
from mielin_cells.policy.placement.board import looks_at_agent
from mielin_cells.policy.placement.values import NO_PLACES, Places
from mielin_cells.policy.selectors import Selector
from mielin_cells.rpc import requests
from mielin_cells.rpc.call import call
from mielin_cells.substrate.ports import Wire

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

FAILOVER = "failover"
"""A claim's cause begins with it."""

Answer: TypeAlias = asyncio.Task[list[CellError | None]]
"""Of one request: for each agent, in order, why the node did not claim it."""


class Nodes(NamedTuple):
    """Those that can be asked to claim."""

    infos: Sequence[NodeInfo]
    copies: Mapping[str, list[str]]
    """By agent, those that keep a standby copy of it."""


@dataclass(slots=True)
class Taker:
    """A node that is asked to claim.  It has a queue of its own, so that no node waits for another."""

    name: str
    queue: deque[Orphan] = field(default_factory=deque)
    asked_at: dict[Answer, float] = field(default_factory=dict)
    """Requests without an answer yet, and when each was sent."""
    failures: int = 0
    """Requests without an answer in time, one after the other."""
    rests_until: float = 0.0

    def is_slow(self, now: float) -> bool:
        return now < self.rests_until or any(now - at > SLOW_S for at in self.asked_at.values())


class Lot(NamedTuple):
    """Agents that one request asks a node to claim."""

    taker: Taker
    orphans: list[Orphan]


class Claims:
    """The requests of one takeover.  `known`: all nodes, alive or not.  `force`, `on_order`: as in `Takeover.take`."""

    def __init__(
        self, wire: Wire, there: Nodes, known: Collection[str], whereabouts: Whereabouts, selectors: Sequence[Selector], *,
        force: bool, on_order: bool,
    ) -> None:  # fmt: skip
        self._force = force
        self._on_order = on_order
        self._wire = wire
        self._spread = spread = Spread(there.infos)
        self._copies = there.copies
        self._known = known
        self._takers: dict[str, Taker] = {name: Taker(name) for name in spread.names}
        self._lots: dict[Answer, Lot] = {}
        self._failed: list[Orphan] = []
        self._open: list[Orphan] = []
        """Agents whose place is still to be chosen by their policies."""
        self._whereabouts = whereabouts
        self._selectors = selectors
        self._placed: dict[str, str] = {}
        """Agents with a policy that this takeover has given to a node: hints still name the node that is gone."""
        self._clock = asyncio.get_running_loop().time

    async def run(self, orphans: list[Orphan]) -> list[Orphan]:
        """Has each agent claimed by one node after the other, until one has it.  Returns those that no node has taken."""
        nowhere_to = dict[tuple[str, int], str]()
        """By class and version: each explanation looks at all nodes, and there may be very many agents."""
        for orphan in orphans:
            if orphan.policy is not None and (orphan.policy.decides or self._selectors):
                self._open.append(orphan)
                continue
            copy = next(iter(self._copies.get(orphan.agent, ())), None)
            chosen = copy or self._choose(orphan, ())
            if chosen is None:
                kind = orphan.cls, orphan.version
                orphan.why = nowhere_to[kind] = nowhere_to.get(kind) or self._why_nowhere(orphan)
            self._give(orphan, chosen)
        try:
            while self._open or self._lots or any(taker.queue for taker in self._takers.values()):
                await self._place()
                self._send()
                await self._wait()
                for task in [task for task in self._lots if task.done()]:
                    self._receive(task, self._lots.pop(task))
        finally:
            for task in self._lots:
                task.cancel()
            if self._lots:
                await asyncio.wait(self._lots)
        return self._failed

    async def _wait(self) -> None:
        """Until an answer comes, a node that rests may be asked again, or one may have become slow."""
        rests = [taker.rests_until - self._clock() for taker in self._takers.values() if taker.queue]
        wait_s = max(0.01, min((SLOW_S / 4, *rests))) if rests else None
        if self._lots:
            await asyncio.wait(self._lots, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(wait_s or 0.0)

    async def _place(self) -> None:
        """Chooses nodes for agents whose policies decide where they run."""
        todo, self._open = self._open, []
        for orphan in todo:
            orphan.resolved = None  # from its own policy: it may be looked at again, and then be in no entry any more
            orphan.resolved, orphan.places = await self._whereabouts.look(orphan.need, self._selectors)
            if not orphan.resolved.is_known:
                orphan.why = UNREAD
                self._give(orphan, None)
                continue
            if not orphan.is_learnt and looks_at_agent(orphan.resolved.policy):
                orphan.policy = orphan.resolved = (
                    None  # what the policy looks at is said by a node that has loaded the agent
                )
                self._give(orphan, self._choose(orphan, orphan.tried))
                continue
            copies = (one for one in self._copies.get(orphan.agent, ()) if one not in orphan.tried)
            copy = next((one for one in copies if self._may_take(one, orphan)), None)
            if copy is not None:
                self._spread.takes(copy, orphan.need)
            chosen = copy or self._choose(orphan, orphan.tried)
            if chosen is None:
                orphan.why = nowhere(self._spread.explain(orphan.tried, orphan.need, self._places(orphan)))
            self._give(orphan, chosen)

    def _why_nowhere(self, orphan: Orphan) -> str:
        """Of an agent whose policy says nothing about where it runs."""
        placement = self._spread.explain((), orphan.need)
        knows = any(one.rule == "class" and one.holds for verdict in placement.verdicts for one in verdict.findings)
        if orphan.cls and not knows:
            return f"no node that takes agents has {orphan.cls} as of version {orphan.version} or later"
        return nowhere(placement)

    def _places(self, orphan: Orphan) -> Places:
        return {
            term: {agent: self._placed.get(agent, node) for agent, node in known.items()}
            for term, known in orphan.places.items()
        }

    def _may_take(self, node: str, orphan: Orphan) -> bool:
        verdict = self._spread.explain((), orphan.need, self._places(orphan)).of(node)
        return verdict is not None and verdict.fits

    def _choose(self, orphan: Orphan, but: Collection[str]) -> str | None:
        return self._spread.choose(but, orphan.need, self._places(orphan) if orphan.places else NO_PLACES)

    def _give(self, orphan: Orphan, node: str | None) -> None:
        if node is None:
            self._failed.append(orphan)
        else:
            if orphan.need.policy.decides:
                self._placed[orphan.agent] = node
            self._takers.setdefault(node, Taker(node)).queue.append(orphan)

    def _send(self) -> None:
        now = self._clock()
        for taker in self._takers.values():
            if not taker.queue and not taker.asked_at and not taker.is_slow(now):
                self._relieve(taker, now)
            while taker.queue and len(taker.asked_at) < LOTS and now >= taker.rests_until:
                orphans = [taker.queue.popleft() for _ in range(min(LOT, len(taker.queue)))]
                task = asyncio.ensure_future(self._request(taker.name, orphans))
                taker.asked_at[task] = now
                self._lots[task] = Lot(taker, orphans)

    def _relieve(self, idle: Taker, now: float) -> None:
        """Gives an idle node the agents that wait for a slow one."""
        for slow in self._takers.values():
            if slow is idle or not slow.queue or not slow.is_slow(now):
                continue
            for orphan in list(slow.queue):
                if len(idle.queue) >= LOT:
                    return
                if idle.name not in orphan.tried and self._is_as_good(idle.name, orphan):
                    self._pass_on(orphan, slow, idle)

    def _is_as_good(self, node: str, orphan: Orphan) -> bool:
        if orphan.need.policy.decides:
            return self._may_take(node, orphan)
        return self._spread.fits(node, orphan.need)

    def _pass_on(self, orphan: Orphan, slow: Taker, idle: Taker) -> None:
        slow.queue.remove(orphan)
        self._spread.gives_back(slow.name, orphan.need)
        self._spread.takes(idle.name, orphan.need)
        idle.queue.append(orphan)

    async def _request(self, node: str, orphans: list[Orphan]) -> list[CellError | None]:
        """Asks a node to claim the agents; returns for each, in order, why it did not."""
        wishes = [
            requests.Claim(
                orphan.agent,
                f"{FAILOVER}: {orphan.owner} is silent",
                self._force,
                orphan.owner,
                orphan.seen,
                self._on_order,
                asks_policy=orphan.policy is None,
            )
            for orphan in orphans
        ]
        refusals = await call(self._wire, node, requests.Claims(wishes), CLAIM_S)
        if len(refusals) != len(orphans):
            raise RecordInvalid(
                f"Node {node} was asked to claim {len(orphans)} agents and answered for {len(refusals)}."
            )
        return [from_wire(*refusal) if refusal is not None else None for refusal in refusals]

    def _receive(self, task: Answer, lot: Lot) -> None:
        taker, orphans = lot
        del taker.asked_at[task]
        try:
            refusals = task.result()
        except RetryError as error:
            # It may have claimed some of them all the same: the log refuses a second claim then.
            self._rest(taker)
            for orphan in orphans:
                self._retry(orphan, taker, error)
            return
        except CellError as error:
            refusals = [error] * len(orphans)
        taker.failures, taker.rests_until = 0, 0.0
        for orphan, refusal in zip(orphans, refusals, strict=True):
            self._judge(orphan, taker, refusal)

    def _rest(self, taker: Taker) -> None:
        """The node did not answer: it is not asked for a while."""
        taker.failures += 1
        taker.rests_until = self._clock() + REST_S * 2 ** (taker.failures - 1)

    def _judge(self, orphan: Orphan, taker: Taker, refusal: CellError | None) -> None:
        if refusal is None or isinstance(refusal, Fenced):
            return  # it has an owner: this node, or one that was first
        if isinstance(refusal, NotPlaced):
            self._learn(orphan, taker, refusal)
        elif isinstance(refusal, RetryError) and not isinstance(refusal, NoNodeFits):
            self._retry(orphan, taker, refusal)
        else:
            self._refuse(orphan, taker.name, refusal)

    def _learn(self, orphan: Orphan, taker: Taker, refusal: NotPlaced) -> None:
        """The agent's policy decides where it runs: only now is it known."""
        self._spread.gives_back(taker.name, orphan.need)
        try:
            orphan.policy = msgspec.json.decode(str(refusal.facts.get("policy", "")), type=Policy)
        except (msgspec.DecodeError, CellError):  # of a newer version: the next takeover asks again
            orphan.why = f"its policy, as {taker.name} says it, cannot be read here"
            self._give(orphan, None)
            return
        orphan.cls, orphan.version = str(refusal.facts.get("cls", "")), int(refusal.facts.get("version") or 0)
        size = refusal.facts.get("bytes")  # not said by nodes of earlier versions
        orphan.bytes, orphan.is_learnt = int(size) if size is not None else None, True
        self._open.append(orphan)

    def _retry(self, orphan: Orphan, taker: Taker, error: CellError) -> None:
        """The node did not claim the agent for a reason that may pass: another one is asked, or later the same one."""
        orphan.why = error.message
        orphan.failures += 1
        self._spread.gives_back(taker.name, orphan.need)
        resting = [other.name for other in self._takers.values() if other.failures]
        chosen = self._choose(orphan, (*orphan.tried, taker.name, *resting))
        if chosen is None and orphan.failures < FAILURES_MAX:
            chosen = taker.name
            self._spread.takes(chosen, orphan.need)
        self._give(orphan, chosen)

    def _refuse(self, orphan: Orphan, node: str, error: CellError) -> None:
        """The node will not claim the agent: another one is asked."""
        orphan.why = error.message
        orphan.tried.append(node)
        self._spread.gives_back(node, orphan.need)
        if isinstance(error, ClaimRefused):  # rolled back, to go on at one node alone
            goes_to = str(error.facts.get("node", ""))
            self._give(orphan, goes_to if goes_to not in orphan.tried and goes_to in self._known else None)
            return
        if isinstance(error, UnknownClass):
            orphan.cls = orphan.cls or str(error.facts.get("name", ""))
        if isinstance(error, StateTooNew):
            orphan.version = max(orphan.version, int(error.facts.get("have") or 0))
        self._give(orphan, self._choose(orphan, orphan.tried))
