"""Handlers: what `@handler` makes of a method, and what a reference's attribute is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, Protocol, Self, TypeVar, cast, overload

from mielin_cells.agents.context import Caller, CallOptions, caller_of
from mielin_cells.agents.reference import Reference
from mielin_cells.agents.shared.bound import SharedBound
from mielin_cells.agents.shared.stream import Stream
from mielin_cells.agents.values.annotations import read_signature
from mielin_cells.agents.values.raises import check_declared
from mielin_cells.errors import FieldRefused, UsageError
from mielin_cells.log.inboxes.lines import NORMAL, Priority, check_priority
from mielin_cells.settings import check_timeout

LABEL_CHARS_MAX = 128
"""Longest label or key of a call, which are stored in the log."""

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
A = TypeVar("A", bound=Reference)


class Bound(Generic[P, R_co]):
    """A handler of one agent.  Calling it asks and waits for the answer; `tell` sends durably without waiting."""

    __slots__ = ("_handler", "_id", "_obj", "_options", "_timeout")

    def __init__(
        self, handler: Handler[P, R_co], obj: Reference, timeout: float | None = None, id: str | None = None,
        options: CallOptions | None = None,
    ) -> None:  # fmt: skip
        self._handler = handler
        self._obj = obj
        self._timeout = timeout
        self._id = id
        self._options = options

    @property
    def name(self) -> str:
        return self._handler.name

    @property
    def __self__(self) -> Reference:
        """The agent that it is a handler of."""
        return self._obj

    def options(
        self, *, timeout: float | None = None, id: str | None = None, deadline: float | None = None,
        key: str | None = None, priority: Priority = NORMAL,
    ) -> Bound[P, R_co]:  # fmt: skip
        """The same handler with options.

        `timeout`: seconds to wait for an answer; the ask may still take effect later.
        `deadline`: seconds from the call within which its turn must begin.  After that it never begins: an ask raises `Expired`, and
        the message is a dead letter.  The store's clock decides, and a turn that has begun goes on.
        `key`: calls of the agent under one key run once, whoever makes them, also after restarts; the others get the answer of
        the one that ran.  Another call under the key raises `KeyConflict`.  The agent's class says how long that holds (`keys_s`).
        `priority`: "low", "normal", "high" or "critical".  Of the messages that wait, those of a higher priority are taken first;
        after 16 of them, one that has waited that long.  A sender's messages keep their order among those of one priority.
        `id`: a label, shown in the error of an ask without an answer and in the asks of a dead letter; it changes nothing else.
        Raises `UsageError` for a timeout or deadline that is not above 0, for a label or key that is not 1 to 128 printable
        characters, and for another priority.

            >>> await till.sell.options(timeout=5, deadline=2, priority="high", key="sale-1")(250)
            250
            >>> await till.sell.options(key="sale-1")(250)  # the same sale, and the same answer
            250
        """
        check_timeout(timeout, f"A call of {self._handler.name}")
        check_timeout(deadline, f"A call of {self._handler.name}", "deadline")
        for text, what in ((id, "label"), (key, "key")):
            if text is not None and (
                type(text) is not str or not 0 < len(text) <= LABEL_CHARS_MAX or not text.isprintable()
            ):
                raise UsageError(
                    f"A call of {self._handler.name} has a {what} that is not allowed; give 1 to {LABEL_CHARS_MAX} printable "
                    "characters."
                )
        if key is not None and self._handler.yields:
            raise UsageError(
                f"{self._handler.name} answers with a stream, whose parts are those of one call: it takes no key. To read "
                "the stream of an earlier call, keep its id, and give that to .read()."
            )
        options = None
        check_priority(priority, f"A call of {self._handler.name}")
        if deadline is not None or key is not None or priority != NORMAL:
            options = CallOptions(None if deadline is None else float(deadline), key or "", priority)
        return type(self)(self._handler, self._obj, timeout, id, options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """Asks, and returns the handler's result.

        Guarantees: the handler takes effect at most once, even if the agent moves or its node dies meanwhile.
        Raises `HandlerFailed` if the handler raised, `AskTimeout` if no answer came in time (the ask may still take effect),
        `NoSuchAgent`, `AgentTerminated`, `WrongClass`, `BadArguments`, `InboxFull`.
        """
        obj = self._obj
        if obj.__dict__["__mielin_cell__"] is not None:  # inside the agent itself: a plain call
            return self._handler.fn(obj, *args, **kwargs)
        if self._handler.yields:
            answers: Any = self._caller().stream(obj, self._handler.name, args, kwargs, self._timeout, self._options)
            return cast("Coroutine[Any, Any, R_co]", answers)  # `BoundStream` says what it is
        return self._caller().ask(obj, self._handler.name, args, kwargs, self._timeout, self._id, self._options)

    async def tell(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Sends durably, without waiting for the handler.  Outside a turn it returns when the message is stored; a message sent inside
        a turn is stored with the turn's commit.

            >>> await till.sell.tell(100)
            >>> await till.sell(1)
            101
        """
        obj = self._obj
        if obj.__dict__["__mielin_cell__"] is not None:
            raise UsageError(f"Agent {obj!r} cannot tell itself with .tell; call the method.")
        await self._caller().tell(obj, self._handler.name, args, kwargs, self._id, self._options)

    def _caller(self) -> Caller:
        return caller_of(self._obj)

    def __repr__(self) -> str:
        return f"{self._obj!r}.{self._handler.name}"

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Bound) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self._handler, self._obj, self._timeout, self._id, self._options

    def __reduce__(self) -> tuple[Any, ...]:
        return _bound, (self._obj, self._handler.name, self._timeout, self._id, self._options)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What tools ask of any function.  The signature is the handler's, without `self`."""
            if name == "__signature__":
                signature = read_signature(self._handler.fn)
                return signature.replace(parameters=list(signature.parameters.values())[1:])
            if name in ("__name__", "__qualname__", "__module__", "__annotations__"):
                return getattr(self._handler.fn, name)
            raise AttributeError(f"{self!r} has no {name!r}; it is a handler: call it, or use .tell and .options.")


class BoundStream(Bound[P, R_co]):
    """A handler of one agent that yields.  Calling it gives the stream of its parts; `tell` runs it, and nobody hears the parts."""

    __slots__ = ()

    if TYPE_CHECKING:

        def options(  # type: ignore[override]  # a stream has no key
            self,
            *,
            timeout: float | None = None,
            id: str | None = None,
            deadline: float | None = None,
            priority: Priority = NORMAL,
        ) -> BoundStream[P, R_co]: ...

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Stream[R_co]: ...  # type: ignore[override]

    def read(self, id: str, *, after: str = "") -> Stream[R_co]:
        """The stream of a call that somebody else, or this program before it was restarted, has made: from its beginning, or on from
        a `position`.

        Guarantees: after `position` the parts follow that its reader had not been given, and replaced ones are told.
        Raises `UsageError` for a text that is no id or position, and, while it is read, `StreamGap` for parts that are not kept
        any more and `AnswerExpired` if the call ended and nothing tells how.

            >>> class Clerk(cells.Agent):
            ...     @cells.handler
            ...     async def count(self, to: int) -> AsyncIterator[int]:
            ...         for n in range(to):
            ...             yield n
            ...
            >>> clerk = await cluster.spawn(Clerk, "clerk")
            >>> stream = await clerk.count(3).start()
            >>> [part async for part in clerk.count.read(stream.id)]
            [0, 1, 2]
        """
        stream: Stream[R_co] = self._caller().read_stream(self._obj, self._handler.name, id, after, self._timeout)
        return stream


def _bound(
    obj: Reference, name: str, timeout: float | None, id: str | None, options: CallOptions | None = None
) -> Bound[Any, Any]:
    handler = getattr(type(obj), name)
    return (BoundStream if handler.yields else Bound)(handler, obj, timeout, id, options)


class Handler(Generic[P, R_co]):
    """A method that messages reach; made by `@handler`."""

    shared = False
    """It reads committed state beside the turn that runs, and writes nothing."""

    def __init__(
        self, fn: Callable[..., Coroutine[Any, Any, R_co]], cancellable: bool, tries: int | None,
        raises: tuple[type[Exception], ...],
    ) -> None:  # fmt: skip
        self.yields = inspect.isasyncgenfunction(fn)
        """Its answer is a stream of parts."""
        if not (self.yields or inspect.iscoroutinefunction(fn)) or not hasattr(fn, "__name__"):
            name = getattr(fn, "__qualname__", repr(fn))
            raise FieldRefused(f"Handler {name} {_why_not(fn)}.", path=name)
        if tries is not None and (type(tries) is not int or tries < 1):
            raise FieldRefused(
                f"Handler {fn.__qualname__}: tries = {tries!r} is not a whole number from 1.", path=fn.__qualname__
            )
        self.fn: Callable[..., Coroutine[Any, Any, R_co]] = fn
        self.name = fn.__name__
        """The attribute that it is assigned to first: a decorator may have left the function another name."""
        self._is_named = False
        self.cancellable = cancellable
        self.tries = tries
        self.raises = check_declared(raises, fn.__qualname__)
        self.__doc__ = fn.__doc__
        self.__name__ = fn.__name__
        self.__qualname__ = fn.__qualname__
        self.__module__ = fn.__module__
        self.__wrapped__ = fn
        self.__isabstractmethod__ = getattr(fn, "__isabstractmethod__", False)

    def __set__(self, obj: Reference, value: object) -> None:
        raise UsageError(
            f"{self.name} is a handler of {obj!r}, and cannot be assigned: messages would not reach the new value."
        )

    def __set_name__(self, owner: type, name: str) -> None:
        if not self._is_named:
            self.name, self._is_named = name, True

    def __call__(self, obj: Any, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """`Base.add(self, 2)` is `self.add(2)` as `Base` has it: a plain call inside the agent, an ask of a reference."""
        return Bound(self, obj)(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<handler {self.__qualname__}>"

    @overload
    def __get__(self, obj: None, owner: type) -> Self: ...
    @overload
    def __get__(self, obj: Reference, owner: type) -> Bound[P, R_co]: ...
    def __get__(self, obj: Reference | None, owner: type) -> Self | Bound[P, R_co]:
        if obj is None:
            return self
        return BoundStream(self, obj) if self.yields else Bound(self, obj)


class SharedHandler(Handler[P, R_co]):
    """A method that reads committed state; made by `@handler(shared=True)`."""

    shared = True

    def __call__(self, obj: Any, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        return SharedBound[P, R_co](self, obj)(*args, **kwargs)

    @overload  # type: ignore[override]
    def __get__(self, obj: None, owner: type) -> Self: ...
    @overload
    def __get__(self, obj: Reference, owner: type) -> SharedBound[P, R_co]: ...
    def __get__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, obj: Reference | None, owner: type
    ) -> Self | SharedBound[P, R_co]:
        return self if obj is None else SharedBound(self, obj)


def _why_not(fn: Any) -> str:
    """Why a callable cannot be a handler, and what to write."""
    if isinstance(fn, Handler):
        return "is a handler already; decorate it once"
    if isinstance(fn, (staticmethod, classmethod)):
        return f"is a {type(fn).__name__}, and a message reaches one agent; write a method with `self`"
    if inspect.iscoroutinefunction(inspect.unwrap(fn)) and not inspect.iscoroutinefunction(fn):
        return "is wrapped by a plain function; make the decorator's wrapper `async def`, and let it await the method"
    if isinstance(fn, functools.partial):
        return "is a functools.partial; write a method that calls it"
    return "must be `async def`: a caller awaits it"


class StreamHandler(Handler[P, R_co]):
    """A method that yields, which messages reach; made by `@handler`."""

    if TYPE_CHECKING:

        @overload
        def __get__(self, obj: None, owner: type) -> Self: ...
        @overload
        def __get__(self, obj: Reference, owner: type) -> BoundStream[P, R_co]: ...
        def __get__(self, obj: Reference | None, owner: type) -> Self | BoundStream[P, R_co]: ...


class _MakesHandler(Protocol):
    @overload
    def __call__(self, fn: Callable[Concatenate[A, P], Coroutine[Any, Any, R]], /) -> Handler[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[A, P], AsyncIterator[R]], /) -> StreamHandler[P, R]: ...


class _MakesShared(Protocol):
    def __call__(self, fn: Callable[Concatenate[A, P], Coroutine[Any, Any, R]], /) -> SharedHandler[P, R]: ...


@overload
def handler(fn: Callable[Concatenate[A, P], Coroutine[Any, Any, R]], /) -> Handler[P, R]: ...
@overload
def handler(fn: Callable[Concatenate[A, P], AsyncIterator[R]], /) -> StreamHandler[P, R]: ...
@overload
def handler(*, shared: Literal[True], raises: tuple[type[Exception], ...] = ()) -> _MakesShared: ...
@overload
def handler(
    *, cancellable: bool = False, tries: int | None = None, raises: tuple[type[Exception], ...] = ()
) -> _MakesHandler: ...
def handler(
    fn: Any = None, /, *, cancellable: bool = False, tries: int | None = None, raises: tuple[type[Exception], ...] = (),
    shared: bool = False,
) -> Any:  # fmt: skip
    """Makes an async method a handler.  One that yields answers with a stream: see `Stream`.

    `cancellable`: a move may cancel a turn of this handler and run it again on the target.
    `raises`: exceptions that reach the asker as that class, with their arguments; all others arrive as `HandlerFailed`.
    `tries`: how often a message is run while the handler raises, before an ask is answered with the error or a tell becomes a dead
    letter (default: the deployment's settings, 1 and 5).  A message whose error is in `raises` is not run again.
    `shared`: the handler reads the last committed state, at once, also while a turn runs.  It may not write, send, make steps or set
    timers (`ReadOnly`), and what `on_arrive` has opened is not there: it may run where a copy of the agent is kept.
    Raises `FieldRefused` for a plain `def`, for `tries` below 1, and for a class in `raises` that cannot be rebuilt; `UsageError` for
    a shared handler with `tries` or `cancellable`.

        >>> class Shelf(cells.Agent):
        ...     left: int = 5
        ...
        ...     @cells.handler(raises=(ValueError,))
        ...     async def take(self, count: int) -> int:
        ...         if count > self.left:
        ...             raise ValueError(f"only {self.left} are left")
        ...         self.left -= count
        ...         return self.left
        ...
        ...     @cells.handler(shared=True)
        ...     async def stock(self) -> int:
        ...         return self.left
        ...
        >>> shelf = await cluster.spawn(Shelf, "tulips")
        >>> await shelf.take(9)
        Traceback (most recent call last):
            ...
        ValueError: only 5 are left
        >>> await shelf.stock()
        5
    """
    if shared and (cancellable or tries is not None):
        raise UsageError("A shared handler runs no turn, so it has no `tries` and is not `cancellable`.")
    if fn is None:
        return lambda fn: kind_of(fn, shared)(fn, cancellable, tries, raises)
    return kind_of(fn, shared)(fn, cancellable, tries, raises)


def kind_of(fn: Any, shared: bool) -> type[Handler[Any, Any]]:
    if shared and inspect.isasyncgenfunction(fn):
        path = fn.__qualname__
        raise FieldRefused(
            f"Handler {path} is shared and yields; a shared read has one answer: return a list.", path=path
        )
    if shared:
        return SharedHandler
    return StreamHandler if inspect.isasyncgenfunction(fn) else Handler
