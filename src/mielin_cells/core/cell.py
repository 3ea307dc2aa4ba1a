"""A live agent bound to its stored state: what a turn changed is encoded, checked and applied at its end, or undone."""

from __future__ import annotations

import warnings
from typing import Any

from mielin_cells.core.agent import Agent
from mielin_cells.core.buffer import Buffer
from mielin_cells.core.commit import merged
from mielin_cells.core.spec import LOAD_ERRORS, FieldSpec, Spec, _encode, buffer_bytes
from mielin_cells.core.state import BufferStore, StateDelta, StoredState, TableStore
from mielin_cells.core.table import Table
from mielin_cells.errors import NotInTurn, StateInvalid, StateUnloadable

PLAIN_BYTES_WARN = 64 * 1024
"""A plain field is written whole at each change; above this size `Table` or `Buffer` is the right type."""


class Cell:
    """One live instance.  Raises `StateUnloadable`, naming the field, if the stored state does not fit the class."""

    __slots__ = ("_buffers", "_fields", "_id", "_state", "_tables", "_warned", "agent", "in_turn", "touched")

    def __init__(self, spec: Spec, state: StoredState, agent_id: str) -> None:
        self._fields = spec.fields
        self._state = state
        self._id = agent_id
        self.in_turn = False
        self._warned: set[str] = set()
        self._tables: dict[str, Table[Any, Any]] = {}
        self._buffers: dict[str, Buffer] = {}
        self.touched: dict[str, None] = {}
        self.agent: Agent = object.__new__(spec.cls)
        self.agent.__dict__.update(__mielin_cell__=self, __mielin_id__=agent_id, __mielin_caller__=None)
        for name in [*state.plain, *state.tables, *state.buffers]:
            if name not in self._fields:
                raise StateUnloadable(
                    f"Agent {agent_id!r} has a stored field {name!r} that {spec.name} version {spec.version} lacks; "
                    "raise the version and write an upgrade.",
                    agent=agent_id, path=f"{spec.name}.{name}",
                )  # fmt: skip
        for field in self._fields.values():
            self.agent.__dict__[field.name] = self._bind(field)

    def _bind(self, field: FieldSpec) -> Any:
        if field.kind == "table":
            return self._bind_table(field)
        if field.kind == "buffer":
            store = self._state.buffers.setdefault(field.name, BufferStore())
            buffer = self._buffers[field.name] = Buffer._bind(store, field.path, self._writable)
            return buffer
        return self._load(field)

    def _bind_table(self, field: FieldSpec) -> Table[Any, Any]:
        store = self._state.tables.setdefault(field.name, TableStore())
        assert field.decode_key is not None
        table = self._tables[field.name] = Table._bind(
            store, _encode, field.decode_key, _encode, field.decode, field.path, self._writable
        )
        return table

    def _load(self, field: FieldSpec) -> Any:
        data = self._state.plain.get(field.name, field.default)
        try:
            if data is None:
                raise ValueError("nothing is stored and the field has no default")
            return field.decode(data)
        except LOAD_ERRORS as error:
            raise StateUnloadable(
                f"The stored state of agent {self._id!r} does not load: {field.path}: {error}.",
                agent=self._id, path=field.path,
            ) from error  # fmt: skip

    def _writable(self) -> bool:
        return self.in_turn

    def set(self, name: str, value: Any) -> None:
        """Assigns a field.  Raises `NotInTurn` outside a turn."""
        if not self.in_turn:
            raise NotInTurn(f"State of agent {self._id!r} ({name}) is set only inside a turn: in a handler or a hook.")
        table = self._tables.get(name)
        if table is not None:
            content = dict(value)
            table.clear()
            table.update(content)
        elif name in self._buffers:
            data = buffer_bytes(value)
            self._buffers[name].resize(len(data))
            self._buffers[name][:] = data
        else:
            self.touched[name] = None
            self.agent.__dict__[name] = value

    def begin(self) -> None:
        if self.touched:  # read outside a turn, and perhaps changed in place: state is what was committed
            self._restore()
        self.in_turn = True

    def end(self, before: StateDelta | None = None) -> StateDelta | None:
        """What the turn changed, checked and applied to the stored state, as one delta with `before`; None for nothing.

        `before` may be changed in place.  Raises `StateInvalid` for a value that would not load again: nothing is applied,
        and `undo` must follow.
        """
        touched = self.touched
        plain = self._changed_fields() if touched else None
        # Cleared once nothing can raise any more: `undo` restores what was touched.
        if not self._tables and not self._buffers:  # most agents: nothing to look through
            self.in_turn = False
            touched.clear()
            if not plain:
                return before
            self._state.put(plain)
            if before is None:
                return StateDelta(plain)
            before.plain.update(plain)
            return before
        tables = {name: change for name, table in self._tables.items() if (change := table._delta()) is not None}
        buffers = {name: pages for name, buffer in self._buffers.items() if (pages := buffer._delta()) is not None}
        self.in_turn = False
        touched.clear()
        changed = before
        if plain or tables or buffers:
            delta = StateDelta(plain or {}, tables, buffers)
            self._state.apply(delta)
            changed = delta if before is None else merged(before, delta)
        for table in self._tables.values():
            table._settle()
        for buffer in self._buffers.values():
            buffer._settle()
        return changed

    def _changed_fields(self) -> dict[str, bytes]:
        changed: dict[str, bytes] = {}
        values, stored = self.agent.__dict__, self._state.plain
        for name in self.touched:
            field = self._fields[name]
            if field.kind != "plain":
                continue
            try:
                data = _encode(values[name])
                if data == stored.get(name):
                    continue
                field.check(data)
            except LOAD_ERRORS as error:
                raise StateInvalid(
                    f"The turn of agent {self._id!r} left a value that would not load again: {field.path}: {error}. "
                    "The turn is undone and the agent goes on.",
                    agent=self._id, path=field.path,
                ) from error  # fmt: skip
            if len(data) > PLAIN_BYTES_WARN and name not in self._warned:
                self._warned.add(name)
                warnings.warn(
                    f"{field.path} has more than {PLAIN_BYTES_WARN:,} bytes and is written whole at each change; "
                    "use Table or Buffer.",
                    stacklevel=2,
                )
            changed[name] = data
        return changed

    def undo(self) -> None:
        """The turn failed: every touched field is as stored again."""
        self.in_turn = False
        self._restore()
        for table in self._tables.values():
            table._undo()
        for buffer in self._buffers.values():
            buffer._undo()

    def _restore(self) -> None:
        for name in self.touched:
            if self._fields[name].kind == "plain":
                self.agent.__dict__[name] = self._load(self._fields[name])
        self.touched.clear()
