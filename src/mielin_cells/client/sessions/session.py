"""A client's calls to one agent: numbered, stored in order, repeated until answered (rules 14 and 15)."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from mielin_cells.agents.context import Caller, CallOptions
from mielin_cells.client.calls import Call, Codec, Late, cancel_call, count_fitting, terms_of, too_large
from mielin_cells.client.requester import Requester, foreign_loop
from mielin_cells.client.sessions.window import Window, closed
from mielin_cells.errors import (
    AgentTerminated,
    AskTimeout,
    CellError,
    EpochRegression,
    RetryError,
    SessionExpired,
    StoreFull,
)
from mielin_cells.log.inboxes.cancels import Cancel
from mielin_cells.log.inboxes.lines import priority_of
from mielin_cells.log.message import Mail, Message, client_sender, decode_answer
from mielin_cells.rpc import requests
from mielin_cells.rpc.answers import InboxRoom
from mielin_cells.rpc.reminder import count_waiting, read_last_answer, remind
from mielin_cells.settings import ASK_REPEAT_S_MAX, MESSAGE_BYTES_MAX
from mielin_cells.store.mail import Posting
from mielin_cells.tasks.signal import Signal
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.client")

FIRST_S = 0.1
"""After so long without an answer to a session's first ask, the owner is asked why: the agent may be unable to answer."""

running_loop = asyncio.get_running_loop


class Session:
    """The numbered calls of one client to one agent."""

    def __init__(
        self, client: Requester, caller: Caller, agent: str, name: str, expired: Callable[[Session], None],
        inbox_max: int | None = None,
    ) -> None:  # fmt: skip
        """`expired` is called when the next call to the agent needs another session.  `caller` is for references in results.

        `inbox_max`: how many messages may wait, if the agent's class says so.
        """
        self.agent = agent
        self.sender = client_sender(name)
        self.start = 0
        """Where the agent's log ended before the first message was stored; 0 until the agent was looked up."""
        self._client = client
        self._caller = caller
        self._expired = expired
        self._loop = client.loop or asyncio.get_running_loop()
        self._timeout_s = client.settings.ask_timeout_s
        self._repeat_s = client.settings.ask_repeat_s
        self.next_n = 1
        self._open: dict[int, Call] = {}
        """By number, in order; the first is the lowest without an outcome."""
        self._queue: list[Call] = []
        self._late = Late(agent, client.clock)
        self.given_up: set[int] = set()
        """Numbers whose storing is uncertain and which may land late: after later numbers they must not take effect."""
        self._sending = False
        self._sent = Signal()
        """Set while the queue is empty: all of it is stored or was refused."""
        self._posting = Posting()
        self._window = Window(
            agent, inbox_max or client.settings.inbox_max, lambda: self.next_n - 1, self._count_waiting, client.start,
            self._timeout_s,
        )  # fmt: skip
        self._is_started = False
        self.streamed = 0
        """The last entry of the session's streams that was read."""
        self._stored = 0
        """Sequence of the last inbox entry of this session."""
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        """When the timer fires."""
        self._heard = 0.0
        """When the last answer came, or the owner was last reminded."""
        self._silence = 0.0
        """Seconds after `_heard` until the owner is reminded.  It grows while nothing is heard."""
        self._why = ""
        """Why there are no answers, if it is known."""

    async def ask(
        self, cls: str, handler: Codec, args: tuple[Any, ...], kwargs: dict[str, Any],
        timeout: float | None, id: str | None = None, options: CallOptions | None = None,
    ) -> Any:  # fmt: skip
        """The result.  Raises the answer's error, or `AskTimeout`: then the ask may still take effect."""
        if running_loop() is not self._loop:
            raise foreign_loop()
        data = handler.encode_args(args, kwargs)
        if len(data) > MESSAGE_BYTES_MAX:
            raise too_large(self.agent, data)
        since, window = self._loop.time() if options is not None else 0.0, self._window
        if self.next_n > window.free or window.held:
            await window.enter()
        if timeout is None:
            timeout = self._timeout_s
        deadline = self._loop.time() + timeout
        call = self._send(handler.name, data, True, cls, deadline, options, since)
        if deadline < self._due:
            self._watch(deadline)
        try:
            answer = decode_answer(await call.future)
        except TimeoutError:
            raise self.timed_out(handler.name, timeout, id or "") from None
        except asyncio.CancelledError:
            self.give_up(call)
            raise
        finally:
            del self._open[call.message.n]
        if answer.error is not None:
            error = handler.error_of(answer)
            if isinstance(error, SessionExpired):
                self._expired(self)
            raise error
        return handler.decode_result(answer.result or b"", self._caller)

    async def tell(self, cls: str, handler: str, args: bytes, options: CallOptions | None = None) -> None:
        """Returns when the message is stored in the inbox.  Raises what kept it from being stored for `ask_timeout_s`."""
        if running_loop() is not self._loop:
            raise foreign_loop()
        if len(args) > MESSAGE_BYTES_MAX:
            raise too_large(self.agent, args)
        since = self._loop.time()
        if self.next_n > self._window.free or self._window.held:
            await self._window.enter()
        call = self._send(handler, args, False, cls, self._loop.time() + self._timeout_s, options, since)
        try:
            await asyncio.shield(call.future)
        finally:
            if call.future.done():
                self._open.pop(call.message.n, None)
            else:  # the caller has gone; the number stays open until it is stored
                call.future.add_done_callback(lambda _: self._open.pop(call.message.n, None))

    async def begin(self, cls: str, handler: str, args: bytes, timeout: float, options: CallOptions | None) -> Call:
        """Makes an ask whose caller waits for its future, and may move its deadline."""
        if running_loop() is not self._loop:
            raise foreign_loop()
        if len(args) > MESSAGE_BYTES_MAX:
            raise too_large(self.agent, args)
        since = self._loop.time()
        if self.next_n > self._window.free or self._window.held:
            await self._window.enter()
        call = self._send(handler, args, True, cls, self._loop.time() + timeout, options, since)
        call.future.add_done_callback(lambda future: self._close(call, future))
        if call.deadline < self._due:
            self._watch(call.deadline)
        return call

    async def stored(self, call: Call) -> None:
        """Returns once the call is stored, or has an outcome without that."""
        while not (call.is_stored or call.future.done()):
            await self._sent.wait()

    def _close(self, call: Call, future: asyncio.Future[bytes]) -> None:
        """The call has an outcome; perhaps nobody waits for it any more."""
        self._open.pop(call.message.n, None)
        if not future.cancelled():
            future.exception()

    def give_up(self, call: Call) -> asyncio.Task[Any] | None:
        """Nobody waits for the call any more: it is cancelled, unless it has an outcome.  Returns what stores the order."""
        return cancel_call(self._client, self._queue, call, self.agent, Cancel(self.sender, call.message.n, self.start))

    def timed_out(self, handler: str, timeout: float, id: str = "") -> AskTimeout:
        label = f" ({id})" if id else ""
        return AskTimeout(
            f"No answer from {self.agent!r}.{handler}{label} in {timeout:g} s{self._why}; the ask may still take effect.",
            agent=self.agent, id=id,
        )  # fmt: skip

    def close(self) -> None:
        """Ends every call with `NotConnected`.  Messages that were sent may still take effect."""
        self._window.close()
        if self._timer is not None:
            self._timer.cancel()
        for call in self._open.values():
            if not call.future.done():
                call.future.set_exception(closed())
                call.future.exception()  # perhaps nobody waits for it any more

    def receive(self, answers: dict[int, bytes]) -> None:
        self._heard, self._silence, self._why = self._loop.time(), self._repeat_s, ""
        calls, n = self._open, 0
        for n, answer in answers.items():
            call = calls.get(n)
            if call is not None and not call.future.done():
                call.future.set_result(answer)
        self._window.passed(n)

    # ---- time ------------------------------------------------------------------------------------------------
    # One timer a session: most answers come within a millisecond, and thousands of asks may be open.

    def _watch(self, deadline: float) -> None:
        if self._timer is None:
            now = self._loop.time()
            first = self._repeat_s if self._heard else FIRST_S
            self._heard, self._silence = now, min(first, self._repeat_s, (deadline - now) / 2)
        else:
            self._timer.cancel()
        self._arm()

    def _arm(self) -> None:
        first = min((call.deadline for call in self._open.values() if call.message.ask), default=0.0)
        if first:
            now, due = self._loop.time(), self._heard + self._silence
            if due >= first and first - now > FIRST_S:  # the owner is reminded before the ask ends
                due = now + (first - now) / 2
                self._silence = due - self._heard
            self._due = min(first, due)
            self._timer = self._loop.call_at(self._due, self._tick)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due, self._timer = math.inf, None

    def _tick(self) -> None:
        now = self._loop.time()
        for call in self._open.values():
            if call.message.ask and call.deadline <= now:
                call.fail(TimeoutError())
        if now >= self._heard + self._silence:
            is_early = self._silence < self._repeat_s
            self._heard, self._silence = now, self._repeat_s if is_early else min(self._silence * 2, ASK_REPEAT_S_MAX)
            self._client.start(self._repeat([call for call in self._open.values() if call.is_silent], is_early))
        self._disarm()
        if any(call.is_silent for call in self._open.values()):
            self._arm()

    def _start_over(self, at: float) -> None:
        """The agent cannot answer now: asks that come later get the times of a session that last heard something `at`."""
        self._heard = at
        self._disarm()
        first = min((call.deadline for call in self._open.values() if call.is_silent), default=0.0)
        if first:
            self._watch(first)

    async def _repeat(self, silent: list[Call], is_early: bool) -> None:
        """Reminds the owner after a long silence, and stores again the messages that it has never seen.

        `is_early`: the owner is only asked why.
        """
        client, stored = self._client, {call.message.n: call for call in silent if call.is_stored}
        if not stored:
            return  # they are on their way
        numbers = [] if is_early else list(stored)
        reminder = requests.Remind(self.agent, self.sender, self.start, client.reply_to, numbers)
        missing: list[int] | None = None
        try:
            until = max(call.deadline for call in stored.values())
            status = await remind(client.log, client.wire, reminder, until - self._loop.time())
            missing, self._why = status.missing, f": {status.why}" if status.why else ""
        except AgentTerminated:
            for n in stored:
                self.receive({n: await read_last_answer(client.log, self.agent, self.sender, n)})
            self._start_over(0.0)
            return
        except CellError as why:
            is_passing = isinstance(why, RetryError)
            if not is_passing or isinstance(why, StoreFull):  # the agent cannot answer until somebody acts
                for call in silent:
                    call.fail(type(why)(why.message, **why.facts))
                self._start_over(self._loop.time() if is_passing else 0.0)
                return
            logger.debug("agent %s: %s", self.agent, why)
        if is_early:
            return
        for call in stored.values() if missing is None else [stored[n] for n in missing if n in stored]:
            if call.message.n in self._open and call.is_stored and (missing is not None or not call.is_repeated):
                call.is_repeated, call.is_stored = True, False
                self._put(call)

    # ---- storing ---------------------------------------------------------------------------------------------

    def _send(
        self, handler: str, args: bytes, ask: bool, cls: str, deadline: float, options: CallOptions | None, since: float
    ) -> Call:
        n = self.next_n
        self.next_n = n + 1
        key = options.key if options is not None else ""
        future: asyncio.Future[bytes] = self._loop.create_future()
        terms = terms_of(key, f"{self.agent}.{handler}", ask, future, self._client.rng)
        call = self._open[n] = Call(Message(n, handler, args, ask, terms=terms), cls, future, deadline)
        if options is not None:
            self._late.add(n, options, since)
        self._put(call)
        return call

    def _put(self, call: Call) -> None:
        self._queue.append(call)
        if not self._sending:
            self._sending = True
            self._client.start(self._store())

    async def _store(self) -> None:
        """Stores the queue, one entry after the other, so that the inbox has a sender's messages in order."""
        calls = list[Call]()
        try:
            if not self._is_started:
                await self._find_agent()
            while self._queue:
                calls = self._take_entry()
                if self._late and not (calls := await self._in_time(calls)):
                    continue
                cls, messages = calls[0].cls, [call.message for call in calls]
                low = min(next(iter(self._open), self.next_n), messages[0].n)
                self.given_up = {n for n in self.given_up if n >= low}
                mail = Mail(
                    self.agent, cls, self.sender, self.start, low, self._client.reply_to, messages, sorted(self.given_up)
                )  # fmt: skip
                seq = await self._posting.store(self._client.log, mail, partial(self._give_up, calls))
                if seq <= self._stored:
                    raise await self._went_back(seq)
                self._stored = seq
                for call in calls:
                    call.is_stored = True
                    if not call.message.ask and not call.future.done():
                        call.future.set_result(b"")
        except Exception as error:
            self._queue.clear()
            self._late.clear()
            self.given_up.update(call.message.n for call in calls)
            is_of_all = isinstance(error, EpochRegression) or not self._is_started
            for call in self._open.values():
                if is_of_all or not call.is_stored:
                    call.fail(error)
            raise
        finally:
            self._sending = False
            self._sent.set()

    async def _find_agent(self) -> None:
        """The session begins where the agent's log ends (rule 15).  Raises `NoSuchAgent`, `AgentTerminated`: the session has ended."""
        try:
            self.start = await self._client.end_of_log(self.agent)
        except CellError:
            self._expired(self)
            raise
        self._is_started = True

    async def _in_time(self, calls: list[Call]) -> list[Call]:
        """Those that may be sent.  Waits for the store while it does not answer, and while somebody waits for the calls."""
        backoff = Backoff()
        while True:
            try:
                return await self._late.in_time(calls)
            except RetryError as error:
                if self._give_up(calls, error):
                    raise
            await backoff.wait()

    def _give_up(self, calls: list[Call], error: RetryError) -> bool:
        """Fails the tells of an unstored entry that are past their deadline.  True if no caller waits for the entry any more."""
        now = self._loop.time()
        for call in calls:
            if not call.message.ask and call.deadline <= now:
                call.fail(type(error)(error.message, **error.facts))
        return all(call.future.done() for call in calls)

    def _take_entry(self) -> list[Call]:
        """Takes from the queue what fits one inbox entry."""
        count = count_fitting(self._queue)
        calls, self._queue = self._queue[:count], self._queue[count:]
        return calls

    async def _count_waiting(self) -> InboxRoom | None:
        """Messages in the inbox, those of this session among them; None if it is not known."""
        while self._sending:
            await self._sent.wait()
        return await count_waiting(self._client.log, self._client.wire, self.agent, priority_of(self.sender))

    async def _went_back(self, seq: int) -> EpochRegression:
        """Quarantines the agent: its inbox assigned a sequence again, so acknowledged messages may be gone."""
        before, self._stored = self._stored, seq
        self._expired(self)
        error = EpochRegression(
            f"The inbox of agent {self.agent!r} held entry {before} of this client, and now gave {seq} to a later one: the store "
            "lost acknowledged records, or was put back to an older copy. The agent is to be quarantined; restore the newer store, or "
            f"accept the loss: `mielin resume {self.agent}`.", agent=self.agent, have=seq, need=before,
        )  # fmt: skip
        try:
            await self._client.send_to_owner(self.agent, requests.Order(self.agent, "quarantine", error.message))
        except CellError as refusal:
            logger.error("agent %s could not be quarantined: %s", self.agent, refusal)
        return error
