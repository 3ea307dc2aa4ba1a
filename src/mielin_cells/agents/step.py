"""Durable steps, as authors write them: `await cells.step("name", call, *args)` inside a turn.

A finished step is a record: a turn that runs again, here or on another node, gets its outcome back and does not call.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import typing
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar, TypeVarTuple, Unpack, overload

import msgspec

from mielin_cells.agents.context import turn
from mielin_cells.agents.reference import classes
from mielin_cells.agents.retry import Retry
from mielin_cells.agents.values import raises
from mielin_cells.agents.values.annotations import resolved
from mielin_cells.agents.values.changes import LOAD_ERRORS, reason
from mielin_cells.agents.values.codec import Codec
from mielin_cells.agents.values.wire import encode
from mielin_cells.errors import FieldRefused, MessageTooLarge, NotInTurn, StepInvalid, UsageError
from mielin_cells.settings import MESSAGE_BYTES_MAX, check_timeout

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

NAME_CHARS_MAX = 128
"""Longest name of a step, which is stored in the log with each outcome."""


ONCE_MORE = Retry()
"""For a step without `retry`."""


@overload
async def step(
    name: str,
    call: Callable[[Unpack[Ts]], Awaitable[R]],
    /,
    *args: *Ts,
    retry: Retry | None = None,
    timeout: float | None = None,
) -> R: ...
@overload
async def step(
    name: str,
    call: Callable[[Unpack[Ts]], R],
    /,
    *args: *Ts,
    retry: Retry | None = None,
    timeout: float | None = None,
) -> R: ...
async def step(
    name: str,
    call: Callable[[Unpack[Ts]], Any],
    /,
    *args: *Ts,
    retry: Retry | None = None,
    timeout: float | None = None,
) -> Any:
    """Calls `call(*args)` once, durably, and returns its result.

    Guarantees: the result is in the agent's log before this returns.  A turn that runs again (after a crash, a move, a
    lost race or a failure) gets the same result and does not make the call.
    Not guaranteed: that the call is made only once.  If the process dies during the call, the call is made again; the other side
    can recognise that by `this().idempotency_key`, which is the same for each of these calls.
    A move, and a node that stops, wait for the call that runs, and take the agent away before its next step.

    The result is stored as the call's return annotation says; without an annotation it must be plain data, and keeps its types.
    A call that raises, or takes longer than `timeout` seconds (default: the setting `step_timeout_s`), is made again as
    `retry` says (default: 3 calls).  After the last call the failure is stored like a result, and `StepFailed` is raised.
    The call must not use the agent: no state, no ask, no other step.
    Steps and asks of several tasks of a turn (`asyncio.gather`) are made at the same time, and a turn that runs again gets their
    outcomes in the same order.

    Raises `StepFailed`; `NotInTurn` outside a turn; `UsageError` in a hook or in another step, and for invalid options;
    `FieldRefused`, before the call, for a return type that cannot be stored; `StepInvalid` or `MessageTooLarge` for a result that
    cannot be stored, which fails the turn; `NonDeterministicTurn` if a turn that runs again does not make the same steps and asks.

        >>> def charge(cents: int) -> str:
        ...     return f"receipt-{cents}"  # here you would call the bank
        ...
        >>> class Order(cells.Agent):
        ...     @cells.handler
        ...     async def pay(self, cents: int) -> str:
        ...         return await cells.step("charge", charge, cents)
        ...
        >>> order = await cluster.spawn(Order, "order-1")
        >>> await order.pay(250)
        'receipt-250'
    """
    running = turn.get()
    if running is None:
        raise NotInTurn(f"Step {name!r}: step() means something only inside a handler of an agent.")
    check_timeout(timeout, f"Step {name!r} of agent {running.id!r}")
    if retry is not None and not isinstance(retry, Retry):
        raise UsageError(f"Step {name!r} of agent {running.id!r}: retry is a cells.Retry(...), and not {retry!r}.")
    return await running.run_step(name, call, args, ONCE_MORE if retry is None else retry, timeout)


async def emit(part: object) -> None:
    """Sends one part of the stream from inside the call of a step: `await cells.emit(token)`.

    It waits while the store is behind.  If the step's call is made again, its parts replace those of the call before; readers
    learn from which offset on.  The part is encoded as the handler's annotation says.

    Raises `NotInTurn` outside a turn, `UsageError` outside the call of a step and in a turn whose handler does not yield.

        >>> async def think(question: str) -> str:
        ...     for word in ("The", "sky", "is", "blue"):
        ...         await cells.emit(word)
        ...     return "done"
        ...
        >>> class Chat(cells.Agent):
        ...     @cells.handler
        ...     async def answer(self, question: str) -> AsyncIterator[str]:
        ...         await cells.step("think", think, question)
        ...         yield "."
        ...
        >>> chat = await cluster.spawn(Chat, "chat")
        >>> [part async for part in chat.answer("What colour is the sky?")]
        ['The', 'sky', 'is', 'blue', '.']
    """
    running: Any = turn.get()
    if running is None:
        raise NotInTurn("emit() means something only inside the call of a step of a handler that yields.")
    await running.emit_part(part)


class Within(NamedTuple):
    """The step whose call is running."""

    turn: Any
    name: str
    key: str
    attempt: int = 1
    """How many calls of it this run has made, with this one."""


TYPED = 1
"""The extension of msgpack that holds a value with the names of its types."""


def _typed(code: int, data: memoryview) -> Any:
    if code != TYPED:
        raise ValueError(f"the unknown msgpack extension {code}")
    return raises.unpack(msgspec.msgpack.decode(data))


class Results(NamedTuple):
    """How results of one callable are stored."""

    codec: Codec
    is_bare: bool
    """The result has no declared type: plain data that a load would change is stored with the names of its types."""

    def encode(self, value: Any) -> bytes:
        """Raises `StepInvalid` for a value that a load would not give, `MessageTooLarge` for one that is too large."""
        try:
            data = self._kept(value)
        except LOAD_ERRORS as error:
            raise StepInvalid(
                f"{self.codec.path} returned a value that cannot be stored: {reason(value, error)}. The turn is undone; change "
                "the call or its annotation."
            ) from error
        if len(data) > MESSAGE_BYTES_MAX:
            raise MessageTooLarge(
                f"{self.codec.path} returned {len(data)} bytes; the limit is {MESSAGE_BYTES_MAX}. Store the data elsewhere and "
                "return its name.",
                limit=MESSAGE_BYTES_MAX, size=len(data),
            )  # fmt: skip
        return data

    def _kept(self, value: Any) -> bytes:
        try:
            return self.codec.keep(value)[0]
        except LOAD_ERRORS:
            if not self.is_bare:
                raise
        try:
            return encode(msgspec.msgpack.Ext(TYPED, encode(raises.pack(value))))
        except raises.Unsendable as error:
            raise TypeError(f"{error}; annotate what the call returns, or let it return plain data") from error

    def load(self, data: bytes) -> Any:
        """Raises `StepInvalid` for a stored result that does not fit the declared type any more: the code has changed."""
        try:
            return self.codec.whole(data)
        except LOAD_ERRORS as error:
            why = reason(None, error)
            raise StepInvalid(f"{self.codec.path}: its stored result does not fit the declared one: {why}.") from error


def results_of(call: Callable[..., Any]) -> Results:
    """By the callable's return annotation; without one, for any plain data.  Raises `FieldRefused` for a type that cannot be kept."""
    fn: Any = call
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = inspect.unwrap(fn)
    if isinstance(fn, type):
        return _results(fn, f"{fn.__qualname__}()")
    if not inspect.isroutine(fn):  # an object that can be called
        fn = inspect.unwrap(type(fn).__call__)
    path = f"{getattr(fn, '__qualname__', repr(fn))}()"
    written = getattr(fn, "__annotations__", {}).get("return", Any)
    if isinstance(written, str):
        names = {**{cls.__name__: cls for cls in classes.values()}, **getattr(fn, "__globals__", {})}
        written = resolved({"return": written}, names, path)["return"]
    try:
        return _results(_awaited(type(None) if written is None else written), path)
    except TypeError as error:  # not hashable, so no type
        raise FieldRefused.at(path, f": {written!r} is no type of a result: {error}.") from error


def results_of_kind(kind: Any, path: str) -> Results:
    """For values of a type that is given.  Raises `FieldRefused` for one that cannot be kept."""
    try:
        wanted: Any = type(None) if kind is None else kind
        return _results(wanted, path)
    except TypeError as error:  # not hashable, so no type
        raise FieldRefused.at(path, f": {kind!r} is no type of a value: {error}.") from error


def _awaited(kind: Any) -> Any:
    """What a plain function that is annotated with an awaitable gives when it is awaited."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(origin, type) and issubclass(origin, collections.abc.Awaitable) and arguments:
        return arguments[-1]
    return kind


@functools.lru_cache(maxsize=1024)
def _results(kind: Any, path: str) -> Results:
    is_bare = kind is Any or isinstance(kind, TypeVar)
    return Results(Codec(Any if is_bare else kind, path, may_be_any=True, ext_hook=_typed), is_bare)


__all__ = ["ONCE_MORE", "Results", "Within", "emit", "results_of", "step"]
