"""An agent as of one record of its log, to be read: what a shared handler and a watcher are given as `self`."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from mielin_cells.agents.agent import Agent
from mielin_cells.agents.buffer import Buffer
from mielin_cells.agents.spec import FieldSpec, Spec
from mielin_cells.agents.table import BoundTable
from mielin_cells.agents.values.changes import LOAD_ERRORS, reason
from mielin_cells.agents.values.exact import is_cached_property
from mielin_cells.agents.values.wire import encode
from mielin_cells.errors import ReadOnly, StateUnloadable
from mielin_cells.log.state import StoredState
from mielin_cells.log.stores import BufferStore, TableStore

K = TypeVar("K")
V = TypeVar("V")


class _NoTurn:
    """Owns a frozen agent: no turn is it, so every assignment comes to `Frozen.set`."""


class Frozen:
    """The state behind a frozen agent.  Fields are decoded when they are read."""

    __slots__ = ("_id", "_spec", "_state", "_values", "_what", "agent", "owner", "touched")

    def __init__(self, spec: Spec, state: StoredState, agent_id: str, what: str) -> None:
        """`state` must not change any more.  `what` names who reads, in errors."""
        self._spec = spec
        self._state = state
        self._id = agent_id
        self._what = what
        self.owner: Any = _NoTurn()
        self.touched: dict[str, None] = {}
        self.agent: Agent = object.__new__(spec.cls)
        self.agent.__dict__.update(__mielin_cell__=self, __mielin_id__=agent_id, __mielin_caller__=None)
        self._values = self.agent.__dict__

    def refuse(self, what: str) -> ReadOnly:
        return ReadOnly(
            f"{self._what} reads committed state of agent {self._id!r}, and {what}; nothing was changed. Write in a handler "
            "without shared=True.",
            agent=self._id,
        )  # fmt: skip

    def load(self, name: str) -> Any:
        """The value of a field, decoded at its first use."""
        values = self._values
        if name not in values:
            values[name] = self._bind(self._spec.fields[name])
        return values[name]

    copy = load

    def set(self, name: str, value: Any) -> None:
        raise self.refuse(f"may not set {name}")

    def _bind(self, field: FieldSpec) -> Any:
        state = self._state
        if field.kind == "table":
            store = state.tables.get(field.name) or TableStore()
            return _FrozenTable(self, field, store)
        if field.kind == "buffer":

            def write() -> bool:
                raise self.refuse(f"may not write {field.name}")

            return Buffer._bind(state.buffers.get(field.name) or BufferStore(), field.path, write)
        data = state.plain.get(field.name, field.default)
        try:
            if data is None:
                raise ValueError("nothing is stored and the field has no default")
            return field.codec.whole(data)
        except LOAD_ERRORS as error:
            raise StateUnloadable(
                f"The stored state of agent {self._id!r} does not load: {field.path}: {reason(None, error)}.",
                agent=self._id, path=field.path,
            ) from error  # fmt: skip

    def check(self) -> None:
        """Raises `ReadOnly` if a value was changed in place, or an attribute was set: that would be lost."""
        fields = self._spec.fields
        for name, value in self._values.items():
            field = fields.get(name)
            if field is None:
                if not name.startswith("_") and not is_cached_property(type(self.agent), name):
                    raise self.refuse(f"may not set {name}")
            elif field.kind == "table":
                if value._delta() is not None:
                    raise self.refuse(f"may not change a value of {name} in place")
            elif field.kind == "plain" and not field.codec.is_immutable:
                data = self._state.plain.get(name, field.default)
                if not field.codec.is_unchanged(value, self._encoded(name, value), data):
                    raise self.refuse(f"may not change {name} in place")

    def _encoded(self, name: str, value: Any) -> bytes:
        try:
            return encode(value)
        except LOAD_ERRORS as error:
            raise self.refuse(f"may not change {name} in place") from error


class _FrozenTable(BoundTable[K, V], Generic[K, V]):
    """Remembers the values that were read, as a turn's table does, so that a change in place shows."""

    __slots__ = ("_frozen",)

    def __init__(self, frozen: Frozen, field: FieldSpec, store: TableStore) -> None:
        self._frozen = frozen
        super().__init__(store, field.key_codec, field.codec, field.path, lambda: True)

    def _check_writable(self) -> None:
        raise self._frozen.refuse(f"may not write {self._path}")
