"""When a stream of another system is looked at again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from mielin_cells.log.topics.outside import check_outside
from mielin_cells.store.outside import Waking


class Hint:
    is_closed = False

    def close(self) -> None:
        self.is_closed = True


class Hinting:
    """Keeps what it was asked for."""

    def __init__(self) -> None:
        self.hints = list[tuple[Hint, Callable[[], None]]]()

    async def watch(self, stream: str, pattern: str, wake: Callable[[], None]) -> Hint:
        self.hints.append((Hint(), wake))
        return self.hints[-1][0]


async def test_a_hint_that_is_heard_of_twice_leaves_no_later_one_open() -> None:
    """Seed 62000285: the second word of the first hint made the next one be forgotten, and it stayed open for ever."""
    outside, woken = Hinting(), list[int]()
    waking = Waking(cast(Any, outside), check_outside("ORDERS", "orders.*"), 1.0, lambda: woken.append(1))
    await waking.listen()
    _, heard = outside.hints[0]
    heard()
    await waking.listen()
    heard()
    await waking.listen()
    waking.close()
    assert [hint.is_closed for hint, _ in outside.hints] == [True] * 3
    assert len(woken) == 2
