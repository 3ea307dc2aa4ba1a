"""Trace context (W3C) of calls, and the hook of whatever records traces.

A trace context comes with a message, is `cells.trace()` inside the turn, and goes with all that the turn sends: asks, tells, timers,
topics, and an order to move.  Nothing is sent of a trace where there is none.  Outside of turns, calls that are made inside
`with tracing.use(request.headers["traceparent"]):` are part of that trace.

A *tracer* is told of spans: asks, tells, turns, steps and moves of this process.  It is called in a thread of its own, one call after
the other, so a slow one delays nobody; what it cannot take is dropped, and what it raises is counted (`counts`).
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Literal, NamedTuple, Protocol, TypeAlias

from mielin_cells.errors import TraceInvalid

TRACESTATE_CHARS_MAX = 512
TRACESTATE_MEMBERS_MAX = 32
WAITING_MAX = 10_000
"""Starts and ends of spans that wait for a tracer; more are dropped."""
STOP_S = 5.0
"""How long `uninstall` waits for a tracer that is behind."""

Kind: TypeAlias = Literal["ask", "tell", "turn", "step", "move"]

_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_MEMBER = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,256}", re.ASCII)


class Trace(NamedTuple):
    """A trace context, as W3C Trace Context writes it in two headers."""

    traceparent: str
    tracestate: str = ""

    @property
    def trace_id(self) -> str:
        return self.traceparent[3:35]

    @property
    def span_id(self) -> str:
        return self.traceparent[36:52]

    @property
    def is_sampled(self) -> bool:
        return bool(int(self.traceparent[53:55], 16) & 1)

    @property
    def text(self) -> str:
        """Both in one, as messages carry them."""
        return f"{self.traceparent} {self.tracestate}" if self.tracestate else self.traceparent


def trace_of(traceparent: str, tracestate: str = "") -> Trace:
    """Raises `TraceInvalid` for headers that are none.

    >>> from mielin_cells import tracing
    >>> tracing.trace_of("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").is_sampled
    True
    """
    if type(traceparent) is not str or not _PARENT.fullmatch(traceparent):
        raise TraceInvalid(
            f"{str(traceparent)[:80]!r} is no traceparent, such as 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.",
            traceparent=str(traceparent)[:80],
        )
    members = tracestate.split(",") if type(tracestate) is str and tracestate else []
    is_wrong = type(tracestate) is not str or len(tracestate) > TRACESTATE_CHARS_MAX
    if (
        is_wrong
        or len(members) > TRACESTATE_MEMBERS_MAX
        or any(one.strip(" \t") and not _MEMBER.fullmatch(one.strip(" \t")) for one in members)
    ):
        raise TraceInvalid(
            f"{str(tracestate)[:80]!r} is no tracestate: up to {TRACESTATE_MEMBERS_MAX} members key=value, "
            f"{TRACESTATE_CHARS_MAX} characters.",
            tracestate=str(tracestate)[:80],
        )
    return Trace(traceparent, tracestate)


def read(text: str) -> Trace | None:
    """What a message carries; None for nothing, and for what is malformed: that is counted, and the message is handled."""
    if not text:
        return None
    parent, _, state = text.partition(" ")
    try:
        return trace_of(parent, state)
    except TraceInvalid:
        counts["malformed"] += 1
        return None


# ---- outside of turns --------------------------------------------------------------------------------------------

counts: Counter[str] = Counter()
"""given: calls that a tracer has taken.  failed: calls that raised.  dropped: calls that it was too slow for.  malformed: trace
contexts of messages that are none."""

_current: ContextVar[Trace | None] = ContextVar("mielin_cells_trace", default=None)
_from_outside: Callable[[], Trace | None] | None = None


@contextlib.contextmanager
def use(traceparent: str, tracestate: str = "") -> Iterator[Trace]:
    """Calls that are made in this block are part of this trace.  Raises `TraceInvalid`.

    >>> from mielin_cells import tracing
    >>> with tracing.use("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01") as trace:
    ...     trace.trace_id
    ...
    '4bf92f3577b34da6a3ce929d0e0e4736'
    """
    with using(trace_of(traceparent, tracestate)) as trace:
        yield trace


@contextlib.contextmanager
def using(trace: Trace) -> Iterator[Trace]:
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)


def set_current(trace: Trace) -> None:
    """For a context that is not left again."""
    _ = _current.set(trace)


def outgoing() -> Trace | None:
    """The trace that a call from outside of turns is part of."""
    trace = _current.get()
    if trace is None and _from_outside is not None:
        try:
            trace = _from_outside()
            return None if trace is None else trace_of(*trace)
        except Exception as error:  # noqa: BLE001 - whatever it raises: the call is made
            _failed("the current trace", error)
            return None
    return trace


# ---- spans -------------------------------------------------------------------------------------------------------


class Random(Protocol):
    def randbytes(self, n: int, /) -> bytes: ...


class Span:
    """Something that takes time: an ask, a tell, a turn, a step or a move."""

    __slots__ = ("agent", "attributes", "began", "ended", "error", "kind", "name", "node", "parent", "trace")

    def __init__(self, kind: Kind, name: str, trace: Trace, parent: str, agent: str, node: str) -> None:
        self.kind = kind
        self.name = name
        """Such as `order-7.place`, or a step's name."""
        self.trace = trace
        """Its own context: what is called in it has this span as its parent."""
        self.parent = parent
        """Span id of its parent; "" if it begins a trace."""
        self.agent = agent
        self.node = node
        """"" for a client."""
        self.began = time.time()
        """In wall seconds."""
        self.ended = 0.0
        self.error = ""
        """Why it failed: a class and its text."""
        self.attributes: dict[str, str | int] = {}

    def end(self, error: str = "") -> None:
        """Once; what comes later counts nothing."""
        if not self.ended:
            self.ended, self.error = time.time(), error
            _give("end", self)


class Tracer(Protocol):
    """What records spans.  It is called in a thread of its own, and may take its time."""

    def start(self, span: Span, /) -> None: ...
    def end(self, span: Span, /) -> None: ...


class _Thread:
    def __init__(self, tracer: Tracer, waiting_max: int) -> None:
        self.tracer = tracer
        self.waiting: queue.Queue[tuple[str, Span] | None] = queue.Queue(waiting_max)
        self.thread = threading.Thread(target=self._run, name="mielin-tracing", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (one := self.waiting.get()) is not None:
            what, span = one
            try:
                getattr(self.tracer, what)(span)
                counts["given"] += 1
            except Exception as error:  # noqa: BLE001 - whatever a tracer raises
                _failed(f"{what} of {span.kind} {span.name}", error)


_thread: _Thread | None = None
is_on = False
"""True while a tracer is told of spans."""


def install(
    tracer: Tracer, *, current: Callable[[], Trace | None] | None = None, waiting_max: int = WAITING_MAX
) -> None:
    """Has `tracer` told of all spans of this process from now on, in place of an earlier one.

    `current` says which trace a call from outside of turns is part of, where `use` does not; it is called in the caller's thread.

        >>> from mielin_cells import tracing
        >>> class Printer:
        ...     def start(self, span: tracing.Span) -> None: ...
        ...     def end(self, span: tracing.Span) -> None:
        ...         spans.append(f"{span.kind} {span.name}")
        ...
        >>> spans = []
        >>> tracing.install(Printer())
        >>> await till.sell(5)
        5
        >>> tracing.uninstall()
        >>> sorted(spans)
        ['ask till-1.sell', 'turn till-1.sell']
    """
    global _thread, is_on, _from_outside
    uninstall()
    _thread, is_on, _from_outside = _Thread(tracer, waiting_max), True, current


def uninstall(wait_s: float = STOP_S) -> None:
    """Ends what `install` began, and waits until the tracer has had what there is, at most `wait_s`."""
    global _thread, is_on, _from_outside
    thread, _thread, is_on, _from_outside = _thread, None, False, None
    if thread is not None:
        with contextlib.suppress(queue.Full):
            thread.waiting.put(None, timeout=wait_s)
            thread.thread.join(wait_s)


def begin(kind: Kind, name: str, parent: Trace | None, rng: Random, *, agent: str = "", node: str = "") -> Span | None:
    """Begins a span, as a child of `parent` or of a trace of its own; None if nobody records it."""
    if not is_on:
        return None
    span_id = rng.randbytes(8).hex()
    if parent is None:
        trace = Trace(f"00-{rng.randbytes(16).hex()}-{span_id}-01")
    else:
        trace = Trace(f"00-{parent.trace_id}-{span_id}-{parent.traceparent[53:55]}", parent.tracestate)
    span = Span(kind, name, trace, parent.span_id if parent is not None else "", agent, node)
    _give("start", span)
    return span


def _give(what: str, span: Span) -> None:
    thread = _thread
    if thread is None:
        return
    try:
        thread.waiting.put_nowait((what, span))
    except queue.Full:
        counts["dropped"] += 1


_logged: set[str] = set()


def _failed(what: str, error: Exception) -> None:
    counts["failed"] += 1
    kind = type(error).__name__
    if kind not in _logged:
        import logging

        _logged.add(kind)
        logging.getLogger("mielin_cells.tracing").warning(
            "the tracer failed at %s, and nothing else did: %s: %s (said once)", what, kind, error
        )
