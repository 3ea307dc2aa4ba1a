"""`Log` on one SQLite database: appends wait in one queue and are written together.

A flush takes what has come together, decides every condition in Python (nobody else writes the file), writes all of it in
one transaction, and then answers all of it and feeds the tails.  In memory the flush is a callback, one per turn of the
event loop: no thread, no clock, no chance.  For a file the transaction runs on a thread of its own, one at a time, and
everything else stays on the loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeAlias

from mielin_cells.errors import MessageTooLarge, StoreUnreachable, described
from mielin_cells.log.ids import LOGS, keeps_last
from mielin_cells.substrate.embedded.hearer import Hearer
from mielin_cells.substrate.embedded.store import PAGE_ROWS, ROW, Store, Trim, WriteFailed
from mielin_cells.substrate.embedded.topics import TopicReads, again
from mielin_cells.substrate.embedded.writer import Batch, Writer
from mielin_cells.substrate.ports import ENTRY_BYTES_MAX, Appended, Conflict, Entry, Outcome, Source, Unknown
from mielin_cells.substrate.tail import BufferedTail, Cut

BATCH_ROWS = 2048
"""Entries in one transaction: about 5 ms of the event loop where the store is in memory."""

BATCH_BYTES = 4 * 1024 * 1024
TRIM_ROWS = 1000
"""Entries removed in one step of a trim, at most."""

BATCH_TRIMS = 8

_Queued: TypeAlias = (
    "tuple[str, bytes, int | None, str | None, asyncio.Future[Outcome]] | tuple[Trim, asyncio.Future[Trim]]"
)


class EmbeddedLog(TopicReads):
    """`Log` on one SQLite database.

    Errors of a write (`StoreFull`, `StoreReadOnly`, `StoreBusy`, ...) reach every append of its transaction, and nothing
    of it is stored; where SQLite cannot tell, the answer is `Unknown`.  Later appends may succeed.
    An append whose caller is cancelled may still be stored.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._loop = asyncio.get_running_loop()
        # The store is nobody's: a node of a simulation that dies takes its own calls along, not the others' answers.
        self._context = contextvars.Context()
        self._writer: Writer | None = None
        self._index: dict[str, int] = {}  # last sequence of each subject, as of the last decision
        self._opened = time.time() - time.monotonic()
        self._position = self._seq  # grows when a transaction with entries has ended, whatever came of it
        self._queue: deque[_Queued] = deque()
        self._is_flushing = False
        self._is_trimming = False
        self._trims = 0
        self._tails: dict[str, list[BufferedTail]] = {}
        self._hearers: dict[str, list[Hearer]] = {}
        self._drained: asyncio.Future[None] | None = None
        self._has_ended = False

    async def load(self) -> None:
        """Takes the index from a file, and starts its thread."""
        start = ""
        while page := self._store.subjects(start, PAGE_ROWS):
            self._index.update(page)
            start = page[-1][0] + "\0"
            await asyncio.sleep(0)
        self._writer = Writer(self._store, self._loop, self._written, self._context)

    # ---- the port --------------------------------------------------------------------------------------------

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        if self._refusal is not None:
            raise again(self._refusal)
        if len(data) > ENTRY_BYTES_MAX:
            raise MessageTooLarge(
                f"An entry of {len(data)} bytes for {subject!r} is above the limit of {ENTRY_BYTES_MAX}; nothing was "
                "stored. Cut it into parts.",
                limit=ENTRY_BYTES_MAX, size=len(data),
            )  # fmt: skip
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._queue.append((subject, data, expect, owner, future))
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush, context=self._context)
        return await future

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        """Large reads give the loop its turn between pages, and end early if a trim comes between."""
        self._check()
        return await self._pages(subject, after, limit)

    async def _pages(self, subject: str, after: int, limit: int) -> list[Entry]:
        entries: list[Entry] = []
        trims = self._trims
        more = limit > 0
        while more:
            page, more = self._store.page(subject, after, min(limit - len(entries), PAGE_ROWS))
            entries += page
            if not more or len(entries) >= limit:
                break
            after = page[-1].seq
            await asyncio.sleep(0)
            if self._is_trimming or self._trims != trims or self._has_ended:
                return Cut(entries)
        return entries

    async def last(self, subject: str) -> Entry | None:
        self._check()
        return self._store.last(subject)

    async def settled(self, subject: str) -> Entry | None:
        return await self.last(subject)

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        lasts: dict[str, Entry] = {}
        for count, subject in enumerate(subjects):
            if count % PAGE_ROWS == 0:
                await asyncio.sleep(0)
                self._check()
            last = self._store.last(subject)
            if last is not None:
                lasts[subject] = last
        return lasts

    def tail(self, subject: str, after: int = 0) -> BufferedTail:
        self._check()
        # What is decided but not yet stored counts as there: then the tail reads, and finds it or not.
        tail = BufferedTail(
            subject, after, self._pages, partial(self._forget, subject), behind=self._index.get(subject, 0) > after
        )
        self._tails.setdefault(subject, []).append(tail)
        return tail

    async def trim(self, subject: str, before: int) -> None:
        """Works in steps, the oldest first; `last` and conditions change only with the last step."""
        while True:
            trim = await self._trim(Trim(subject, before, TRIM_ROWS, is_final=False))
            before = trim.before
            if not trim.has_more:
                break
        if self._index.get(subject, before) < before and not keeps_last(subject):
            await self._trim(Trim(subject, before, 1, is_final=True))

    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        self._check()
        ends: list[tuple[str, int]] = []
        start = prefix
        while True:
            page = self._store.subjects(start, PAGE_ROWS)
            matching = [row for row in page if row[0].startswith(prefix)]
            ends += matching
            if len(matching) < PAGE_ROWS:
                return ends
            start = page[-1][0] + "\0"
            await asyncio.sleep(0)
            self._check()

    async def position(self) -> tuple[int, ...]:
        self._check()
        return (self._position,)

    async def now(self) -> float:
        """The time of the machine when the store was opened, and what has passed since: a clock that is set later changes nothing."""
        self._check()
        return self._opened + time.monotonic()

    async def owned(self, owner: str, source: Source = "index") -> list[str]:
        """Never late here, whatever the source, and without former owners: read from the entries themselves."""
        self._check()
        owned: list[str] = []
        page = self._store.owned(owner, 0, PAGE_ROWS)
        while page:
            owned += (subject for _, subject in page)
            await asyncio.sleep(0)
            self._check()
            page = self._store.owned(owner, page[-1][0], PAGE_ROWS) if len(page) == PAGE_ROWS else []
        return sorted(owned)

    async def owned_by_others(self, nodes: Collection[str]) -> list[str]:
        others = sorted({*self._store.owners()} - {"", *nodes})
        owned, start = [subject for owner in others for subject in await self.owned(owner)], LOGS
        while page := self._store.logs(start, PAGE_ROWS):
            owned += (subject for subject, has_owner in page if not has_owner)
            start = page[-1][0] + "\0"
            await asyncio.sleep(0)
            self._check()
        return sorted(owned)

    async def forget_owned(self, owner: str, subject: str, seq: int) -> None:
        """Nothing to do: `owned` does not name former owners."""

    async def mend_owned(self) -> int:
        """`owned` is read from the entries, which lack nothing."""
        return 0

    def hear_owned(self, owner: str, receive: Callable[[str | None], None]) -> Hearer:
        self._check()

        def leave(hearer: Hearer) -> None:
            (there := self._hearers[owner]).remove(hearer)
            if not there:
                del self._hearers[owner]

        hearer = Hearer(leave, receive)
        self._hearers.setdefault(owner, []).append(hearer)
        return hearer

    async def close(self) -> None:
        """Waits for the queue, then ends the tails.  New calls are refused at once."""
        self._refusal = _closed(self._store)
        if self._writer is None:
            while self._queue:
                self._flush()
        elif self._is_flushing:
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)
        for tails in tuple(self._tails.values()):
            for tail in tuple(tails):
                tail.close()
        self._has_ended = True
        if self._writer is not None:
            self._writer.stop()

    # ---- one batch -------------------------------------------------------------------------------------------

    async def _trim(self, trim: Trim) -> Trim:
        self._check()
        future: asyncio.Future[Trim] = self._loop.create_future()
        self._queue.append((trim, future))
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush, context=self._context)
        return await future

    def _flush(self) -> None:
        if not self._queue:  # `close` was faster
            self._is_flushing = False
            return
        batch, failure = self._cut(), None
        if self._writer is not None:
            self._writer.jobs.put(batch)
            return
        try:
            self._store.write(batch.rows, batch.trims)
        except Exception as error:  # noqa: BLE001 - every append gets an answer, whatever broke
            failure = error
        self._written(batch, failure)

    def _cut(self) -> Batch:
        """Takes what waits, in order, and decides it."""
        batch = Batch()
        rows, answers, undo = batch.rows, batch.answers, batch.undo
        index, waiting = self._index, self._queue
        seq, size = self._seq, 0
        while waiting and len(answers) < BATCH_ROWS and size < BATCH_BYTES and len(batch.trims) < BATCH_TRIMS:
            queued = waiting.popleft()
            if len(queued) == 2:
                self._seq = seq
                self._decide_trim(batch, *queued)
                continue
            subject, data, expect, owner, future = queued
            last = index.get(subject, 0)
            if expect is not None and expect != last:
                answers.append((future, Conflict(last)))
                continue
            seq += 1
            rows += (seq, subject, data, owner)
            undo.append((subject, last))
            index[subject] = seq
            size += len(data)
            answers.append((future, Appended(seq)))
        self._seq = seq
        self._is_trimming = bool(batch.trims)
        return batch

    def _decide_trim(self, batch: Batch, trim: Trim, future: asyncio.Future[Trim]) -> None:
        """The trims come last in the transaction, so none may reach what is appended after it."""
        last = self._index.get(trim.subject, 0)
        trim.before = min(trim.before, self._seq + 1)
        if trim.is_final and 0 < last < trim.before:
            batch.undo.append((trim.subject, last))
            del self._index[trim.subject]
        # What conditions are decided by, the subject's last entry, goes in the final step only.
        trim.reach = trim.before if trim.is_final else min(trim.before, last)
        batch.trimmed.append((future, trim))
        batch.trims.append(trim)
        self._trims += 1

    def _written(self, batch: Batch, failure: BaseException | None) -> None:
        """The transaction has ended: answers, tails, and the next batch."""
        self._is_trimming = False
        self._position += len(batch.rows)
        if failure is not None:
            failure = self._take_back(batch, failure)
        if failure is None:
            for future, outcome in batch.answers:
                if not future.done():
                    future.set_result(outcome)
            for trimmed, trim in batch.trimmed:
                if not trimmed.done():
                    trimmed.set_result(trim)
            if self._tails or self._hearers:
                self._feed(batch.rows)
            if self._watches:
                self._wake(batch.rows)
        else:
            self._fail(batch, failure)
        if self._queue:
            if self._writer is not None:
                self._flush()
            else:
                self._loop.call_soon(self._flush, context=self._context)
            return
        self._is_flushing = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _feed(self, rows: list[Any]) -> None:
        tails = self._tails
        for start in range(0, len(rows), ROW):
            there = tails.get(rows[start + 1])
            if there:
                entry = Entry(rows[start], rows[start + 2])
                for tail in there:
                    tail.push(entry)
            for hearer in self._hearers.get(rows[start + 3], ()):
                hearer.tell(self._loop, rows[start + 1])

    # ---- a batch that failed ---------------------------------------------------------------------------------

    def _take_back(self, batch: Batch, failure: BaseException) -> BaseException | None:
        """Puts the index back to what is stored; None if the batch turns out to be stored.

        Sequences of a failed batch are not given again.
        """
        index = self._index
        if isinstance(failure, WriteFailed) and not failure.in_doubt:
            for subject, last in reversed(batch.undo):
                if last:
                    index[subject] = last
                else:
                    index.pop(subject, None)
            return failure
        try:
            for subject in dict(batch.undo):
                last = self._store.last_seq(subject)
                if last:
                    index[subject] = last
                else:
                    index.pop(subject, None)
            # A transaction is stored whole or not at all.
            landed = bool(batch.rows) and any(e.seq == batch.rows[0] for e in self._first(batch))
        except Exception as error:  # noqa: BLE001 - whatever it is, what is stored is not known
            self._refusal = StoreUnreachable(
                f"The store {self._store.where} failed in a write and cannot be read ({described(error)}); no more is "
                "written. Look at the disk, then open the store again.",
                path=self._store.path,
            )
            return failure
        return None if landed else failure

    def _first(self, batch: Batch) -> list[Entry]:
        return self._store.page(batch.rows[1], batch.rows[0] - 1, 1)[0]

    def _fail(self, batch: Batch, failure: BaseException) -> None:
        known = failure.error if isinstance(failure, WriteFailed) and not failure.in_doubt else None
        for future, _ in batch.answers:
            if future.done():
                continue
            if known is not None:
                future.set_exception(again(known))
            else:
                future.set_result(Unknown(str(failure)))
        error = known or StoreUnreachable(f"The trim may not have happened: {failure}", path=self._store.path)
        for trimmed, _ in batch.trimmed:
            if not trimmed.done():
                trimmed.set_exception(again(error))

    # ---- small things ----------------------------------------------------------------------------------------

    def _forget(self, subject: str, tail: BufferedTail) -> None:
        (there := self._tails[subject]).remove(tail)
        if not there:
            del self._tails[subject]


def _closed(store: Store) -> StoreUnreachable:
    return StoreUnreachable(f"The store {store.where} is closed; open it again.", path=store.path)
