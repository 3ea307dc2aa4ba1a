"""Messages from the server, and the requests that wait for them."""

from __future__ import annotations

import asyncio
import itertools
import re
from datetime import datetime
from typing import Any, Final

from mielin_cells.substrate.jetstream import api

_NUMBER: Final = re.compile(r"[0-9]{1,20}")


class Heard:
    """A message as it came."""

    __slots__ = ("_headers", "_subject", "data", "reply")

    def __init__(self, msg: Any) -> None:
        self._headers: dict[str, str] = msg.headers or {}
        self._subject: str = msg.subject
        self.data: bytes = msg.data
        self.reply: str = msg.reply

    @property
    def status(self) -> str:
        """A server's status instead of an answer; "" for an answer, also for a stored message that has such a header of its own."""
        return "" if api.SEQUENCE in self._headers else self._headers.get(api.STATUS, "")

    @property
    def token(self) -> str:
        """The last word of the subject: which request this answers."""
        return self._subject.rpartition(".")[2]

    @property
    def subject(self) -> str:
        return self._headers.get("Nats-Subject", self._subject)

    @property
    def seq(self) -> int:
        return self._number(api.SEQUENCE)

    @property
    def previous(self) -> int:
        return self._number(api.PREVIOUS)

    @property
    def pending(self) -> int:
        return self._number("Nats-Num-Pending")

    @property
    def at(self) -> float:
        """When it was stored, in wall seconds; 0 if that is malformed."""
        try:
            return datetime.fromisoformat(self._headers.get(api.TIME, "")).timestamp()
        except ValueError:
            return 0.0

    @property
    def id(self) -> str:
        return self._headers.get(api.MESSAGE_ID, "")

    @property
    def expected(self) -> int | None:
        """The subject's sequence that this was appended behind; None if it was appended without that condition."""
        return self._number(api.EXPECT) if api.EXPECT in self._headers else None

    @property
    def source(self) -> int:
        """The sequence in the stream that this was taken from; 0 if it was not."""
        words = self._headers.get(api.SOURCE, "").split(" ")
        return _number(words[1]) if len(words) > 1 else 0

    def _number(self, name: str) -> int:
        """The number in a header; 0 if there is none or it is malformed, since anybody may send anything."""
        return _number(self._headers.get(name, ""))


def _number(text: str) -> int:
    return int(text) if _NUMBER.fullmatch(text) is not None else 0


class Waiter:
    """A request: `future` gets its one answer, or with a `batch` all messages up to the one with a status."""

    __slots__ = ("batch", "future", "subject", "token")

    def __init__(self, token: str, subject: str, batch: list[Heard] | None) -> None:
        self.token = token
        self.subject = subject
        self.batch = batch
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Waiters:
    """The requests of one connection that have no answer yet."""

    def __init__(self) -> None:
        self._tokens = itertools.count()
        self._waiters: dict[str, Waiter] = {}

    def add(self, subject: str, batch: list[Heard] | None) -> Waiter:
        waiter = Waiter(str(next(self._tokens)), subject, batch)
        self._waiters[waiter.token] = waiter
        return waiter

    def remove(self, waiter: Waiter) -> None:
        del self._waiters[waiter.token]

    def answer(self, heard: Heard) -> None:
        waiter = self._waiters.get(heard.token)
        if waiter is None or waiter.future.done():
            return
        if waiter.batch is None:
            waiter.future.set_result(heard)
            return
        waiter.batch.append(heard)
        if heard.status:
            waiter.future.set_result(waiter.batch)

    def all(self) -> list[Waiter]:
        return list(self._waiters.values())

    def lose(self, why: str) -> None:
        """Fails every request that waits, because the connection for its answer is gone."""
        for waiter in self._waiters.values():
            waiter.fail(api.Unanswered(why))
