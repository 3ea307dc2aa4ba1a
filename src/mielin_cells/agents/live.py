"""A live agent bound to its stored state: what a turn changed is encoded, checked and applied at its end, or undone."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from mielin_cells.agents.agent import Agent
from mielin_cells.agents.buffer import Buffer
from mielin_cells.agents.context import Turn, turn
from mielin_cells.agents.spec import FieldSpec, Spec, buffer_bytes
from mielin_cells.agents.table import BoundTable
from mielin_cells.agents.values.changes import LOAD_ERRORS, reason, shown
from mielin_cells.agents.values.codec import Codec
from mielin_cells.agents.values.exact import is_cached_property
from mielin_cells.agents.values.wire import encode, plain
from mielin_cells.errors import NotInTurn, StateInvalid, StateUnloadable
from mielin_cells.log.attributes.values import FIELD as ATTRIBUTES
from mielin_cells.log.delta import StateDelta
from mielin_cells.log.state import StoredState
from mielin_cells.log.stores import BUCKETS, BufferStore, TableStore

PLAIN_BYTES_WARN = 64 * 1024
"""A plain field is written whole at each change; above this size `Table` or `Buffer` is the right type."""


_NOBODY = object()


def _holders(values: dict[str, Any], name: str) -> int:
    return sys.getrefcount(values[name])


_ALONE = _holders({"x": []}, "x")
"""The count of references to a value that only the agent holds."""


NONE_ASSIGNED: set[str] = set()
"""Shared by agents that have assigned no field yet: a set takes 216 bytes.  It stays empty."""


class Cell:
    """One live agent.  Raises `StateUnloadable`, naming the field, if the stored state does not fit the class."""

    __slots__ = (
        "_assigned", "_buffers", "_fields", "_handed", "_held", "_id", "_size", "_state", "_tables", "_values", "_warned",
        "agent", "owner", "touched",
    )  # fmt: skip

    def __init__(self, spec: Spec, state: StoredState, agent_id: str) -> None:
        self._fields = spec.fields
        self._state = state
        self._id = agent_id
        self.owner: Any = _NOBODY
        """The turn that runs.  Only code in its context can change state."""
        self._warned: tuple[str, ...] = ()
        """Large fields that were warned of."""
        self._tables: dict[str, BoundTable[Any, Any]] = {}
        self._buffers: dict[str, Buffer] = {}
        self.touched: dict[str, None] = {}
        """Fields that the turn has set, or has read in a form that it could change in place."""
        self._assigned = NONE_ASSIGNED
        self._held: list[str] = []
        """Fields that the turn has read, and of which other holders of the value can be counted."""
        self._handed: list[str] = []
        """Fields that the turn has read, and of which it may have kept a part."""
        self.agent: Agent = object.__new__(spec.cls)
        self.agent.__dict__.update(__mielin_cell__=self, __mielin_id__=agent_id, __mielin_caller__=None)
        self._values = self.agent.__dict__
        for name in [*state.plain, *state.tables, *state.buffers]:
            if name not in self._fields and name != ATTRIBUTES:
                raise StateUnloadable(
                    f"Agent {agent_id!r} has a stored field {name!r} that {spec.name} version {spec.version} lacks; "
                    "raise the version and write an upgrade.",
                    agent=agent_id, path=f"{spec.name}.{name}",
                )  # fmt: skip
        for field in self._fields.values():
            self.agent.__dict__[field.name] = self._bind(field)
        self._size = len(self.agent.__dict__)
        """How many attributes the live agent had when they were last checked."""

    def _bind(self, field: FieldSpec) -> Any:
        if field.kind == "table":
            return self._bind_table(field)
        if field.kind == "buffer":
            store = self._state.buffers.setdefault(field.name, BufferStore())
            buffer = self._buffers[field.name] = Buffer._bind(store, field.path, self._writable)
            return buffer
        return self._load(field, is_foreign=True)

    def _bind_table(self, field: FieldSpec) -> BoundTable[Any, Any]:
        store = self._state.tables.setdefault(field.name, TableStore())
        if field.key_codec.evolves:  # a key that reads otherwise today would not be found
            self._check_keys(field, field.key_codec, store)
        table = self._tables[field.name] = BoundTable(store, field.key_codec, field.codec, field.path, self._writable)
        return table

    def _check_keys(self, field: FieldSpec, codec: Codec, store: TableStore) -> None:
        for number in range(BUCKETS):
            for key in store.keys_in(number):
                try:
                    same = encode(codec.whole(key)) == key
                except LOAD_ERRORS:
                    same = False
                if not same:
                    raise StateUnloadable(
                        f"The stored state of agent {self._id!r} does not load: {field.path} has a key of another version of its "
                        f"type: {shown(plain(key))}. Raise the version of the class and write an upgrade.",
                        agent=self._id, path=field.path,
                    )  # fmt: skip

    def _load(self, field: FieldSpec, *, is_foreign: bool = False) -> Any:
        """`is_foreign`: other code may have written the bytes."""
        data = self._state.plain.get(field.name, field.default)
        try:
            if data is None:
                raise ValueError("nothing is stored and the field has no default")
            return field.codec.whole(data) if is_foreign else field.codec.decode(data)
        except LOAD_ERRORS as error:
            raise StateUnloadable(
                f"The stored state of agent {self._id!r} does not load: {field.path}: {reason(None, error)}. Raise the version of "
                "the class and write an upgrade, or restore the old type.",
                agent=self._id, path=field.path,
            ) from error  # fmt: skip

    def _writable(self) -> bool:
        return turn.get() is self.owner

    def load(self, name: str) -> Any:
        """The value of a field that an earlier turn has touched, decoded again."""
        value = self.agent.__dict__[name] = self._load(self._fields[name])
        return value

    def copy(self, name: str) -> Any:
        """The value of a field, for code outside of the turn: changing it changes no state."""
        field = self._fields[name]
        if field.kind != "plain":
            return self.agent.__dict__[name]
        runs = self.owner is not _NOBODY and self.owner is not None
        if runs and turn.get() is None and not self.owner.is_here():
            raise NotInTurn(
                f"State of agent {self._id!r} ({name}) was read in a thread that is not known to belong to the turn that runs; "
                "use asyncio.to_thread, which takes the turn along, or give the thread what it needs.",
                agent=self._id,
            )
        return self._load(field)

    def set(self, name: str, value: Any) -> None:
        """Assigns a field.  Raises `NotInTurn` outside a turn."""
        if turn.get() is not self.owner:
            raise NotInTurn(
                f"State of agent {self._id!r} ({name}) is set only inside a turn: in a handler or a hook, and in tasks of it "
                "until it ends, but not in the call of a step. Send the agent a message instead."
            )
        table = self._tables.get(name)
        if table is not None:
            table._replace(value)
        elif name in self._buffers:
            data = buffer_bytes(value)
            self._buffers[name].resize(len(data))
            self._buffers[name][:] = data
        else:
            self.touched[name] = None
            if self._assigned is NONE_ASSIGNED:
                self._assigned = set()
            self._assigned.add(name)
            self.agent.__dict__[name] = value

    def begin(self, owner: Turn | None = None) -> None:
        """Begins a turn: code in the context of `owner` may change state."""
        self.owner = owner
        if len(self._values) != self._size:  # set outside of turns, so it is not there
            self._undeclared(remove=True)

    def end(self, before: StateDelta | None = None) -> StateDelta | None:
        """Ends a turn: checks what it changed, applies it to the stored state and returns it as one delta with `before`, or None.

        `before` may be changed in place.  Raises `StateInvalid` for a value that would not load again; then nothing is applied,
        and `undo` must follow.
        """
        if len(self._values) != self._size:
            self._check_declared()
        plain = self._changed_fields() if self.touched else None
        # Applied once nothing can raise any more: `undo` restores what was touched.
        if not self._tables and not self._buffers:  # most agents: nothing to look through
            self._close()
            if not plain:
                return before
            self._state.put(plain)
            if before is None:
                return StateDelta(plain)
            before.plain.update(plain)
            return before
        tables = {name: change for name, table in self._tables.items() if (change := table._delta()) is not None}
        buffers = {name: pages for name, buffer in self._buffers.items() if (pages := buffer._delta()) is not None}
        self._close()
        changed = before
        if plain or tables or buffers:
            delta = StateDelta(plain or {}, tables, buffers)
            self._state.apply(delta)
            changed = delta if before is None else before.then(delta)
        self._forget_large()
        return changed

    def _changed_fields(self) -> dict[str, bytes]:
        changed: dict[str, bytes] = {}
        values, stored = self._values, self._state.plain
        for name in self.touched:
            field = self._fields[name]
            if field.kind != "plain":
                continue
            value, codec = values[name], field.codec
            try:
                data = encode(value)
                is_same = data == stored.get(name) or (
                    codec.has_sets and codec.is_unchanged(value, data, stored.get(name))
                )
                if type(value) not in codec.scalars:
                    proof = codec.flat.get(type(value))
                    if proof is not None and proof(value):
                        self._held.append(name)
                    elif is_same and name not in self._assigned and not codec.is_immutable:
                        self._handed.append(name)
                    else:
                        data, kept = codec.settle(value, data)
                        is_same = is_same or data == stored.get(name)
                        if kept is not value:
                            values[name] = kept
                        elif not codec.is_immutable:
                            self._handed.append(name)
            except LOAD_ERRORS as error:
                raise StateInvalid(
                    f"The turn of agent {self._id!r} left a value that a load would not give: "
                    f"{field.path}: {reason(value, error)}. The turn is undone and the agent goes on.",
                    agent=self._id, path=field.path,
                ) from error  # fmt: skip
            if is_same:
                continue
            if len(data) > PLAIN_BYTES_WARN and name not in self._warned:
                self._warned += (name,)
                warnings.warn(
                    f"{field.path} has more than {PLAIN_BYTES_WARN:,} bytes and is written whole at each change; "
                    "use Table or Buffer.",
                    stacklevel=2,
                )
            changed[name] = data
        return changed

    def _close(self) -> None:
        """Drops values that the turn may have kept; they are decoded again when they are used."""
        self.owner = _NOBODY
        if not self.touched:
            return
        values = self._values
        if self._held or self._handed:
            for name in self._held:
                if _holders(values, name) != _ALONE:
                    del values[name]
            for name in self._handed:
                del values[name]
            self._held.clear()
            self._handed.clear()
        if self._assigned:
            self._assigned.clear()
        self.touched.clear()
        self._size = len(values)

    def _undeclared(self, *, remove: bool) -> list[str]:
        """Attributes of the live agent that are not state and would be lost when it moves."""
        values = self.agent.__dict__
        names = [
            name for name in values
            if name not in self._fields and not name.startswith("_") and not is_cached_property(type(self.agent), name)
        ]  # fmt: skip
        if remove:
            for name in names:
                del values[name]
        if remove or not names:
            self._size = len(values)
        return names

    def _forget_computed(self) -> None:
        """Drops the values of cached properties: they may be computed from state that is undone."""
        for name in [name for name in self._values if is_cached_property(type(self.agent), name)]:
            del self._values[name]
        self._size = len(self._values)

    def _check_declared(self) -> None:
        names = self._undeclared(remove=False)
        if names:
            path = f"{type(self.agent).__name__}.{names[0]}"
            raise StateInvalid(
                f"The turn of agent {self._id!r} set {path}, which is no state field: it would be lost when the agent moves. "
                f"Annotate it in the class (`{names[0]}: int = 0`), or name it `_{names[0]}` if it may be lost. "
                "The turn is undone and the agent goes on.",
                agent=self._id, path=path,
            )  # fmt: skip

    def _forget(self) -> None:
        self.touched.clear()
        self._assigned.clear()
        self._held.clear()
        self._handed.clear()

    def undo(self) -> None:
        """Ends a turn that failed: every touched field is again as stored."""
        self.owner = _NOBODY
        for name in self.touched:
            if self._fields[name].kind == "plain":
                self.agent.__dict__.pop(name, None)
        self._forget()
        self._undeclared(remove=True)
        self._forget_computed()
        self._forget_large()

    def _forget_large(self) -> None:
        for table in self._tables.values():
            table._forget()
        for buffer in self._buffers.values():
            buffer._forget()
