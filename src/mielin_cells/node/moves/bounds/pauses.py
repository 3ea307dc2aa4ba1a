"""For how long a move would pause an agent, and whether the agent's policy allows that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mielin_cells.errors import MigrationRefused
from mielin_cells.log.ids import log_subject
from mielin_cells.tasks.recent import Recent

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations

READS = 4
"""A pause is two appends, one after the other, each about as long as two reads by the leader."""

FRESH_S = 600.0
"""For so long the pause of an agent's move says something of its next one."""

LONG_AGO = -1e9


class Pauses:
    """Of the agents that have moved from a node lately."""

    def __init__(self, activations: Activations) -> None:
        self._activations = activations
        self._last: dict[str, tuple[float, float]] = Recent()
        """By agent, how many milliseconds its last move from here paused it, and when that was."""

    def note(self, agent: str, pause_ms: float) -> None:
        self._last[agent] = pause_ms, self._activations.clock()

    async def check(self, agent: str, limit_ms: float) -> None:
        """Raises `MigrationRefused` if a move is predicted to pause the agent for longer."""
        if too_long := await self.too_long(agent, limit_ms):
            raise MigrationRefused(
                f"The move of agent {agent!r} was not begun: {too_long}.",
                agent=agent,
                kinds=["pause"],
                reasons=[too_long],
            )

    async def too_long(self, agent: str, limit_ms: float) -> str:
        """Why the agent is not to be moved now; "" if it may be.

        By its own last move, if that is not long ago, else by the time that the store takes now: other agents have hooks of their own,
        and a store that was slow may be quick again.
        """
        pause_ms, at = self._last.get(agent, (0.0, LONG_AGO))
        basis = "its last move from here"
        if self._activations.clock() - at >= FRESH_S:
            pause_ms, basis = await self.measure(agent)
        if pause_ms <= limit_ms:
            return ""
        return f"it is predicted to pause for {pause_ms:.1f} ms ({basis}), and its policy allows {limit_ms:g} ms"

    async def measure(self, agent: str) -> tuple[float, str]:
        """Milliseconds, and what they are predicted by."""
        clock = self._activations.clock
        begun = clock()
        await self._activations.home.log.last(log_subject(agent))
        return (clock() - begun) * READS * 1000, "a read of the agent's log just now"
