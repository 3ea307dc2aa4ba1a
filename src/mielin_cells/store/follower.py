"""Following an agent's log: a fold that is kept at the log's end while records are appended."""

from __future__ import annotations

from collections import deque

from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import AnyRecord
from mielin_cells.store.reader import add_to, next_record
from mielin_cells.substrate.ports import Entry, Log


class LogFollower:
    """Folds what follows in the log, one record for each `next`.

    A standby copy, the copy of a move's target and its source each follow a log with one.  Once `detach` has handed the fold over, the
    follower never writes to it again, whatever it was reading.
    """

    __slots__ = ("_entries", "_is_closed", "_log", "_tail", "fold", "size")

    def __init__(self, log: Log, fold: Fold) -> None:
        self.fold = fold
        self.size = 0
        """Bytes of the record that `next` gave last."""
        self._is_closed = False
        self._log = log
        self._tail = log.tail(log_subject(fold.agent), fold.seq)
        self._entries = deque[Entry]()

    @property
    def has_more(self) -> bool:
        """True while entries that have arrived are still to be folded."""
        return bool(self._entries)

    async def next(self) -> AnyRecord | None:
        """The next record, folded; None once the follower or its log is closed.  Raises what makes a record unusable."""
        while not self._has_ended():
            if not self._entries:
                try:
                    self._entries.extend(await anext(self._tail))
                except StopAsyncIteration:
                    self.close()
                continue
            entry = self._entries.popleft()
            if entry.seq <= self.fold.seq:  # folded already, by the owner that appended it
                continue
            record = await next_record(self._log, self.fold, entry)
            if self._has_ended():
                return None
            add_to(self.fold, entry, record)
            self.size = len(entry.data)
            return record
        return None

    def _has_ended(self) -> bool:
        return self._is_closed

    def detach(self) -> Fold:
        """Ends following and hands the fold over."""
        self.close()
        return self.fold

    def close(self) -> None:
        self._is_closed = True
        self._entries.clear()
        self._tail.close()
