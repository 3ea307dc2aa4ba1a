"""Why asks of a turn have no answer yet, as far as that is known: each its own, since several may wait at the same time."""

from __future__ import annotations

from mielin_cells.log.commit import Out, StepCall, TurnCall


class Reasons:
    """The part of a turn that keeps, for each of its asks, why it has no answer yet."""

    _whys: dict[tuple[str, int], str] | None = None
    """By line and number of the ask."""

    def _note(self, ask: Out, why: str) -> None:
        self._whys = self._whys or {}
        self._whys[ask.to, ask.n] = f": {why}" if why else ""

    def why(self, ask: TurnCall | Out) -> str:
        """The end of a sentence; "" if no reason is known."""
        return self._whys.get((ask.to, ask.n), "") if self._whys and not isinstance(ask, StepCall) else ""
