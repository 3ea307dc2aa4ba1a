"""Agents that this node has to read from their logs again, because a call of the store had failed: with a back-off of each.

The store may fail in ways that no retry mends: it is read-only, its disk full, a permission taken away.  A host that meets such an
error is dropped, since what it has in memory may be no log's.  The agent is still this node's, so this node takes it again, by a
claim, as soon as the store takes one.
"""

from __future__ import annotations

from collections.abc import Callable

from mielin_cells.core.settings import RETRY_S_MIN
from mielin_cells.errors import (
    AuthFailed,
    CellError,
    InternalError,
    JetStreamDisabled,
    PermissionDenied,
    RetryError,
    ServerTooOld,
    StoreCorrupt,
    StoreInUse,
    StoreReadOnly,
    StreamMissing,
)
from mielin_cells.node.supervision import STEADY_S, Backoff

OF_STORE = (
    AuthFailed,
    InternalError,
    JetStreamDisabled,
    PermissionDenied,
    RetryError,
    ServerTooOld,
    StoreCorrupt,
    StoreInUse,
    StoreReadOnly,
    StreamMissing,
)
"""Errors that are the store's and not one agent's: when the store has recovered, so has the agent."""


class Returns:
    """Of one node."""

    def __init__(self, clock: Callable[[], float], cap_s: float) -> None:
        self._clock = clock
        self._cap_s = cap_s
        self._waits: dict[str, Backoff] = {}
        self._since: dict[str, float] = {}

    def failed(self, agent: str, error: Exception) -> bool:
        """Notes that a call of the store for the agent has failed; False if `error` is none of the store's."""
        if not isinstance(error, OF_STORE) and isinstance(error, CellError):
            return False
        now = self._clock()
        if agent not in self._waits or now - self._since[agent] >= STEADY_S:
            self._waits[agent] = Backoff(RETRY_S_MIN, self._cap_s)
        self._since[agent] = now
        return True

    def __contains__(self, agent: object) -> bool:
        """True if this node lost the agent to the store: its message at the head has done no harm."""
        return agent in self._waits

    async def rest(self, agent: str) -> None:
        """Before the agent is taken again."""
        wait = self._waits.get(agent)
        if wait is not None:
            await wait.wait()

    def wake(self, agent: str) -> None:
        """An order: it is tried at once."""
        wait = self._waits.get(agent)
        if wait is not None:
            wait.wake()

    def gone(self, agent: str) -> None:
        """It is another node's now."""
        self._waits.pop(agent, None)
        self._since.pop(agent, None)
