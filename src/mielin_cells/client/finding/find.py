"""Finds agents by class, attributes, node and state.

A condition that needs attributes is looked for in the directory, and costs the agents that have attributes.  Any other search asks
every node for its agents.  Either way the answer is a hint: an agent may move, change or end right after it was found.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Generic, NamedTuple, TypeVar

from mielin_cells.agents.finding.found import Found, Page
from mielin_cells.agents.finding.parse import parse
from mielin_cells.agents.finding.where import Where
from mielin_cells.agents.reference import Reference, make_ref
from mielin_cells.client.finding.merged import Merged
from mielin_cells.client.requester import Requester
from mielin_cells.errors import ConfigError, UsageError
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.log.records import named_owner
from mielin_cells.rpc.pages import Which
from mielin_cells.store.directory import Directory
from mielin_cells.store.reader import list_owned, read_ends

A = TypeVar("A", bound=Reference)

PAGE_MAX = 1000
PAGE = 100


class Wanted(NamedTuple):
    """What is looked for.  None: any."""

    cls: str | None
    where: Where | None
    node: str | None
    state: str | None

    @property
    def needs_attributes(self) -> bool:
        """True if no agent without attributes meets the condition, and no node need be asked."""
        return self.where is not None and not self.where.holds({}) and self.state is None


class Search(Generic[A]):
    """One search over a client; `cls` makes the references."""

    def __init__(self, client: Requester, directory: Directory, cls: type[A] | None, wanted: Wanted) -> None:
        self._client = client
        self._directory = directory
        self._cls = cls
        self._wanted = wanted

    async def __aiter__(self) -> AsyncIterator[Found[A]]:
        after, more = "", True
        while more:
            page = await self.page(after)
            for found in page.items:
                yield found
            after, more = page.next, bool(page.next)

    async def count(self) -> int:
        count, after, more = 0, "", True
        while more:
            page = await self.page(after, PAGE_MAX)
            count, after, more = count + len(page.items), page.next, bool(page.next)
        return count

    async def page(self, after: str = "", limit: int = PAGE) -> Page[A]:
        """Raises `ConfigError` for a limit that is not 1 to 1000, and what the store raises."""
        if not 1 <= limit <= PAGE_MAX:
            raise ConfigError(f"limit is {limit!r}; it is 1 to {PAGE_MAX}.", field="limit", range=f"1 to {PAGE_MAX}")
        self._client.check_loop()
        as_of = await self._directory.refresh()
        if self._wanted.needs_attributes and self._wanted.where is not None:
            found, unheard = await self._by_attributes(self._wanted.where, after, limit), list[str]()
        else:
            found, unheard = await self._by_nodes(after, limit)
        following = found[limit - 1].id if len(found) > limit else ""
        return Page(found[:limit], following, as_of, unheard)

    async def _by_attributes(self, where: Where, after: str, limit: int) -> list[Found[A]]:
        """One more than the page, if there is one.  Each agent's log says which node owns it, and whether it has ended."""
        wanted, log = self._wanted, self._client.log
        there = {*await list_owned(log, wanted.node, "settled index")} if wanted.node is not None else None
        found, some = list[Found[A]](), list[str]()
        async for agent in self._directory.matching(wanted.cls, where, after):
            if there is None or agent in there:
                some.append(agent)
            if len(found) + len(some) > limit:
                found += await self._owned(some)
                some.clear()
                if len(found) > limit:
                    break
        return found + await self._owned(some)

    async def _owned(self, ids: list[str]) -> list[Found[A]]:
        owners = {end.agent: named_owner(end.record) for end in await read_ends(self._client.log, ids)}
        return [
            self._found(agent, owners[agent], "")
            for agent in ids
            if owners.get(agent) and self._wanted.node in (None, owners[agent])
        ]

    async def _by_nodes(self, after: str, limit: int) -> tuple[list[Found[A]], list[str]]:
        wanted, found = self._wanted, list[Found[A]]()
        members = (await self._client.members.read()).infos()
        nodes, which = (
            [one.name for one in members if wanted.node in (None, one.name)],
            Which(wanted.cls or "", wanted.state or ""),
        )
        merged = Merged(self._client, nodes, which, after)
        while len(found) <= limit and (info := await merged.next()) is not None:
            if not which.has(info):  # a node of an earlier version sends all
                continue
            if wanted.where is None or wanted.where.holds(self._values(info.id)):
                found.append(self._found(info.id, info.node, info.state, info.cls))
        return found, merged.unheard

    def _values(self, agent: str) -> dict[str, Any]:
        listed = self._directory.get(agent)
        return listed.values if listed is not None else {}

    def _found(self, agent: str, node: str, state: str, cls: str = "") -> Found[A]:
        listed = self._directory.get(agent)
        ref: Any = make_ref(self._cls, agent, self._client) if self._cls is not None else None
        if listed is None:
            return Found(agent, ref, cls, node, state, {}, 0)
        return Found(agent, ref, listed.cls, node, state, listed.values, listed.revision)


def condition(where: Where | str | None) -> Where | None:
    """Raises `WhereInvalid` for a text that cannot be read, and `UsageError` for what is no condition."""
    if where is None or isinstance(where, Where):
        return where
    if isinstance(where, str):
        return parse(where)
    raise UsageError(f'where={where!r} is no condition; give cells.attr("region") == "eu", or the same as text.')


def state_named(word: str | None) -> str | None:
    """Raises `ConfigError`."""
    if word is None:
        return None
    states: list[str] = [state.value for state in AgentState if state is not AgentState.TERMINATED]
    for state in states:
        if word.lower() == state.lower():
            return state
    raise ConfigError(
        f"state={word!r} is not a state of an agent; wanted: {', '.join(states)}.",
        field="state",
        range=", ".join(states),
    )
