"""Live agents without a node."""

from __future__ import annotations

from typing import Any

import mielin_cells as cells
from mielin_cells.agents.live import Cell
from mielin_cells.agents.spec import spec_of
from mielin_cells.log.state import StoredState


def live(cls: type[cells.Agent], **state: Any) -> tuple[Any, Cell]:
    """A live instance in a turn, without a node."""
    spec, stored = spec_of(cls), StoredState()
    stored.apply(spec.initial(**state))
    cell = Cell(spec, stored, "a")
    cell.begin()
    return cell.agent, cell


def reloaded(cell: Cell, cls: type[cells.Agent]) -> Any:
    return Cell(spec_of(cls), cell._state, "a").agent
