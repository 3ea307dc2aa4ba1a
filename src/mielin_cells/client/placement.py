"""Placing new agents: each goes to the node with the fewest agents that knows its class, also when many are spawned at once."""

from __future__ import annotations

import asyncio
import contextlib

from mielin_cells.agents.context import turn
from mielin_cells.agents.reference import classes
from mielin_cells.client.requester import Requester
from mielin_cells.client.waits.resolving import Resolving
from mielin_cells.errors import (
    CellError,
    NodeCordoned,
    NodeStopping,
    NoNodeFits,
    NoResponder,
    UnknownNode,
    WireTimeout,
)
from mielin_cells.log.policy import DEFAULT, Policy
from mielin_cells.membership.selection import raise_nowhere
from mielin_cells.membership.whereabouts import Placer
from mielin_cells.policy.placement.values import Need
from mielin_cells.rpc import requests
from mielin_cells.tasks.supervision import Backoff

SPAWNS_MAX = 512
"""Spawns that one client has outstanding.  More of them would only wait at the nodes and slow their answers."""

FRESH_S = 1.0
"""A table of the members is used for so long before its log is read on; after a refusal it is read on at once."""

PASSING = ("out of service", "full", "class")
"""Rules that a named node judges itself."""

NOBODY_S = 10.0
"""How long a client tries again while no node answers: all of them may be busy."""


class Placing:
    """Of one client."""

    def __init__(self, client: Requester) -> None:
        self._client = client
        self._room = asyncio.Semaphore(SPAWNS_MAX)
        self._lock = asyncio.Lock()
        self._spread = Placer(client.log)
        self._until = 0.0

    def room(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Limits concurrent spawns.  A turn does not wait here, because another spawn may wait for that turn."""
        return contextlib.nullcontext() if turn.get() is not None else self._room

    async def place(self, request: requests.Spawn) -> bool:
        """Sends the request to the node with the fewest agents, or to the next one if that is out of service or silent.

        Raises `UnknownNode` if there is no node, `NoNodeFits` if the policy rules all of them out or, after `NOBODY_S`, if all are
        full, and the error that keeps the agent from being created.
        """
        clock, settings = asyncio.get_running_loop().time, self._client.settings
        began, backoff, passed = clock(), Backoff(), set[str]()
        error: CellError | None = None
        full: NoNodeFits | None = None
        while True:
            spread = await self._nodes()
            need, places = await spread.look(
                Need(request.agent, request.cls, request.version, request.policy or self._policy_of(request.cls))
            )
            # Without a node that knows the class, one that does not says so.
            node = spread.choose(passed, need, places) or spread.choose(passed, need._replace(cls=""), places)
            if node is None and need.policy.decides and spread and not passed:
                raise_nowhere(spread.explain((), need, places), need)
            if node is None:
                if not await self._is_anybody_there():
                    raise UnknownNode("No node answers; start one.", node="", nodes=[])
                if clock() - began > (settings.turn_deadline_s if error is not None and spread else NOBODY_S):
                    if error is None and full is None and spread:  # none was asked, so none is silent
                        raise_nowhere(spread.explain((), need, places), need)
                    raise error or full or NoResponder("No node answers; see `mielin nodes`.")
                await backoff.wait()
                passed.clear()
                self._until = 0.0
                continue
            try:
                return await self._ask(node, request)
            except (NodeCordoned, NodeStopping, NoResponder, WireTimeout) as refusal:
                error, self._until = refusal, 0.0
            except NoNodeFits as refusal:  # the table does not say yet that it is full
                full, self._until = refusal, 0.0
            spread.gives_back(node, need)
            passed.add(node)

    async def _is_anybody_there(self) -> bool:
        """Whether a node is present.  That there is none is not believed of a replica, which may be behind."""
        members = self._client.members
        if not any(member.is_present for member in members.table):
            await members.read_to_end()
        return any(member.is_present for member in members.table)

    async def check(self, node: str, request: requests.Spawn) -> None:
        """Raises `NoNodeFits` if the policy rules out the node that somebody has named.  The node itself checks the rest."""
        policy = request.policy or self._policy_of(request.cls)
        if not policy.decides and not self._spread.selectors:
            return
        spread = await self._nodes()
        need, places = await spread.look(Need(request.agent, request.cls, 0, policy))
        placement = spread.explain((), need, places)
        verdict = placement.of(node)
        if verdict is not None and any(one.rules_out and one.rule not in PASSING for one in verdict.findings):
            raise_nowhere(placement, need, verdict)

    def _policy_of(self, cls: str) -> Policy:
        """As nodes have announced it, or as this process has the class."""
        policy = self._spread.policies.get(cls)
        if policy is not None:
            return policy
        known = classes.get(cls)
        return known.__mielin_policy__ if known is not None else DEFAULT

    async def choose(self, cls: str) -> str:
        """A node for a new agent of the class.  Raises `NoNodeFits`."""
        self._until = 0.0
        spread = await self._nodes()
        need, places = await spread.look(Need("", cls, 0, self._policy_of(cls)))
        node = spread.choose((), need, places)
        if node is None:
            raise_nowhere(spread.explain((), need, places), need)
        return node

    async def _ask(self, node: str, request: requests.Spawn) -> bool:
        """The node's answer.  Raises `NoResponder` once the table says that the node does not serve any more: it may be frozen."""
        asking = asyncio.ensure_future(self._client.request(node, request, self._client.settings.turn_deadline_s))
        try:
            while True:
                await asyncio.wait((asking,), timeout=FRESH_S)
                if asking.done():
                    return asking.result()
                if node not in (await self._nodes()).names:
                    raise NoResponder(f"Node {node} does not answer and does not serve any more.", node=node)
        finally:
            asking.cancel()

    async def _nodes(self) -> Placer:
        """The nodes of the table, with the agents that this client has given them since it was read."""
        clock = asyncio.get_running_loop().time
        async with self._lock:
            if clock() >= self._until:
                self._spread.follow(await self._client.members.read(), self._client.rng)
                self._until = clock() + FRESH_S
            return self._spread


class Kin(Resolving):
    """What nodes do with agents of others for a parent: make children, and carry out what was decided about them."""

    _placing: Placing

    async def make(self, request: requests.Spawn, node: str | None) -> bool:
        """Makes an agent, on the node if one is named.  Raises as `Placing.place`, and `NameTaken` for another's child."""
        if not node:
            return await self._placing.place(request)
        await self._placing.check(node, request)
        return await self.send_to(node, request)

    async def choose_node(self, cls: str) -> str:
        """A node for a new agent of the class, as the table of members says.  Raises `NoNodeFits`."""
        return await self._placing.choose(cls)

    async def order(self, agent: str, order: str, reason: str) -> None:
        """Restarts, reloads or suspends a child.  Raises as `Cluster.suspend`."""
        await self.send_to_owner(agent, requests.Order(agent, order, reason))
