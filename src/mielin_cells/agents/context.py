"""The context of a call: the turn that runs (`cells.this()`), and the `Caller` that carries calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from mielin_cells import tracing
from mielin_cells.agents.cluster import Cluster
from mielin_cells.agents.reference import Reference
from mielin_cells.agents.retry import Retry
from mielin_cells.errors import NotConnected, NotInTurn
from mielin_cells.log.attributes.values import Value
from mielin_cells.log.inboxes.lines import NORMAL
from mielin_cells.tracing import Trace


class CallOptions(NamedTuple):
    """What a call asks for besides its timeout and label (`Bound.options`)."""

    deadline: float | None = None
    """Seconds from the call within which its turn must begin."""
    key: str = ""
    """Calls under one key run once."""
    priority: str = NORMAL
    """What its message goes before, of those that wait (rule T1)."""


class Caller(Protocol):
    """Carries the calls of references: a client outside of turns, the turn inside."""

    def ask(
        self, ref: Reference, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any],
        timeout: float | None, label: str | None, options: CallOptions | None = None,
    ) -> Coroutine[Any, Any, Any]:  # fmt: skip
        """Encodes the call, sends it, waits and decodes the answer, in one coroutine: every nested coroutine costs."""

    def tell(
        self, ref: Reference, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any], label: str | None,
        options: CallOptions | None = None,
    ) -> Coroutine[Any, Any, None]: ...  # fmt: skip

    def read(
        self, ref: Reference, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any],
        timeout: float | None, is_linearizable: bool,
    ) -> Coroutine[Any, Any, Any]:  # fmt: skip
        """Runs a shared handler on committed state."""

    def watch(self, ref: Reference, after: int) -> AsyncIterator[Any]:
        """Committed states, the newest at each time."""

    def stream(
        self,
        ref: Reference,
        handler: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        options: CallOptions | None,
    ) -> Any:
        """The `Stream` of a call whose handler yields; nothing is sent before it is read."""

    def read_stream(self, ref: Reference, handler: str, id: str, after: str, timeout: float | None) -> Any:
        """The `Stream` of a call that somebody has made."""


class Turn(Protocol):
    """The turn that runs: what `cells.this()` gives."""

    @property
    def id(self) -> str:
        """The agent's id."""

    @property
    def node(self) -> str:
        """The node it runs on."""

    @property
    def cluster(self) -> Cluster: ...

    @property
    def message(self) -> str:
        """The handler (or hook) that runs."""

    @property
    def caller(self) -> Caller: ...

    @property
    def closed(self) -> bool:
        """The turn has ended, and cannot be used any more."""

    def shares(self, caller: object) -> bool:
        """True if that caller reaches the deployment that this turn runs in."""

    @property
    def number(self) -> int:
        """The number of the message among those of its sender to this agent; 0 in a hook."""

    @property
    def corrects(self) -> int:
        """The number of the earlier message that this one replaces, because its sender was undone; else 0."""

    @property
    def idempotency_key(self) -> str:
        """Inside the call of a durable step: a text that is the same each time this step's call is made."""

    def migrate(self, to: str | None = None) -> None:
        """Moves this agent once the turn is committed.  Raises `UsageError` for a text that is no node's name, and in a hook.

        Not guaranteed: if the node dies in between, the agent continues on the node that claims it.
        """

    def terminate(self) -> None:
        """Ends this agent for good once the turn is committed, as `cluster.terminate` does; the turn's caller gets its answer.

        Guarantees, as `suspend` and `pause` do: the order is committed with the turn, so it is carried out even if the node dies in
        between, and no other turn of the agent runs before it.  A turn that fails orders nothing.  Raises `UsageError` in a hook.
        """

    def suspend(self, reason: str = "") -> None:
        """Suspends this agent once the turn is committed, as `cluster.suspend` does; messages wait until it is resumed."""

    def pause(self, reason: str = "") -> None:
        """As `suspend`, for the agent's user."""

    def set_timer(
        self, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float, period: float, catch_up: str,
        id: str | None, cron: str = "", zone: str = "",
    ) -> str:  # fmt: skip
        """What `cells.after`, `cells.every` and `cells.cron` do."""

    def cancel_timer(self, id: str) -> bool:
        """What `cells.cancel` does."""

    def publish(self, topic: str, value: bytes) -> None:
        """What `cells.publish` does."""

    async def subscribe(self, pattern: str, handler: str, since: Any, on_gap: str) -> None:
        """What `cells.subscribe` does."""

    def unsubscribe(self, pattern: str, handler: str) -> bool:
        """What `cells.unsubscribe` does."""

    def set_attributes(self, changes: Mapping[str, object]) -> dict[str, Value]:
        """What `cells.attributes` does."""

    def is_here(self) -> bool:
        """False in a thread that the turn was not handed to."""

    async def run_step(self, name: str, call: Any, args: tuple[Any, ...], retry: Retry, timeout: float | None) -> Any:
        """What `cells.step` does."""

    @property
    def trace(self) -> Trace | None:
        """The trace that the turn is part of."""

    async def open_wait(self, wait: Any) -> str:
        """What `External.open` does."""

    async def wait_outcome(self, wait: Any) -> bytes:
        """What awaiting an `External` does."""

    async def open_later(
        self, name: str, handler: str, other: str, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float | None
    ) -> str:
        """What `cells.external(then=)` does."""


turn: ContextVar[Turn | None] = ContextVar("mielin_cells_turn", default=None)
current: ContextVar[Caller | None] = ContextVar("mielin_cells_caller", default=None)


def caller_of(ref: Reference) -> Caller:
    """The cluster that gave the reference; inside a turn the turn, unless that is another deployment's cluster."""
    running, own = turn.get(), ref.__dict__["__mielin_caller__"]
    if running is not None and (own is None or running.shares(own)):
        return running.caller
    caller: Caller | None = own or current.get()
    if caller is None:
        raise NotConnected(
            f"{ref!r} was called outside a turn and outside `async with cells.local()` or `cells.connect()`."
        )
    return caller


def this() -> Turn:
    """The turn that runs.  Raises `NotInTurn` outside handlers and hooks, and in a task that has outlived its turn.

    >>> class Tourist(cells.Agent):
    ...     @cells.handler
    ...     async def where(self) -> str:
    ...         return f"{cells.this().id} is on {cells.this().node}"
    ...
    >>> tourist = await cluster.on("node-2").spawn(Tourist, "anna")
    >>> await tourist.where()
    'anna is on node-2'
    """
    running = turn.get()
    if running is None:
        raise NotInTurn("this() means something only inside a handler or a hook of an agent.")
    if running.closed:
        raise NotInTurn(f"The turn of agent {running.id!r} that began this task has ended; await what a turn starts.")
    return running


def trace() -> Trace | None:
    """The W3C trace context of the turn that runs, with `traceparent` and `tracestate`; None if it is part of none.

    It came with the message, and goes with all that the turn sends.  Outside of turns: the context of `tracing.use`.

        >>> class Desk(cells.Agent):
        ...     @cells.handler
        ...     async def headers(self) -> dict[str, str]:
        ...         trace = cells.trace()
        ...         return {"traceparent": trace.traceparent} if trace else {}
        ...
        >>> desk = await cluster.spawn(Desk, "desk")
        >>> with cells.tracing.use("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"):
        ...     await desk.headers()
        ...
        {'traceparent': '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'}
    """
    running = turn.get()
    return running.trace if running is not None else tracing.outgoing()
