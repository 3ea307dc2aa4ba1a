"""A turn in progress: what a handler can reach, and the asks that it makes (rules 9, 12 and 13)."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from blake3 import blake3

from mielin_cells.core.fold import Phase
from mielin_cells.core.ids import log_subject
from mielin_cells.core.message import Answer, decode_answer, encode_answer
from mielin_cells.core.records import Asked, AskMade, Out, Terminated, decode_record
from mielin_cells.core.settings import MESSAGE_BYTES_MAX
from mielin_cells.core.spec import HandlerSpec, Spec
from mielin_cells.errors import (
    AgentTerminated,
    AskTimeout,
    CellError,
    MessageTooLarge,
    NonDeterministicTurn,
    NoSuchAgent,
    NotInTurn,
    SelfAsk,
    UsageError,
    from_wire,
)
from mielin_cells.node.reader import load

if TYPE_CHECKING:
    from mielin_cells.core.cluster import Cluster
    from mielin_cells.node.host import Host
    from mielin_cells.substrate.ports import Log

ASK_REPEAT_S_MAX = 8.0


class Waiting:
    """A coroutine whose first step was taken by hand, and that waits: awaiting this awaits the rest of it.

    Most handlers never wait; taking their first step by hand spares them a timer and the loop a task.
    """

    __slots__ = ("_coroutine", "_first")

    def __init__(self, coroutine: Any, first: Any) -> None:
        self._coroutine = coroutine
        self._first = first

    def __await__(self) -> Generator[Any, Any, Any]:
        waits_for = self._first
        while True:
            try:
                sent = yield waits_for
            except BaseException as error:
                try:
                    waits_for = self._coroutine.throw(error)
                except StopIteration as stop:
                    return stop.value
            else:
                try:
                    waits_for = self._coroutine.send(sent)
                except StopIteration as stop:
                    return stop.value


class TurnStopped(BaseException):
    """The turn was stopped to be run again elsewhere, or its host lost the agent.  No handler can catch it as an Exception."""


class Begun(NamedTuple):
    """A turn after its first step: it failed, or it waits."""

    turn: Turn
    handler: HandlerSpec
    error: BaseException | None
    waiting: Waiting | None = None


class Turn:
    """What `cells.this()` gives inside a turn, and the caller of every reference used in it."""

    # On the class, because most turns never touch them, and a turn is made for every message.
    broken: CellError | None = None
    """Fails the turn whatever the handler makes of the exception."""
    closed = False
    moves = False
    move_to: str | None = None
    recorded: Sequence[AskMade] = ()
    """What an earlier run of this turn has asked."""
    _asking: asyncio.Lock | None = None

    def __init__(self, host: Host, sender: str, n: int, message: str) -> None:
        self._host = host
        self.sender = sender
        self.n = n
        self.message = message
        """Name of the handler that runs, or of the hook."""
        self.tells: list[Out] = []
        self.asks: list[AskMade] = []
        opened = host.fold.turn
        if opened is not None and (opened.sender, opened.n) == (sender, n):
            self.recorded = opened.asks

    @property
    def id(self) -> str:
        return self._host.fold.agent

    @property
    def node(self) -> str:
        return self._host.home.name

    @property
    def cluster(self) -> Cluster:
        cluster = self._host.home.cluster
        assert cluster is not None
        return cluster

    @property
    def caller(self) -> Turn:
        return self

    def migrate(self, to: str | None = None) -> None:
        """Moves this agent once the turn is committed; to a node of the system's choice unless `to` names one."""
        self._open()
        self.moves, self.move_to = True, to

    def _open(self) -> None:
        if self.closed:
            raise NotInTurn(f"The turn of agent {self.id!r} that made this call has ended; call from a new turn.")

    async def tell(self, agent: str, spec: Spec, handler: HandlerSpec, args: bytes, id: str | None) -> None:
        """Sends once the turn is committed.  The number is given then."""
        self._open()
        self._fits(agent, args)
        out = Out(agent, spec.name, 0, handler.name, args, False, self.sender, self.n, len(self.tells) + len(self.asks))
        self.tells.append(out)

    async def ask(
        self, agent: str, spec: Spec, handler: HandlerSpec, args: bytes, timeout: float | None, id: str | None
    ) -> bytes:
        """The encoded result.  Asks of one turn are made one after the other, also from tasks of its handler."""
        self._open()
        if agent == self.id:
            raise SelfAsk(
                f"Agent {agent!r} asks itself and would wait for ever; call self.{handler.name}(...) plainly."
            )
        if not self.sender:
            raise UsageError(f"A hook of agent {self.id!r} cannot ask; tell, or ask from a handler.")
        self._fits(agent, args)
        if self._asking is None:
            self._asking = asyncio.Lock()
        async with self._asking:
            self._open()
            answer = decode_answer(await self._answer(agent, spec, handler, args, timeout))
        if answer.error is not None:
            raise from_wire(*answer.error)
        return answer.result or b""

    def _fits(self, agent: str, args: bytes) -> None:
        if len(args) > MESSAGE_BYTES_MAX:
            raise MessageTooLarge(
                f"A message from {self.id!r} to {agent!r} has {len(args)} bytes; the limit is {MESSAGE_BYTES_MAX}.",
                limit=MESSAGE_BYTES_MAX, size=len(args),
            )  # fmt: skip

    async def _answer(self, agent: str, spec: Spec, handler: HandlerSpec, args: bytes, timeout: float | None) -> bytes:
        host, k = self._host, len(self.asks)
        body = blake3(f"{agent}\0{handler.name}\0".encode() + args).digest()
        label = f"{agent}.{handler.name}"
        if k < len(self.recorded):
            made = self.recorded[k]
            if made.body != body:
                asks = [made.label for made in self.recorded]
                self.broken = NonDeterministicTurn(
                    f"A turn of agent {self.id!r} ran again and asked {label} where it had asked {made.label}; "
                    "the message goes to the dead letters, and the agent goes on.",
                    agent=self.id, asks=asks,
                )  # fmt: skip
                raise self.broken
            self.asks.append(made)
            if made.answer is not None:
                return made.answer
            out = host.fold.ledger.pending.get(agent, {}).get(made.n)
            out = out or Out(agent, spec.name, made.n, handler.name, args, True, self.sender, self.n, k)
            return await self._wait(out, k, timeout)
        else:
            refusal = await self._refused(agent)
            if refusal is not None:
                self.asks.append(AskMade(agent, 0, body, label, refusal))
                return refusal
            sent: Out = await asyncio.shield(host.home.start(self._record(agent, spec, handler, args, body, label)))
            return await self._wait(sent, k, timeout)

    async def _refused(self, agent: str) -> bytes | None:
        """The outcome of an ask to an agent that is not there: it is an outcome like any other, but nothing is sent."""
        if await self._host.home.log.last(log_subject(agent)) is not None:
            return None
        error = NoSuchAgent(f"Agent {self.id!r} asked {agent!r}, which does not exist; spawn it first.", agent=agent)
        return encode_answer(Answer(None, error.to_wire()))

    async def _record(self, agent: str, spec: Spec, handler: HandlerSpec, args: bytes, body: bytes, label: str) -> Out:
        """The ask is a record before it leaves, after all earlier turns are committed."""
        host = self._host
        await host.flush()
        sent: list[Out] = []

        def compose(head: dict[str, Any]) -> Asked:
            n = host.fold.ledger.next_number(agent)
            out = Out(agent, spec.name, n, handler.name, args, True, self.sender, self.n, len(self.asks))
            self.asks.append(AskMade(agent, n, body, label))
            sent.append(out)
            host.fold.ledger.send(out)
            return Asked(**head, sender=self.sender, input=self.n, out=out, asks=[*self.asks])

        await host.append(compose)
        return sent[0]

    async def _wait(self, out: Out, k: int, seconds: float | None) -> bytes:
        """Sends the ask, again while there is no answer, until its deadline: a timeout is an outcome (rule 13)."""
        host = self._host
        timeout = host.home.settings.ask_timeout_s if seconds is None else seconds
        future = host.expect(out.to, out.n)
        pause = host.home.settings.ask_repeat_s
        try:
            async with asyncio.timeout(timeout):
                answer: bytes | None = None
                while answer is None:
                    host.outbox.push(out)
                    await asyncio.wait((future,), timeout=pause)
                    if future.done():
                        answer = future.result()
                    else:
                        answer = await ended(host.home.log, out.to, self.id, out.n)
                        pause = min(pause * 2, ASK_REPEAT_S_MAX)
        except TimeoutError:
            error = AskTimeout(
                f"Agent {self.id!r} had no answer from {out.to}.{out.handler} in {timeout:g} s; the ask may still take effect.",
                agent=out.to,
            )
            answer = encode_answer(Answer(None, error.to_wire()))
        finally:
            host.forget(out.to, out.n)
        self.asks[k] = msgspec.structs.replace(self.asks[k], answer=answer)
        return answer


async def ended(log: Log, agent: str, sender: str, n: int) -> bytes | None:
    """If `agent` has terminated: its stored answer to `n` of `sender`, or else `AgentTerminated`.  None while it lives.

    A terminated log never changes, so this reading decides nothing that could still turn out otherwise (rule 20).
    """
    last = await log.last(log_subject(agent))
    if last is None or not isinstance(decode_record(last.data, f"The log of agent {agent!r}"), Terminated):
        return None
    fold = await load(log, agent)
    assert fold.phase is Phase.TERMINATED
    stored = fold.ledger.answer(sender, n)
    if stored is not None:
        return stored
    error = AgentTerminated(f"Agent {agent!r} has ended; its id is not used again.", agent=agent)
    return encode_answer(Answer(None, error.to_wire()))
