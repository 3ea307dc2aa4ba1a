"""The part of a turn that sends the parts of a handler that yields."""

from __future__ import annotations

import asyncio
from typing import Any

from mielin_cells.agents.context import CallOptions
from mielin_cells.agents.reference import Reference
from mielin_cells.errors import PASSING, Fenced, NotInTurn, RetryError, UsageError, never
from mielin_cells.log.records import Stepped
from mielin_cells.node.activation.run import within
from mielin_cells.node.activation.steps import Steps
from mielin_cells.node.streams.ends import Ends
from mielin_cells.node.streams.parts import TurnStream


class Streaming(Steps):
    """The part of a turn that sends the parts of a handler that yields (rule T7)."""

    def streams(self, ends: Ends, is_ask: bool) -> None:
        """Begins the stream of this run.  A tell, and a message that has its answer, send no parts."""
        is_quiet = not is_ask or (self.replay is not None and self.replay.again.taken)
        self.parts = ends.begin(self.sender, self.n, is_quiet=is_quiet, is_undone=self.replay is not None)

    async def send_part(self, data: bytes) -> None:
        """The handler has yielded a part.  It leaves once all outcomes that the handler has seen are in the log (rule T7)."""
        self._may_go_on()
        await self._pause()
        await self._record_outcomes()
        self.rest_deadline(False)  # the deadline begins anew
        await self._streaming().send(data)

    async def _record_outcomes(self) -> None:
        """Records that the turn has begun, and all outcomes that it has seen.

        A new owner then runs this turn before any other, and on the state that the parts came from.
        """
        core = self._core
        if self._streaming().writer is None:
            return
        opened = core.fold.turn
        if opened is None or (opened.sender, opened.n) != (self.sender, self.n) or not opened.is_bound:
            await core.flush()  # what earlier turns have changed, this one has read
        elif all(made.answer is None for made in self.calls[self._in_log :]):
            return

        def compose(head: dict[str, Any]) -> Stepped:
            if not core.is_open or self.closed:
                raise Fenced(f"Agent {self.id!r} is not run by this process any more.", agent=self.id)
            at, news = self.news()
            return Stepped(**head, sender=self.sender, input=self.n, at=at, calls=news, sends=True)

        self._recording = core.home.start(core.append(compose))
        await asyncio.shield(self._recording)

    async def emit_part(self, part: object) -> None:
        """What `cells.emit` says."""
        step, handler = within.get(), self._core.spec.handlers.get(self.message)
        if step is None or step.turn is not self:
            raise NotInTurn(f"Agent {self.id!r}: emit() is for the call of a step; in the handler itself, yield.")
        if self.parts is None or handler is None or handler.parts is None:
            raise UsageError(
                f"Step {step.name!r} of agent {self.id!r} emitted a part, but {self.message} does not yield; make it an async "
                "generator.", agent=self.id, step=step.name,
            )  # fmt: skip
        await self._record_outcomes()
        try:
            await self.parts.emit(handler.parts.encode(part), step.key, step.attempt)
        except (*PASSING, RetryError) as error:
            self.broken = error  # no outcome of the step: the turn runs again, and reads its stream again
            raise

    async def end_parts(self) -> int:
        """The handler has returned: all parts are stored.  Returns how many there are."""
        return await self._streaming().settle()

    def _streaming(self) -> TurnStream:
        if self.parts is None:
            raise never("a part of a turn that has no stream")
        return self.parts

    def stream(
        self,
        ref: Reference,
        handler: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        options: CallOptions | None,
    ) -> Any:
        raise UsageError(
            f"Agent {self.id!r} called {handler!r} of {ref!r}, which yields: a turn that runs again could not read the same parts. "
            "Ask a handler that returns, or let the other agent tell each part.", agent=self.id,
        )  # fmt: skip

    def read_stream(self, ref: Reference, handler: str, id: str, after: str, timeout: float | None) -> Any:
        return self.stream(ref, handler, (), {}, timeout, None)
