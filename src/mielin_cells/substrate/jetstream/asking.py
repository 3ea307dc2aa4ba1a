"""Reads and other requests to a deployment's streams, and what their answers mean."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Final, TypeAlias

import msgspec

from mielin_cells.errors import CellError, RetryError, StoreUnreachable
from mielin_cells.substrate.jetstream import api
from mielin_cells.substrate.jetstream.api import Unanswered
from mielin_cells.substrate.jetstream.connection import Connection
from mielin_cells.substrate.jetstream.heard import Heard
from mielin_cells.substrate.jetstream.places import Place
from mielin_cells.substrate.ports import Appended, Entry

READ_S: Final = 5.0
APPEND_S: Final = 5.0
"""An append without an answer for this long is `Unknown`."""
MARKS_MAX: Final = 100
RESULTS_MAX: Final = 1024
"""A server refuses a request for last entries that has more results."""


Ask: TypeAlias = Callable[[list[Place]], Awaitable[dict[str, Entry]]]
"""Returns the last entries of places in one stream, by subject."""
Answer: TypeAlias = "asyncio.Future[Entry | None]"
Waiting: TypeAlias = tuple[Place, list[Answer]]


class TooMany(Exception):
    """A request for last entries has more results than a server gives."""


class Asking:
    """What a log asks its server, over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._marks = 0
        self._newest: dict[str, int] = {}
        """By stream, the highest sequence that was heard of."""

    def _saw(self, stream: str, seq: int) -> None:
        if seq > self._newest.get(stream, 0):
            self._newest[stream] = seq

    async def _one(self, stream: str, wanted: dict[str, object], subject: str) -> Heard | None:
        """One entry by a direct get, which any replica may answer."""
        heard = await self._request(f"{self._connection.api}DIRECT.GET.{stream}", msgspec.json.encode(wanted), subject)
        if heard.status == api.NOT_FOUND:
            return None
        await self._check(heard.status, stream, subject)
        self._saw(stream, heard.seq)
        return heard

    async def _batch(
        self, stream: str, wanted: dict[str, object], after: int, subject: str
    ) -> tuple[list[Heard], bool]:
        """One batched direct get: entries in order, and whether there are more."""
        heard = await self._collect(stream, wanted, subject)
        entries: list[Heard] = []
        last, more = 0, False
        for one in heard:
            if one.status:
                more = one.status == api.END_OF_BATCH and one.pending > 0
                break
            if one.seq <= after:
                continue
            if one.previous != last:  # one was lost on its way (the first says 0): what is behind it is read again
                more = True
                break
            entries.append(one)
            last = one.seq
            self._saw(stream, last)
        else:
            more = True
        if more and not entries:
            raise StoreUnreachable(
                f"A part of the server's answer about {subject} was lost; try again.", subject=subject
            )
        return entries, more

    async def _lasts(self, stream: str, names: Sequence[str]) -> list[Heard]:
        """The last entry of each name that these match, from one state of one replica.  Raises `TooMany`."""
        heard = await self._collect(stream, {"multi_last": names, "batch": RESULTS_MAX}, stream)
        if heard[-1].status == api.TOO_MANY:
            raise TooMany
        return [one for one in heard if not one.status]

    async def _marked(self, stream: str, mark: str, subject: str) -> int:
        """The sequence of a new entry that stands for nothing but its place in the stream; older ones are removed now and then."""
        try:
            heard = await self._connection.call(mark, b"", APPEND_S)
        except Unanswered as error:
            raise StoreUnreachable(f"The server did not answer about {subject}: {error}.", subject=subject) from None
        if heard.status == api.NO_RESPONDERS:
            raise await self._gone(stream)
        outcome = api.outcome_of(heard.data, subject)
        if not isinstance(outcome, Appended):
            raise StoreUnreachable(f"The server did not answer about {subject}; try again.", subject=subject)
        self._marks += 1
        if self._marks % MARKS_MAX == 0:
            await self._purge(stream, mark, outcome.seq, subject)
        return outcome.seq

    async def _names(self, stream: str, matching: str, at_least: int = 0) -> list[str]:
        """The names in the stream that this matches, by its leader's list of them, which has come to `at_least` that sequence."""
        return [name async for page in self._name_pages(stream, matching, at_least) for name in page]

    async def _name_pages(self, stream: str, matching: str, at_least: int = 0) -> AsyncIterator[Collection[str]]:
        count = 0
        while True:
            answer = await self._stream("STREAM.INFO", stream, {"subjects_filter": matching, "offset": count}, stream)
            if answer.state.last_seq < at_least:
                raise StoreUnreachable(
                    f"Only a server that is behind answered about {stream}; try again.", stream=stream
                )
            there = answer.state.subjects or {}
            yield there.keys()
            count += len(there)
            if not there or count >= answer.total:
                return

    async def _asked(self, what: str, stream: str, data: bytes, subject: str) -> Heard:
        heard = await self._request(f"{self._connection.api}{what}.{stream}", data, subject)
        if heard.status == api.NO_RESPONDERS:
            raise await self._gone(stream)
        return heard

    async def _purge(self, stream: str, name: str, before: int, subject: str) -> None:
        """Removes what the name matches and has a lower sequence."""
        if before <= 1:
            return
        await self._stream("STREAM.PURGE", stream, {"filter": name, "seq": before}, subject)

    async def _stream(self, what: str, stream: str, wanted: dict[str, object], subject: str) -> api.StreamAnswer:
        heard = await self._asked(what, stream, msgspec.json.encode(wanted), subject)
        answer: api.StreamAnswer = api.decode(heard.data, api.StreamAnswer, subject)
        if answer.error is not None:
            raise api.error_of(answer.error, subject, stream)
        return answer

    async def _request(self, where: str, data: bytes, subject: str) -> Heard:
        try:
            return await self._connection.call(where, data, READ_S)
        except Unanswered as error:
            raise StoreUnreachable(f"The server did not answer about {subject}: {error}.", subject=subject) from None

    async def _collect(self, stream: str, wanted: dict[str, object], subject: str) -> list[Heard]:
        try:
            heard = await self._connection.collect(
                f"{self._connection.api}DIRECT.GET.{stream}", msgspec.json.encode(wanted), READ_S
            )
        except Unanswered as error:
            raise StoreUnreachable(f"The server did not answer about {subject}: {error}.", subject=subject) from None
        status = heard[-1].status
        if status not in (api.END_OF_BATCH, api.NOT_FOUND, api.TOO_MANY):
            await self._check(status, stream, subject)
        return heard

    async def _check(self, status: str, stream: str, subject: str) -> None:
        if status == api.NO_RESPONDERS:
            raise await self._gone(stream)
        if status:
            raise StoreUnreachable(f"The server refused to read {subject}: status {status}.", subject=subject)

    async def _gone(self, stream: str) -> CellError:
        """Nobody took a request: is the stream gone, or only without a leader for a moment?"""
        try:
            heard = await self._connection.call(f"{self._connection.api}STREAM.INFO.{stream}", b"", READ_S)
        except (Unanswered, RetryError) as error:
            return StoreUnreachable(
                f"The server did not take a request for the stream {stream} ({error}); nothing was written. Try again.",
                stream=stream,
            )
        if heard.status == api.NO_RESPONDERS:  # there was somebody when this was opened: a leaf server has lost its hub
            return StoreUnreachable(
                f"Nobody answers for JetStream at the server {self._connection.url} now; nothing was written. If it is a leaf server, "
                "its hub is away; if it was started without JetStream, start it with `nats-server -js`.", stream=stream,
            )  # fmt: skip
        answer = api.decode(heard.data, api.StreamAnswer, stream)
        if answer.error is not None:
            return api.error_of(answer.error, stream)
        return StoreUnreachable(
            f"The stream {stream} has no leader now; nothing was written. Try again.", stream=stream
        )


class Together:
    """A node that takes a thousand agents looks at a thousand inboxes, and a request costs more than its answer."""

    def __init__(self, ask: Ask, most: int) -> None:
        self._ask = ask
        self._most = most
        self._waiting: dict[str, dict[str, Waiting]] = {}
        """By stream and subject: who waits for the request that is about to be sent."""
        self._tasks = set[asyncio.Task[None]]()

    async def last(self, place: Place) -> Entry | None:
        """The subject's last entry, by a request that is sent after this call.  Raises what the request raises."""
        loop, waiting = asyncio.get_running_loop(), self._waiting.setdefault(place.stream, {})
        if not waiting:
            loop.call_soon(self._send, place.stream)
        answer: Answer = loop.create_future()
        waiting.setdefault(place.subject, (place, []))[1].append(answer)
        if len(waiting) >= self._most:
            self._send(place.stream)
        return await answer

    def _send(self, stream: str) -> None:
        if waiting := self._waiting.pop(stream, None):
            task = asyncio.get_running_loop().create_task(self._answer(list(waiting.values())))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, waiting: list[Waiting]) -> None:
        try:
            lasts = await self._ask([place for place, _ in waiting])
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are told
            failed = error
            _each(waiting, lambda _, answer: answer.set_exception(failed))
        except BaseException:
            _each(waiting, lambda _, answer: answer.cancel())
            raise
        else:
            _each(waiting, lambda subject, answer: answer.set_result(lasts.get(subject)))


def _each(waiting: list[Waiting], do: Callable[[str, Answer], object]) -> None:
    for place, answers in waiting:
        for answer in answers:
            if not answer.done():  # else its caller has given up
                do(place.subject, answer)
