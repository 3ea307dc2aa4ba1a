"""Writes the attributes of an agent where everybody can find them, whoever owns the agent meanwhile.

What is written is what the log has: the attributes of a commit that is acknowledged.  Of several that come while one is on its way
only the newest is written.  An owner that begins compares what is written with what the state holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from mielin_cells.errors import RetryError, described
from mielin_cells.log.attributes.entries import Listing, Place, encode_listing
from mielin_cells.log.attributes.values import FIELD, Attributes, decode
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import attributes_subject
from mielin_cells.log.turns.batch import Batch
from mielin_cells.store.attributes import read_place
from mielin_cells.substrate.ports import Appended, Conflict, Log
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.attributes")

REST_S = 0.1
"""Between two entries of one agent: an attribute such as a load may change with each turn."""
TRIM_EVERY = 8
"""Entries after which the older ones of the agent are removed."""


class Home(Protocol):
    """What is needed of the node."""

    @property
    def log(self) -> Log: ...
    @property
    def wall(self) -> Callable[[], float]: ...
    def begin(self, work: Coroutine[Any, Any, Any]) -> None: ...


class Owner(Protocol):
    """What is needed of the agent."""

    attributes: Announcer | None

    @property
    def home(self) -> Home: ...
    @property
    def fold(self) -> Fold: ...
    @property
    def is_open(self) -> bool: ...
    @property
    def _batch(self) -> Batch | None: ...
    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...


class Announcer:
    """The attributes of one agent on their way to the store."""

    __slots__ = ("_owner", "_place", "_refused", "_task", "_trimmed", "_wanted", "_written")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._place: Place | None = None
        """The last entry, as far as it is known."""
        self._wanted: Listing | None = None
        """What is to be the last entry."""
        self._task: asyncio.Task[None] | None = None
        self._refused = ""
        self._written = self._trimmed = 0

    @property
    def is_busy(self) -> bool:
        return self._wanted is not None or (self._task is not None and not self._task.done())

    def want(self, attributes: Attributes) -> None:
        """These are the agent's attributes as of the last record of its log."""
        self._wanted = self._listing(attributes)
        if self._task is None or self._task.done():
            self._task = self._owner.start(self._deliver())

    def _listing(self, attributes: Attributes, *, has_ended: bool = False) -> Listing:
        fold = self._owner.fold
        wall = self._owner.home.wall()
        return Listing(fold.agent, fold.cls, attributes.n, fold.seq, wall, attributes.values, has_ended)

    async def _deliver(self) -> None:
        while self._owner.is_open and (wanted := self._wanted) is not None:
            await self._write(wanted, lambda: self._owner.is_open)
            if self._wanted is wanted:
                self._wanted = None
            await asyncio.sleep(REST_S)

    async def end(self, attributes: Attributes) -> None:
        """The agent has ended: it is found no more."""
        await self._write(self._listing(Attributes(attributes.n + 1, {}), has_ended=True), lambda: True)

    async def _write(self, wanted: Listing, may_go_on: Callable[[], bool]) -> None:
        """Appends until an entry stands that is not older.

        An append whose outcome is unknown is followed by another at the same place: one of them is stored, at most.
        """
        log, subject, backoff = self._owner.home.log, attributes_subject(wanted.agent), Backoff()
        data = encode_listing(wanted)
        while may_go_on():
            try:
                if self._place is None:
                    self._place = await read_place(log, wanted.agent, is_settled=False)
                if not self._place.lacks(wanted):
                    break
                outcome = await log.append(subject, data, self._place.seq)
                self._note(None)
                if isinstance(outcome, Appended):
                    self._place = Place(outcome.seq, wanted)
                    self._written += 1
                    break
                if isinstance(outcome, Conflict):
                    before, self._place = self._place, await read_place(log, wanted.agent, is_settled=True)
                    if self._place.seq != before.seq:
                        continue
            except Exception as error:  # whatever the store raises: what is committed is to be found
                self._note(error)
            await backoff.wait()
        await self._trim(log, subject)

    async def _trim(self, log: Log, subject: str) -> None:
        """It may fail, and is done again after more entries: nobody waits for it."""
        if self._written - self._trimmed < TRIM_EVERY or self._place is None:
            return
        self._trimmed = self._written
        try:
            await log.trim(subject, self._place.seq)
        except Exception as error:  # whatever the store raises
            logger.info("old attributes of agent %s are not removed yet: %s", self._owner.fold.agent, described(error))

    def _note(self, error: Exception | None) -> None:
        why = described(error) if error is not None else ""
        if why and why != self._refused:
            say = logger.info if isinstance(error, RetryError) else logger.warning
            say("attributes of agent %s are not stored yet; trying again: %s", self._owner.fold.agent, why)
        self._refused = why


def announce(owner: Owner, data: bytes) -> None:
    """A commit that changed the attributes is acknowledged."""
    if owner.attributes is None:
        owner.attributes = Announcer(owner)
    owner.attributes.want(decode(data))


def announce_held(owner: Owner) -> None:
    """The owner begins: what its log has may not have been written.  What its hooks have just set is not committed yet."""
    data, batch = owner.fold.state.plain.get(FIELD), owner._batch
    if data is not None and (batch is None or batch.delta is None or FIELD not in batch.delta.plain):
        announce(owner, data)


def announce_end(owner: Owner) -> None:
    """The agent has ended."""
    data = owner.fold.state.plain.get(FIELD)
    if data is not None:
        owner.home.begin(Announcer(owner).end(decode(data)))
