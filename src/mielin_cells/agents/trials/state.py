"""Whether what is stored of an agent loads in the code of this process, to the last value.

A node that takes an agent looks at less: the values of a table are decoded when a handler reads them.
"""

from __future__ import annotations

from mielin_cells.agents.live import Cell
from mielin_cells.agents.spec import FieldSpec, Spec
from mielin_cells.agents.upgrades import upgrade_state
from mielin_cells.agents.values.changes import LOAD_ERRORS, reason, shown
from mielin_cells.agents.values.wire import plain
from mielin_cells.errors import StateUnloadable
from mielin_cells.log.state import StoredState
from mielin_cells.log.stores import BUCKETS, TableStore


def try_state(spec: Spec, state: StoredState, version: int, agent: str) -> None:
    """Upgrades and loads the state, which is changed by that.

    Raises `StateTooNew`, `StateUpgradeFailed` or `StateUnloadable` with the field, and what an upgrade raises that is no `Exception`.
    """
    delta = upgrade_state(spec, state, version)
    if delta is not None:
        state.apply(delta)
    Cell(spec, state, agent)
    for field in spec.fields.values():
        if field.kind == "table":
            _try_table(field, state.tables[field.name], agent)


def _try_table(field: FieldSpec, table: TableStore, agent: str) -> None:
    for number in range(BUCKETS):
        for key, value in table.items_in(number):
            try:
                field.key_codec.whole(key)
                field.codec.whole(value)
            except LOAD_ERRORS as error:
                raise StateUnloadable(
                    f"The stored state of agent {agent!r} does not load: {field.path}[{shown(plain(key))}]: {reason(None, error)}. "
                    "Raise the version of the class and write an upgrade, or restore the old type.",
                    agent=agent, path=field.path,
                ) from error  # fmt: skip
