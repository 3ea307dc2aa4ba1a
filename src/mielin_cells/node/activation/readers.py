"""The committed state of an agent that runs here, for reads beside its turns (shared handlers).

The state in memory may be ahead of the log by turns whose commit is not acknowledged.  What a read is given is never ahead: either
nothing is ahead now, or the state is set aside when the next commit is composed, and given once that commit is in the log.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from mielin_cells.errors import Fenced
from mielin_cells.log.state import StoredState

if TYPE_CHECKING:
    from mielin_cells.log.fold import Fold
    from mielin_cells.log.turns.batch import Batch


class Committed(NamedTuple):
    """The state of an agent as of the record `revision` of its log.  It does not change any more."""

    revision: int
    state: StoredState


class Readers:
    """Who waits for the committed state of one agent."""

    __slots__ = ("_fold", "_frozen", "_sealed", "_waiting")

    def __init__(self, fold: Fold) -> None:
        self._fold = fold
        self._waiting: list[asyncio.Future[Committed]] = []
        self._sealed: list[asyncio.Future[Committed]] = []
        """Those who are given the state of the commit that is being appended."""
        self._frozen: StoredState | None = None
        """That state."""

    async def committed(self, *batches: Batch | None) -> Committed:
        """The state as of the last acknowledged record.  `batches` are the ones that no acknowledged record holds.

        Raises `Fenced` if this node ceases to run the agent meanwhile.
        """
        if not is_ahead(*batches):
            return Committed(self._fold.seq, self._fold.state.frozen())
        future: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return await future

    def sealed(self) -> None:
        """A commit has been composed of all that has run: the state is the one of that record."""
        if self._waiting:
            self._sealed.extend(self._waiting)
            self._waiting.clear()
            self._frozen = self._fold.state.frozen()

    def acknowledged(self, *batches: Batch | None) -> None:
        """That commit is in the log.  `batches` are those that follow it."""
        frozen, self._frozen = self._frozen, None
        if frozen is not None:
            _give(self._sealed, Committed(self._fold.seq, frozen))
        if self._waiting and not is_ahead(*batches):
            _give(self._waiting, Committed(self._fold.seq, self._fold.state.frozen()))

    def unsealed(self) -> None:
        """That commit is not in the log, and will be composed anew."""
        self._waiting.extend(self._sealed)
        self._sealed.clear()
        self._frozen = None

    def close(self) -> None:
        agent = self._fold.agent
        for future in (*self._waiting, *self._sealed):
            if not future.done():
                future.set_exception(Fenced(f"This node no longer runs agent {agent!r}; read again.", agent=agent))
        self._waiting.clear()
        self._sealed.clear()


def is_ahead(*batches: Batch | None) -> bool:
    """True if one of them changes the state."""
    return any(batch is not None and batch.delta is not None for batch in batches)


def _give(futures: list[asyncio.Future[Committed]], committed: Committed) -> None:
    for future in futures:
        if not future.done():
            future.set_result(committed)
    futures.clear()
