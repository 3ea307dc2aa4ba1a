"""What a node logs of messages that it takes without a run."""

from __future__ import annotations

import logging

logger = logging.getLogger("mielin_cells.intake")

PAUSE_S = 1.0


class Unrun:
    """A line for the first message, and then one a second at most, which counts the others: a million may expire at once.

    Each of them is in its agent's log, and most are dead letters.
    """

    __slots__ = ("_again_at", "_silent")

    def __init__(self) -> None:
        self._again_at = 0.0
        self._silent = 0

    def note(self, now: float, agent: str, handler: str, sender: str, why: object) -> None:
        """`now`: by the loop's clock."""
        if now < self._again_at:
            self._silent += 1
            return
        others = f" ({self._silent} others like it on this node since the line before)" if self._silent else ""
        logger.info("agent %s: %s of %s did not run: %s%s", agent, handler, sender, why, others)
        self._again_at, self._silent = now + PAUSE_S, 0
