"""Samples how agents fare on the nodes of a deploy; `policy.deploys.health` judges."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from mielin_cells.agents.reports import NodeInfo
from mielin_cells.client.client import Client
from mielin_cells.client.status import list_hosted
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.policy.deploys.events import Began
from mielin_cells.policy.deploys.health import Sample, Turns, judge, summed
from mielin_cells.rpc.pages import Which
from mielin_cells.tasks.together import together

SAMPLE_S = 1.0

SILENT_S = 15.0
"""How long a new node may not answer: as long as a process takes to be started again, and more."""


class _Node:
    """What one node has counted since the watch began, over all processes of its name."""

    def __init__(self) -> None:
        self.incarnation = 0
        self.crashes = 0
        self.last: dict[str, Turns] = {}
        self.turns: dict[str, Turns] = {}
        self.heard = 0.0

    def saw(self, info: NodeInfo, now: float) -> None:
        if self.incarnation and info.incarnation != self.incarnation:
            self.crashes += 1
            self.last = {}
        if self.incarnation:
            news = {cls: turns.since(self.last.get(cls, Turns())) for cls, turns in info.turns.items()}
            self.turns = summed([self.turns, news])
        self.incarnation, self.last, self.heard = info.incarnation, info.turns, now


class Watching:
    """From the first `look` on."""

    def __init__(self, client: Client, began: Began, clock: Callable[[], float]) -> None:
        self._client = client
        self._began = began
        self._clock = clock
        self._nodes = {name: _Node() for name in (*began.old, *began.new)}
        self._failed_before: set[str] | None = None

    async def look(self) -> str:
        """Why the new code is not well; "" if nothing is known against it."""
        for node in self._nodes.values():
            node.heard = node.heard or self._clock()
        await together(self._ask(name, node) for name, node in self._nodes.items())
        failed = await self._in_error()
        if self._failed_before is None:
            self._failed_before = set(failed)
        new = self._sample(self._began.new)
        new.broken = [why for agent, why in sorted(failed.items()) if agent not in self._failed_before]
        new.silent = [name for name in self._began.new if self._clock() - self._nodes[name].heard > SILENT_S]
        return judge(self._sample(self._began.old), new, self._began.limits)

    async def until(self, seconds: float) -> str:
        """Looks for so long, and once more at the end; returns as soon as there is something."""
        end = self._clock() + seconds
        while not (why := await self.look()) and (left := end - self._clock()) > 0:
            await asyncio.sleep(min(left, SAMPLE_S))
        return why

    async def _ask(self, name: str, node: _Node) -> None:
        info = await self._client.ping(name)
        if info is not None:
            node.saw(info, self._clock())

    def _sample(self, names: Iterable[str]) -> Sample:
        nodes = [self._nodes[name] for name in names]
        return Sample(summed(node.turns for node in nodes), sum(node.crashes for node in nodes))

    async def _in_error(self) -> dict[str, str]:
        """The agents on new nodes that run nothing, each with the reason."""
        found = dict[str, str]()
        for name in self._began.new:
            for info in await list_hosted(self._client, name, Which(state=AgentState.ERROR.value)):
                found[info.id] = f"agent {info.id} is in ERROR on {name}: {info.error}"
        return found
