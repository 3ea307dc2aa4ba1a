"""A client's reading of streams: what is stored is applied in order, and heard live (rule T7)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Self, TypeVar

from mielin_cells.agents.context import Caller, CallOptions
from mielin_cells.agents.shared.stream import Stream
from mielin_cells.agents.signature import HandlerSpec
from mielin_cells.client.calls import Call
from mielin_cells.client.requester import Requester
from mielin_cells.client.sessions.session import Session
from mielin_cells.errors import (
    AnswerExpired,
    AskTimeout,
    NoSuchCall,
    RetryError,
    StreamGap,
    StreamRestarted,
    UsageError,
    never,
)
from mielin_cells.log.ids import decoded, stream_subject
from mielin_cells.log.message import call_id, decode_answer
from mielin_cells.log.streams.entries import AnyStreamEntry, decode_stream_entry
from mielin_cells.log.streams.reading import Part, Position, Replaced, StreamReading, without_replaced
from mielin_cells.settings import ASK_REPEAT_S_MAX
from mielin_cells.store.known import is_stored
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Entry, Tail
from mielin_cells.substrate.retry import whole
from mielin_cells.substrate.tail import BufferedTail

T = TypeVar("T")

NEWS_MAX = 4096
"""Parts that wait to be given out, before further entries are applied."""


class CallName(NamedTuple):
    """A call of a sender to an agent that is known otherwise."""

    sender: str
    n: int

    @classmethod
    def read(cls, text: str) -> CallName:
        """Raises `UsageError`."""
        number, _, sender = text.partition(".")
        if not (number.isdecimal() and number.isascii() and sender):
            raise UsageError(f"{text!r} is no id of a call; take it from `stream.id`, or from `mielin calls`.")
        return cls(decoded(sender), int(number))

    def __str__(self) -> str:
        return call_id(self.sender, self.n)


def read_position(text: str) -> Position:
    """Raises `UsageError`."""
    words = text.split(".")
    if len(words) != 3 or not all(word.isdecimal() and word.isascii() for word in words):
        raise UsageError(f"{text!r} is no position in a stream; take it from `stream.position`.")
    return Position(*map(int, words))


def _close(tail: Tail | None, batch: asyncio.Task[list[Entry]] | None) -> None:
    if batch is not None:
        batch.cancel()
    if tail is not None:
        tail.close()


class StreamReader(Stream[T]):
    """Reads the stream of one call from what the store has; `call` is there if this client has made the call."""

    def __init__(
        self, client: Requester, caller: Caller, agent: str, handler: HandlerSpec, timeout: float | None
    ) -> None:
        if handler.parts is None:
            raise never("a stream of a handler that does not yield")
        self._client = client
        self._caller = caller
        self._agent = agent
        self._handler = handler
        self._parts = handler.parts
        self._timeout_s = client.settings.ask_timeout_s if timeout is None else timeout
        self._name: CallName | None = None
        self._reading = StreamReading(0)
        self._given = Position()
        """Behind what was given out last."""
        self._offset = 0
        """How many parts were given out, of those that stand."""
        self._tail: Tail | None = None
        self._batch: asyncio.Task[list[Entry]] | None = None
        """The tail's next batch, while it is waited for."""
        self._entries = deque[Entry]()
        self._news = deque[Part | Replaced]()
        self._count: int | None = None
        """How many parts the call's answer says there are."""
        self._until: int | None = None
        """The subject's last entry, as it was read from the leader after the answer came."""
        self._is_known = False
        """The call is known to be stored."""
        self._heard = 0.0
        self._silence_s = client.settings.ask_repeat_s
        self._end: BaseException | None = None
        """What the iteration raises once all parts are given out."""
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        client.closing.add(self)

    # ---- what its user sees ----------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        if self._name is None:
            raise UsageError(
                "The call was not sent yet: read from the stream, or await its start(), before you take its id."
            )
        return str(self._name)

    @property
    def position(self) -> str:
        return ".".join(map(str, self._given if self._news else self._reading.position))

    async def start(self) -> Self:
        return self

    async def _send(self) -> None:
        """Sends the call, if it is this client's and was not sent yet."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        await self._send()
        while True:
            while self._news:
                news = self._news.popleft()
                self._given, self._offset = news.after, news.offset
                if isinstance(news, Part):
                    self._offset += 1
                    part: T = self._parts.decode(news.data, self._caller)
                    return part
                self._tell_restart(news)
            if self._end is not None and not self._entries:
                self.close()
                raise self._end
            await self._read()

    def _tell_restart(self, news: Replaced) -> None:
        if self.restarted is None:
            raise StreamRestarted(
                f"The parts from {news.offset} on of stream {self.id} of agent {self._agent!r} do not stand: the step that emitted "
                "them was run again. Read on with the same iterator, or give on_restart.",
                agent=self._agent, offset=news.offset,
            )  # fmt: skip
        self.restarted(news.offset)

    def close(self) -> None:
        self._is_closed = True
        if self._tail is not None:
            _close(self._tail, self._batch)
            self._batch = None

    async def aclose(self) -> None:
        self.close()
        self._entries.clear()
        self._news.clear()
        self._end = self._end or StopAsyncIteration()

    def __del__(self) -> None:
        """Closes the tail of a stream that was not read to its end, but not here: the collector may run at any place."""
        if not self._is_closed and self._tail is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._dropped())

    def _dropped(self) -> Callable[[], None]:
        """What is done once nothing refers to this; it must not refer to it either."""
        return partial(_close, self._tail, self._batch)

    # ---- reading ---------------------------------------------------------------------------------------------

    def begin(self, name: CallName, position: Position, tail: Tail | None = None) -> None:
        self._name, self._reading, self._given = name, StreamReading(name.n, position), position
        self._offset = position.offset + position.given
        self._tail = tail or self._client.log.tail(stream_subject(self._agent, name.sender), position.seq)
        self._heard = asyncio.get_running_loop().time()

    @property
    def _answer(self) -> asyncio.Future[bytes] | None:
        """The answer of a call that this client has made, until it is taken."""
        return None

    async def _read(self) -> None:
        """Applies the entries that have come, or waits for others."""
        if self._entries:
            while self._entries and len(self._news) < NEWS_MAX:
                await self._apply(self._entries.popleft())
            return
        if self._batch is None:
            if self._tail is None:
                raise never("a stream is read before it is begun")
            self._batch = asyncio.ensure_future(anext(self._tail))
        answer = self._answer
        waits_for: set[asyncio.Future[Any]] = {self._batch} if answer is None else {self._batch, answer}
        done, _ = await asyncio.wait(waits_for, timeout=self._silence_s, return_when=asyncio.FIRST_COMPLETED)
        if self._batch in done:
            batch, self._batch = self._batch, None
            self._entries.extend(batch.result())
            self._note_news()
        elif answer is not None and answer in done:
            self._take_answer(self._result_of(answer))
            if self._end is not None:  # a failure: what it had sent before is given out first
                self._entries.extend(await self._client.log.read(self._subject, self._reading.position.seq))
        else:
            await self._look()

    def _note_news(self) -> None:
        self._heard, self._silence_s = asyncio.get_running_loop().time(), self._client.settings.ask_repeat_s

    def _result_of(self, answer: asyncio.Future[bytes]) -> bytes:
        return answer.result()

    @property
    def _subject(self) -> str:
        if self._name is None:
            raise never("a stream is read before it is begun")
        return stream_subject(self._agent, self._name.sender)

    async def _apply(self, entry: Entry) -> None:
        subject = self._subject
        where = f"The stream {subject} at {entry.seq}"
        read: AnyStreamEntry = await whole(
            self._client.log, subject, entry, lambda data: decode_stream_entry(data, where)
        )
        news = self._reading.apply(entry.seq, read)
        self._news = deque(without_replaced((*self._news, *news), self._offset))
        if self._reading.answer is not None:
            self._take_answer(self._reading.answer, is_read=True)
        elif self._until is not None and self._reading.position.seq >= self._until:
            self._finish()

    def _take_answer(self, data: bytes, *, is_read: bool = False) -> None:
        """The call has its answer.  `is_read`: it stands at the end of the stream, and all parts were read."""
        answer = decode_answer(data)
        if answer.error is not None:
            self._end = self._handler.error_of(answer)
            return
        self._count = int(self._handler.decode_result(answer.result or b""))
        if is_read or not self._count:
            self._finish()

    def _finish(self) -> None:
        offset, count = self._reading.position.offset, self._count or 0
        if offset < count:
            self._end = StreamGap(
                f"The stream {self.id} of agent {self._agent!r} has {count} parts, and this reader has met {offset}: the others were "
                "removed. Read sooner, or raise the setting stream_keep_s.",
                agent=self._agent, call=self._reading.n, offset=offset,
            )  # fmt: skip
            return
        if offset > count:
            self._news = deque(without_replaced((*self._news, Replaced(count, self._reading.position)), self._offset))
        self._end = StopAsyncIteration()

    async def _look(self) -> None:
        """Nothing was heard for a while: looks for the answer, and for the end that must be there once it is known."""
        now = asyncio.get_running_loop().time()
        self._silence_s = min(2 * self._silence_s, ASK_REPEAT_S_MAX)
        try:
            if self._count is not None:
                last = await self._client.log.settled(self._subject)
                self._until = last.seq if last is not None else 0
                if self._reading.position.seq >= self._until:
                    self._finish()
            elif self._answer is None and self._name is not None:
                await self._look_for_answer(self._name)
        except RetryError:
            pass  # the store does not answer now; the deadline ends this
        if self._end is None and self._answer is None and now - self._heard > self._timeout_s:
            self._end = AskTimeout(
                f"Nothing was heard from stream {self.id} of agent {self._agent!r} in {self._timeout_s:g} s.",
                agent=self._agent,
            )

    async def _look_for_answer(self, name: CallName) -> None:
        fold = await load(self._client.log, self._agent)
        ledger = fold.ledger
        answer = ledger.answer(name.sender, name.n)
        if answer is not None:
            self._take_answer(answer)
            self._silence_s = 0.0
        elif ledger.has_taken(name.sender, name.n):
            self._end = AnswerExpired(
                f"The call of stream {self.id} of agent {self._agent!r} has ended, and its caller has taken the answer; what was not "
                "read cannot be told from what was not there.", agent=self._agent,
            )  # fmt: skip
        elif not self._is_known:
            self._is_known = await is_stored(self._client.log, fold, name.sender, name.n)
            if not self._is_known:
                self._end = NoSuchCall(
                    f"Agent {self._agent!r} has no call {self.id}: it is in no inbox, and the agent's log does not know it. The id is "
                    "wrong, of another agent, or of a client that was forgotten; or the call is not stored yet.",
                    agent=self._agent, call=self.id,
                )  # fmt: skip


def _drop(tail: Tail | None, batch: asyncio.Task[list[Entry]] | None, session: Session, call: Call | None) -> None:
    _close(tail, batch)
    if call is not None:
        session.give_up(call)


class CallStream(StreamReader[T]):
    """The stream of a call that this client makes: with the first read."""

    def __init__(
        self, client: Requester, caller: Caller, session: Session, cls: str, handler: HandlerSpec,
        args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None,
        options: CallOptions | None,
    ) -> None:  # fmt: skip
        super().__init__(client, caller, session.agent, handler, timeout)
        self._session = session
        self._args = cls, handler.encode_args(args, kwargs)
        self._options = options
        self._call: Call | None = None

    async def start(self) -> Self:
        await self._send()
        if self._call is not None:
            try:
                await self._session.stored(self._call)
            except asyncio.CancelledError:
                self._session.give_up(self._call)
                await super().aclose()
                raise
            if not self._call.is_stored:  # its id would name nothing
                _ = self._result_of(self._call.future)
        return self

    async def _send(self) -> None:
        if self._name is None:
            session, (cls, data) = self._session, self._args
            position = Position(session.streamed, 0, 0)
            tail = self._client.log.tail(stream_subject(self._agent, session.sender), position.seq)
            if isinstance(
                tail, BufferedTail
            ):  # the call is sent behind it on its way, so no part of it was stored before
                tail.expect_news()
            try:
                self._call = await session.begin(cls, self._handler.name, data, self._timeout_s, self._options)
            except BaseException:
                tail.close()
                raise
            self.begin(CallName(session.sender, self._call.message.n), position, tail)

    async def __anext__(self) -> T:
        try:
            return await super().__anext__()
        except asyncio.CancelledError:
            if self._call is not None:
                self._session.give_up(self._call)
            await super().aclose()
            raise

    async def aclose(self) -> None:
        call, is_over = self._call, self._end is not None
        await super().aclose()
        if call is not None and not is_over and (cancelling := self._session.give_up(call)) is not None:
            await asyncio.shield(cancelling)

    def _dropped(self) -> Callable[[], None]:
        return partial(_drop, self._tail, self._batch, self._session, self._call)

    @property
    def _answer(self) -> asyncio.Future[bytes] | None:
        return None if self._call is None or self._count is not None else self._call.future

    def _note_news(self) -> None:
        super()._note_news()
        if self._call is not None:
            self._call.deadline = self._heard + self._timeout_s

    def _result_of(self, answer: asyncio.Future[bytes]) -> bytes:
        try:
            return answer.result()
        except TimeoutError:
            raise self._session.timed_out(self._handler.name, self._timeout_s) from None

    def close(self) -> None:
        self._session.streamed = max(self._session.streamed, self._reading.position.seq)
        super().close()
