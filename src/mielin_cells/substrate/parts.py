"""Data larger than one entry, as parts under a subject of its own.

Each part carries a frame that binds it to its subject and place, so that none can stand in for another.  Parts are
appended without a condition and mean nothing by themselves: a record elsewhere names them by their references.  A part
that was appended twice, or whose record never came, is rubbish to trim.
"""

from __future__ import annotations

import asyncio
import io
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

from blake3 import blake3

from mielin_cells.errors import (
    DigestMismatch,
    InternalError,
    PartMisplaced,
    PartMissing,
    RecordTruncated,
    TrailingData,
    UnsupportedFormat,
)
from mielin_cells.log.records import PartRef
from mielin_cells.substrate.ports import ENTRY_BYTES_MAX, Appended, Entry, Log, Unknown
from mielin_cells.substrate.retry import whole

PART_BYTES: Final = 256 * 1024
"""Payload of one part of plain data.  4 in flight keep a round trip busy; hashing one takes about 0.1 ms."""

IN_FLIGHT: Final = 4
READ_AHEAD: Final = 8
RETRY_S_MIN: Final = 0.02
RETRY_S_MAX: Final = 1.0

FORMAT_VERSION: Final = 1
_MAGIC: Final = b"mCp"
_HEAD: Final = struct.Struct(">3sB16sIBI")  # magic, version, place, index, goes on, payload bytes
_DIGEST_BYTES: Final = 32
FRAME_BYTES: Final = _HEAD.size + _DIGEST_BYTES
_PAYLOAD_MAX: Final = ENTRY_BYTES_MAX - FRAME_BYTES


async def put_parts(log: Log, subject: str, data: bytes | Iterable[bytes]) -> tuple[PartRef, ...]:
    """Appends `data` in parts, some at a time, and returns their references in order.

    `bytes` are cut into parts of `PART_BYTES`.  Of an iterable each item becomes one part (several, if it is larger than an
    entry can be), is asked for when its turn comes, and comes out of `iter_parts` as one item again.
    An unknown outcome is repeated until it is known.  Raises the log's errors; then parts may be left over.
    """
    items = _cut(data) if isinstance(data, bytes) else data
    refs: list[PartRef] = []
    appending: deque[asyncio.Task[PartRef]] = deque()
    try:
        for index, (payload, goes_on) in enumerate(_fitting(items)):
            if len(appending) == IN_FLIGHT:
                refs.append(await appending.popleft())
            frame, digest = _framed(subject, index, payload, goes_on=goes_on)
            appending.append(asyncio.create_task(_append(log, subject, frame, digest, len(payload))))
            await asyncio.sleep(0)
        while appending:
            refs.append(await appending[0])
            _ = appending.popleft()
    finally:
        for task in appending:
            task.cancel()
        await asyncio.gather(*appending, return_exceptions=True)
    return tuple(refs)


async def get_parts(log: Log, subject: str, refs: Sequence[PartRef]) -> bytes:
    """The data that `put_parts` was given, every part verified.  Raises as `iter_parts`."""
    buffer = io.BytesIO()  # gives its bytes away without another copy
    async for item in iter_parts(log, subject, refs):
        buffer.write(item)
    return buffer.getvalue()


async def iter_parts(log: Log, subject: str, refs: Sequence[PartRef]) -> AsyncIterator[bytes]:
    """One verified item after another, giving the event loop its turn between them.

    Raises `PartMissing`, `PartMisplaced` (of another subject, swapped or repeated), `RecordTruncated`, `TrailingData`,
    `DigestMismatch`, `UnsupportedFormat`; each with `subject`, `seq` and `part` as facts.
    """
    ahead: dict[int, bytes] = {}
    open_item: list[bytes] = []
    for index, ref in enumerate(refs):
        data = ahead.pop(ref.seq, None)
        if data is None:
            # The next ones are most often right behind it; what is not taken from `ahead` is read by itself.
            page = await log.read(subject, ref.seq - 1, min(READ_AHEAD, len(refs) - index))
            ahead = {entry.seq: entry.data for entry in page}
            data = ahead.pop(ref.seq, None)
        if data is None:
            raise PartMissing(
                f"Part {index} of {len(refs)} of {subject!r} is not at {ref.seq}: the record or snapshot cannot be loaded. "
                "Nothing was changed; an older snapshot may be whole.",
                subject=subject, seq=ref.seq, part=index,
            )  # fmt: skip
        payload, goes_on = await whole(log, subject, Entry(ref.seq, data), partial(_payload, subject, index, ref))
        open_item.append(payload)
        if not goes_on:
            yield b"".join(open_item)
            open_item.clear()
        await asyncio.sleep(0)
    if open_item:
        raise PartMissing(
            f"The references to {subject!r} end within an item: the last ones are missing. Nothing was changed.",
            subject=subject, seq=refs[-1].seq, part=len(refs),
        )  # fmt: skip


async def _append(log: Log, subject: str, frame: bytes, digest: bytes, size: int) -> PartRef:
    delay = RETRY_S_MIN
    while True:
        outcome = await log.append(subject, frame)
        if isinstance(outcome, Appended):
            return PartRef(outcome.seq, size, digest)
        if not isinstance(outcome, Unknown):
            raise InternalError(f"An append to {subject!r} without a condition was answered {outcome!r}.")
        await asyncio.sleep(delay)
        delay = min(2 * delay, RETRY_S_MAX)


def _cut(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PART_BYTES):
        yield data[start : start + PART_BYTES]


def _fitting(items: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Payloads that fit into an entry, and whether the item goes on in the next part."""
    for item in items:
        start = 0
        while len(item) - start > _PAYLOAD_MAX:
            yield item[start : start + _PAYLOAD_MAX], True
            start += _PAYLOAD_MAX
        yield item[start:] if start else item, False


# ---- the frame -----------------------------------------------------------------------------------------------


def _place(subject: str) -> bytes:
    return blake3(subject.encode()).digest(16)


def _framed(subject: str, index: int, payload: bytes, *, goes_on: bool) -> tuple[bytes, bytes]:
    head = _HEAD.pack(_MAGIC, FORMAT_VERSION, _place(subject), index, goes_on, len(payload))
    digest = blake3(head).update(payload).digest()
    return b"".join((head, digest, payload)), digest


def _payload(subject: str, index: int, ref: PartRef, data: bytes) -> tuple[bytes, bool]:
    """Verified from the outside in: frame, sizes, digest, place, and that it is the very part referred to."""
    facts = {"subject": subject, "seq": ref.seq, "part": index}
    where = f"Part {index} of {subject!r} at {ref.seq}"
    end = "Nothing was changed; an older snapshot may be whole."
    if len(data) < FRAME_BYTES:
        raise RecordTruncated(f"{where} has {len(data)} bytes, less than its frame of {FRAME_BYTES}. {end}", **facts)
    magic, version, place, number, goes_on, size = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != FORMAT_VERSION:
        have = f"{magic!r} {version}"
        raise UnsupportedFormat(
            f"{where} has the format {have}; this version reads {_MAGIC!r} {FORMAT_VERSION}. {end}",
            have=have, need=f"{_MAGIC!r} {FORMAT_VERSION}", **facts,
        )  # fmt: skip
    if len(data) != FRAME_BYTES + size:
        kind = RecordTruncated if len(data) < FRAME_BYTES + size else TrailingData
        raise kind(f"{where} has {len(data)} bytes; its frame says {FRAME_BYTES + size}. {end}", **facts)
    payload = data[FRAME_BYTES:]
    digest = data[_HEAD.size : FRAME_BYTES]
    if blake3(data[: _HEAD.size]).update(payload).digest() != digest:
        raise DigestMismatch(f"{where} does not match its digest; its bytes were changed. {end}", **facts)
    if place != _place(subject) or number != index or digest != ref.digest or size != ref.size:
        raise PartMisplaced(
            f"{where} is whole, but is not the part that belongs here (its own number is {number}). {end}", **facts
        )
    return payload, bool(goes_on)
