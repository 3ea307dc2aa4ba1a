"""The log of deploys as a process reads it, and appends to it."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from mielin_cells.log.ids import DEPLOYS
from mielin_cells.policy.deploys.events import AnyEvent, Began, decode_event, encode_event
from mielin_cells.policy.deploys.machine import Deploy, Phase
from mielin_cells.substrate.ports import Appended, Entry, Log, Tail
from mielin_cells.substrate.retry import whole
from mielin_cells.tasks.supervision import Backoff

READ = 256

NONCE_BYTES = 12


class Deploys:
    """The newest deploy, as far as this process has read the log.  It is read on by every method."""

    def __init__(self, log: Log, make: Callable[[int], bytes] = os.urandom) -> None:
        """`make` gives so many random bytes."""
        self.deploy: Deploy | None = None
        """None: there was none yet."""
        self.events: list[AnyEvent] = []
        """Those of the newest deploy that have counted."""
        self.done: Began | None = None
        """How the last deploy began that was done: its code is what runs."""
        self.seq = 0
        self._log = log
        self._make = make
        self._tail: Tail | None = None

    async def read(self) -> Deploy | None:
        """Reads on.  The newest events may be missing."""
        while entries := await self._log.read(DEPLOYS, self.seq, READ):
            await self._take(entries)
            if len(entries) < READ:
                break
        return self.deploy

    async def read_to_end(self) -> Deploy | None:
        """Reads on, and includes every event that was acknowledged before the call."""
        last, backoff = await self._log.settled(DEPLOYS), Backoff()
        while last is not None and self.seq < last.seq:
            before = self.seq
            await self.read()
            if self.seq == before:  # a replica that is behind
                await backoff.wait()
        return self.deploy

    async def append(self, event: AnyEvent, unless: Callable[[Deploy | None], str] = lambda deploy: "") -> str:
        """Appends the event behind all others; "" once it is stored, or why it cannot follow them, or what `unless` says.

        If the outcome of the append is not known, the same bytes are sent under the same condition until it is.
        Raises a `RetryError` while the store cannot be read.
        """
        event = msgspec.structs.replace(event, nonce=self._make(NONCE_BYTES))
        data, backoff = encode_event(event), Backoff()
        while True:
            if any(event.nonce == other.nonce for other in self.events):
                return ""
            if why := self._refusal(event) or unless(self.deploy):
                return why
            outcome = await self._log.append(DEPLOYS, data, self.seq)
            if isinstance(outcome, Appended):
                await self._take([Entry(outcome.seq, data)])
                return ""
            at = self.seq
            await self.read_to_end()
            if self.seq == at:  # not known
                await backoff.wait()

    def _refusal(self, event: AnyEvent) -> str:
        if self.deploy is not None:
            return self.deploy.refusal(event)
        return "" if isinstance(event, Began) else "there is no deploy"

    async def follow(self, changed: Callable[[], None]) -> None:
        """Reads the log as it grows, and calls `changed` behind each batch.  It returns when the store is closed."""
        self._tail = tail = self._log.tail(DEPLOYS, self.seq)
        try:
            async for batch in tail:
                await self._take(batch)
                changed()
        finally:
            tail.close()

    async def _take(self, entries: list[Entry]) -> None:
        for entry in entries:
            where = f"The log of deploys at {entry.seq}"
            event = await whole(self._log, DEPLOYS, entry, lambda data: decode_event(data, where))  # noqa: B023 - called at once
            if entry.seq > self.seq:
                self.seq = entry.seq
                self._apply(event)

    def _apply(self, event: AnyEvent) -> None:
        if self._refusal(event):
            return
        if isinstance(event, Began):
            self.events = []
            self.deploy, _ = Deploy.begin(event)
        elif self.deploy is not None:
            self.deploy, _ = self.deploy.on(event)
            if self.deploy.phase is Phase.DONE:
                self.done = self.deploy.began
        self.events.append(event)
