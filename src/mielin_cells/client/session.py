"""A client's calls to one agent: numbered, stored in order, repeated until answered (rules 14 and 15)."""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from mielin_cells.agents.context import Caller
from mielin_cells.errors import (
    AgentTerminated,
    AskTimeout,
    CellError,
    EpochRegression,
    InboxFull,
    MessageTooLarge,
    NotConnected,
    RetryError,
    SessionExpired,
    StoreFull,
    UsageError,
)
from mielin_cells.log.message import Answer, Mail, Message, client_sender, decode_answer
from mielin_cells.rpc import requests
from mielin_cells.rpc.reminder import last_word, remind
from mielin_cells.settings import ASK_REPEAT_S_MAX, MAIL_BYTES_MAX, MESSAGE_BYTES_MAX
from mielin_cells.store.mail import store_mail
from mielin_cells.tasks.signal import Signal

if TYPE_CHECKING:
    from mielin_cells.client.client import Client

logger = logging.getLogger("mielin_cells.client")

FIRST_S = 0.1
"""A session's first ask without an answer for so long is asked after: its agent may be one that cannot answer."""

WINDOW_SHARE = 10
"""A client that has a tenth of what an inbox may hold in it, for all it knows, asks after the inbox's length first."""


running_loop = asyncio.get_running_loop


def foreign_loop() -> UsageError:
    return UsageError(
        "A cluster was used from another event loop than the one that it was opened in (asyncio.run in a thread makes one); "
        "nothing was sent. From a thread: asyncio.run_coroutine_threadsafe(ref.handler(...), loop).result()."
    )


def closed() -> NotConnected:
    return NotConnected(
        "The cluster is closed: its `async with` block has ended. Call inside the block; what was sent before may still take effect."
    )


class Codec(Protocol):
    """How a call of a handler is written, and its result read."""

    @property
    def name(self) -> str: ...

    def encode_args(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes: ...

    def decode_result(self, data: bytes, caller: Caller | None = None) -> Any: ...

    def error_of(self, answer: Answer) -> Exception: ...


class _Open(msgspec.Struct, eq=False):  # one is made for each call, and a struct is made in a third of the time
    """A number without an outcome: an ask waits for its answer, a tell for being stored."""

    message: Message
    cls: str
    future: asyncio.Future[bytes]
    deadline: float
    is_stored: bool = False
    """It is in the inbox, and not on its way there (again)."""
    is_again: bool = False
    """It was stored more than once."""


class Lane:
    """One session of one client with one agent."""

    def __init__(self, client: Client, agent: str, session: str) -> None:
        self.client = client
        self.agent = agent
        self.sender = client_sender(session)
        self.start = 0
        """Where the agent's log ended before the first message was stored: known once the agent was found."""
        self._loop = client.loop or asyncio.get_running_loop()
        self._inbox_max = client.settings.inbox_max
        self._timeout_s = client.settings.ask_timeout_s
        self._next = 1
        self._open: dict[int, _Open] = {}
        """In order of number, so that the first is the lowest without an outcome."""
        self._queue: list[_Open] = []
        self._sending = False
        self._share = -(-self._inbox_max // WINDOW_SHARE)
        self._free = self._share
        """Numbers up to this one are sent without asking after the inbox's length."""
        self._found = False
        self._stored = 0
        """Sequence of the last entry that this lane has put into the inbox."""
        self._gate = asyncio.Lock()
        self._sent = Signal()
        """All that waited is stored, or was refused."""
        self._tickets = 0
        self._full = 0, 0
        """Up to which ticket calls were refused, and how many messages waited then."""
        self._admitting = 0
        """Calls that wait for a count; later ones wait behind them, since messages are sent in the order of the calls."""
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        """When the timer fires."""
        self._heard = 0.0
        """When the last answer came, or the last repetition left."""
        self._why = ""
        """What is known of why there are no answers."""
        self._silence = 0.0
        """How long to wait from then on before asks are repeated; it grows while nothing is heard."""

    async def ask(
        self, cls: str, handler: Codec, args: tuple[Any, ...], kwargs: dict[str, Any],
        timeout: float | None, id: str | None = None,
    ) -> Any:  # fmt: skip
        """The result.  Raises the answer's error, or `AskTimeout`: then the ask may still take effect."""
        if running_loop() is not self._loop:
            raise foreign_loop()
        data = handler.encode_args(args, kwargs)
        if len(data) > MESSAGE_BYTES_MAX:
            raise self._too_large(data)
        if self._next > self._free or self._admitting:
            await self._admit()
        if timeout is None:
            timeout = self._timeout_s
        deadline = self._loop.time() + timeout
        asked = self._send(handler.name, data, True, cls, deadline)
        if deadline < self._due:
            self._watch(deadline)
        try:
            answer = decode_answer(await asked.future)
        except TimeoutError:
            label = f" ({id})" if id else ""
            raise AskTimeout(
                f"No answer from {self.agent!r}.{handler.name}{label} in {timeout:g} s{self._why}; the ask may still take effect.",
                agent=self.agent, id=id or "",
            ) from None  # fmt: skip
        finally:
            del self._open[asked.message.n]
        if answer.error is not None:
            error = handler.error_of(answer)
            if isinstance(error, SessionExpired):
                self.client.forget(self.agent)
            raise error
        return handler.decode_result(answer.result or b"", self.client)

    async def tell(self, cls: str, handler: str, args: bytes) -> None:
        """Returns when the message is stored in the inbox.  Raises what kept it from being stored for `ask_timeout_s`."""
        if running_loop() is not self._loop:
            raise foreign_loop()
        if len(args) > MESSAGE_BYTES_MAX:
            raise self._too_large(args)
        if self._next > self._free or self._admitting:
            await self._admit()
        told = self._send(handler, args, False, cls, self._loop.time() + self._timeout_s)
        try:
            await asyncio.shield(told.future)
        finally:
            if told.future.done():
                self._open.pop(told.message.n, None)
            else:  # the caller has gone; the number stays open until it is stored
                told.future.add_done_callback(lambda _: self._open.pop(told.message.n, None))

    def close(self) -> None:
        """The client is closed: who waits for an outcome is told, and what was sent may still take effect."""
        if self._timer is not None:
            self._timer.cancel()
        for waiting in self._open.values():
            if not waiting.future.done():
                waiting.future.set_exception(closed())
                waiting.future.exception()  # it may be that nobody waits any more

    def answered(self, answers: dict[int, bytes]) -> None:
        self._heard, self._silence, self._why = self._loop.time(), self.client.settings.ask_repeat_s, ""
        waiting, n = self._open, 0
        for n, answer in answers.items():
            found = waiting.get(n)
            if found is not None and not found.future.done():
                found.future.set_result(answer)
        self._passed(n)

    def _passed(self, n: int) -> None:
        """Message `n` has left the inbox, and with it all before it: an inbox is worked off in order."""
        self._free = max(self._free, n + self._share)

    # ---- time ------------------------------------------------------------------------------------------------
    # One timer a lane: most answers come within a millisecond, and thousands of asks may be open.

    def _watch(self, deadline: float) -> None:
        if self._timer is None:
            now = self._loop.time()
            first = self.client.settings.ask_repeat_s if self._heard else FIRST_S
            self._heard, self._silence = now, min(first, self.client.settings.ask_repeat_s, (deadline - now) / 2)
            self._arm()
        else:
            self._timer.cancel()
            self._arm()

    def _arm(self) -> None:
        first = min((o.deadline for o in self._open.values() if o.message.ask), default=0.0)
        if first:
            now, due = self._loop.time(), self._heard + self._silence
            if due >= first and first - now > FIRST_S:  # it would end without having been asked after
                due = now + (first - now) / 2
                self._silence = due - self._heard
            self._set(min(first, due))

    def _set(self, due: float) -> None:
        self._due, self._timer = due, self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        for found in self._open.values():
            if found.message.ask and found.deadline <= now and not found.future.done():
                found.future.set_exception(TimeoutError())
        if now >= self._heard + self._silence:
            repeat_s = self.client.settings.ask_repeat_s
            is_early = self._silence < repeat_s
            self._heard, self._silence = now, repeat_s if is_early else min(self._silence * 2, ASK_REPEAT_S_MAX)
            silent = [o for o in self._open.values() if o.message.ask and not o.future.done()]
            self.client.start(self._repeat(silent, is_early))
        self._due, self._timer = math.inf, None
        if any(o.message.ask and not o.future.done() for o in self._open.values()):
            self._arm()

    def _known(self, passes: bool) -> None:
        """The agent cannot answer: later asks are asked after in their own time, and not when these would have been again.

        `passes`: perhaps it can soon; else they are asked after as early as a session's first.
        """
        self._heard = self._loop.time() if passes else 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._due, self._timer = math.inf, None
        first = min((o.deadline for o in self._open.values() if o.message.ask and not o.future.done()), default=0.0)
        if first:
            self._watch(first)

    async def _repeat(self, silent: list[_Open], is_early: bool) -> None:
        """Nothing was heard for long: the owner is reminded, and what passed it by is stored again.

        `is_early`: the owner is only asked why.
        """
        client, stored = self.client, {asked.message.n: asked for asked in silent if asked.is_stored}
        if not stored:
            return  # they are on their way
        numbers = [] if is_early else list(stored)
        reminder = requests.Remind(self.agent, self.sender, self.start, client.reply_to, numbers)
        missing: list[int] | None = None
        try:
            until = max(asked.deadline for asked in stored.values())
            standing = await remind(client.log, client.wire, reminder, until - self._loop.time())
            missing, self._why = standing.missing, f": {standing.why}" if standing.why else ""
        except AgentTerminated:
            for n in stored:
                self.answered({n: await last_word(client.log, self.agent, self.sender, n)})
            self._known(False)
            return
        except CellError as why:  # parked, without room, or not heard
            if not isinstance(why, RetryError) or isinstance(why, StoreFull):
                for asked in silent:
                    if not asked.future.done():
                        asked.future.set_exception(type(why)(why.message, **why.facts))
                self._known(isinstance(why, RetryError))
                return
            logger.debug("agent %s: %s", self.agent, why)
        if is_early:
            return
        for asked in stored.values() if missing is None else [stored[n] for n in missing if n in stored]:
            if asked.message.n in self._open and asked.is_stored and (missing is not None or not asked.is_again):
                asked.is_again = True
                self._put(asked)

    # ---- storing ---------------------------------------------------------------------------------------------

    def _send(self, handler: str, args: bytes, ask: bool, cls: str, deadline: float) -> _Open:
        n = self._next
        self._next = n + 1
        sent = self._open[n] = _Open(Message(n, handler, args, ask), cls, self._loop.create_future(), deadline)
        self._queue.append(sent)
        if not self._sending:
            self._start()
        return sent

    def _put(self, sent: _Open) -> None:
        sent.is_stored = False
        self._queue.append(sent)
        if not self._sending:
            self._start()

    def _start(self) -> None:
        self._sending = True
        self.client.start(self._store())

    async def _store(self) -> None:
        """Stores what waits, the next only after the last: so the inbox has a sender's messages in order."""
        try:
            if not self._found:
                self.start = await self.client.find(self.agent)
                self._found = True
            while self._queue:
                sent = self._fitting()
                cls, messages = sent[0].cls, [one.message for one in sent]
                low = min(next(iter(self._open), self._next), messages[0].n)
                mail = Mail(self.agent, cls, self.sender, self.start, low, self.client.reply_to, messages)
                seq = await store_mail(self.client.log, mail, partial(self._late, sent))
                if seq <= self._stored:
                    raise await self._went_back(seq)
                self._stored = seq
                for one in sent:
                    one.is_stored = True
                    if not one.message.ask and not one.future.done():
                        one.future.set_result(b"")
        except Exception as error:
            self._queue.clear()
            is_of_all = isinstance(error, EpochRegression) or not self._found
            for found in self._open.values():
                if not found.future.done() and (is_of_all or not found.is_stored):
                    found.future.set_exception(error)
            raise
        finally:
            self._sending = False
            self._sent.set()

    def _late(self, sent: list[_Open], error: RetryError) -> bool:
        """The mail is not stored yet: tells whose time is over hear why.  True if nobody waits for any of it."""
        now = self._loop.time()
        for one in sent:
            if not one.message.ask and one.deadline <= now and not one.future.done():
                one.future.set_exception(type(error)(error.message, **error.facts))
        return all(one.future.done() for one in sent)

    def _fitting(self) -> list[_Open]:
        """What waits, as far as it fits one entry; it waits no longer."""
        waiting, size, count = self._queue, 0, 0
        cls = waiting[0].cls
        for sent in waiting:
            size += len(sent.message.args) + 64
            if count and (size > MAIL_BYTES_MAX or sent.cls != cls):
                break
            count += 1
        fitting, self._queue = waiting[:count], waiting[count:]
        return fitting

    def _too_large(self, args: bytes) -> MessageTooLarge:
        return MessageTooLarge(
            f"A message to {self.agent!r} has {len(args)} bytes; the limit is {MESSAGE_BYTES_MAX}.",
            limit=MESSAGE_BYTES_MAX, size=len(args),
        )  # fmt: skip

    async def _went_back(self, seq: int) -> EpochRegression:
        """The inbox has given a number again: what this client was acknowledged before may be gone, whatever the agent says."""
        before, self._stored = self._stored, seq
        self.client.forget(self.agent)
        error = EpochRegression(
            f"The inbox of agent {self.agent!r} held entry {before} of this client, and now gave {seq} to a later one: the store "
            "lost acknowledged records, or was put back to an older copy. The agent is to be parked; restore the newer store, or "
            f"accept the loss: `mielin resume {self.agent}`.", agent=self.agent, have=seq, need=before,
        )  # fmt: skip
        try:
            await self.client.park(self.agent, error.message)
        except CellError as refusal:
            logger.error("agent %s could not be parked: %s", self.agent, refusal)
        return error

    async def _admit(self) -> None:
        """Waits for this call's turn, and asks how many messages wait if that is not known.  Raises `InboxFull`: nothing was sent."""
        self._admitting += 1
        self._tickets += 1
        ticket = self._tickets
        try:
            async with self._gate:  # in the order of the calls
                if ticket <= self._full[0]:  # the same answer for all that had asked by then
                    self._refuse(self._full[1])
                if self._next > self._free:
                    await self._count()
        finally:
            self._admitting -= 1

    def _refuse(self, waiting: int) -> None:
        raise InboxFull(
            f"Agent {self.agent!r} has {waiting} messages waiting (limit {self._inbox_max}); this one was not sent. Try again later.",
            agent=self.agent, waiting=waiting, limit=self._inbox_max,
        )  # fmt: skip

    async def _count(self) -> None:
        while self._sending:  # what this client has on its way is to be counted
            await self._sent.wait()
        waiting, limit, last = await self.client.waiting(self.agent), self._inbox_max, self._next - 1
        if waiting is None:  # nobody says: as many as this client knows of
            waiting = last - self._free + self._share
        if waiting >= limit:
            self._full = self._tickets, waiting
            self._refuse(waiting)
        self._passed(last - waiting)
        self._free = max(self._free, last + max(1, (limit - waiting) // WINDOW_SHARE))
