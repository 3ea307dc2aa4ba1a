"""What a turn says of its agent's attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from mielin_cells.log.attributes.values import FIELD, Attributes, Value, attributes_of, changed, encode
from mielin_cells.log.delta import StateDelta
from mielin_cells.log.fold import Fold
from mielin_cells.log.turns.batch import Batch


class Owner(Protocol):
    """What is needed of the agent."""

    @property
    def fold(self) -> Fold: ...


class Turn(Protocol):
    """What is needed of the turn."""

    attributes: Attributes | None

    @property
    def _core(self) -> Owner: ...
    def _open(self) -> None: ...


class AttributeCalls:
    """The part of a turn that deals with attributes.  What it sets takes effect with the turn's state."""

    attributes: Attributes | None = None
    """As they are after the turn, if it changes them."""

    def set_attributes(self: Turn, changes: Mapping[str, object]) -> dict[str, Value]:
        """Notes changes, and returns all attributes as they are then."""
        self._open()
        before = self.attributes or attributes_of(self._core.fold.state)
        after = changed(before, changes)
        if after is not None:
            self.attributes = after
        now = after or before
        return dict(now.values) if now is not None else {}

    def apply_attributes(self: Turn, batch: Batch) -> None:
        """The turn has succeeded: they are in the state from here on, and in the next commit."""
        if self.attributes is not None:
            data = {FIELD: encode(self.attributes)}
            self._core.fold.state.put(data)
            batch.change(StateDelta(data))
