"""A snapshot in slices: what fits one entry of the store, made and loaded in about a millisecond each."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from mielin_cells.errors import StateUnloadable
from mielin_cells.log.codec import UNREADABLE
from mielin_cells.log.delta import PAGE_BYTES, BufferDelta, StateDelta, TableDelta
from mielin_cells.log.stores import BufferStore

SLICE_BYTES = 128 * 1024
"""Well below what a broker takes."""


class Piece(msgspec.Struct, array_like=True, frozen=True):
    """A part of a plain field that does not fit a slice.  Pieces of a field follow each other."""

    field: str
    start: int
    total: int
    data: bytes


class Slice(msgspec.Struct, array_like=True, frozen=True):
    delta: StateDelta
    piece: Piece | None = None


_encode = msgspec.msgpack.Encoder().encode
_slice = msgspec.msgpack.Decoder(Slice)


def decode_slice(data: bytes) -> Slice:
    try:
        return _slice.decode(data)
    except (*UNREADABLE, ValueError) as error:
        raise StateUnloadable(
            f"A slice of a snapshot does not read ({error}); load another snapshot.", path=""
        ) from error


class Packer:
    """Collects entries up to a slice.  An entry may be older than the last slice given, never older than the first."""

    ENTRY_BYTES = 10  # two msgpack headers of 5 bytes
    PIECE_BYTES_MIN = 64
    FIELD_BYTES = 40  # a field's name and shape, beside the name itself

    def __init__(self, slice_bytes: int) -> None:
        self._room = max(slice_bytes - self.FIELD_BYTES, 1)
        self._start()

    def _start(self) -> None:
        self._used = 0
        self._plain: dict[str, bytes] = {}
        self._tables: dict[str, TableDelta] = {}
        self._buffers: dict[str, BufferDelta] = {}

    def end(self) -> Iterator[bytes]:
        if self._used:
            delta = StateDelta(plain=self._plain, tables=self._tables, buffers=self._buffers)
            self._start()
            yield _encode(Slice(delta))

    def _make_room(self, size: int) -> Iterator[bytes]:
        if self._used + size > self._room:
            yield from self.end()

    def plain(self, name: str, value: bytes) -> Iterator[bytes]:
        size = _field_bytes(name) + len(value)
        step = max(self._room - _field_bytes(name), self.PIECE_BYTES_MIN)
        if len(value) > step:
            yield from self.end()
            for start in range(0, len(value), step):  # all of one value, whatever the field becomes meanwhile
                piece = Piece(name, start, len(value), value[start : start + step])
                yield _encode(Slice(StateDelta(), piece))
            return
        yield from self._make_room(size)
        self._plain[name] = value
        self._used += size

    def entries(self, name: str, entries: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
        if not entries and name not in self._tables:
            yield from self._make_room(_field_bytes(name))
            self._table(name)
        for key, value in entries:
            size = len(key) + len(value) + self.ENTRY_BYTES
            yield from self._make_room(size + (0 if name in self._tables else _field_bytes(name)))
            self._table(name).sets[key] = value
            self._used += size

    def _table(self, name: str) -> TableDelta:
        if name not in self._tables:
            self._tables[name] = TableDelta({}, [])
            self._used += _field_bytes(name)
        return self._tables[name]

    def page(self, name: str, buffer: BufferStore, number: int | None) -> Iterator[bytes]:
        size = _field_bytes(name) + PAGE_BYTES + self.ENTRY_BYTES
        yield from self._make_room(size if number is not None else _field_bytes(name))
        if name not in self._buffers:
            self._buffers[name] = BufferDelta(buffer.size, {})
            self._used += _field_bytes(name)
        if number is not None and (page := buffer.stripped(number)):  # the caller may have cut it while we made room
            self._buffers[name].pages[number] = page
            self._used += len(page) + self.ENTRY_BYTES


def _field_bytes(name: str) -> int:
    return Packer.FIELD_BYTES + 4 * len(name)  # a character is at most 4 bytes of UTF-8
