"""The deployment's secret, as it is read: damage on the way is no damage in the store."""

from __future__ import annotations

from typing import Any

import pytest

from mielin_cells.errors import RecordInvalid
from mielin_cells.log.ids import SECRET
from mielin_cells.store.secret import Secret
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Entry


class Torn:
    """A log whose first looks bring bytes that are cut short."""

    def __init__(self, log: Any, count: int) -> None:
        self._log = log
        self.count = count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def last(self, subject: str) -> Entry | None:
        return self._torn(await self._log.last(subject))

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        return [self._torn(one) for one in await self._log.read(subject, after, limit)]

    def _torn(self, entry: Entry) -> Entry:
        self.count -= 1
        return entry._replace(data=entry.data[: 10 + self.count]) if self.count >= 0 else entry


async def test_a_secret_that_is_damaged_on_its_way_is_read_again() -> None:
    """Else the handler that opened the first wait of a node failed (seed 2100017)."""
    store = await Embedded.open()
    secret = await Secret(store.log).get()
    torn: Any = Torn(store.log, 3)
    assert await Secret(torn).get() == secret
    assert torn.count < 0
    await store.close()


async def test_a_secret_that_is_damaged_where_it_is_stored_is_an_error() -> None:
    store = await Embedded.open()
    await store.log.append(SECRET, b"no secret", 0)
    with pytest.raises(RecordInvalid):
        await Secret(store.log).get()
    await store.close()
