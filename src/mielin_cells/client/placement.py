"""Placing new agents: each goes to the node with the fewest agents that knows its class, also when many are spawned at once."""

from __future__ import annotations

import asyncio
import contextlib

from mielin_cells.agents.context import turn
from mielin_cells.client.requester import Requester
from mielin_cells.errors import CellError, NodeCordoned, NodeStopping, NoResponder, UnknownNode, WireTimeout
from mielin_cells.membership import selection, table
from mielin_cells.rpc import requests
from mielin_cells.tasks.supervision import Backoff

SPAWNS_MAX = 512
"""Spawns that one client has outstanding.  More of them would only wait at the nodes and slow their answers."""

FRESH_S_MIN, FRESH_S_MAX = 0.05, 2.0
"""A list of the nodes is used ten times as long as it took to make, within these bounds."""

NOBODY_S = 10.0
"""How long a client tries again while no node answers: all of them may be busy."""


class Placing:
    """Of one client."""

    def __init__(self, client: Requester) -> None:
        self._client = client
        self._room = asyncio.Semaphore(SPAWNS_MAX)
        self._lock = asyncio.Lock()
        self._spread: selection.Spread | None = None
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
                if not spread and not await table.read_present(self._client.log):
                    raise UnknownNode("No node answers; start one.", node="", nodes=[])
                if clock() - began > (settings.turn_deadline_s if error is not None and spread else NOBODY_S):
                    raise error or NoResponder("No node answers; they may be busy. Try again, and see `mielin nodes`.")
                await backoff.wait()
                passed.clear()
                self._until = 0.0
                continue
            try:
                return await self._client.request(node, request, settings.turn_deadline_s)
            except (NodeCordoned, NodeStopping, NoResponder, WireTimeout) as refusal:
                error = refusal
                spread.gives_back(node)
                passed.add(node)

    async def _nodes(self) -> selection.Spread:
        """The nodes that answered a moment ago, with the agents they were given since, so that many spawns ask them once."""
        clock = asyncio.get_running_loop().time
        async with self._lock:
            if self._spread is None or clock() >= self._until:
                began = clock()
                nodes = await selection.list_alive(self._client.log, self._client.wire, selection.PATIENCE_S)
                self._spread = selection.Spread(nodes)
                took = clock() - began
                self._until = clock() + min(max(10 * took, FRESH_S_MIN), FRESH_S_MAX)
            return self._spread
