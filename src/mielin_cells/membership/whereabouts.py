"""Where the agents are that a policy wants to be near to or apart from: hints, read from the store.

No node is asked.  An agent that is named is looked up in its own log, agents by attributes and by class in the directory of
attributes, and their owners in the ends of their logs.  Agents without attributes are in no directory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from itertools import islice

from mielin_cells.agents.finding.parse import parse
from mielin_cells.errors import CellError, WhereInvalid
from mielin_cells.log.records import named_owner
from mielin_cells.membership.selection import Spread
from mielin_cells.policy.facts import Value
from mielin_cells.policy.placement.board import looks_at_agent
from mielin_cells.policy.placement.values import NO_PLACES, Need, Places, Term, terms_of
from mielin_cells.policy.selectors import Resolved, Selector, looks_at_attributes, resolve
from mielin_cells.store.directory import Directory
from mielin_cells.store.reader import read_ends
from mielin_cells.substrate.ports import Log

logger = logging.getLogger("mielin_cells.members")

FRESH_S = 1.0
"""How old a hint may be."""

AGENTS_MAX = 1000
"""Agents of one term whose owners are read, the first by id: more would be read for longer than a placement may take."""

TERMS_MAX = 256
"""Terms that are kept."""


class Whereabouts:
    """Of one process.  Costs nothing until an agent is placed whose policy looks at other agents."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._directory: Directory | None = None
        self._read_at = -FRESH_S
        """When the directory was read last for attributes, or could not be: another try at once may wait as long again."""
        self._is_read = False
        """The last read of it succeeded."""
        self._known: dict[Term, tuple[float, dict[str, str] | None]] = {}
        """When each was read last, or could not be, and what was found; None: it was never read."""

    async def places(self, need: Need) -> Places:
        """The nodes of the agents of `terms_of(need)`.  While the store does not answer, what was known before."""
        if not need.policy.looks_at_agents:
            return NO_PLACES
        clock = asyncio.get_running_loop().time
        now, terms = clock(), terms_of(need)
        for term in terms:
            known = self._known.get(term)
            if known is not None and now - known[0] < FRESH_S:
                continue
            try:
                read: tuple[float, dict[str, str] | None] = now, await self._find(term)
            except CellError as error:
                logger.info("where the agents of %s are is not known now: %s", term.text, error)
                read = clock(), known[1] if known is not None else None
            self._known.pop(term, None)
            self._known[term] = read
            if len(self._known) > TERMS_MAX:
                del self._known[next(iter(self._known))]
        found = {term: self._known[term][1] for term in terms if term in self._known}
        return {term: there for term, there in found.items() if there is not None}

    async def look(self, need: Need, selectors: Sequence[Selector] = ()) -> tuple[Need, Places]:
        """The agent with the policy that selectors make of its own, and where the agents are that it looks at.

        Whoever can wait gives no place to an agent that is not `is_known`: what is missing may rule the place out.
        """
        if selectors:
            resolved = await self.resolve(need, selectors)
            need = need._replace(policy=resolved.policy, is_known=resolved.is_known)
        if need.policy.decides and looks_at_agent(need.policy) and need.agent:
            attributes = await self._attributes(need.agent)
            need = need._replace(attributes=tuple(sorted(attributes.items())), is_known=need.is_known and self._is_read)
        return need, await self.places(need) if need.policy.looks_at_agents else NO_PLACES

    async def resolve(self, need: Need, selectors: Sequence[Selector]) -> Resolved:
        """The agent's policy, and which entry has changed it.  Attributes are hints: they are read from the directory.

        Whoever can wait does nothing by a policy that is not `is_known`: the entry that is missing may say that the agent stays.
        """
        labels: dict[str, Value] = {"class": need.cls, "id": need.agent}
        if not need.agent or not looks_at_attributes(selectors):
            return resolve(need.policy, selectors, labels)
        labels = {**await self._attributes(need.agent), **labels}
        return resolve(need.policy, selectors, labels)._replace(is_known=self._is_read)

    async def _attributes(self, agent: str) -> dict[str, Value]:
        clock = asyncio.get_running_loop().time
        now = clock()
        directory = self._directory = self._directory or Directory(self._log)
        if now - self._read_at >= FRESH_S:
            try:
                _ = await directory.refresh()
                self._read_at, self._is_read = now, True
            except CellError as error:
                self._read_at, self._is_read = clock(), False
                logger.info("the attributes of agents are not known now: %s", error)
        listed = directory.get(agent)
        return dict(listed.values) if listed is not None else {}

    async def _find(self, term: Term) -> dict[str, str]:
        agents = [term.text] if term.kind == "agent" else await self._listed(term)
        ends = await read_ends(self._log, agents)
        return {end.agent: owner for end in ends if (owner := named_owner(end.record))}

    async def _listed(self, term: Term) -> list[str]:
        directory = self._directory = self._directory or Directory(self._log)
        _ = await directory.refresh()
        if term.kind == "class":
            return list(islice(directory.ids_of(term.text), AGENTS_MAX))
        found = list[str]()
        try:
            where = parse(term.text)
        except WhereInvalid as error:  # classes and files are checked; a record of another version may hold anything
            logger.warning("a policy's condition cannot be read, and no agent meets it: %s", error)
            return found
        async for agent in directory.matching(None, where):
            found.append(agent)
            if len(found) == AGENTS_MAX:
                break
        return found


class Placer(Spread):
    """`Spread` for processes that can read where other agents are."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._whereabouts = Whereabouts(log)

    async def look(self, need: Need) -> tuple[Need, Places]:
        """For `choose` and `explain`: the agent with the policy that counts for it, and where the agents are that it looks at.

        Whoever acts by an agent's policy takes the one that this gives: selectors in `mielin.toml` may have changed it.
        """
        if not self.selectors and not need.policy.decides:
            return need, NO_PLACES
        return await self._whereabouts.look(need, self.selectors)

    async def resolve(self, need: Need) -> Resolved:
        """The policy that counts for the agent, and where it comes from."""
        return await self._whereabouts.resolve(need, self.selectors)
