"""A turn in progress, as its handler reaches it by `cells.this()`: asks, tells, timers, and orders for the agent itself.

Each ask is a record before it leaves, and its outcome is the same whenever the turn runs again (rule 13).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
from blake3 import blake3

from mielin_cells import tracing
from mielin_cells.agents.context import CallOptions
from mielin_cells.agents.reference import Reference
from mielin_cells.agents.signature import HandlerSpec
from mielin_cells.agents.spec import Spec, route
from mielin_cells.agents.times.cron import next_time
from mielin_cells.errors import (
    PASSING,
    AgentTerminated,
    CellError,
    EpochRegression,
    NonDeterministicTurn,
    SelfAsk,
    UsageError,
    never,
    storable,
)  # fmt: skip
from mielin_cells.log.commit import AskCall, Out, Sent, Timer, Wish, body_of
from mielin_cells.log.inboxes.lines import end_of, line, priority_of
from mielin_cells.log.message import Answer, Terms, decode_answer, encode_answer
from mielin_cells.log.records import Asked
from mielin_cells.node.activation.calls.circles import Circle, timed_out
from mielin_cells.node.activation.calls.pending import PendingAsk, ask_cycle, label_of
from mielin_cells.node.activation.calls.reads import Reads
from mielin_cells.node.activation.calls.reasons import Reasons
from mielin_cells.node.activation.calls.refusal import refusal_of
from mielin_cells.node.activation.calls.replay import Replay
from mielin_cells.node.activation.calls.spans import with_trace
from mielin_cells.node.activation.calls.streaming import Streaming
from mielin_cells.node.activation.calls.tasks import branch_of
from mielin_cells.node.activation.calls.waiting import Waiting
from mielin_cells.node.activation.run import Run
from mielin_cells.node.activation.timers import check_room
from mielin_cells.node.family.turning import FamilyCalls
from mielin_cells.node.topics.turning import TopicCalls
from mielin_cells.rpc import requests
from mielin_cells.rpc.reminder import read_last_answer, remind
from mielin_cells.settings import ASK_REPEAT_S_MAX, TIMERS_MAX
from mielin_cells.tracing import Trace

CHAIN_MAX = 64
"""Of the agents that wait for each other.  A longer cycle is not noticed, and ends by the deadline of one of its asks."""


class Asks(Reasons, Run):
    """The part of a turn that asks other agents."""

    def ask(
        self, ref: Reference, name: str, args: tuple[Any, ...], kwargs: dict[str, Any],
        timeout: float | None, label: str | None, options: CallOptions | None = None,
    ) -> Coroutine[Any, Any, Any]:  # fmt: skip
        """Returns the result.  Asks of several tasks of the handler are made at the same time."""
        if not tracing.is_on:
            return self.ask_in(self.trace, ref, name, args, kwargs, timeout, label, options)
        return self.spanned_ask(ref, name, args, kwargs, timeout, label, options)

    async def ask_in(
        self, trace: Trace | None, ref: Reference, name: str, args: tuple[Any, ...], kwargs: dict[str, Any],
        timeout: float | None, label: str | None, options: CallOptions | None,
    ) -> Any:  # fmt: skip
        agent, spec, handler = route(ref, name)
        data = handler.encode_args(args, kwargs)
        self._open()
        if agent == self.id:
            raise SelfAsk(
                f"Agent {agent!r} asks itself and would wait for ever; call self.{handler.name}(...) plainly."
            )
        if agent in self.chain:
            raise ask_cycle(self.chain, self.id, agent, handler.name)
        if not self.sender:
            raise UsageError(f"A hook of agent {self.id!r} cannot ask; tell, or ask from a handler.")
        self._fits(agent, data)
        to = agent if options is None else line(agent, options.priority)
        self._core.outbox.check_room(to)
        branches = self._branches()
        if branches is not None:
            self._may_go_on()
            with self.is_making():
                terms = None if options is None else await self._terms(options)
            terms = with_trace(terms, trace)
            pending = self._pending_ask(to, spec, handler, data, timeout, label, terms)
            answer = decode_answer(await branches.outcome(pending))
        else:
            async with self._in_order():
                self._may_go_on()
                self._is_calling = True
                try:
                    terms = with_trace(None if options is None else await self._terms(options), trace)
                    answer = decode_answer(await self._answer(to, spec, handler, data, timeout, label, terms))
                finally:
                    self._is_calling = False
        if answer.error is not None:
            raise handler.error_of(answer)
        return handler.decode_result(answer.result or b"")

    def _out_of(self, to: str, spec: Spec, handler: HandlerSpec, args: bytes, k: int, terms: Terms | None) -> Out:
        chain = (*self.chain[1 - CHAIN_MAX :], self.id)
        return Out(to, spec.name, 0, handler.name, args, True, self.sender, self.n, k, chain=chain, terms=terms)

    def _pending_ask(
        self, to: str, spec: Spec, handler: HandlerSpec, args: bytes, timeout: float | None, id: str | None,
        terms: Terms | None,
    ) -> PendingAsk:  # fmt: skip
        out = self._out_of(to, spec, handler, args, 0, terms)
        return PendingAsk(branch_of(self), out, body_of(out), label_of(end_of(to), handler.name, id), timeout)

    def standing_ask(self, out: Out, body: bytes) -> Sent | None:
        """After an undo: the ask that stands for this one of a branch."""
        return self.replay.standing(out, body) if self.replay is not None else None

    def free_place(self, to: str) -> int:
        """A place for an ask of a branch, which no ask that was undone has."""
        k = self._next_place(to, True)
        while self.replay is not None and self.replay.has_place(to, k):
            k = self._next_place(to, True)
        return k

    async def _answer(
        self, to: str, spec: Spec, handler: HandlerSpec, args: bytes, timeout: float | None, id: str | None,
        terms: Terms | None,
    ) -> bytes:  # fmt: skip
        core, index = self._core, len(self.calls)
        label = label_of(end_of(to), handler.name, id)
        out = self._out_of(to, spec, handler, args, (self._places or {}).get((to, True), 0), terms)
        body = body_of(out)
        made: AskCall | None = None
        if index < len(self.recorded):
            recorded = await self._again(index)
            if not isinstance(recorded, AskCall) or recorded.body != body or recorded.branch is not None:
                raise self.otherwise(recorded, label)
            made = recorded
        elif self.replay is not None:
            made = await self._stands(self.replay, out, label)
        if made is not None:
            self.calls.append(made)
            if made.n:
                self._next_place(to, True)
                if self.replay is not None:
                    self.replay.met(out, made.n)
            if made.answer is not None:
                return made.answer
            if (pending := core.fold.ledger.pending.get(to, {}).get(made.n)) is not None:
                return await self._wait(pending, made, timeout)
            # Without a pending one it is in the receiver's inbox.  An ask that differs must not go under the number of the one there.
            is_other = self.replay is not None and not self.replay.is_same(out)
            return await self._wait(
                msgspec.structs.replace(out, n=made.n), made, timeout, is_sent=is_other, is_other=is_other
            )
        refusal = await self.refusal_of(end_of(to))
        if refusal is not None:
            self.calls.append(AskCall(to, 0, handler.name, body, label, refusal))
            return refusal
        if self.replay is not None:
            out = self.replay.corrected(out)
        recording = self._recording = core.home.start(self._record(out, body, label))
        try:
            out, made = await asyncio.shield(recording)
        except asyncio.CancelledError:  # the handler waits no longer; a recorded ask is sent all the same
            recording.add_done_callback(self._unheard)
            raise
        return await self._wait(out, made, timeout, is_sent=True)

    async def _stands(self, rerun: Replay, out: Out, label: str) -> AskCall | None:
        """After an undo: the ask of an earlier run of this turn that stands here, with its outcome; None if this ask is sent."""
        earlier = rerun.known(out)
        if earlier is None or not rerun.stands(out):
            return None
        if earlier.handler != out.handler:
            self.broken = NonDeterministicTurn(
                f"Agent {self.id!r} was rolled back, and its turn now asks {label} where it had asked {earlier.handler}, "
                "whose answer cannot stand for this one; the message goes to the dead letters, and the agent goes on.",
                agent=self.id, asks=[f"{end_of(sent.to)}.{sent.handler}" for sent in rerun.again.sent if sent.ask],
            )  # fmt: skip
            raise self.broken
        await asyncio.sleep(0)
        return AskCall(out.to, earlier.n, out.handler, body_of(out), label, earlier.answer)

    async def refusal_of(self, agent: str) -> bytes | None:
        return await refusal_of(self._core.home.log, self.id, agent)

    async def _record(self, asked: Out, body: bytes, label: str) -> tuple[Out, AskCall]:
        """Records the ask before it leaves, after all earlier turns are committed."""
        core = self._core
        await core.flush()

        def compose(head: dict[str, Any]) -> Asked:
            self._may_record()
            out = msgspec.structs.replace(asked, n=core.fold.ledger.next_number(asked.to))
            self.calls.append(AskCall(out.to, out.n, out.handler, body, label))
            self._next_place(out.to, True)
            if self.replay is not None:
                self.replay.met(out, out.n)
            at, made = self.news()
            core.fold.ledger.send(out)
            return Asked(**head, sender=self.sender, input=self.n, out=out, at=at, calls=made)

        record = await core.append(compose)
        made = record.calls[-1]
        if not isinstance(made, AskCall):
            raise never("the record of an ask ends with something else")
        # Here, and not where the answer is waited for: a number that is in the log must not be a hole (rule 13).
        _ = core.expect(record.out.to, record.out.n)
        core.outbox.push(record.out)
        return record.out, made

    def _unheard(self, recording: asyncio.Task[tuple[Out, AskCall]]) -> None:
        if not recording.cancelled() and recording.exception() is None:
            out, _ = recording.result()
            self._core.forget(out.to, out.n)

    async def _wait(
        self, out: Out, made: AskCall, seconds: float | None, is_sent: bool = False, is_other: bool = False
    ) -> bytes:
        answer = await self.await_answer(out, seconds, is_sent, is_other)
        self.calls[self.calls.index(made)] = msgspec.structs.replace(made, answer=answer)
        return answer

    async def await_answer(self, out: Out, seconds: float | None, is_sent: bool, is_other: bool = False) -> bytes:
        """Sends the ask, again while there is no answer, until its deadline: a timeout is an outcome (rule 13).  `is_other`: under
        its number another ask was sent, which stands for it."""
        core = self._core
        timeout = core.home.settings.ask_timeout_s if seconds is None else seconds
        future = core.expect(out.to, out.n)
        circle: Circle | None = None
        pause, is_again = min(core.home.settings.ask_repeat_s, timeout / 2), False
        try:
            async with asyncio.timeout(timeout) as limit:
                answer: bytes | None = None
                if not is_sent:
                    core.outbox.push(out)
                while answer is None:
                    await asyncio.wait((future,), timeout=pause)
                    if future.done():
                        answer = future.result()
                    elif core.outbox.holds(out):  # it is not stored yet
                        refused = core.outbox.refused(out.to)
                        self._note(out, f"its inbox does not take it ({refused.rstrip('.')})" if refused else "")
                    else:
                        when = limit.when() or float("inf")
                        circle = circle or Circle(core.home, self.id, end_of(out.to), when, timeout)
                        answer = await self._reminded(out, is_again, when - core.loop.time(), is_other)
                        pause, is_again = min(pause * 2, ASK_REPEAT_S_MAX), True
        except TimeoutError:
            # It may have come while the receiver was reminded.
            answer = future.result() if future.done() else timed_out(self.id, out, timeout, self.why(out), circle)
        finally:
            core.forget(out.to, out.n)
            if circle is not None:
                circle.stop()
        return answer

    async def _reminded(self, out: Out, is_again: bool, left_s: float, is_other: bool) -> bytes | None:
        """Reminds the receiver, and sends the ask again if it is missing there.

        Returns the last word of an agent that has ended or cannot answer; None if an answer may still come.
        """
        core = self._core
        to, sender = end_of(out.to), line(self.id, priority_of(out.to))
        asked = requests.Remind(to, sender, 0, core.home.reply_to, [out.n])
        try:
            standing = await remind(core.home.log, core.home.wire, asked, left_s)
        except AgentTerminated:
            return await read_last_answer(core.home.log, to, sender, out.n)
        except CellError as error:
            if isinstance(error, PASSING) and not isinstance(error, EpochRegression):
                raise  # the store's word, and not the receiver's: as an outcome it would fail each run of this turn
            return encode_answer(Answer(None, error.to_wire()))
        self._note(out, standing.why)
        if not is_other and (standing.missing or (standing.missing is None and not is_again)):
            core.outbox.push(out)
        return None


class Turn(Asks, FamilyCalls, Reads, Streaming, TopicCalls, Waiting):
    """What `cells.this()` gives inside a turn, and the caller of every reference used in it.

    What a turn tells, sets and orders takes effect once the turn is committed.
    """

    # On the class, because most turns never touch them, and a turn is made for every message.
    timers: dict[str, Timer | None] | None = None
    """Set in this turn, or cancelled (None)."""
    seconds: dict[str, float] | None = None
    """Of the timers that are set: the seconds until they are due."""
    _timers_set = 0
    moves = False
    """The turn moves its agent: to the node `move_to`, or to one of the system's choice."""
    move_to: str | None = None
    wish: Wish | None = None

    async def tell(
        self, ref: Reference, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any], label: str | None,
        options: CallOptions | None = None,
    ) -> None:  # fmt: skip
        """Notes a message that is sent, and numbered, once the turn has ended."""
        agent, spec, called = route(ref, handler)
        data = called.encode_args(args, kwargs)
        self._open()
        self._fits(agent, data)
        to = agent if options is None else line(agent, options.priority)
        self._core.outbox.check_room(to)
        terms = None if options is None else await self._terms(options)
        k, terms = self._next_place(to, False), self.traced(terms) if self.trace is not None else terms
        self.tells.append(Out(to, spec.name, 0, handler, data, False, self.sender, self.n, k, terms=terms))

    # ---- orders for the agent itself -------------------------------------------------------------------------

    def migrate(self, to: str | None = None) -> None:
        """Moves this agent once the turn is committed; to a node of the system's choice unless `to` names one."""
        self._orders("migrate")
        name: Any = to  # the author may not check types
        if name is not None and not (isinstance(name, str) and name.isprintable()):
            raise UsageError(f"Agent {self.id!r} asked to be moved to {to!r}, which is not a valid node name.")
        self.moves, self.move_to = True, "".join(to) if to else None

    def terminate(self) -> None:
        self._orders("terminate")
        self.wish = Wish("terminate")

    def suspend(self, reason: str = "") -> None:
        self._orders("suspend")
        self.wish = Wish("suspend", storable(str(reason)))

    def pause(self, reason: str = "") -> None:
        self._orders("pause")
        self.wish = Wish("pause", storable(str(reason)))

    def _orders(self, order: str) -> None:
        self._open()
        if not self.sender:
            raise UsageError(
                f"A hook of agent {self.id!r} ({self.message}) cannot {order} it; do it in a handler, or raise: that keeps it from "
                "arriving, or from leaving.", agent=self.id,
            )  # fmt: skip

    # ---- timers ----------------------------------------------------------------------------------------------

    def set_timer(
        self, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float, period: float, catch_up: str,
        id: str | None, cron: str = "", zone: str = "",
    ) -> str:  # fmt: skip
        self._open()
        core, wall, ledger = self._core, self._core.home.wall(), self._core.fold.ledger
        body = core.spec.handler(handler).encode_args(args, kwargs)
        self._fits(self.id, body)
        k, self._timers_set = self._timers_set, self._timers_set + 1
        name = id or self._timer_name(k)
        if self.timers is None or self.seconds is None:
            self.timers, self.seconds = {}, {}
        check_room(self.id, ledger.timers, self.timers, body)
        if (
            len(ledger.timers) + len(self.timers) >= TIMERS_MAX
            and name not in ledger.timers
            and name not in self.timers
        ):
            raise UsageError(
                f"Agent {self.id!r} has {TIMERS_MAX} timers, which is the limit; cancel some, or set fewer."
            )
        if cron:
            seconds = next_time(cron, zone, wall) - wall
        due = wall + seconds
        trace = self.trace.text if self.trace is not None else ""
        timer = Timer(name, handler, body, due, seconds, period, catch_up, self.sender, self.n, k, cron, zone, trace)
        before = None if self.sender or name in self.timers or not (cron or core.is_waking) else ledger.timers.get(name)
        if before is not None and before.is_set_as(timer):
            return name  # a hook that sets it each time: it keeps its time, which may be now
        set_anew = self.replay.timer(timer) if self.replay is not None else timer
        if set_anew is not None:
            self.timers[name], self.seconds[name] = set_anew, seconds + (set_anew.due - due)
        elif name in self.timers or name in ledger.timers:
            self.timers[name] = None  # it has fired; the timer that it had replaced is gone all the same
        return name

    def _timer_name(self, k: int) -> str:
        if not self.sender:  # a hook that runs again, as `on_arrive` does, sets its timers anew
            return f"{self.message}.{k}"
        return blake3(f"{self.sender}\0{self.n}\0{k}".encode()).hexdigest(8)

    def cancel_timer(self, id: str) -> bool:
        self._open()
        if self.timers is None or self.seconds is None:
            self.timers, self.seconds = {}, {}
        is_there = self.timers.get(id) is not None if id in self.timers else id in self._core.fold.ledger.timers
        if is_there:
            self.timers[id] = None
        return is_there
