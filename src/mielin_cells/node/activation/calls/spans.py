"""The trace that a turn is part of, and the spans of its asks and steps."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from mielin_cells import tracing
from mielin_cells.agents.context import CallOptions
from mielin_cells.agents.reference import agent_id
from mielin_cells.errors import described
from mielin_cells.log.message import Message, Terms
from mielin_cells.tracing import Span, Trace


class Turn(Protocol):
    """What is needed of the turn."""

    trace: Trace | None
    span: Span | None
    message: str

    @property
    def id(self) -> str: ...
    @property
    def node(self) -> str: ...
    @property
    def _core(self) -> Any: ...
    def begin_span(self, kind: tracing.Kind, name: str) -> Span | None: ...
    async def ask_in(self, trace: Trace | None, *args: Any) -> Any: ...


def with_trace(terms: Terms | None, trace: Trace | None) -> Terms | None:
    if trace is None:
        return terms
    return Terms(trace=trace.text) if terms is None else msgspec.structs.replace(terms, trace=trace.text)


class Traced:
    """The part of a turn that knows its trace.  A turn that runs again is another span of it."""

    trace: Trace | None = None
    """Comes with the message; while a tracer is told of spans, that of the turn's own span."""
    span: Span | None = None

    def traced(self, terms: Terms | None) -> Terms | None:
        return with_trace(terms, self.trace)

    async def _terms(self: Turn, options: CallOptions) -> Terms | None:
        """The options of a call as they go with its message."""
        if options.deadline is None:
            return Terms(0.0, options.key) if options.key else None
        clock = self._core.home.clock
        if not clock.is_known:  # the node asks when it starts
            await clock.refresh()
        return Terms(clock.now() + options.deadline, options.key)

    def begin_trace(self: Turn, message: Message) -> None:
        """To be called only for a message with terms, or while spans are recorded."""
        if message.terms is not None and message.terms.trace:
            self.trace = tracing.read(message.terms.trace)
        self.span = self.begin_span("turn", f"{self.id}.{self.message}")
        if self.span is not None:
            self.trace = self.span.trace
            self.span.attributes["n"] = message.n

    def end_trace(self, error: BaseException | None) -> None:
        span, self.span = self.span, None
        if span is not None:
            span.end(described(error) if error is not None else "")

    def begin_span(self: Turn, kind: tracing.Kind, name: str) -> Span | None:
        return tracing.begin(kind, name, self.trace, self._core.home.rng, agent=self.id, node=self.node)

    async def spanned_ask(self: Turn, ref: Any, name: str, *args: Any) -> Any:
        span, failed = self.begin_span("ask", f"{agent_id(ref)}.{name}"), ""
        try:
            return await self.ask_in(span.trace if span is not None else self.trace, ref, name, *args)
        except BaseException as error:
            failed = described(error)
            raise
        finally:
            if span is not None:
                span.end(failed)
