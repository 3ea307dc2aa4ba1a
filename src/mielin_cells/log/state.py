"""The state of an agent as it is stored: encoded bytes by field, key and page, with a digest that every change keeps up.

Nothing here knows classes or types: a log folds to a `StoredState`, a snapshot holds one, a move carries one.  A snapshot is made
and loaded in slices of about a millisecond each.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from blake3 import blake3

from mielin_cells.errors import StateUnloadable
from mielin_cells.log.codec import UNREADABLE, pack
from mielin_cells.log.delta import PAGE_BYTES, BufferDelta, StateDelta, TableDelta, unloadable
from mielin_cells.log.stores import BUCKETS, BufferStore, TableStore

SLICE_BYTES = 128 * 1024
"""Size of a slice: well below the largest message of a broker."""


class Piece(msgspec.Struct, array_like=True, frozen=True):
    """A part of a plain field that does not fit a slice.  Pieces of a field follow each other."""

    field: str
    start: int
    total: int
    data: bytes


class Slice(msgspec.Struct, array_like=True, frozen=True):
    delta: StateDelta
    piece: Piece | None = None


_slice = msgspec.msgpack.Decoder(Slice)


def decode_slice(data: bytes) -> Slice:
    try:
        return _slice.decode(data)
    except (*UNREADABLE, ValueError) as error:
        raise StateUnloadable(
            f"A slice of a snapshot cannot be read ({error}); load another snapshot.", path=""
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
            yield pack(Slice(delta))

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
                yield pack(Slice(StateDelta(), piece))
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


_decode_delta = msgspec.msgpack.Decoder(StateDelta).decode


class StoredState:
    """All state of an agent as bytes.  It is changed by `apply` alone, which updates the digest."""

    __slots__ = ("_digest", "_leaves", "_pieces", "buffers", "plain", "tables")

    def __init__(self) -> None:
        self.plain: dict[str, bytes] = {}
        self.tables: dict[str, TableStore] = {}
        self.buffers: dict[str, BufferStore] = {}
        self._leaves: dict[str, bytes] = {}  # digests of plain fields
        self._digest: bytes | None = None
        self._pieces: dict[str, bytearray] = {}  # plain fields whose last piece has not been loaded

    @property
    def size_bytes(self) -> int:
        """Bytes of all values and table keys; a buffer counts its size.  Depends on the content alone."""
        tables = sum(table.size_bytes for table in self.tables.values())
        return tables + sum(buffer.size for buffer in self.buffers.values()) + sum(map(len, self.plain.values()))

    def apply(self, delta: StateDelta) -> None:
        """Takes the delta in place.  A field that it names is made if there is none, and one of another kind gives way:
        over a fuzzy snapshot an old delta may meet a field that a later one has already replaced.

        Costs the bytes of the delta.  Raises `StateUnloadable`, with nothing changed, if the delta contradicts itself.
        """
        if delta.tables or delta.buffers:
            delta.check()
        for name in delta.removed:
            self._drop(name)
        self.put(delta.plain)
        for name, change in delta.tables.items():
            if name not in self.tables:
                self._drop(name)
                self.tables[name] = TableStore()
            self.tables[name].apply(change)
        for name, pages in delta.buffers.items():
            if name not in self.buffers:
                self._drop(name)
                self.buffers[name] = BufferStore()
            self.buffers[name].apply(pages)
        self._digest = None

    def put(self, plain: dict[str, bytes]) -> None:
        """Takes new values of plain fields, as almost every turn does."""
        mine, leaves = self.plain, self._leaves
        for name, value in plain.items():
            if name not in mine:
                self._drop(name)
            mine[name] = value
            leaves.pop(name, None)
        self._digest = None

    def frozen(self) -> StoredState:
        """The state of now, to be read only: what is applied to this one later does not change it.

        Costs the number of fields, of a table's buckets and of a buffer's pages: no value is copied.
        """
        frozen = StoredState()
        frozen.plain = dict(self.plain)
        frozen.tables = {name: table.frozen() for name, table in self.tables.items()}
        frozen.buffers = {name: buffer.frozen() for name, buffer in self.buffers.items()}
        return frozen

    def delta_to(self, other: StoredState) -> StateDelta:
        """The delta that makes this state equal to `other`, for an undo.  Reads all of both, and costs the size of the difference."""
        plain = {name: value for name, value in other.plain.items() if self.plain.get(name) != value}
        tables = {name: self.tables.get(name, TableStore()).delta_to(table) for name, table in other.tables.items()}
        buffers = {name: self.buffers.get(name, BufferStore()).delta_to(it) for name, it in other.buffers.items()}
        gone = [name for name in self.plain if name not in other.plain]
        gone += [name for name in self.tables if name not in other.tables]
        gone += [name for name in self.buffers if name not in other.buffers]
        return StateDelta(plain=plain, tables=tables, buffers=buffers, removed=gone)

    def digest(self) -> bytes:
        """32 bytes over names, kinds and content of all fields, as stored.  Costs what changed since the last call.

        A table without keys and a buffer without bytes count as no field: a class that gained one binds it to a stored
        state that lacks it, and no record has said so yet.
        """
        if self._digest is None:
            for name, value in self.plain.items():
                if name not in self._leaves:
                    self._leaves[name] = blake3(value).digest()
            fields = [(name, "plain", leaf) for name, leaf in self._leaves.items()]
            fields += [(name, "table", table.digest()) for name, table in self.tables.items() if len(table)]
            fields += [(name, "buffer", buffer.digest()) for name, buffer in self.buffers.items() if buffer.size]
            self._digest = blake3(pack(sorted(fields))).digest()
        return self._digest

    def slices(self, slice_bytes: int = SLICE_BYTES) -> Iterator[bytes]:
        """A snapshot in slices of at most `slice_bytes`, larger only where one key with its value, or one page, is.

        The state may change between two slices.  What is loaded from all of them then equals the state as of any later
        moment once every delta applied between the first slice and that moment is applied to it, in order.  An empty
        state has no slices.
        """
        packer = Packer(slice_bytes)
        # Names and kinds as of the first slice: what a field becomes later is in the deltas, and a slice has it once.
        plain, tables, buffers = list(self.plain), list(self.tables), list(self.buffers)
        for name in plain:
            value = self.plain.get(name)
            if value is not None:
                yield from packer.plain(name, value)
        for name in tables:
            table = self.tables.get(name)
            if table is None:
                continue
            yield from packer.entries(name, [])  # an empty table is a field too
            for number in range(BUCKETS):
                yield from packer.entries(name, table.items_in(number))
        for name in buffers:
            buffer = self.buffers.get(name)
            if buffer is None:
                continue
            yield from packer.page(name, buffer, None)
            for number in buffer.pages_from(0):
                yield from packer.page(name, buffer, number)
        yield from packer.end()

    def load_slice(self, data: bytes) -> None:
        """Takes one slice into a state that began empty and took the slices before it.

        Raises `StateUnloadable` for bytes that are no slice, or a piece of a field that is not the next one; nothing is
        changed then.  A missing, foreign or changed slice that reads well is seen by the digest alone: compare it.
        """
        part = decode_slice(data)
        if part.piece is not None:
            self._check_piece(part.piece)
        self.apply(part.delta)
        if part.piece is not None:
            self._take_piece(part.piece)

    def encode_small(self) -> bytes:
        """The whole state as one blob: for a state that fits a record.  Costs its size."""
        return pack(
            StateDelta(
                plain=self.plain,
                tables={name: TableDelta(_entries(table), []) for name, table in self.tables.items()},
                buffers={
                    name: BufferDelta(buffer.size, {number: buffer.stripped(number) for number in buffer.pages_from(0)})
                    for name, buffer in self.buffers.items()
                },
            )
        )

    @classmethod
    def decode_small(cls, data: bytes) -> StoredState:
        """The state of `encode_small`.  Raises `StateUnloadable`."""
        state = cls()
        try:
            delta = _decode_delta(data)
        except (*UNREADABLE, ValueError) as error:
            message = f"A stored state does not read ({error}); load an older snapshot."
            raise StateUnloadable(message, path="") from error
        state.apply(delta)
        return state

    def _drop(self, name: str) -> None:
        self.plain.pop(name, None)
        self._leaves.pop(name, None)
        self.tables.pop(name, None)
        self.buffers.pop(name, None)

    def _check_piece(self, piece: Piece) -> None:
        have = len(self._pieces.get(piece.field, b""))
        if piece.start != have or not piece.data or have + len(piece.data) > piece.total:
            raise unloadable(f"needs its piece at byte {have} and got one at {piece.start}", piece.field)

    def _take_piece(self, piece: Piece) -> None:
        value = self._pieces.setdefault(piece.field, bytearray())
        value += piece.data
        if len(value) == piece.total:
            del self._pieces[piece.field]
            self.apply(StateDelta(plain={piece.field: bytes(value)}))


def _entries(table: TableStore) -> dict[bytes, bytes]:
    return {key: value for number in range(BUCKETS) for key, value in table.items_in(number)}
