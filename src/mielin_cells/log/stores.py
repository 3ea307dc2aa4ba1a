"""Tables and buffers of an agent as they are stored, each with a digest that every change keeps up."""

from __future__ import annotations

from bisect import bisect_left

from blake3 import blake3

from mielin_cells.log.delta import PAGE_BYTES, BufferDelta, TableDelta, page_count
from mielin_cells.log.digest import DIGEST_BYTES, DigestTree

BUCKETS = 4096
"""Buckets of a table: a change hashes the digests of its bucket again, 25 at 100,000 keys, 80 KiB at 10 million."""


class _Bucket:
    """Entries of a table whose keys hash alike, and their digests, sorted and joined."""

    __slots__ = ("entries", "marks")

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.marks = bytearray()

    def copy(self) -> _Bucket:
        copied = _Bucket()
        copied.entries, copied.marks = dict(self.entries), bytearray(self.marks)
        return copied

    def find(self, mark: bytes) -> int:
        """Where `mark` is, or belongs, in `marks`."""
        marks, size = self.marks, DIGEST_BYTES
        places = range(0, len(marks), size)
        return size * bisect_left(places, mark, key=lambda at: bytes(marks[at : at + size]))


class TableStore:
    """Encoded key to encoded value, in buckets by the hash of the key.  Its digest covers the set of entries alone."""

    __slots__ = ("_buckets", "_count", "_dirty", "_shared", "_tree", "size_bytes")

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}  # empty buckets take no memory: most tables are small
        self._shared: set[int] | None = None
        """Buckets that a frozen copy has as well: one is copied before it is changed."""
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

    def frozen(self) -> TableStore:
        """A table with the entries of now, to be read only.  Costs the number of buckets, not of entries."""
        frozen = TableStore()
        frozen._buckets, frozen._count, frozen.size_bytes = dict(self._buckets), self._count, self.size_bytes
        self._shared = set(self._buckets)
        return frozen

    def _own(self, number: int, bucket: _Bucket) -> _Bucket:
        """The bucket, to be changed."""
        if self._shared is not None and number in self._shared:
            self._shared.discard(number)
            bucket = self._buckets[number] = bucket.copy()
        return bucket

    def set(self, key: bytes, value: bytes) -> None:
        number = self.bucket_of(key)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = _Bucket()
        old = bucket.entries.get(key)
        if old == value:
            return
        bucket = self._own(number, bucket)
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
        """Removes the key; a missing key changes nothing."""
        number = self.bucket_of(key)
        bucket = self._buckets.get(number)
        if bucket is None or key not in bucket.entries:
            return
        bucket = self._own(number, bucket)
        old = bucket.entries.pop(key)
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
        """The delta that makes this table equal to `other`.  Reads only the buckets that differ."""
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

    def frozen(self) -> BufferStore:
        """A buffer with the bytes of now, to be read only."""
        frozen = BufferStore()
        frozen._pages, frozen.size = dict(self._pages), self.size
        return frozen

    def page(self, number: int) -> bytes:
        """A page whole, the last one as long as the size says; b"" past the end."""
        return self.stripped(number).ljust(max(min(self.size - number * PAGE_BYTES, PAGE_BYTES), 0), b"\0")

    def stripped(self, number: int) -> bytes:
        """A page as it is stored: without the zeros at its end, so b"" if it is zero or past the end."""
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
        """The delta that makes this buffer equal to `other`."""
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
