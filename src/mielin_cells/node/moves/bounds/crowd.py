"""How many agents a node has, those that are about to come among them, and whether it takes more (`agents_max`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations


class Crowd:
    """The agents of one node, counted against `agents_max`."""

    def __init__(self, activations: Activations, moving: Collection[str]) -> None:
        """`moving`: agents that move here now."""
        self._activations = activations
        self._moving = moving
        self._coming: set[str] = set()
        """Agents that are being made or claimed; some of them may run already."""

    @contextmanager
    def coming(self, agent: str) -> Iterator[None]:
        """Counts the agent from now on.  Nothing may be awaited between `why_full` and this: of two for one place, one is first."""
        self._coming.add(agent)
        try:
            yield
        finally:
            self._coming.discard(agent)

    @property
    def unowned(self) -> int:
        """Agents that are being made or claimed and do not run yet."""
        return sum(not self._activations.owns(one) and one not in self._moving for one in self._coming)

    def why_full(self) -> str:
        """Why the node takes no agent more; "" if it does."""
        activations, most = self._activations, self._activations.settings.agents_max
        have = activations.count + len(self._moving) + self.unowned
        return f"{activations.name} has {have} agents, and takes at most {most}" if most and have >= most else ""
