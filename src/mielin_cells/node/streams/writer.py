"""Appending to a stream: one entry at a time, the same bytes until the outcome is known, and never by a former owner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol

from mielin_cells.errors import CellError, Fenced, RetryError, StoreBusy
from mielin_cells.log.ids import stream_subject
from mielin_cells.log.streams.entries import (
    AnyStreamEntry,
    Ended,
    Parts,
    Restarted,
    StreamView,
    decode_stream_entry,
    encode_stream_entry,
)
from mielin_cells.settings import MAIL_BYTES_MAX, STREAM_AHEAD_BYTES, STREAM_ENTRY_PARTS
from mielin_cells.substrate.ports import Appended, Conflict, Entry, Log
from mielin_cells.substrate.retry import whole
from mielin_cells.tasks.signal import Signal
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.streams")

PAGE = 256


class Owner(Protocol):
    """The activation that writes."""

    @property
    def log(self) -> Log: ...

    @property
    def agent(self) -> str: ...

    @property
    def epoch(self) -> int: ...

    @property
    def is_open(self) -> bool: ...

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """As `start`, for work that nobody waits for."""

    def next_run(self) -> int:
        """A number that this activation has not given before."""

    async def check(self) -> None:
        """Reads the end of the agent's log from the leader.  Raises `Fenced` if another node has appended to it, or a `RetryError`."""


class StreamWriter:
    """Appends the entries of one run of the turn of call `n`.  `open`, then any number of appends, then `settled`."""

    def __init__(self, owner: Owner, sender: str, n: int) -> None:
        self._owner = owner
        self._subject = stream_subject(owner.agent, sender)
        self._n = n
        self._run = owner.next_run()
        self._queue: list[tuple[int, bytes]] = []
        """Parts that wait for the store: the attempt of the step that emits each, and its bytes."""
        self._waiting_bytes = 0
        self._at = 0
        """Offset of the first part that waits."""
        self._pump: asyncio.Task[None] | None = None
        self._changed = Signal()
        self._failure: CellError | None = None
        self._is_closed = False
        self.view = StreamView(n)

    async def open(self, ended: int = 0) -> StreamView:
        """Reads what earlier runs have stored.  Raises `Fenced` if another owner writes, or a `RetryError`.

        `ended`: the last entry that this owner has appended, of another call.  If another one was appended since, the first append
        finds that out.
        """
        view = self.view
        if ended:
            view.last = ended
            return view
        last = await self._owner.log.last(self._subject)
        if last is not None:
            entry = await self._decoded(last)
            view.last, view.epoch = last.seq, entry.epoch
            if await self._may_follow_own(entry):
                await self._read(last.seq)
        view = self.view
        if view.epoch > self._owner.epoch or view.has_ended:
            await self._owner.check()
        self._at = len(view.parts)
        return view

    async def _may_follow_own(self, entry: AnyStreamEntry) -> bool:
        """True unless all entries up to this one are of earlier calls.

        The end of an earlier call leaves after its commit, when the turn of this one may have begun and sent parts already.
        """
        if not isinstance(entry, Ended):
            return True
        while isinstance(entry, Ended) and entry.n < self._n and entry.prev:
            before = await self._owner.log.read(self._subject, entry.prev - 1, 1)
            if not before or before[0].seq != entry.prev:  # it was trimmed, or a replica is behind
                return True
            entry = await self._decoded(before[0])
        return entry.n >= self._n

    async def _read(self, until: int) -> None:
        view = self.view = StreamView(self._n)
        while view.last < until:
            entries = await self._owner.log.read(self._subject, view.last, PAGE)
            if not entries:
                raise self._busy("a replica of the store is behind")
            for entry in entries:
                view.add(entry.seq, await self._decoded(entry))

    async def _decoded(self, entry: Entry) -> AnyStreamEntry:
        where = f"The stream {self._subject} at {entry.seq}"
        return await whole(self._owner.log, self._subject, entry, lambda data: decode_stream_entry(data, where))

    # ---- appends ---------------------------------------------------------------------------------------------

    async def restart(self, at: int, attempt: int) -> None:
        """What was stored from offset `at` on stands no more."""
        await self.settled()
        await self._store(lambda prev: Restarted(self._owner.epoch, self._run, self._n, prev, at, attempt=attempt))
        self._at = at

    async def end(self, at: int, answer: bytes) -> int:
        """The call has its answer.  Returns the sequence of the entry that says so, whoever appended it."""
        while not self.view.has_ended:
            try:
                await self._store(lambda prev: Ended(self._owner.epoch, self._run, self._n, prev, at, answer=answer))
                break
            except StoreBusy:  # another entry took the place: the owner's before this one, or it is there already
                await self.open()
        return self.view.last

    async def part(self, data: bytes, attempt: int = 0) -> None:
        """Appends a part behind those that were given before.  Returns once few enough wait for the store."""
        self._check()
        self._queue.append((attempt, data))
        self._waiting_bytes += len(data)
        if self._pump is None:
            self._pump = self._owner.start(self._store_parts())
        while self._waiting_bytes > STREAM_AHEAD_BYTES and self._pump is not None:
            await self._changed.wait()
            self._check()

    async def settled(self) -> None:
        """Returns when all parts are stored.  Raises what keeps them from being stored."""
        while self._pump is not None:
            await self._changed.wait()
        self._check()

    def close(self) -> None:
        """The run has ended: what waits is not stored any more."""
        self._is_closed = True

    async def rest(self) -> None:
        """Returns when no append of a closed writer is on its way."""
        while self._pump is not None:
            await self._changed.wait()

    def _check(self) -> None:
        if self._failure is not None:
            raise type(self._failure)(self._failure.message, **self._failure.facts)

    async def _store_parts(self) -> None:
        try:
            while self._queue and not self._is_closed and self._owner.is_open:
                attempt, lot = self._take()
                at = self._at
                await self._store(
                    lambda prev, at=at, lot=lot, attempt=attempt: Parts(
                        self._owner.epoch, self._run, self._n, prev, at, data=lot, attempt=attempt
                    )
                )
                self._at = at + len(lot)
                self.view.parts[at:] = [None] * len(lot)  # only what earlier runs have stored is compared
                self._waiting_bytes -= sum(map(len, lot))
                self._changed.set()
        except CellError as error:
            self._failure = error
        finally:
            self._pump = None
            self._changed.set()

    def _take(self) -> tuple[int, list[bytes]]:
        """What fits one entry: parts of one attempt."""
        attempt, lot, size = self._queue[0][0], list[bytes](), 0
        for of, data in self._queue:
            if of != attempt or len(lot) == STREAM_ENTRY_PARTS or (lot and size + len(data) > MAIL_BYTES_MAX):
                break
            lot.append(data)
            size += len(data)
        del self._queue[: len(lot)]
        return attempt, lot

    async def _store(self, make: Any) -> None:
        """Stores one entry behind the last one.  Raises `Fenced`, or `StoreBusy` if an entry of an earlier owner took the place."""
        entry = make(self.view.last)
        data, backoff = encode_stream_entry(entry), Backoff()
        while True:
            if not self._owner.is_open:
                raise Fenced(
                    f"Agent {self._owner.agent!r} is not run by this process any more.", agent=self._owner.agent
                )
            try:
                outcome = await self._owner.log.append(self._subject, data, self.view.last)
                if isinstance(outcome, Appended):
                    self.view.add(outcome.seq, entry)
                    return
                if isinstance(outcome, Conflict):
                    last = await self._owner.log.settled(self._subject)
                    if last is not None and last.data == data:
                        self.view.add(last.seq, entry)
                        return
                    await self._owner.check()
                    if last is not None and last.seq != self.view.last:
                        raise self._moved()
            except StoreBusy:
                raise
            except RetryError as error:
                logger.info(
                    "agent %s: a part of its stream is not stored yet; trying again: %s", self._owner.agent, error
                )
            await backoff.wait()

    def _moved(self) -> StoreBusy:
        return self._busy("an entry that an earlier owner had sent took the place")

    def _busy(self, why: str) -> StoreBusy:
        agent = self._owner.agent
        return StoreBusy(f"The stream of call {self._n} to agent {agent!r} is to be read again: {why}.", agent=agent)
