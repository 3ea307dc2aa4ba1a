"""Agents that this node has to read from their logs again, because a call of the store had failed: with a back-off of each.

The store may fail in ways that no retry mends: it is read-only, its disk full, a permission taken away.  An activation that meets
such an error is dropped, since what it has in memory may be no log's.  The agent is still this node's, so this node takes it
again, by a claim, as soon as the store takes one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from mielin_cells.errors import (
    OF_STORE,
    CellError,
)
from mielin_cells.settings import RETRY_S_MIN
from mielin_cells.tasks.supervision import STEADY_S, Backoff

PROBES_S = 100
"""So many agents at most are tried again in a second, of all that wait: a store that is away is not to be kept busy by that."""

WOKEN = 16
"""Agents that are tried at once when one could be taken: the store has recovered."""


class Returns:
    """Of one node."""

    def __init__(self, clock: Callable[[], float], cap_s: float) -> None:
        self._clock = clock
        self._cap_s = cap_s
        self._waits: dict[str, Backoff] = {}
        self._since: dict[str, float] = {}
        self._resting: dict[str, Backoff] = {}

    def failed(self, agent: str, error: Exception) -> bool:
        """Notes that a call of the store for the agent has failed; False if `error` is none of the store's."""
        if not isinstance(error, OF_STORE) and isinstance(error, CellError):
            return False
        now, longest = self._clock(), max(self._cap_s, len(self._waits) / PROBES_S)
        wait = self._waits.get(agent)
        if wait is None or now - self._since[agent] >= STEADY_S + longest:
            self._waits[agent] = Backoff(RETRY_S_MIN, self._cap_s)
        elif wait.delay_s >= self._cap_s:
            self._waits[agent] = Backoff(longest, longest)
        self._since[agent] = now
        return True

    def __contains__(self, agent: object) -> bool:
        """True if this node lost the agent to the store: its message at the head has done no harm."""
        return agent in self._waits

    async def rest(self, agent: str) -> None:
        """Before the agent is taken again."""
        wait = self._waits.get(agent)
        if wait is not None:
            self._resting[agent] = wait
            try:
                await wait.wait()
            finally:
                self._resting.pop(agent, None)

    def wake(self, agent: str) -> None:
        """An order: it is tried at once."""
        wait = self._waits.get(agent)
        if wait is not None:
            wait.wake()

    def taken(self, agent: str) -> None:
        """The store has let it be taken: others are tried at once."""
        if agent in self._waits:
            for other in [*islice(self._resting, WOKEN)]:
                self._resting.pop(other).wake()

    def gone(self, agent: str) -> None:
        """It is another node's now."""
        self._waits.pop(agent, None)
        self._since.pop(agent, None)
