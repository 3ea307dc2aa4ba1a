"""What is due when: a heap of times by key, where a key has one time and may change it."""

from __future__ import annotations

import heapq

STALE_MIN = 64
"""Outdated heap items that are kept whatever the size: below it tidying costs more than it frees."""


class DueQueue:
    """Keys with times.  `put` and `drop` cost O(log n), `ready` O(k log n) for k keys that are due: never all of them.

    A key that gets another time leaves its old item in the heap, which is passed over when it comes up (its ticket is not the key's
    any more).  Such items are never more than those that count, and `STALE_MIN`.
    """

    __slots__ = ("_heap", "_live", "_tickets")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        self._live: dict[str, tuple[float, int]] = {}
        self._tickets = 0

    def __len__(self) -> int:
        return len(self._live)

    @property
    def heap_size(self) -> int:
        """With outdated items."""
        return len(self._heap)

    def __contains__(self, key: str) -> bool:
        return key in self._live

    def at(self, key: str) -> float | None:
        entry = self._live.get(key)
        return None if entry is None else entry[0]

    def put(self, key: str, time: float) -> None:
        self._tickets += 1
        self._live[key] = time, self._tickets
        heapq.heappush(self._heap, (time, self._tickets, key))
        self._tidy()

    def drop(self, key: str) -> None:
        """Nothing happens if the key is not there."""
        if self._live.pop(key, None) is not None:
            self._tidy()

    def next(self) -> float | None:
        """The earliest time; None: there is no key."""
        while self._heap and not self._counts(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def ready(self, now: float, most: int | None = None) -> list[str]:
        """Keys whose time has come, the longest due first, at most so many.  They stay."""
        due: list[tuple[float, int, str]] = []
        while self._heap and self._heap[0][0] <= now and (most is None or len(due) < most):
            item = heapq.heappop(self._heap)
            if self._counts(item):
                due.append(item)
        for item in due:
            heapq.heappush(self._heap, item)
        return [key for _, _, key in due]

    def _counts(self, item: tuple[float, int, str]) -> bool:
        return self._live.get(item[2]) == item[:2]

    def _tidy(self) -> None:
        if len(self._heap) > 2 * len(self._live) + STALE_MIN:
            self._heap = [(time, ticket, key) for key, (time, ticket) in self._live.items()]
            heapq.heapify(self._heap)
