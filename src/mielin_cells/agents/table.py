"""`Table`: a mapping in a state field, of which a commit carries only the changed keys."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, MutableMapping, ValuesView
from typing import Any, TypeVar

import msgspec

from mielin_cells.agents.values.changes import reason, shown
from mielin_cells.agents.values.codec import Codec
from mielin_cells.agents.values.wire import encode
from mielin_cells.errors import NotInTurn, StateInvalid, StateUnloadable, never
from mielin_cells.log.delta import TableDelta
from mielin_cells.log.stores import BUCKETS, TableStore

K = TypeVar("K")
V = TypeVar("V")

_NAME_CHARS = 60
"""How many bytes of a key that does not load are shown."""

_UNFIT = (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, msgspec.MsgspecError)
"""Exceptions of codecs for a key that is not of the declared type."""


class Table(MutableMapping[K, V]):
    """A mapping that can be large: a turn costs the keys that it touches, not the size.

    It works like a `dict`, with these differences.  Values are stored as bytes and decoded on use.  A value that a turn has
    read or assigned may be changed in place until the turn ends; later changes to it are lost, so do not keep a value from turn to
    turn.  The order of iteration depends on the keys alone: it is the same on every node, and not the order of insertion.
    Keys may be set and deleted during iteration: a deleted key does not come up any more, a new one may or may not.
    A key or value that would not load again raises `StateInvalid` where it is assigned; if it was changed in place, at the end of
    the turn, which is undone.

    The table of an agent can be read at any time and written only in a turn (else `NotInTurn`).  A table that a user makes,
    `Table({"a": 1})`, is a plain mapping.  As a field's value its content is copied, and it is not bound to the agent.

        >>> class Museum(cells.Agent):
        ...     visits: cells.Table[str, list[int]]
        ...
        ...     @cells.handler
        ...     async def visit(self, who: str, day: int) -> int:
        ...         self.visits.setdefault(who, []).append(day)
        ...         return len(self.visits[who])
        ...
        >>> museum = await cluster.spawn(Museum, "museum")
        >>> await museum.visit("anna", 1), await museum.visit("anna", 5)
        (1, 2)
    """

    __slots__ = ("_content",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, content: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        self._content: dict[K, V] = dict(content)

    def __getitem__(self, key: K) -> V:
        return self._content[key]

    def __setitem__(self, key: K, value: V) -> None:
        self._content[key] = value

    def __delitem__(self, key: K) -> None:
        del self._content[key]

    def __contains__(self, key: object) -> bool:
        return key in self._content

    def __iter__(self) -> Iterator[K]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def __repr__(self) -> str:
        return f"<Table of {len(self)} keys>"


class _Entry:
    """A key that the turn touched: its bytes as last checked (None: deleted), and the value in the turn's hands."""

    __slots__ = ("data", "value")

    def __init__(self, data: bytes | None, value: Any) -> None:
        self.data = data
        self.value = value


class BoundTable(Table[K, V]):
    """The table of a field: reads `store`, and keeps what the turn touches beside it."""

    __slots__ = ("_grown", "_keys", "_path", "_store", "_touched", "_values", "_writable")

    def __init__(self, store: TableStore, keys: Codec, values: Codec, path: str, writable: Callable[[], bool]) -> None:
        super().__init__()
        self._store = store
        self._keys = keys
        self._values = values
        self._path = path
        self._writable = writable
        self._forget()

    def __getitem__(self, key: K) -> V:
        data = self._find_key(key)
        if data is None:
            raise KeyError(key)
        number = self._store.bucket_of(data)
        if not self._has(data, number):
            raise KeyError(key)
        return self._value(data, number)

    def __setitem__(self, key: K, value: V) -> None:
        self._check_writable()
        data = self._new_key(key)
        self._put(data, _Entry(self._checked(value, data), value))

    def __delitem__(self, key: K) -> None:
        self._check_writable()
        data = self._find_key(key)
        if data is None or not self._has(data, number := self._store.bucket_of(data)):
            raise KeyError(key)
        self._delete(data, number)

    def __contains__(self, key: object) -> bool:
        data = self._find_key(key)
        return data is not None and self._has(data, self._store.bucket_of(data))

    def __iter__(self) -> Iterator[K]:
        for data, _ in self._walk():
            yield self._load_key(data)

    def __len__(self) -> int:
        return len(self._store) + self._grown

    def values(self) -> ValuesView[V]:
        return _Values(self)

    def items(self) -> ItemsView[K, V]:
        return _Items(self)

    def clear(self) -> None:
        self._check_writable()
        for data, number in self._walk():
            self._delete(data, number)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """As `dict.update`, but all or nothing: a key or value that is refused leaves the table as it was."""
        self._check_writable()
        for data, entry in self._new(dict(*args, **kwargs)):
            self._put(data, entry)

    def _replace(self, content: Any) -> None:
        """Replaces the whole content, or raises and leaves the table as it was."""
        entries = self._new(dict(content))
        self.clear()
        for data, entry in entries:
            self._put(data, entry)

    def popitem(self) -> tuple[K, V]:
        """Removes the first key in the order of iteration, and returns it with its value."""
        self._check_writable()
        for data, number in self._walk():
            item = self._load_key(data), self._value(data, number)
            self._delete(data, number)
            return item
        raise KeyError(f"{self._path} is empty")

    # ---- turn ----

    def _delta(self) -> TableDelta | None:
        """What the turn changed against the store, None for nothing.  Leaves the store as it is.

        Raises `StateInvalid`, naming field and key, for a value that was changed in place and would not load again.
        """
        sets: dict[bytes, bytes] = {}
        dels: list[bytes] = []
        for number, entries in self._touched.items():
            for key, entry in entries.items():
                old = self._store.get(key, number)
                if entry.data is None:
                    if old is not None:
                        dels.append(key)
                    continue
                if not self._values.is_immutable:
                    entry.data = self._checked(entry.value, key, entry.data)
                if entry.data != old:
                    sets[key] = entry.data
        return TableDelta(sets, dels) if sets or dels else None

    def _forget(self) -> None:
        """Drops what the turn wrote and was given: it failed, or its delta is in the store."""
        self._touched: dict[int, dict[bytes, _Entry]] = {}  # by bucket, as the store
        self._grown = 0

    # ---- entries ----

    def _has(self, key: bytes, number: int) -> bool:
        entry = self._touched[number].get(key) if number in self._touched else None
        return self._store.get(key, number) is not None if entry is None else entry.data is not None

    def _value(self, key: bytes, number: int) -> V:
        """The value of a key that exists; it is remembered if the turn could change it in place."""
        entry = self._touched[number].get(key) if number in self._touched else None
        if entry is None:
            data = self._store.get(key, number)
        elif self._values.is_immutable or self._writable():
            remembered: V = entry.value
            return remembered
        else:  # somebody outside of the turn gets a copy
            data = entry.data
        if data is None:
            raise never("a key of a table has no value")
        try:
            value: V = self._values.whole(data)
        except Exception as error:  # a codec hook may raise anything
            raise self._unloadable(key, error) from error
        if entry is None and not self._values.is_immutable and self._writable():
            self._touched.setdefault(number, {})[key] = _Entry(data, value)
        return value

    def _put(self, data: bytes, entry: _Entry) -> None:
        number = self._store.bucket_of(data)
        if not self._has(data, number):
            self._grown += 1
        self._touched.setdefault(number, {})[data] = entry

    def _new(self, content: dict[K, V]) -> list[tuple[bytes, _Entry]]:
        entries: list[tuple[bytes, _Entry]] = []
        for key, value in content.items():
            data = self._new_key(key)
            entries.append((data, _Entry(self._checked(value, data), value)))
        return entries

    def _delete(self, key: bytes, number: int) -> None:
        self._touched.setdefault(number, {})[key] = _Entry(None, None)
        self._grown -= 1

    def _walk(self) -> Iterator[tuple[bytes, int]]:
        """Keys, bucket by bucket and sorted in each.  A key that was deleted meanwhile is left out."""
        for number in range(BUCKETS):
            keys = self._store.keys_in(number)
            if number in self._touched:
                keys = list({*keys, *self._touched[number]})
            for key in sorted(keys):
                if self._has(key, number):
                    yield key, number

    # ---- codecs ----

    def _find_key(self, key: object) -> bytes | None:
        """The bytes under which `key` would be stored; None if it cannot be a key of this table."""
        try:
            return self._coded(key)
        except _UNFIT:  # as in a dict, where a key of another type is only not there
            return None

    def _new_key(self, key: K) -> bytes:
        try:
            return encode(self._keys.keep(key)[1])
        except Exception as error:
            where = reason(key, error)
            message = f"{self._path} cannot have the key {shown(key)}: {where}. Use a key of the declared type."
            raise StateInvalid(message, path=f"{self._path}[{shown(key)}]") from error

    def _coded(self, key: Any) -> bytes:
        """The bytes of a key.  Keys that load alike, such as 1 and 1.0 in a `Table[float, V]`, have the same bytes."""
        data = encode(key)
        return data if self._keys.is_proved(key) else encode(self._keys.decode(data))

    def _load_key(self, key: bytes) -> K:
        try:
            loaded: K = self._keys.decode(key)
        except Exception as error:
            raise self._unloadable(key, error) from error
        return loaded

    def _checked(self, value: V, key: bytes, known: bytes | None = None) -> bytes:
        """The bytes of a value.  They load as the value, which is checked unless they are the `known` ones."""
        try:
            data = encode(value)
            if known is not None and self._values.is_unchanged(value, data, known):
                return known
            return self._values.settle(value, data)[0]
        except Exception as error:
            path = f"{self._path}[{shown(self._load_key(key))}]"
            message = f"{path}: {reason(value, error)}. It was not stored; use a value of the declared type."
            raise StateInvalid(message, path=path) from error

    def _unloadable(self, key: bytes, error: Exception) -> StateUnloadable:
        path = f"{self._path}[{key[:_NAME_CHARS]!r}]"
        message = f"{path} does not load: {reason(None, error)}. Add an upgrade to the class or restore the old type."
        return StateUnloadable(message, path=path)

    def _check_writable(self) -> None:
        if not self._writable():
            message = f"{self._path} is written only inside a turn; nothing was changed. Write it in a handler."
            raise NotInTurn(message, path=self._path)


class _Values(ValuesView[V]):
    _mapping: BoundTable[Any, V]

    def __iter__(self) -> Iterator[V]:
        for data, number in self._mapping._walk():
            yield self._mapping._value(data, number)


class _Items(ItemsView[K, V]):
    _mapping: BoundTable[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        for data, number in self._mapping._walk():
            yield self._mapping._load_key(data), self._mapping._value(data, number)
