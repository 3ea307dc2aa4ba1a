"""Streams that other systems write to the same server, which are only read: by gets, and never by a consumer, which would be written.

A stream that allows direct gets is read in batches by any replica; any other one message by message, by its leader.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable
from typing import Final

import msgspec

from mielin_cells.errors import CellError, NoSuchStream, StoreUnreachable, StreamMissing
from mielin_cells.log.topics.outside import Extent, Foreign
from mielin_cells.substrate.jetstream import api
from mielin_cells.substrate.jetstream.asking import Asking
from mielin_cells.substrate.jetstream.connection import Connection, Listener
from mielin_cells.substrate.jetstream.heard import Heard

BATCH: Final = 256
BATCH_BYTES: Final = 4 * 1024 * 1024
SINGLE: Final = 64
"""Messages that are read one by one before a page ends."""
HEARD_MAX: Final = 16
"""Subjects of a stream that are listened to at a time."""


class Hint:
    """Listens for one message.  The server sends no more of them than one for each subject, however many are published."""

    __slots__ = ("_forget", "_listeners", "wake")

    def __init__(self, wake: Callable[[], None], forget: Callable[[Hint], None]) -> None:
        self.wake = wake
        self._forget = forget
        self._listeners: list[Listener] = []

    def open(self, connection: Connection, subjects: list[str]) -> None:
        self._listeners = [connection.listen(subject, self._heard, most=1) for subject in subjects]

    def _heard(self, _: Heard) -> None:
        self.close()
        self.wake()

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._forget(self)


class OutsideStreams(Asking):
    """`Outside` on the connection of a deployment."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._configs: dict[str, api.StreamConfig] = {}
        """Of streams as they were when their extent was read last."""
        self._hints: dict[Hint, None] = {}

    async def extent(self, stream: str) -> Extent:
        answer = await self._stream("STREAM.INFO", stream, {}, stream)
        if answer.created is None:
            raise StoreUnreachable(
                f"The server did not tell when the stream {stream} was made; try again.", stream=stream
            )
        self._configs[stream] = answer.config
        made = answer.created - datetime.datetime.fromtimestamp(0, datetime.UTC)
        return Extent(made // datetime.timedelta(microseconds=1), max(answer.state.first_seq, 1), answer.state.last_seq)

    async def _config(self, stream: str) -> api.StreamConfig:
        if stream not in self._configs:
            await self.extent(stream)
        return self._configs[stream]

    async def read(
        self, stream: str, pattern: str, after: int, limit: int, *, is_settled: bool = False
    ) -> list[Foreign]:
        config = await self._config(stream)
        if is_settled or not config.allow_direct:
            return await self._singly(stream, pattern, after, 1 if is_settled else min(limit, SINGLE))
        wanted: dict[str, object] = {
            "seq": after + 1, "next_by_subj": pattern, "batch": min(BATCH, limit), "max_bytes": BATCH_BYTES,
        }  # fmt: skip
        try:
            page, _ = await self._batch(stream, wanted, after, stream)
        except BaseException:
            self._configs.pop(stream, None)  # it may be read in another way now
            raise
        return [Foreign(one.subject, one.seq, one.at, one.data, one.id) for one in page]

    async def _singly(self, stream: str, pattern: str, after: int, limit: int) -> list[Foreign]:
        found, size = list[Foreign](), 0
        while len(found) < limit and size < BATCH_BYTES:
            message = await self._next(stream, pattern, after)
            if message is None:
                break
            found.append(message)
            after, size = message.seq, size + len(message.data)
        return found

    async def _stream(self, what: str, stream: str, wanted: dict[str, object], subject: str) -> api.StreamAnswer:
        try:
            return await super()._stream(what, stream, wanted, subject)
        except StreamMissing as error:
            raise _missing(stream) from error

    async def _gone(self, stream: str) -> CellError:
        error = await super()._gone(stream)
        return _missing(stream) if isinstance(error, StreamMissing) else error

    async def _next(self, stream: str, pattern: str, after: int) -> Foreign | None:
        """The first message behind `after` whose subject matches, by the leader."""
        wanted = msgspec.json.encode({"seq": after + 1, "next_by_subj": pattern})
        heard = await self._asked("STREAM.MSG.GET", stream, wanted, stream)
        answer: api.GetAnswer = api.decode(heard.data, api.GetAnswer, stream)
        if answer.error is not None:
            if answer.error.err_code == api.NO_MESSAGE:
                return None
            if answer.error.err_code == api.STREAM_MISSING:
                raise _missing(stream)
            raise api.error_of(answer.error, stream, stream)
        if (got := answer.message) is None or got.time is None:
            raise StoreUnreachable(f"The server's answer about {stream} holds no message; try again.", stream=stream)
        headers = base64.b64decode(got.hdrs).decode(errors="replace") if got.hdrs else ""
        return Foreign(got.subject, got.seq, got.time.timestamp(), base64.b64decode(got.data), _id_of(headers))

    async def find(self, stream: str, extent: Extent, at: float) -> int:
        """By halving: the server keeps messages in the order of their times."""
        low, high = extent.first - 1, extent.last
        while low < high:  # everything up to `low` is older; behind `high` nothing is
            middle = (low + high) // 2
            message = await self._next(stream, ">", middle)
            if message is None or message.seq > high:
                high = middle
            elif message.at < at:
                low = message.seq
            else:
                high = middle
        return low

    async def watch(self, stream: str, pattern: str, wake: Callable[[], None]) -> Hint | None:
        """None for a stream that takes its messages from other streams, and for names that would be heard with everybody's."""
        config = await self._config(stream)
        subjects = [pattern] if pattern[0] not in "*>" else config.subjects
        is_heard = config.subjects and len(subjects) <= HEARD_MAX
        if not is_heard or any(subject[0] in "*>" for subject in subjects):
            return None
        hint = Hint(wake, self._forget)
        hint.open(self._connection, subjects)
        self._hints[hint] = None
        return hint

    def _forget(self, hint: Hint) -> None:
        self._hints.pop(hint, None)

    def wake_all(self) -> None:
        """The connection was lost: nobody knows what was missed."""
        for hint in tuple(self._hints):
            hint.close()
            hint.wake()

    def close(self) -> None:
        for hint in tuple(self._hints):
            hint.close()


def _missing(stream: str) -> NoSuchStream:
    return NoSuchStream(
        f"The server has no stream {stream} for this account: it was not made, or was deleted. Subscriptions to it go on once "
        "there is one of this name.", stream=stream,
    )  # fmt: skip


def _id_of(headers: str) -> str:
    for line in headers.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == api.MESSAGE_ID:
            return value.strip()
    return ""
