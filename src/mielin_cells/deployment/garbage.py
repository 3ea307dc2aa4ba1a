"""When a node's process looks for garbage among all of its objects.

An agent consists of many objects that stay.  Python collects among all objects when a quarter of them is new, and nothing else runs
meanwhile: on a node that took over 10,000 agents this held up asks of its other agents for 0.2 s.  So the process runs such a
collection itself, while no agents come.  It leaves out the objects that survived an earlier one, until many of those agents have gone.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterable

THRESHOLDS = 20_000, 5, 1_000_000_000
"""Agents are thousands of objects that stay.  With Python's own threshold of 700, a node that creates agents spends most of its time
looking for garbage among them (20,000 spawns: 900 a second instead of 2,800).  The third: never among all."""

LOOK_S = 10.0
FEW, MANY = 5, 500
"""Collections of young objects, each of 100,000 that were new: after `FEW` it is worth a look, after `MANY` it does not wait."""

GONE_SHARE = 0.25
"""When so many of the agents that are kept out of looks have gone, the next look is among all objects."""

ALL_S = 3600.0
"""So is the first look after this time: other things than agents end, too."""


class Garbage:
    def __init__(self, agents: Callable[[], Iterable[object]], clock: Callable[[], float]) -> None:
        """`agents` are those that are in memory now."""
        self._agents = agents
        self._clock = clock
        self._before = 0
        """How many agents there were at the last look."""
        self._kept = set[int]()
        """The agents that are kept out of looks, by `id`: they must not be held."""
        self._since = clock()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        waiting = gc.get_count()[2]
        if waiting < FEW:
            return
        now = {id(agent) for agent in self._agents()}
        comes, self._before = len(now) > self._before, len(now)
        if comes and waiting < MANY:
            return
        if len(self._kept - now) > GONE_SHARE * len(self._kept) or self._clock() - self._since >= ALL_S:
            gc.unfreeze()
            self._since = self._clock()
        gc.collect()
        gc.freeze()
        self._kept = now
