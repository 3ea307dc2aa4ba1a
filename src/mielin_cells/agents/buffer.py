"""`Buffer`: bytes in a state field, of which a commit carries only the changed pages."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import TypeAlias, overload

from mielin_cells.errors import NotInTurn
from mielin_cells.log.delta import BUFFER_BYTES_MAX, PAGE_BYTES, BufferDelta
from mielin_cells.log.stores import BufferStore

BytesLike: TypeAlias = bytes | bytearray | memoryview


class Buffer:
    """Bytes that can be large: a turn costs the pages of 16 KiB that it writes, not the size.

    It is read like `bytes`.  It is written by `b[i] = 7`; by `b[i:j] = data` with exactly `j - i` bytes, which may reach
    past the end; by `b[i:] = data`, which replaces everything from `i` on; and by `append`, `truncate` and `resize`.  A gap that
    growing leaves reads as zeros, and takes no memory.  Bytes are never shifted.  It holds at most 1 TiB.

    The buffer of an agent can be read at any time and written only in a turn (else `NotInTurn`).  As a field's value the content of
    a buffer that a user makes, `Buffer(b"...")`, is copied, and that buffer is not bound to the agent.

        >>> class Camera(cells.Agent):
        ...     frames: cells.Buffer
        ...
        ...     @cells.handler
        ...     async def add(self, frame: bytes) -> int:
        ...         self.frames.append(frame)
        ...         return len(self.frames)
        ...
        >>> camera = await cluster.spawn(Camera, "door")
        >>> await camera.add(b"one"), await camera.add(b"two")
        (3, 6)
    """

    _size: int | None  # None: as the store
    _low: int  # the smallest size in this turn: what the store has from here on is void
    _pages: dict[int, bytearray]  # pages written in this turn, as far as they were written

    __slots__ = ("_low", "_pages", "_path", "_size", "_store", "_writable")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, content: BytesLike = b"") -> None:
        self._store = BufferStore()  # stays empty unless bound: everything is in the overlay
        self._path = "Buffer"
        self._writable: Callable[[], bool] = lambda: True
        self._forget()
        self.append(content)

    @classmethod
    def _bind(cls, store: BufferStore, path: str, writable: Callable[[], bool]) -> Buffer:
        """The buffer of a field: reads `store`, and keeps what the turn writes beside it."""
        bound = cls()
        bound._store, bound._path, bound._writable = store, path, writable
        return bound

    def __len__(self) -> int:
        return self._store.size if self._size is None else self._size

    def __bytes__(self) -> bytes:
        return self._read(0, len(self))

    def __iter__(self) -> Iterator[int]:
        return iter(bytes(self))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (Buffer, bytes, bytearray, memoryview)):
            return bytes(self) == bytes(other)
        return NotImplemented

    def __repr__(self) -> str:
        return f"<Buffer of {len(self)} bytes>"

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> bytes: ...
    def __getitem__(self, index: int | slice) -> int | bytes:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError("a Buffer is read in steps of 1")
            return self._read(start, max(start, stop))
        start = self._at(index)
        return self._read(start, start + 1)[0]

    @overload
    def __setitem__(self, index: int, value: int) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: BytesLike) -> None: ...
    def __setitem__(self, index: int | slice, value: int | BytesLike) -> None:
        if isinstance(index, int) and isinstance(value, int):
            self._write(self._at(index), bytes((value,)))
        elif isinstance(index, slice) and isinstance(value, (bytes, bytearray, memoryview)):
            self._replace(index, bytes(value))
        else:
            raise TypeError("b[i] takes a number from 0 to 255, b[i:j] takes bytes")

    def append(self, data: BytesLike) -> None:
        """Adds the bytes at the end."""
        self._write(len(self), bytes(data))

    extend = append

    def truncate(self, size: int) -> None:
        """Cuts to at most `size` bytes; a shorter buffer stays as it is."""
        self.resize(min(operator.index(size), len(self)))

    def resize(self, size: int) -> None:
        """Cuts, or grows with zeros, to `size` bytes."""
        size = operator.index(size)  # of numpy's and others' whole numbers: a plain one, which a commit can hold
        self._check_writable(size)
        if size < len(self):
            whole, rest = divmod(size, PAGE_BYTES)
            for number in [number for number in self._pages if number >= whole]:
                if number == whole and rest:
                    del self._pages[number][rest:]
                else:
                    del self._pages[number]
            self._low = min(self._low, size)
        self._size = size

    # ---- a turn, as the class machinery drives it ----

    def _delta(self) -> BufferDelta | None:
        """The turn's changes to the store; None if there are none.  Does not change the store."""
        store, size = self._store, len(self)
        pages: dict[int, bytes] = {}
        for number, page in self._pages.items():
            data = bytes(page.rstrip(b"\0"))
            if data != self._stored(number):
                pages[number] = data
        low = self._low if self._low < min(size, store.size) else None
        return BufferDelta(size, pages, low) if pages or low is not None or size != store.size else None

    def _forget(self) -> None:
        """Drops what the turn wrote: it failed, or its delta is in the store."""
        self._size, self._low, self._pages = None, BUFFER_BYTES_MAX, {}

    # ---- pages ----

    def _at(self, index: int) -> int:
        size = len(self)
        index = operator.index(index)
        at = index + size if index < 0 else index
        if not 0 <= at < size:
            raise IndexError(f"index {index} is outside the {size} bytes of {self._path}")
        return at

    def _replace(self, index: slice, data: bytes) -> None:
        size = len(self)
        if index.step not in (None, 1):
            raise ValueError("a Buffer is written in steps of 1")
        start = _edge(index.start, size)
        if index.stop is None:
            end = start + len(data)
            self._check_writable(end)
            self._write(start, data)
            self.resize(end)
        elif max(stop := _edge(index.stop, size), start) - start == len(data):
            self._write(start, data)
        else:
            raise ValueError(f"{self._path}[{start}:{stop}] takes as many bytes as it spans, not {len(data)}")

    def _check_writable(self, size: int) -> None:
        if not self._writable():
            message = f"{self._path} is written only inside a turn; nothing was changed. Write it in a handler."
            raise NotInTurn(message, path=self._path)
        if not 0 <= size <= BUFFER_BYTES_MAX:
            raise ValueError(f"{self._path} cannot have {size} bytes: from 0 to {BUFFER_BYTES_MAX}")

    def _stored(self, number: int) -> bytes:
        page = self._store.stripped(number)
        return page if (number + 1) * PAGE_BYTES <= self._low else page[: max(self._low - number * PAGE_BYTES, 0)]

    def _page(self, number: int) -> bytearray:
        """The page, to be written."""
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = bytearray(self._stored(number))
        return page

    def _read(self, start: int, stop: int) -> bytes:
        parts: list[bytes] = []
        for number, low, high in _spans(start, stop):
            page = self._pages.get(number)
            part = bytes(page[low:high]) if page is not None else self._stored(number)[low:high]
            parts.append(part if len(part) == high - low else part.ljust(high - low, b"\0"))
        return b"".join(parts)

    def _write(self, start: int, data: bytes) -> None:
        stop = start + len(data)
        self._check_writable(stop)
        for number, low, high in _spans(start, stop):
            page = self._page(number)
            if len(page) < low:
                page.extend(bytes(low - len(page)))
            at = number * PAGE_BYTES - start
            page[low:high] = data[at + low : at + high]
        if data and stop > len(self):
            self._size = stop


def _edge(index: int | None, size: int) -> int:
    """Where a slice to be written begins or ends: past the end is kept, unlike in reading."""
    at = 0 if index is None else operator.index(index)
    return max(at + size, 0) if at < 0 else at


def _spans(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The pages of a range: number, and from where to where within the page."""
    while start < stop:
        number, low = divmod(start, PAGE_BYTES)
        high = min(PAGE_BYTES, low + stop - start)
        yield number, low, high
        start += high - low
