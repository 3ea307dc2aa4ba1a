"""The directory: an index of agents by their attributes, which follows what their owners write.

It is a copy that comes after, so it is a hint: only an agent's log says what the agent is.  It can be made anew at any time, from the
last entry of each agent.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from bisect import bisect_right
from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec

from mielin_cells.agents.finding.where import Key, Needs, Where, key_of
from mielin_cells.errors import RecordInvalid
from mielin_cells.log.attributes.entries import PATTERN, Listing
from mielin_cells.log.attributes.values import Value
from mielin_cells.log.codec import pack
from mielin_cells.store.attributes import read_listing
from mielin_cells.substrate.ports import Entry, Found, Log

logger = logging.getLogger("mielin_cells.attributes")

PAGE = 256
"""Entries in one read, and agents that are looked at before other tasks run."""

_decode = msgspec.msgpack.Decoder(dict[str, Value]).decode


class Listed(NamedTuple):
    """An agent of the directory.  Its values stay packed: an agent takes a few hundred bytes."""

    cls: str
    n: int
    revision: int
    packed: bytes

    @property
    def values(self) -> dict[str, Value]:
        return _decode(self.packed)


class Directory:
    """Of one client.  Costs the agents that have attributes, and no others."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self._lock = asyncio.Lock()
        self._forget()

    def _forget(self) -> None:
        self._positions: list[int] = []
        self._agents: dict[str, Listed] = {}
        self._by_class: dict[str, dict[str, None]] = {}
        self._sorted: dict[str, list[str]] = {}
        """By class, the ids in order, for those classes of which no agent has come or gone since."""
        self._by_value: dict[str, dict[Key, set[str]]] = {}
        """By attribute and value, for those attributes that were looked for."""

    def __len__(self) -> int:
        return len(self._agents)

    def items(self) -> list[tuple[str, Listed]]:
        return [*self._agents.items()]

    def get(self, agent: str) -> Listed | None:
        return self._agents.get(agent)

    async def refresh(self) -> float:
        """Takes in what was written since.  Returns the store's time before which everything written is in."""
        async with self._lock:
            as_of = await self.log.now()
            ends = await self.log.topic_ends()
            if len(self._positions) != len(ends) or any(
                end < at for end, at in zip(ends, self._positions, strict=True)
            ):  # the first time, or the store was put back to an older copy
                self._forget()
                self._positions = [0] * len(ends)
            for shard in range(len(ends)):
                while await self._read(shard) == PAGE:
                    await asyncio.sleep(0)
            return as_of

    async def _read(self, shard: int) -> int:
        page = await self.log.scan(PATTERN, shard, self._positions[shard], PAGE)
        for found in page:
            await self._take(found)
            self._positions[shard] = found.seq
        return len(page)

    async def _take(self, found: Found) -> None:
        try:
            listing = await read_listing(self.log, found.subject, Entry(found.seq, found.data))
        except RecordInvalid as error:  # trimmed meanwhile, or damaged: its owner writes it again
            logger.warning("%s at %d cannot be read, and is passed over: %s", found.subject, found.seq, error)
            return
        self._put(listing)

    def _put(self, listing: Listing) -> None:
        agent, before = listing.agent, self._agents.get(listing.agent)
        if before is not None and before.n > listing.n:
            return
        if before is not None:
            self._index(agent, before.values, is_there=False)
        if listing.has_ended:
            if before is not None:
                del self._agents[agent], self._by_class[before.cls][agent]
                self._sorted.pop(before.cls, None)
            return
        cls = sys.intern(listing.cls)
        self._agents[agent] = Listed(cls, listing.n, listing.revision, pack(listing.values))
        if before is None:
            self._by_class.setdefault(cls, {})[agent] = None
            self._sorted.pop(cls, None)
        self._index(agent, listing.values, is_there=True)

    # ---- by value --------------------------------------------------------------------------------------------

    def _index(self, agent: str, values: dict[str, Value], *, is_there: bool) -> None:
        for name, by_key in self._by_value.items():
            if name in values:
                agents = by_key.setdefault(key_of(values[name]), set())
                (agents.add if is_there else agents.discard)(agent)

    async def _indexed(self, needs: Needs) -> list[str]:
        """The agents that have one of these values, in order.  The index of an attribute is made when it is first looked for."""
        if needs.name not in self._by_value:
            made: dict[Key, set[str]] = {}
            async with self._lock:  # nothing changes meanwhile
                for count, (agent, listed) in enumerate(self._agents.items(), 1):
                    value = listed.values.get(needs.name)
                    if value is not None:
                        made.setdefault(key_of(value), set()).add(agent)
                    if count % PAGE == 0:
                        await asyncio.sleep(0)
                self._by_value.setdefault(needs.name, made)
        by_key = self._by_value[needs.name]
        return sorted(set().union(*(by_key.get(key, ()) for key in needs.keys)))

    def ids_of(self, cls: str) -> list[str]:
        """The agents of the class that have attributes, in order; not to be changed."""
        return self._ids(cls)

    def _ids(self, cls: str) -> list[str]:
        ids = self._sorted.get(cls)
        if ids is None:
            ids = self._sorted[cls] = sorted(self._by_class.get(cls, ()))
        return ids

    async def matching(self, cls: str | None, where: Where, after: str = "") -> AsyncIterator[str]:
        """Ids of the agents of the class (None: any) behind `after` that meet the condition, in order."""
        needs = where.needs
        if needs is not None:
            candidates = await self._indexed(needs)
        elif cls is not None:
            candidates = self._ids(cls)
        else:
            candidates = sorted(self._agents)
        candidates = candidates[bisect_right(candidates, after) :]
        for count, agent in enumerate(candidates, 1):
            listed = self._agents.get(agent)
            if listed is not None and cls in (None, listed.cls) and where.holds(listed.values):
                yield agent
            if count % PAGE == 0:
                await asyncio.sleep(0)
