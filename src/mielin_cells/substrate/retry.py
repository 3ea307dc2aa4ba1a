"""Entries whose bytes do not read: damaged on their way to us, which another read mends, or where they are stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from mielin_cells.errors import RecordInvalid
from mielin_cells.settings import RETRY_S_MAX, RETRY_S_MIN
from mielin_cells.substrate.ports import Entry, Log

T = TypeVar("T")

READS = 8
SAME = 3
"""As many reads that bring the same bytes have brought what is stored."""


async def whole(log: Log, subject: str, entry: Entry, decode: Callable[[bytes], T]) -> T:
    """What `decode` makes of the entry.  If it raises a `RecordInvalid`, the entry is read again.

    Raises that of `decode` if the entry is damaged where it is stored, or is not there any more.
    """
    same, pause_s = 1, RETRY_S_MIN
    for _ in range(READS):
        try:
            return decode(entry.data)
        except RecordInvalid as error:
            failed = error
        entries = await log.read(subject, entry.seq - 1, 1)
        if not entries:  # a replica that is behind, or it was trimmed
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_S_MAX)
            continue
        if entries[0].seq != entry.seq:
            raise failed
        same = same + 1 if entries[0].data == entry.data else 1
        if same == SAME:
            raise failed
        entry = entries[0]
    return decode(entry.data)
