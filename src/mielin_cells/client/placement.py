"""Placing new agents: each goes to the node with the fewest agents that knows its class, also when many are spawned at once."""

from __future__ import annotations

import asyncio
import contextlib

from mielin_cells.agents.context import turn
from mielin_cells.client.requester import Requester
from mielin_cells.client.waits.resolving import Resolving
from mielin_cells.errors import CellError, NodeCordoned, NodeStopping, NoResponder, UnknownNode, WireTimeout
from mielin_cells.membership.selection import Spread
from mielin_cells.rpc import requests
from mielin_cells.tasks.supervision import Backoff

SPAWNS_MAX = 512
"""Spawns that one client has outstanding.  More of them would only wait at the nodes and slow their answers."""

FRESH_S = 1.0
"""A table of the members is used for so long before its log is read on; after a refusal it is read on at once."""

NOBODY_S = 10.0
"""How long a client tries again while no node answers: all of them may be busy."""


class Placing:
    """Of one client."""

    def __init__(self, client: Requester) -> None:
        self._client = client
        self._room = asyncio.Semaphore(SPAWNS_MAX)
        self._lock = asyncio.Lock()
        self._spread = Spread()
        self._until = 0.0

    def room(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Limits concurrent spawns.  A turn does not wait here, because another spawn may wait for that turn."""
        return contextlib.nullcontext() if turn.get() is not None else self._room

    async def place(self, request: requests.Spawn) -> bool:
        """Sends the request to the node with the fewest agents, or to the next one if that is out of service or silent.

        Raises `UnknownNode` if there is no node, and the error that keeps the agent from being created.
        """
        clock, settings = asyncio.get_running_loop().time, self._client.settings
        began, backoff, passed = clock(), Backoff(), set[str]()
        error: CellError | None = None
        while True:
            spread = await self._nodes()
            node = spread.choose(passed, request.cls) or spread.choose(
                passed
            )  # a node that does not know the class says so
            if node is None:
                if not any(member.is_present for member in self._client.members.table):
                    raise UnknownNode("No node answers; start one.", node="", nodes=[])
                if clock() - began > (settings.turn_deadline_s if error is not None and spread else NOBODY_S):
                    raise error or NoResponder("No node answers; they may be busy. Try again, and see `mielin nodes`.")
                await backoff.wait()
                passed.clear()
                self._until = 0.0
                continue
            try:
                return await self._ask(node, request)
            except (NodeCordoned, NodeStopping, NoResponder, WireTimeout) as refusal:
                error, self._until = refusal, 0.0
                spread.gives_back(node)
                passed.add(node)

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

    async def _nodes(self) -> Spread:
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

    async def make(self, request: requests.Spawn, node: str) -> bool:
        """Makes a child.  Raises `NameTaken` if another call has made an agent of this id."""
        return await (self.send_to(node, request) if node else self._placing.place(request))

    async def order(self, agent: str, order: str, reason: str) -> None:
        """Restarts, reloads or suspends a child.  Raises as `Cluster.suspend`."""
        await self.send_to_owner(agent, requests.Order(agent, order, reason))
