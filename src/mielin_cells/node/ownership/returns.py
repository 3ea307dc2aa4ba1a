"""Back-offs of agents that this node reads from their logs again, because a call of the store failed.

The store may fail in ways that no retry mends: it is read-only, its disk is full, a permission was taken away.  An activation that
meets such an error is dropped, since its memory may be ahead of the log.  The agent is still this node's, so this node claims it again
as soon as the store takes a claim.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from mielin_cells.errors import OF_STORE, CellError
from mielin_cells.settings import RETRY_S_MIN
from mielin_cells.tasks.supervision import STEADY_S, Backoff

PROBES_S = 100
"""Agents that are tried again per second, at most, so that an unreachable store is not kept busy."""

WOKEN = 16
"""Agents that are tried at once after one could be taken: the store has recovered."""


class Returns:
    def __init__(self, clock: Callable[[], float], cap_s: float) -> None:
        self._clock = clock
        self._cap_s = cap_s
        self._waits: dict[str, Backoff] = {}
        self._since: dict[str, float] = {}
        self._resting: dict[str, Backoff] = {}

    def failed(self, agent: str, error: Exception) -> bool:
        """Notes that a call of the store for the agent has failed; False if the error is not the store's."""
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
        """True if this node lost the agent to the store: the message at the head of its inbox did no harm."""
        return agent in self._waits

    async def rest(self, agent: str) -> None:
        """Waits before the agent is taken again."""
        wait = self._waits.get(agent)
        if wait is not None:
            self._resting[agent] = wait
            try:
                await wait.wait()
            finally:
                self._resting.pop(agent, None)

    def wake(self, agent: str) -> None:
        """Ends the agent's wait: an operator wants it tried at once."""
        if agent in self._waits:
            self._waits[agent].wake()

    def taken(self, agent: str) -> None:
        """Notes that the store works again, since an agent could be taken; some waiting agents are tried at once."""
        if agent in self._waits:
            for other in [*islice(self._resting, WOKEN)]:
                self._resting.pop(other).wake()

    def gone(self, agent: str) -> None:
        """Forgets an agent that another node owns now."""
        self._waits.pop(agent, None)
        self._since.pop(agent, None)
