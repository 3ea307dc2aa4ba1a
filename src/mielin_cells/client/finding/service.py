"""Calls any one of the agents that a search finds, and leaves out those that fail."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypeVar, get_args

from mielin_cells.agents.context import turn as current_turn
from mielin_cells.agents.finding.found import Found
from mielin_cells.agents.reference import Reference
from mielin_cells.agents.services.choice import Rota, by_key, distance, least
from mielin_cells.agents.services.circuit import Circuits
from mielin_cells.agents.services.service import Choice
from mielin_cells.client.finding.find import PAGE_MAX, Search
from mielin_cells.client.requester import REQUEST_S, Requester
from mielin_cells.errors import (
    AgentInError,
    AgentTerminated,
    AskTimeout,
    CellError,
    InboxFull,
    NoneAvailable,
    NoResponder,
    NoSuchAgent,
    NotTheOwner,
    UsageError,
    WireTimeout,
)
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.rpc import requests
from mielin_cells.rpc.reminder import count_waiting
from mielin_cells.tasks.together import together

A = TypeVar("A", bound=Reference)
R = TypeVar("R")

FRESH_S = 1.0
"""How old the list of agents may be."""
SAMPLE = 4
"""Agents whose inboxes are compared for one call: among thousands, that finds a quiet one as well as asking all would."""
TRIES = 5

FAILING = (AskTimeout, InboxFull, AgentInError, NoSuchAgent, AgentTerminated, NoResponder, WireTimeout, NotTheOwner)
"""Errors that count against the agent."""
UNDONE = (InboxFull, NoSuchAgent, AgentTerminated)
"""Errors after which the call has certainly not been taken, so that another agent may be called."""


class AgentService(Generic[A]):
    def __init__(
        self, client: Requester, search: Search[A], cls: str, choose: Choice, near: str | Mapping[str, str] | None
    ) -> None:
        """Raises `UsageError` for a way to choose that does not exist."""
        if choose not in get_args(Choice):
            raise UsageError(
                f"choose={choose!r} is no way to choose an agent; there are {', '.join(get_args(Choice))}."
            )
        if near is not None and choose != "nearest":
            raise UsageError('near= means something with choose="nearest" alone.')
        self._client = client
        self._search = search
        self._cls = cls
        self._choose = choose
        self._near = near
        self._circuits = Circuits.none()
        self._rota = Rota()
        self._agents: dict[str, Found[A]] = {}
        self._ids: list[str] = []
        self._listed_at = -math.inf
        self._lock = asyncio.Lock()
        self._calling = Counter[str]()
        """Calls of this service that are under way."""

    @property
    def left_out(self) -> list[str]:
        return self._circuits.left_out

    async def pick(self, key: str = "") -> A:
        return (await self._pick(key, set())).ref

    async def call(self, do: Callable[[A], Awaitable[R]], key: str = "") -> R:
        tried, clock = set[str](), asyncio.get_running_loop().time
        while True:
            found = await self._pick(key, tried)
            agent = found.id
            tried.add(agent)
            self._calling[agent] += 1
            try:
                result = await do(found.ref)
            except FAILING as error:
                self._circuits.failed(agent, clock())
                if not isinstance(error, UNDONE) or len(tried) >= TRIES:
                    raise
            except Exception:  # the agent has answered
                self._circuits.succeeded(agent)
                raise
            else:
                self._circuits.succeeded(agent)
                return result
            finally:
                self._calling[agent] -= 1

    # ---- choosing --------------------------------------------------------------------------------------------

    async def _pick(self, key: str, without: set[str]) -> Found[A]:
        if bool(key) != (self._choose == "by_key"):
            raise UsageError(
                f'key={key!r} does not go with choose="{self._choose}": give a key with choose="by_key", and only there.'
            )
        await self._list()
        self._probe()
        ids = [agent for agent in self._ids if agent not in without and self._circuits.of(agent).is_closed]
        if not ids:
            failing = self.left_out
            raise NoneAvailable(
                f"No agent of class {self._cls} can be called: {len(self._ids)} were found, {len(failing)} of them fail. Try again "
                "once some are there.", cls=self._cls, failing=failing[:10],
            )  # fmt: skip
        agents = self._agents  # as they are now: what follows may wait
        match self._choose:
            case "by_key":
                agent = by_key(key, ids)
            case "least_waiting":
                agent = self._rota.next(await self._quietest(ids))
            case "nearest":
                agent = self._rota.next(self._nearest(ids))
            case _:
                agent = self._rota.next(ids)
        return agents[agent]

    async def _quietest(self, ids: list[str]) -> list[str]:
        some = sorted(self._client.rng.sample(ids, min(SAMPLE, len(ids))))
        client = self._client
        rooms = await together(count_waiting(client.log, client.wire, agent) for agent in some)
        waiting = {
            agent: room.waiting + self._calling[agent]
            for agent, room in zip(some, rooms, strict=True)
            if room is not None
        }
        return least(some, waiting)

    def _nearest(self, ids: list[str]) -> list[str]:
        nodes = {info.name: info for info in self._client.members.table.infos()}
        running = current_turn.get()
        near = self._near if self._near is not None else running.node if running is not None else ""
        far = {agent: distance(nodes.get(self._agents[agent].node), near, nodes) for agent in ids}
        shortest = min(far.values())
        return [agent for agent in ids if far[agent] == shortest]

    # ---- who there is ----------------------------------------------------------------------------------------

    async def _list(self) -> None:
        """Searches again if the list is too old.  An agent that is known not to run is none of them."""
        clock = asyncio.get_running_loop().time
        if clock() - self._listed_at <= FRESH_S:
            return
        async with self._lock:
            if clock() - self._listed_at <= FRESH_S:
                return
            began, there = clock(), dict[str, Found[A]]()
            after, more = "", True
            while more:
                page = await self._search.page(after, PAGE_MAX)
                there.update((one.id, one) for one in page.items if one.state in ("", AgentState.RUNNING.value))
                after, more = page.next, bool(page.next)
            if self._choose == "nearest":
                _ = await self._client.members.read()
            self._agents, self._ids, self._listed_at = there, sorted(there), began
            self._circuits.keep({*there})

    def _probe(self) -> None:
        for agent in self._circuits.take_due(asyncio.get_running_loop().time()):
            self._client.start(self._probed(agent))

    async def _probed(self, agent: str) -> None:
        """Asks the agent's owner whether it runs."""
        client, runs = self._client, False
        try:
            owner, _ = await client.owner(agent)
            info: Any = await client.request(owner, requests.ShowAgent(agent), REQUEST_S)
            runs = info is not None and info.state == AgentState.RUNNING.value
        except CellError:  # which is the answer
            runs = False
        if runs:
            self._circuits.succeeded(agent)
        else:
            self._circuits.failed(agent, asyncio.get_running_loop().time())
