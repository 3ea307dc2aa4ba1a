"""One call of a client's session, until its outcome is known."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple, Protocol

import msgspec

from mielin_cells import tracing
from mielin_cells.agents.context import Caller, CallOptions
from mielin_cells.agents.values.models import readable
from mielin_cells.errors import Expired, MessageTooLarge, described, from_wire, never
from mielin_cells.log.inboxes.cancels import Cancel
from mielin_cells.log.message import Answer, Message, Terms, decode_answer
from mielin_cells.settings import MAIL_BYTES_MAX, MESSAGE_BYTES_MAX
from mielin_cells.store.clock import StoreClock


class Codec(Protocol):
    """How a call of a handler is encoded, and its result decoded."""

    @property
    def name(self) -> str: ...

    def encode_args(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes: ...

    def decode_result(self, data: bytes, caller: Caller | None = None) -> Any: ...

    def error_of(self, answer: Answer) -> Exception: ...


class Call(msgspec.Struct, eq=False):  # a struct is made in a third of the time of a dataclass, and each call makes one
    """A number without an outcome: an ask waits for its answer, a tell for being stored."""

    message: Message
    cls: str
    future: asyncio.Future[bytes]
    deadline: float
    is_stored: bool = False
    """The message is in the inbox, and is not being stored again."""
    is_repeated: bool = False
    """It was stored more than once."""

    @property
    def is_silent(self) -> bool:
        """It is an ask without an answer."""
        return self.message.ask and not self.future.done()

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def terms_of(key: str, name: str, ask: bool, future: asyncio.Future[bytes], rng: tracing.Random) -> Terms | None:
    """What goes with a call: its key, and the trace that it is part of.  Begins its span, which ends with `future`."""
    trace = tracing.outgoing()
    span = tracing.begin("ask" if ask else "tell", name, trace, rng) if tracing.is_on else None
    if span is not None:
        trace, ended = span.trace, span.end
        future.add_done_callback(lambda done: ended(_error_of(done, ask)))
    if trace is not None:
        return Terms(0.0, key, trace.text)
    return Terms(0.0, key) if key else None


def _error_of(done: asyncio.Future[bytes], is_ask: bool) -> str:
    if done.cancelled():
        return "cancelled"
    error = done.exception()
    if error is not None or not is_ask:
        return described(error) if error is not None else ""
    answer = decode_answer(done.result())
    return f"{answer.error[0]}: {answer.error[1]}" if answer.error is not None else ""


class Late:
    """Of the calls of one session: those that have a deadline, as they leave."""

    __slots__ = ("_agent", "_clock", "_until")

    def __init__(self, agent: str, clock: StoreClock) -> None:
        self._agent = agent
        self._clock = clock
        self._until: dict[int, float] = {}
        """By number of a message that was never on its way to the store: the loop's time by which its turn must begin."""

    def __bool__(self) -> bool:
        return bool(self._until)

    def add(self, n: int, options: CallOptions, since: float) -> None:
        """Message `n` is of a call that was made at `since`, by the loop's time."""
        if options.deadline is not None:
            self._until[n] = since + options.deadline

    def clear(self) -> None:
        self._until.clear()

    async def in_time(self, calls: list[Call]) -> list[Call]:
        """The calls that may still be sent, with what is left of their deadlines; the others end with `Expired`."""
        if not any(call.message.n in self._until for call in calls):
            return calls
        await self._clock.refresh()
        now, leave = asyncio.get_running_loop().time(), list[Call]()
        for call in calls:
            until = self._until.pop(call.message.n, None)
            if until is None or until > now:
                if until is not None:
                    terms = msgspec.structs.replace(
                        call.message.terms or Terms(), expires=self._clock.now() + until - now
                    )
                    call.message = msgspec.structs.replace(call.message, terms=terms)
                leave.append(call)
            else:
                handler = call.message.handler
                call.fail(
                    Expired(
                        f"{handler} of agent {self._agent!r} was not called: its deadline passed before the message could be sent.",
                        agent=self._agent, handler=handler,
                    )
                )  # fmt: skip
        return leave


def too_large(agent: str, args: bytes) -> MessageTooLarge:
    return MessageTooLarge(
        f"A message to {agent!r} has {len(args)} bytes; the limit is {MESSAGE_BYTES_MAX}.",
        limit=MESSAGE_BYTES_MAX, size=len(args),
    )  # fmt: skip


class Canceller(Protocol):
    def cancel_soon(self, agent: str, cancel: Cancel) -> asyncio.Task[Any] | None: ...


def cancel_call(
    client: Canceller, queue: list[Call], call: Call, agent: str, cancel: Cancel
) -> asyncio.Task[Any] | None:
    """Nobody waits for the ask any more: it is to have no effect, unless it has had one (rule T4)."""
    if call in queue:  # nothing of it was sent
        queue.remove(call)
    elif not call.future.done() or call.future.cancelled():
        call.future.cancel()
        return client.cancel_soon(agent, cancel)
    call.future.cancel()
    return None


class Words(NamedTuple):
    """A call in words: a node that knows the class has encoded its arguments, and its result is shown as plain data."""

    name: str
    args: bytes

    def encode_args(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        return self.args

    def decode_result(self, data: bytes, caller: Caller | None = None) -> Any:
        return readable(msgspec.msgpack.decode(data)) if data else None

    def error_of(self, answer: Answer) -> Exception:
        if answer.error is None:
            raise never("the answer holds an error")
        return from_wire(*answer.error)


def count_fitting(queue: list[Call]) -> int:
    """How many of the first calls fit one inbox entry: those of one class, one at least."""
    size, count, cls = 0, 0, queue[0].cls
    for call in queue:
        size += len(call.message.args) + 64
        if count and (size > MAIL_BYTES_MAX or call.cls != cls):
            break
        count += 1
    return count
