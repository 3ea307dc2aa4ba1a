"""Stored state of an earlier class version, brought to the class's own by its upgrades."""

from __future__ import annotations

from typing import Any

from mielin_cells.agents.spec import FieldSpec, Spec
from mielin_cells.agents.values.changes import LOAD_ERRORS, reason
from mielin_cells.agents.values.wire import encode, plain
from mielin_cells.errors import BadArguments, StateTooNew, StateUpgradeFailed
from mielin_cells.log.attributes.values import FIELD as ATTRIBUTES
from mielin_cells.log.delta import PAGE_BYTES, StateDelta
from mielin_cells.log.state import StoredState
from mielin_cells.log.stores import BUCKETS, TableStore


def _items(table: TableStore) -> list[tuple[bytes, bytes]]:
    return [item for number in range(BUCKETS) for item in table.items_in(number)]


def upgrade_state(spec: Spec, state: StoredState, version: int) -> StateDelta | None:
    """The delta from a stored state of class version `version` to the class's own version; None if the versions are equal.

    Raises `StateTooNew` with both versions, or `StateUpgradeFailed` naming the step; `state` is not changed.
    """
    if version == spec.version:
        return None
    facts = {"have": version, "need": spec.version}
    if version > spec.version:
        raise StateTooNew(
            f"The state is of {spec.name} version {version}; this code has version {spec.version}. Deploy the newer code.",
            **facts,
        )
    values: dict[str, object] = {name: plain(data) for name, data in state.plain.items() if name != ATTRIBUTES}
    for name, table in state.tables.items():
        values[name] = {plain(k): plain(v) for k, v in _items(table)}
    for name, buffer in state.buffers.items():
        values[name] = b"".join(buffer.page(number) for number in range(-(-buffer.size // PAGE_BYTES)))
    for step in range(version, spec.version):
        upgrade = spec.upgrades.get(step)
        if upgrade is None:
            raise StateUpgradeFailed(f"{spec.name} has no upgrade from version {step}; write one.", step=step, **facts)
        try:
            values = upgrade.fn(spec.cls, values)
            if not isinstance(values, dict):
                raise TypeError(f"it must return the new state as a dict, not {type(values).__name__}")
        except Exception as error:  # whatever the user's function raises: the agent stays as it is stored
            raise StateUpgradeFailed(
                f"The upgrade of {spec.name} from version {step} raised {type(error).__name__}: {error}.",
                step=step,
                **facts,
            ) from error
    return _replaced(spec, state, values, facts)


def _typed(field: FieldSpec | None, value: Any) -> Any:
    """The value of a field that an upgrade returned, as plain data or as a value of its type."""
    if field is None or field.kind == "buffer":
        return value
    try:
        if field.kind == "plain":
            return field.codec.whole(encode(value))
        items = dict(getattr(value, "_content", value)).items()
        return {field.key_codec.whole(encode(key)): field.codec.whole(encode(item)) for key, item in items}
    except LOAD_ERRORS as error:
        raise BadArguments(f"{field.path}: {reason(value, error)}", handler="spawn") from error


def _replaced(spec: Spec, state: StoredState, values: dict[str, object], facts: dict[str, Any]) -> StateDelta:
    typed: dict[str, Any] = {}
    try:
        for name, value in values.items():
            typed[name] = _typed(spec.fields.get(name), value)
        delta = spec.initial(**typed)
    except (*LOAD_ERRORS, BadArguments) as error:
        raise StateUpgradeFailed(f"The upgraded state of {spec.name} does not load: {error}.", **facts) from error
    for name, table in state.tables.items():
        if name in delta.tables:
            sets = delta.tables[name].sets
            delta.tables[name].dels.extend(key for key, _ in _items(table) if key not in sets)
    old = [name for name in (*state.plain, *state.tables, *state.buffers) if name != ATTRIBUTES]
    gone = [name for name in old if name not in delta.plain and name not in delta.tables and name not in delta.buffers]
    changed = [
        name for name in old if name in spec.fields and name not in getattr(state, _SHELF[spec.fields[name].kind])
    ]
    delta.removed.extend([*gone, *changed])
    return delta


_SHELF = {"plain": "plain", "table": "tables", "buffer": "buffers"}
