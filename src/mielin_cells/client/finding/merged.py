"""The agents of all nodes in order of their ids, of which one page of each node is in memory."""

from __future__ import annotations

from mielin_cells.agents.reports import AgentInfo
from mielin_cells.client.requester import REQUEST_S, Requester
from mielin_cells.errors import NoResponder, WireTimeout
from mielin_cells.rpc import requests
from mielin_cells.rpc.call import call
from mielin_cells.rpc.pages import PAGE_MAX, Which
from mielin_cells.tasks.together import together


class _Source:
    """The list of one node."""

    def __init__(self, node: str, which: Which, after: str) -> None:
        self.node = node
        self._which = which
        self.page: list[AgentInfo] = []
        self._after = after
        self.has_more = True
        self.answers = True

    async def fill(self, client: Requester) -> None:
        if self.page or not self.has_more:
            return
        try:
            page = await call(client.wire, self.node, requests.ListAgents(self._after, self._which), REQUEST_S)
        except (NoResponder, WireTimeout):
            self.has_more = self.answers = False
            return
        self.has_more = len(page) == PAGE_MAX
        if page:
            self._after = page[-1].id
        self.page = page[::-1]


class Merged:
    """An agent that two nodes name, because it moves, is that of the higher epoch."""

    def __init__(self, client: Requester, nodes: list[str], which: Which, after: str) -> None:
        self._client = client
        self._sources = [_Source(node, which, after) for node in nodes]

    @property
    def unheard(self) -> list[str]:
        return sorted(source.node for source in self._sources if not source.answers)

    async def next(self) -> AgentInfo | None:
        await self._fill()
        heads = [source.page[-1] for source in self._sources if source.page]
        if not heads:
            return None
        first = min(info.id for info in heads)
        for source in self._sources:
            if source.page and source.page[-1].id == first:
                source.page.pop()
        return max((info for info in heads if info.id == first), key=lambda info: info.epoch)

    async def _fill(self) -> None:
        empty = [source for source in self._sources if not source.page and source.has_more]
        if empty:
            await together(source.fill(self._client) for source in empty)
