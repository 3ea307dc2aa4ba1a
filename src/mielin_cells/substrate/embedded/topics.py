"""Topics, and attributes of agents, in the embedded store: one shard, in the order of the counter that all subjects share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mielin_cells.errors import CellError
from mielin_cells.log.ids import SCANNED
from mielin_cells.substrate.embedded.store import PAGE_ROWS, ROW, Store
from mielin_cells.substrate.patterns import Watch, glob_of, matcher
from mielin_cells.substrate.ports import Found, Outside


class TopicReads:
    """The part of the log that reads topics."""

    outside: Outside | None = None
    """In a file there are no streams of other systems."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seq = store.seq_max()
        self._watches: dict[Watch, None] = {}
        self._refusal: CellError | None = None

    async def topic_ends(self) -> tuple[int, ...]:
        """All subjects share one counter, and nothing is given a lower number later."""
        self._check()
        return (self._seq,)

    async def scan(self, pattern: str, shard: int, after: int = 0, limit: int = 1000) -> list[Found]:
        matches, glob = matcher(pattern), glob_of(pattern)
        found: list[Found] = []
        while len(found) < limit:
            self._check()
            page = self._store.scan(glob, after, min(limit - len(found), PAGE_ROWS))
            if not page:
                break
            after = page[-1].seq
            found += [one for one in page if matches(one.subject)]
            await asyncio.sleep(0)
        return found

    def watch(self, pattern: str, wake: Callable[[], None]) -> Watch:
        self._check()
        watch = Watch(pattern, wake, self._unwatch)
        self._watches[watch] = None
        return watch

    def _wake(self, rows: list[Any]) -> None:
        subjects = {subject for subject in rows[1::ROW] if subject.startswith(SCANNED)}
        for watch in tuple(self._watches) if subjects else ():
            if any(watch.matches(subject) for subject in subjects):
                watch.wake()

    def _unwatch(self, watch: Watch) -> None:
        self._watches.pop(watch, None)

    def _check(self) -> None:
        if self._refusal is not None:
            raise again(self._refusal)


def again(error: CellError) -> CellError:
    """A copy: one exception raised in many tasks would gather all their tracebacks."""
    return type(error)(error.message, **error.facts)
