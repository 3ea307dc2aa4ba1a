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
from mielin_cells.agents.values.changes import LOAD_ERRORS, check_kept, reason
from mielin_cells.agents.values.exact import is_exact
from mielin_cells.agents.values.shape import Shape, unsupported
from mielin_cells.agents.values.wire import STACK_MARGIN, deeper, encode, load_hook
from mielin_cells.errors import FieldRefused, MessageTooLarge, NotInTurn, StepInvalid, UsageError
from mielin_cells.settings import MESSAGE_BYTES_MAX, check_timeout

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

NAME_CHARS_MAX = 128
"""Of a step's name: it is in the log with each outcome."""


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
    The steps of one turn are made one after the other, even under `asyncio.gather`.

    Raises `StepFailed`; `NotInTurn` outside a turn; `UsageError` in a hook or in another step, and for invalid options;
    `FieldRefused`, before the call, for a return type that cannot be stored; `StepInvalid` or `MessageTooLarge` for a result that
    cannot be stored, which fails the turn; `NonDeterministicTurn` if a turn that runs again does not make the same steps and asks in
    the same order.
    """
    running = turn.get()
    if running is None:
        raise NotInTurn(f"Step {name!r}: step() means something only inside a handler of an agent.")
    check_timeout(timeout, f"Step {name!r} of agent {running.id!r}")
    if retry is not None and not isinstance(retry, Retry):
        raise UsageError(f"Step {name!r} of agent {running.id!r}: retry is a cells.Retry(...), and not {retry!r}.")
    return await running.run_step(name, call, args, ONCE_MORE if retry is None else retry, timeout)


class Within(NamedTuple):
    """The step whose call is running."""

    turn: Any
    name: str
    key: str


TYPED = 1
"""The extension of msgpack that holds a value with the names of its types."""


def _typed(code: int, data: memoryview) -> Any:
    if code != TYPED:
        raise ValueError(f"an extension {code} of msgpack, which is not known")
    return raises.unpack(msgspec.msgpack.decode(data))


class Codec(NamedTuple):
    """How results of one callable are kept."""

    path: str
    decode: Callable[[bytes], Any]
    check: Callable[[bytes], Any]
    is_bare: bool
    """The result has no declared type: what plain data would change is kept with the names of its types."""
    evolves: bool
    """It names classes, which the code that runs the turn again may declare otherwise."""

    def encode(self, value: Any) -> bytes:
        """Raises `StepInvalid` for a value that a load would not give, `MessageTooLarge` for one that is too large."""
        try:
            data = self._kept(value)
        except LOAD_ERRORS as error:
            raise StepInvalid(
                f"{self.path} returned what cannot be kept: {reason(value, error)}. The turn is undone; mend the call or its "
                "annotation."
            ) from error
        if len(data) > MESSAGE_BYTES_MAX:
            raise MessageTooLarge(
                f"{self.path} returned {len(data)} bytes; the limit is {MESSAGE_BYTES_MAX}. Keep a name of it instead.",
                limit=MESSAGE_BYTES_MAX, size=len(data),
            )  # fmt: skip
        return data

    def _kept(self, value: Any) -> bytes:
        try:
            data = encode(value)
            is_exact(value, self.check(data))
            return data
        except LOAD_ERRORS:
            if not self.is_bare:
                raise
        try:
            return encode(msgspec.msgpack.Ext(TYPED, encode(raises.pack(value))))
        except raises.Unsendable as error:
            raise TypeError(f"{error}; annotate what the call returns, or let it return plain data") from error

    def load(self, data: bytes) -> Any:
        """Raises `StepInvalid` for a kept result that is not of the declared type any more: the code has changed."""
        try:
            value = self.decode(data)
            if self.evolves:
                check_kept(data, value)
            return value
        except LOAD_ERRORS as error:
            why = reason(None, error)
            raise StepInvalid(f"{self.path}: its kept result does not fit the declared one: {why}.") from error


def codec_of(call: Callable[..., Any]) -> Codec:
    """By the callable's return annotation; without one, for any plain data.  Raises `FieldRefused` for a type that cannot be kept."""
    fn: Any = call
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = inspect.unwrap(fn)
    if isinstance(fn, type):
        return _codec(fn, f"{fn.__qualname__}()")
    if not inspect.isroutine(fn):  # an object that can be called
        fn = inspect.unwrap(type(fn).__call__)
    path = f"{getattr(fn, '__qualname__', repr(fn))}()"
    written = getattr(fn, "__annotations__", {}).get("return", Any)
    if isinstance(written, str):
        names = {**{cls.__name__: cls for cls in classes.values()}, **getattr(fn, "__globals__", {})}
        written = resolved({"return": written}, names, path)["return"]
    return _codec(_awaited(type(None) if written is None else written), path)


def _awaited(kind: Any) -> Any:
    """What a plain function that is annotated with an awaitable gives when it is awaited."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(origin, type) and issubclass(origin, collections.abc.Awaitable) and arguments:
        return arguments[-1]
    return kind


_codecs: dict[Any, Codec] = {}
CODECS_MAX = 1024
"""Kept; a program has a few dozen."""


def _codec(kind: Any, path: str) -> Codec:
    try:
        known = _codecs.get((path, kind))
    except TypeError:  # not hashable, so not a type
        known = None
    if known is not None:
        return known
    try:
        plain = kind is Any or isinstance(kind, TypeVar)
        shape = None if plain else Shape(msgspec.inspect.type_info(kind), path, may_be_any=True)
        decode = msgspec.msgpack.Decoder(Any if plain else kind, dec_hook=load_hook, ext_hook=_typed).decode
    except (TypeError, NotImplementedError, NameError, RecursionError) as error:
        raise FieldRefused.at(
            path,
            f": {unsupported(error)}, as the result of a step; let the call return plain data or a declared type of it.",
        ) from error
    if len(_codecs) >= CODECS_MAX:
        _codecs.clear()
    check = functools.partial(deeper, STACK_MARGIN, decode)
    evolves = shape is not None and shape.has_classes and not shape.has_any
    made = _codecs[path, kind] = Codec(path, decode, check, plain, evolves)
    return made


__all__ = ["ONCE_MORE", "Codec", "Within", "codec_of", "step"]
