"""The state of an agent as it is stored: encoded bytes by field, key and page, with a digest kept up by each change.

Nothing here knows classes or types: `StoredState` is what a log folds to, what a snapshot holds, what a move carries.
Deltas are absolute (they name values, not differences), so a delta that is applied twice, or over a state that already
holds later values, does no harm as long as all later deltas follow.  Fuzzy snapshots rest on that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

import msgspec
from blake3 import blake3

from mielin_cells.errors import StateUnloadable
from mielin_cells.log.digest import DIGEST_BYTES, DigestTree

BUCKETS = 4096
"""Buckets of a table: a change hashes the digests of its bucket again, 25 at 100,000 keys, 80 KiB at 10 million."""

PAGE_BYTES = 16 * 1024
"""Page of a buffer: hashed in about 3 us, and the least that a changed byte costs in a commit."""

BUFFER_BYTES_MAX = 1 << 40
"""A size above it is a damaged record or a slip, not a buffer."""

SLICE_BYTES = 128 * 1024
"""Slice of a snapshot: made and loaded in about a millisecond, and well below what a broker takes."""


class TableDelta(msgspec.Struct, array_like=True, frozen=True):
    """Keys of a table that were set and that were deleted, as encoded bytes.  An empty one makes an empty table."""

    sets: dict[bytes, bytes]
    dels: list[bytes]


class BufferDelta(msgspec.Struct, array_like=True, frozen=True):
    """The size of a buffer, and its changed pages whole; zero bytes at the end of a page may be left out."""

    size: int
    pages: dict[int, bytes]
    low: int | None = None
    """The smallest size in between, if it was below `size`: what was from there on is zero now, unless in `pages`."""

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


class _Piece(msgspec.Struct, array_like=True, frozen=True):
    """A part of a plain field that does not fit a slice.  Pieces of a field follow each other."""

    field: str
    start: int
    total: int
    data: bytes


class _Slice(msgspec.Struct, array_like=True, frozen=True):
    delta: StateDelta
    piece: _Piece | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode_delta = msgspec.msgpack.Decoder(StateDelta).decode
_decode_slice = msgspec.msgpack.Decoder(_Slice).decode

_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What decoding raises: also for text that is not UTF-8, and for what is nested too deeply."""


class _Bucket:
    """Entries of a table whose keys hash alike, and their digests, sorted and joined."""

    __slots__ = ("entries", "marks")

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.marks = bytearray()

    def find(self, mark: bytes) -> int:
        """Where `mark` is, or belongs, in `marks`."""
        marks, size = self.marks, DIGEST_BYTES
        places = range(0, len(marks), size)
        return size * bisect_left(places, mark, key=lambda at: bytes(marks[at : at + size]))


class TableStore:
    """Encoded key to encoded value, in buckets by the hash of the key.  Its digest covers the set of entries alone."""

    __slots__ = ("_buckets", "_count", "_dirty", "_tree", "size_bytes")

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}  # empty buckets take no memory: most tables are small
        self._dirty: set[int] = set()
        self._tree = DigestTree()
        self._count = 0
        self.size_bytes = 0

    @staticmethod
    def bucket_of(key: bytes) -> int:
        return int.from_bytes(blake3(key).digest(2), "little") % BUCKETS

    def __len__(self) -> int:
        return self._count

    def get(self, key: bytes, number: int | None = None) -> bytes | None:
        """The value under `key`, None if there is none.  `number` is its bucket, if the caller has it."""
        bucket = self._buckets.get(self.bucket_of(key) if number is None else number)
        return None if bucket is None else bucket.entries.get(key)

    def keys_in(self, number: int) -> list[bytes]:
        """The keys of a bucket, as a list of their own, in no order."""
        bucket = self._buckets.get(number)
        return [] if bucket is None else list(bucket.entries)

    def items_in(self, number: int) -> list[tuple[bytes, bytes]]:
        """The entries of a bucket, as a list of their own, in no order."""
        bucket = self._buckets.get(number)
        return [] if bucket is None else list(bucket.entries.items())

    def set(self, key: bytes, value: bytes) -> None:
        number = self.bucket_of(key)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = _Bucket()
        old = bucket.entries.get(key)
        if old == value:
            return
        if old is None:
            self._count += 1
            self.size_bytes += len(key) + len(value)
        else:
            self.size_bytes += len(value) - len(old)
            at = bucket.find(_mark(key, old))
            del bucket.marks[at : at + DIGEST_BYTES]
        bucket.entries[key] = value
        mark = _mark(key, value)
        at = bucket.find(mark)
        bucket.marks[at:at] = mark
        self._dirty.add(number)

    def delete(self, key: bytes) -> None:
        """Takes the key away; one that is not there changes nothing."""
        number = self.bucket_of(key)
        bucket = self._buckets.get(number)
        old = None if bucket is None else bucket.entries.pop(key, None)
        if bucket is None or old is None:
            return
        at = bucket.find(_mark(key, old))
        del bucket.marks[at : at + DIGEST_BYTES]
        self._count -= 1
        self.size_bytes -= len(key) + len(old)
        if not bucket.entries:
            del self._buckets[number]
        self._dirty.add(number)

    def apply(self, delta: TableDelta) -> None:
        for key in delta.dels:
            self.delete(key)
        for key, value in delta.sets.items():
            self.set(key, value)

    def delta_to(self, other: TableStore) -> TableDelta:
        """What makes this table equal to `other`.  Looks into the buckets that differ alone."""
        delta, nothing = TableDelta({}, []), _Bucket()
        for number in self._buckets.keys() | other._buckets.keys():
            mine, wanted = self._buckets.get(number, nothing), other._buckets.get(number, nothing)
            if mine.marks == wanted.marks:
                continue
            delta.dels.extend(key for key in mine.entries if key not in wanted.entries)
            delta.sets.update((key, value) for key, value in wanted.entries.items() if mine.entries.get(key) != value)
        return delta

    def digest(self) -> bytes:
        """32 bytes over all entries; costs what changed since the last call."""
        for number in self._dirty:
            bucket = self._buckets.get(number)
            self._tree.set(number, None if bucket is None else blake3(bucket.marks).digest())
        self._dirty.clear()
        return self._tree.root()


def _mark(key: bytes, value: bytes) -> bytes:
    """Digest of one entry; the key's length first, so that no byte can pass from key to value."""
    return blake3(len(key).to_bytes(8, "little") + key + value).digest()


class BufferStore:
    """Bytes in pages.  A page is kept without the zeros at its end, and not at all if it is zero: growing is free."""

    __slots__ = ("_pages", "_tree", "size")

    def __init__(self) -> None:
        self._pages: dict[int, bytes] = {}
        self._tree = DigestTree()
        self.size = 0

    def page(self, number: int) -> bytes:
        """A page whole, the last one as long as the size says; b"" past the end."""
        return self.stripped(number).ljust(max(min(self.size - number * PAGE_BYTES, PAGE_BYTES), 0), b"\0")

    def stripped(self, number: int) -> bytes:
        """A page as it is kept: without the zeros at its end, so b"" if it is zero or past the end."""
        return self._pages.get(number, b"")

    def pages_from(self, first: int) -> list[int]:
        """The numbers of the pages from `first` on that are not zero, in order."""
        if self.size <= first * PAGE_BYTES:
            return []
        wanted = range(first, page_count(self.size))
        if len(wanted) < len(self._pages):
            return [number for number in wanted if number in self._pages]
        return sorted(number for number in self._pages if number >= first)

    def apply(self, delta: BufferDelta) -> None:
        low = delta.size if delta.low is None else delta.low
        if low < self.size:
            self._cut(low)
        self.size = delta.size
        for number, page in delta.pages.items():
            self._set(number, page)

    def delta_to(self, other: BufferStore) -> BufferDelta:
        """What makes this buffer equal to `other`."""
        numbers = [number for number in self._pages.keys() | other._pages.keys() if number < page_count(other.size)]
        pages = {
            number: other.stripped(number) for number in numbers if self.stripped(number) != other.stripped(number)
        }
        return BufferDelta(other.size, pages)

    def digest(self) -> bytes:
        """32 bytes over size and content; costs what changed since the last call."""
        return blake3(self.size.to_bytes(8, "little") + self._tree.root()).digest()

    def _cut(self, size: int) -> None:
        whole, rest = divmod(size, PAGE_BYTES)
        for number in self.pages_from(whole):
            self._set(number, self._pages[number][:rest] if number == whole else b"")

    def _set(self, number: int, page: bytes) -> None:
        page = page.rstrip(b"\0")
        if page:
            self._pages[number] = page
            self._tree.set(number, blake3(page).digest())
        elif self._pages.pop(number, None) is not None:
            self._tree.set(number, None)


def page_count(size: int) -> int:
    return -(-size // PAGE_BYTES)


class StoredState:
    """Everything an agent keeps, as bytes.  Change it through `apply` alone: the digest follows what passes there."""

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
            _check(delta)
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
        """Takes new values of plain fields: what almost every turn does."""
        mine, leaves = self.plain, self._leaves
        for name, value in plain.items():
            if name not in mine:
                self._drop(name)
            mine[name] = value
            leaves.pop(name, None)
        self._digest = None

    def delta_to(self, other: StoredState) -> StateDelta:
        """What makes this state equal to `other`: for going back.  Costs a look at all of it, and the size of what differs."""
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
            self._digest = blake3(_encode(sorted(fields))).digest()
        return self._digest

    def slices(self, slice_bytes: int = SLICE_BYTES) -> Iterator[bytes]:
        """A snapshot in slices of at most `slice_bytes`, larger only where one key with its value, or one page, is.

        The state may change between two slices.  What is loaded from all of them then equals the state as of any later
        moment once every delta applied between the first slice and that moment is applied to it, in order.  An empty
        state has no slices.
        """
        packer = _Packer(slice_bytes)
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
        try:
            part = _decode_slice(data)
        except _UNREADABLE as error:
            message = f"A slice of a snapshot does not read ({error}); load another snapshot."
            raise StateUnloadable(message, path="") from error
        if part.piece is not None:
            self._check_piece(part.piece)
        self.apply(part.delta)
        if part.piece is not None:
            self._take_piece(part.piece)

    def encode_small(self) -> bytes:
        """The whole state as one blob: for a state that fits a record.  Costs its size."""
        return _encode(
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
        except _UNREADABLE as error:
            message = f"A stored state does not read ({error}); load an older snapshot."
            raise StateUnloadable(message, path="") from error
        state.apply(delta)
        return state

    def _drop(self, name: str) -> None:
        self.plain.pop(name, None)
        self._leaves.pop(name, None)
        self.tables.pop(name, None)
        self.buffers.pop(name, None)

    def _check_piece(self, piece: _Piece) -> None:
        have = len(self._pieces.get(piece.field, b""))
        if piece.start != have or not piece.data or have + len(piece.data) > piece.total:
            raise _unloadable(f"needs its piece at byte {have} and got one at {piece.start}", piece.field)

    def _take_piece(self, piece: _Piece) -> None:
        value = self._pieces.setdefault(piece.field, bytearray())
        value += piece.data
        if len(value) == piece.total:
            del self._pieces[piece.field]
            self.apply(StateDelta(plain={piece.field: bytes(value)}))


class _Packer:
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
            yield _encode(_Slice(delta))

    def _make_room(self, size: int) -> Iterator[bytes]:
        if self._used + size > self._room:
            yield from self.end()

    def plain(self, name: str, value: bytes) -> Iterator[bytes]:
        size = _field_bytes(name) + len(value)
        step = max(self._room - _field_bytes(name), self.PIECE_BYTES_MIN)
        if len(value) > step:
            yield from self.end()
            for start in range(0, len(value), step):  # all of one value, whatever the field becomes meanwhile
                piece = _Piece(name, start, len(value), value[start : start + step])
                yield _encode(_Slice(StateDelta(), piece))
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
    return _Packer.FIELD_BYTES + 4 * len(name)  # a character is at most 4 bytes of UTF-8


def _entries(table: TableStore) -> dict[bytes, bytes]:
    return {key: value for number in range(BUCKETS) for key, value in table.items_in(number)}


def _check(delta: StateDelta) -> None:
    """Raises `StateUnloadable` if the delta contradicts itself."""
    names = [*delta.plain, *delta.tables, *delta.buffers]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _unloadable("is of two kinds in one change", twice)
    for name, table in delta.tables.items():
        if table.dels and not table.sets.keys().isdisjoint(table.dels):
            raise _unloadable("has a key both set and deleted in one change", name)
    for name, buffer in delta.buffers.items():
        if not 0 <= buffer.size <= BUFFER_BYTES_MAX:
            raise _unloadable(f"has the size {buffer.size}, which is not from 0 to {BUFFER_BYTES_MAX}", name)
        if buffer.low is not None and not 0 <= buffer.low <= buffer.size:
            raise _unloadable(f"was cut to {buffer.low} bytes, which is not from 0 to {buffer.size}", name)
        for number, page in buffer.pages.items():
            if not 0 <= number < page_count(buffer.size):
                raise _unloadable(f"has a page {number}, outside its {buffer.size} bytes", name)
            if len(page) > min(PAGE_BYTES, buffer.size - number * PAGE_BYTES):
                raise _unloadable(f"has a page {number} of {len(page)} bytes, more than belong there", name)


def _unloadable(what: str, name: str) -> StateUnloadable:
    return StateUnloadable(f"Field {name!r} {what}; the stored state is not used. Load an older snapshot.", path=name)
