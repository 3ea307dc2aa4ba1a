"""Bytes that do not read are read again: only what is stored so is damaged."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mielin_cells.errors import RecordInvalid, StoreUnreachable
from mielin_cells.log.codec import framed, unframed
from mielin_cells.substrate import retry
from mielin_cells.substrate.ports import Entry
from mielin_cells.substrate.retry import whole

WHOLE = framed(b"said")


class Reads:
    """A log of one entry, that brings one answer after another, the last one again and again."""

    def __init__(self, *answers: Sequence[Entry]) -> None:
        self.answers = [list(answer) for answer in answers]
        self.asked = 0

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def read(log: Reads, data: bytes) -> bytes:
    return await whole(log, "log.a", Entry(7, data), lambda found: unframed(found, "It"))  # type: ignore[arg-type]


async def test_a_readable_entry_costs_no_second_read() -> None:
    log = Reads([])
    assert await read(log, WHOLE) == b"said"
    assert log.asked == 0


async def test_damage_on_the_way_is_mended_by_another_read() -> None:
    log = Reads([Entry(7, WHOLE[:9])], [], [Entry(7, WHOLE)])
    assert await read(log, WHOLE[:-1]) == b"said"


async def test_a_damaged_entry_is_reported_once_three_reads_agree() -> None:
    log = Reads([Entry(7, WHOLE[:-1])])
    with pytest.raises(RecordInvalid):
        await read(log, WHOLE[:-1])
    assert log.asked == retry.SAME - 1


async def test_a_damaged_entry_that_is_gone_is_reported_as_it_was_read() -> None:
    with pytest.raises(RecordInvalid):
        await read(Reads([Entry(9, WHOLE)]), WHOLE[:-1])


async def test_a_store_that_does_not_answer_is_not_taken_for_damage() -> None:
    class Away(Reads):
        async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
            raise StoreUnreachable("away")

    with pytest.raises(StoreUnreachable):
        await read(Away(), WHOLE[:-1])
