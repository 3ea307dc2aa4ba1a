"""A shared handler of one agent, as a reference gives it: it is read, and never told."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeAlias, TypeVar

from mielin_cells.agents.context import Caller, caller_of
from mielin_cells.agents.reference import Reference
from mielin_cells.agents.values.annotations import read_signature
from mielin_cells.errors import UsageError
from mielin_cells.settings import check_timeout

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

Consistency: TypeAlias = Literal["session", "linearizable"]


class SharedBound(Generic[P, R_co]):
    """A shared handler of one agent.  Calling it reads committed state, beside the turn that runs."""

    __slots__ = ("_consistency", "_handler", "_obj", "_timeout")

    def __init__(
        self, handler: Any, obj: Reference, timeout: float | None = None, consistency: Consistency = "session"
    ) -> None:
        self._handler = handler
        self._obj = obj
        self._timeout = timeout
        self._consistency = consistency

    @property
    def name(self) -> str:
        name: str = self._handler.name
        return name

    @property
    def __self__(self) -> Reference:
        """The agent that it is a handler of."""
        return self._obj

    def options(self, *, timeout: float | None = None, consistency: Consistency = "session") -> SharedBound[P, R_co]:
        """The same handler with options: seconds to wait for an answer, and what the read must have seen.

        "session": everything that this client has seen of the agent, in answers and in earlier reads.  "linearizable": also
        everything that any other client had seen before the call; this costs a look at the end of the agent's log.
        Raises `UsageError` for a timeout that is not above 0, and for another consistency.
        """
        check_timeout(timeout, f"A call of {self.name}")
        if consistency not in ("session", "linearizable"):
            raise UsageError(f'consistency = {consistency!r}; there are "session" and "linearizable".')
        return SharedBound(self._handler, self._obj, timeout, consistency)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """Runs the handler on the agent's last committed state, and returns its result.  No turn waits for it, nor it for a turn.

        Guarantees: the state is one that was committed, whole; it holds what this client has seen before; a later read never sees
        less, also after a move.
        Raises `HandlerFailed` if the handler raised, `AskTimeout` if nobody answered in time, `NoSuchAgent`, `AgentTerminated`,
        `WrongClass`, `BadArguments`, and `ReadOnly` if the handler tried to write or to send.
        """
        obj = self._obj
        if obj.__dict__["__mielin_cell__"] is not None:  # inside the agent itself: a plain call
            plain: Coroutine[Any, Any, R_co] = self._handler.fn(obj, *args, **kwargs)
            return plain
        caller: Caller = caller_of(obj)
        return caller.read(obj, self.name, args, kwargs, self._timeout, self._consistency == "linearizable")

    def __repr__(self) -> str:
        return f"{self._obj!r}.{self.name}"

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, SharedBound) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self._handler, self._obj, self._timeout, self._consistency

    def __reduce__(self) -> tuple[Any, ...]:
        return _bound, (self._obj, self.name, self._timeout, self._consistency)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name == "__signature__":
                signature = read_signature(self._handler.fn)
                return signature.replace(parameters=list(signature.parameters.values())[1:])
            if name in ("__name__", "__qualname__", "__module__", "__annotations__"):
                return getattr(self._handler.fn, name)
            raise AttributeError(
                f"{self!r} has no {name!r}; it is a shared handler: call it, or use .options. It changes nothing, so it is not told."
            )


def _bound(obj: Reference, name: str, timeout: float | None, consistency: Consistency) -> SharedBound[Any, Any]:
    return SharedBound(getattr(type(obj), name), obj, timeout, consistency)
