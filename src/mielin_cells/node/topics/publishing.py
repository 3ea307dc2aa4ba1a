"""Delivers what an agent has published to one topic: a committed output is stored once, whoever owns the agent meanwhile (rule T8)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

from mielin_cells.errors import RetryError, described
from mielin_cells.log.commit import Out
from mielin_cells.log.topics.names import subject_of
from mielin_cells.log.topics.posts import End, Post, Posting, Value, encode_post
from mielin_cells.settings import Settings
from mielin_cells.store.topics import read_end, remove_old
from mielin_cells.substrate.ports import Appended, Conflict, Log
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.outbox")

TRIM_EVERY = 64
"""Entries after which a publisher looks for old ones."""


class Publishing:
    """The committed messages of one agent to one topic that are not stored yet."""

    def __init__(
        self, log: Log, agent: str, topic: str, wall: Callable[[], float], nonce: Callable[[], bytes],
        refused: Callable[[str], bool], settings: Settings,
    ) -> None:  # fmt: skip
        """`refused` notes why the store does not take them ("" once it does), and says if that is news."""
        self._log = log
        self._wall = wall
        self._nonce = nonce
        self._refused = refused
        self._subject = subject_of(topic, agent)
        self._posting = Posting(agent, topic)
        self._settings = settings
        self._appended = 0

    async def deliver(self, queue: deque[Out], stored: Callable[[Sequence[Out]], None]) -> None:
        """Stores what the queue holds and what comes into it, until it is empty; `stored` is given what is, in order."""
        posting = self._posting
        if posting.end is None:
            posting.end = await self._read_end(is_settled=False)
        while queue:
            there = list[Out]()
            while queue and queue[0].n <= posting.stored:
                there.append(queue.popleft())
            if there:
                stored(there)
            if queue:
                values = (_value_of(out) for out in queue)
                await self._append(posting.compose(queue[0].n, values, self._wall(), self._nonce()))
                self._appended += 1
            if not queue and self._appended >= TRIM_EVERY:  # in the loop, since more may come meanwhile
                self._appended = 0
                await self._remove_old()

    async def _remove_old(self) -> None:
        """It may fail, and is done again after more entries: nobody waits for it."""
        settings, end = self._settings, self._posting.end
        if end is None:
            return
        try:
            await remove_old(self._log, self._subject, end, self._wall(), settings.topic_keep, settings.topic_keep_s)
        except Exception as error:  # whatever the store raises
            logger.info("old messages of %s are not removed yet: %s", self._subject, described(error))

    async def _append(self, post: Post) -> None:
        """Appends the entry until it is known what became of it, whatever the store raises."""
        data, posting, backoff = encode_post(post), self._posting, Backoff()
        while True:
            try:
                outcome = await self._log.append(self._subject, data, post.prev)
                if isinstance(outcome, Appended):
                    self._note(None)
                    posting.landed(outcome.seq)
                    return
            except Exception as error:  # whatever the store raises: committed messages must be delivered
                self._note(error)
            else:
                if isinstance(outcome, Conflict) and not posting.met_conflict(await self._read_end(is_settled=True)):
                    return
            await backoff.wait()

    async def _read_end(self, *, is_settled: bool) -> End:
        """The subject's last entry.  A stale answer costs a conflict, after which a settled one is read."""
        log, subject, backoff = self._log, self._subject, Backoff()
        while True:
            try:
                return await read_end(log, subject, is_settled=is_settled)
            except Exception as error:  # whatever the store raises: committed messages must be delivered
                self._note(error)
            await backoff.wait()

    def _note(self, error: Exception | None) -> None:
        if self._refused("" if error is None else described(error)) and error is not None:
            say = logger.info if isinstance(error, RetryError) else logger.warning
            say("messages of %s are not stored yet; trying again: %s", self._subject, described(error))


def _value_of(out: Out) -> Value:
    return Value.of(out.args, out.corrects, out.terms.trace if out.terms is not None else "")
