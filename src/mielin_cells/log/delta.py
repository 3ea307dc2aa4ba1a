"""Changes of a state as encoded bytes.

Deltas are absolute (they name values, not differences).  A delta that is applied twice, or over a state that already holds
later values, does no harm as long as all later deltas follow: fuzzy snapshots rest on that.
"""

from __future__ import annotations

from typing import Any

import msgspec
from blake3 import blake3

from mielin_cells.errors import StateUnloadable
from mielin_cells.log.codec import pack

PAGE_BYTES = 16 * 1024
"""Page of a buffer: hashed in about 3 us, and the least that a changed byte costs in a commit."""

BUFFER_BYTES_MAX = 1 << 40
"""Largest size of a buffer; a larger one is a damaged record or a mistake."""


class TableDelta(msgspec.Struct, array_like=True, frozen=True):
    """Keys of a table that were set and that were deleted, as encoded bytes.  An empty one makes an empty table."""

    sets: dict[bytes, bytes]
    dels: list[bytes]

    def then(self, later: TableDelta) -> TableDelta:
        """One delta with the effect of this one and a later one."""
        sets, dels = {**self.sets, **later.sets}, dict.fromkeys([*self.dels, *later.dels])
        for key in later.dels:
            sets.pop(key, None)
        for key in later.sets:
            dels.pop(key, None)
        return TableDelta(sets, list(dels))


class BufferDelta(msgspec.Struct, array_like=True, frozen=True):
    """The size of a buffer, and its changed pages whole; zero bytes at the end of a page may be left out."""

    size: int
    pages: dict[int, bytes]
    low: int | None = None
    """The smallest size in between, if it was below `size`: bytes from there on are zero now, unless they are in `pages`."""

    def then(self, later: BufferDelta) -> BufferDelta:
        """One delta with the effect of this one and a later one."""
        cut = later.size if later.low is None else later.low
        whole, rest = divmod(cut, PAGE_BYTES)
        pages = {number: page for number, page in self.pages.items() if number < whole}
        if whole in self.pages and rest:
            pages[whole] = self.pages[whole][:rest]
        low = min(cut, self.size if self.low is None else self.low)
        return BufferDelta(later.size, {**pages, **later.pages}, low if low < later.size else None)


class StateDelta(msgspec.Struct, array_like=True, frozen=True):
    """What changed in a state.  `removed` fields are dropped first, so that a field named in both starts anew."""

    plain: dict[str, bytes] = {}
    tables: dict[str, TableDelta] = {}
    buffers: dict[str, BufferDelta] = {}
    removed: list[str] = []

    def then(self, later: StateDelta) -> StateDelta:
        """One delta with the effect of this one and a later one."""
        gone = set(later.removed)
        plain = {name: value for name, value in self.plain.items() if name not in gone}
        tables = {name: table for name, table in self.tables.items() if name not in gone}
        buffers = {name: buffer for name, buffer in self.buffers.items() if name not in gone}
        for name, table in later.tables.items():
            tables[name] = tables[name].then(table) if name in tables else table
        for name, buffer in later.buffers.items():
            buffers[name] = buffers[name].then(buffer) if name in buffers else buffer
        removed = list(dict.fromkeys([*self.removed, *later.removed]))
        return StateDelta(plain={**plain, **later.plain}, tables=tables, buffers=buffers, removed=removed)

    def check(self) -> None:
        """Raises `StateUnloadable` if the delta contradicts itself."""
        names = [*self.plain, *self.tables, *self.buffers]
        if len(set(names)) != len(names):
            raise unloadable("is of two kinds in one change", next(name for name in names if names.count(name) > 1))
        for name, table in self.tables.items():
            if table.dels and not table.sets.keys().isdisjoint(table.dels):
                raise unloadable("has a key both set and deleted in one change", name)
        for name, buffer in self.buffers.items():
            if not 0 <= buffer.size <= BUFFER_BYTES_MAX:
                raise unloadable(f"has the size {buffer.size}, which is not from 0 to {BUFFER_BYTES_MAX}", name)
            if buffer.low is not None and not 0 <= buffer.low <= buffer.size:
                raise unloadable(f"was cut to {buffer.low} bytes, which is not from 0 to {buffer.size}", name)
            for number, page in buffer.pages.items():
                if not 0 <= number < page_count(buffer.size):
                    raise unloadable(f"has a page {number}, outside its {buffer.size} bytes", name)
                if len(page) > min(PAGE_BYTES, buffer.size - number * PAGE_BYTES):
                    raise unloadable(f"has a page {number} of {len(page)} bytes, more than belong there", name)


def page_count(size: int) -> int:
    return -(-size // PAGE_BYTES)


def unloadable(what: str, name: str) -> StateUnloadable:
    return StateUnloadable(f"Field {name!r} {what}; the stored state is not used. Load an older snapshot.", path=name)


_decode = msgspec.msgpack.Decoder().decode


def born(state: StateDelta) -> bytes:
    """16 bytes over an initial state, regardless of order inside a field, because the order of a set differs by process."""
    fields = [(name, _unordered(_decode(data))) for name, data in state.plain.items()]
    for name, table in state.tables.items():
        fields.append((name, b"".join(sorted(_pair(key, value) for key, value in table.sets.items()))))
    for name, buffer in state.buffers.items():
        fields.append((name, pack((buffer.size, sorted(buffer.pages.items())))))
    return blake3(pack(sorted(fields))).digest(16)


def _pair(key: bytes, value: bytes) -> bytes:
    return blake3(pack((key, value))).digest(16)


def _unordered(value: Any) -> bytes:
    if isinstance(value, (list, tuple)):
        parts = sorted(_unordered(item) for item in value)
    elif isinstance(value, dict):
        parts = sorted(_unordered(key) + _unordered(item) for key, item in value.items())
    else:
        return blake3(pack(value)).digest(16)
    return blake3(pack((type(value).__name__, parts))).digest(16)
