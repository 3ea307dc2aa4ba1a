"""A turn in progress: what a handler can reach, and the asks and steps that it makes (rules 9, 12 and 13)."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from blake3 import blake3

from mielin_cells.agents.context import turn as current_turn
from mielin_cells.agents.reference import Reference, agent_id
from mielin_cells.agents.retry import Retry
from mielin_cells.agents.spec import HandlerSpec, Spec, spec_of
from mielin_cells.agents.step import NAME_CHARS_MAX, Codec, Within, codec_of
from mielin_cells.errors import (
    AgentTerminated,
    AskTimeout,
    CellError,
    Fenced,
    MessageTooLarge,
    NonDeterministicTurn,
    NoSuchAgent,
    NotInTurn,
    RetryError,
    SelfAsk,
    StepFailed,
    UsageError,
    from_wire,
    never,
)
from mielin_cells.log.ids import log_subject
from mielin_cells.log.message import Answer, decode_answer, encode_answer
from mielin_cells.log.records import Asked, AskMade, Made, Out, StepMade, Stepped, Timer, body_of
from mielin_cells.node.activation.outbox import cycle, longer
from mielin_cells.node.activation.own_orders import OwnOrders
from mielin_cells.node.activation.replay import Rerun
from mielin_cells.node.activation.steps import fits_turn, result_of, within
from mielin_cells.node.activation.timers import check_room
from mielin_cells.node.activation.waiting import Waiting
from mielin_cells.rpc import requests
from mielin_cells.rpc.reminder import last_word, remind
from mielin_cells.settings import ASK_REPEAT_S_MAX, MESSAGE_BYTES_MAX, TIMERS_MAX

if TYPE_CHECKING:
    from mielin_cells.agents.cluster import Cluster
    from mielin_cells.node.activation.activation import Host


class TurnStopped(BaseException):
    """The turn was stopped to be run again elsewhere, or its host lost the agent.  No handler can catch it as an Exception."""


class Begun(NamedTuple):
    """A turn after its first step: it failed, or it waits."""

    turn: Turn
    handler: HandlerSpec
    error: BaseException | None
    waiting: Waiting | None = None


class Turn(OwnOrders):
    """What `cells.this()` gives inside a turn, and the caller of every reference used in it."""

    # On the class, because most turns never touch them, and a turn is made for every message.
    broken: CellError | None = None
    """Fails the turn whatever the handler makes of the exception."""
    closed = False
    recorded: Sequence[Made] = ()
    """The asks and steps of an earlier run of this turn."""
    stopped = False
    """It was stopped between steps and is to be run again, whatever the handler makes of `TurnStopped`."""
    is_told_late = False
    in_step = False
    """A step's call is running, or its outcome is being recorded: what is paid for is to be kept."""
    deadline: asyncio.Timeout | None = None
    """The turn's own, which does not run in steps."""
    _order: asyncio.Lock | None = None
    _resting: asyncio.Future[None] | None = None
    corrects = 0
    """The number of the message that this turn's one stands in for."""
    rerun: Rerun | None = None
    """The input is run again after an undo."""
    _places: dict[tuple[str, bool], int] | None = None
    """How many messages of each kind went to each receiver."""
    timers: dict[str, Timer | None] | None = None
    """Set in this turn, or cancelled (None)."""
    seconds: dict[str, float] | None = None
    """To go, of those that are set."""
    _timers_set = 0
    since = 0.0
    """When it began to wait, by the loop's clock."""
    chain: tuple[str, ...] = ()
    """The agents that wait for this turn, each asked by the one before it; the first was told, or asked by a client."""
    why = ""
    """What is known of why the ask that waits has no answer."""
    _abandoned = ""
    """A step whose call the handler has cancelled."""
    _in_log = 0
    """Of `made`, so many from the first on have their outcomes in the log."""
    _recording: asyncio.Task[Any] | None = None

    def __init__(self, host: Host, sender: str, n: int, message: str) -> None:
        self._host = host
        self.sender = sender
        self.n = n
        self.message = message
        """Name of the handler that runs, or of the hook."""
        self.tells: list[Out] = []
        self.made: list[Made] = []
        """The asks and steps of this run, in order."""
        if host.fold.ledger.again:
            again = host.fold.ledger.again.get((sender, n))
            self.rerun = Rerun(again, host.fold.ledger.corrects) if again is not None else None
        opened = host.fold.turn
        if opened is not None and (opened.sender, opened.n) == (sender, n):
            self.recorded = opened.made

    @property
    def id(self) -> str:
        return self._host.fold.agent

    @property
    def number(self) -> int:
        return self.n

    @property
    def node(self) -> str:
        return self._host.home.name

    @property
    def pause_s(self) -> float:
        """What is cancelled has so long to end."""
        return self._host.home.settings.pause_s

    @property
    def cluster(self) -> Cluster:
        cluster = self._host.home.cluster
        if cluster is None:
            raise never("cluster is not None does not hold")
        return cluster

    @property
    def caller(self) -> Turn:
        return self

    def shares(self, caller: Any) -> bool:
        home = self._host.home
        return caller is home.cluster or getattr(caller, "log", None) is home.log

    @property
    def idempotency_key(self) -> str:
        """Inside the call of a step: the same text whenever this step's call is made again, on whatever node."""
        step = within.get()
        if step is None or step.turn is not self:
            raise NotInTurn(f"Agent {self.id!r}: idempotency_key means something only inside the call of a step.")
        return step.key

    def is_here(self) -> bool:
        """False in another thread, or in a loop that is not the turn's own."""
        try:
            return asyncio.get_running_loop() is self._host.loop
        except RuntimeError:  # a thread without a loop
            return False

    def _open(self) -> None:
        if self.closed:
            raise NotInTurn(f"The turn of agent {self.id!r} that made this call has ended; call from a new turn.")
        step = within.get()
        if step is not None and step.turn is self:
            raise UsageError(
                f"The call of step {step.name!r} of agent {self.id!r} used the agent's turn; a turn that runs again does not "
                "make the call: ask, tell, move and step in the handler itself.",
                agent=self.id, step=step.name,
            )  # fmt: skip
        if current_turn.get() is not self:
            raise NotInTurn(f"A turn of agent {self.id!r} was used by another turn or thread, which must not use it.")
        if not self.is_here():
            raise UsageError(
                f"The turn of agent {self.id!r} was used from another thread, or from a loop that is not its own; nothing was done. "
                "Ask with asyncio.run_coroutine_threadsafe(ref.handler(...), loop), and give orders in the handler itself.",
                agent=self.id,
            )  # fmt: skip

    async def tell(
        self, ref: Reference, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any], label: str | None
    ) -> None:
        """Sends once the turn is committed.  The number is given then."""
        agent, spec = agent_id(ref), spec_of(type(ref))
        data = spec.handler(handler).encode_args(args, kwargs)
        self._open()
        self._fits(agent, data)
        self._host.outbox.check_room(agent)
        k = self._next_place(agent, False)
        self.tells.append(Out(agent, spec.name, 0, handler, data, False, self.sender, self.n, k))

    async def ask(
        self, ref: Reference, name: str, args: tuple[Any, ...], kwargs: dict[str, Any],
        timeout: float | None, label: str | None,
    ) -> Any:  # fmt: skip
        """The result.  Asks of one turn are made one after the other, also from tasks of its handler."""
        agent, spec = agent_id(ref), spec_of(type(ref))
        handler = spec.handler(name)
        data = handler.encode_args(args, kwargs)
        self._open()
        if agent == self.id:
            raise SelfAsk(
                f"Agent {agent!r} asks itself and would wait for ever; call self.{handler.name}(...) plainly."
            )
        if agent in self.chain:
            raise cycle(self.chain, self.id, agent, handler.name)
        if not self.sender:
            raise UsageError(f"A hook of agent {self.id!r} cannot ask; tell, or ask from a handler.")
        self._fits(agent, data)
        self._host.outbox.check_room(agent)
        async with self._in_order():
            self._may_go_on()
            answer = decode_answer(await self._answer(agent, spec, handler, data, timeout, label))
        if answer.error is not None:
            raise handler.error_of(answer)
        return handler.decode_result(answer.result or b"")

    def _fits(self, agent: str, args: bytes) -> None:
        if len(args) > MESSAGE_BYTES_MAX:
            raise MessageTooLarge(
                f"A message from {self.id!r} to {agent!r} has {len(args)} bytes; the limit is {MESSAGE_BYTES_MAX}.",
                limit=MESSAGE_BYTES_MAX, size=len(args),
            )  # fmt: skip

    async def _answer(
        self, agent: str, spec: Spec, handler: HandlerSpec, args: bytes, timeout: float | None, id: str | None
    ) -> bytes:
        host, index = self._host, len(self.made)
        label = f"{agent}.{handler.name}" + (f" ({id})" if id else "")
        k = (self._places or {}).get((agent, True), 0)
        chain = longer(self.chain, self.id)
        out = Out(agent, spec.name, 0, handler.name, args, True, self.sender, self.n, k, chain=chain)
        body = body_of(out)
        made: AskMade | None = None
        if index < len(self.recorded):
            recorded = await self._again(index)
            if not isinstance(recorded, AskMade) or recorded.body != body:
                raise self._otherwise(recorded, label)
            made = recorded
        elif self.rerun is not None:
            made = await self._stands(self.rerun, out, label)
        if made is not None:
            self.made.append(made)
            if made.n:
                self._next_place(agent, True)
                if self.rerun is not None:
                    self.rerun.met(out, made.n)
            if made.answer is not None:
                return made.answer
            pending = host.fold.ledger.pending.get(agent, {}).get(made.n)
            return await self._wait(pending or msgspec.structs.replace(out, n=made.n), made, timeout)
        refusal = await self._refused(agent)
        if refusal is not None:
            self.made.append(AskMade(agent, 0, handler.name, body, label, refusal))
            return refusal
        if self.rerun is not None:
            out = self.rerun.corrected(out)
        recording = self._recording = host.home.start(self._record(out, body, label))
        try:
            out, made = await asyncio.shield(recording)
        except asyncio.CancelledError:  # the handler waits no longer; what is recorded is sent all the same
            recording.add_done_callback(self._unheard)
            raise
        return await self._wait(out, made, timeout, is_sent=True)

    async def _stands(self, rerun: Rerun, out: Out, label: str) -> AskMade | None:
        """After an undo: the ask that an earlier run of this turn made here, with its outcome; None if this one is sent."""
        known = rerun.known(out)
        if known is None or not rerun.stands(out):
            return None
        if known.handler != out.handler:
            self.broken = NonDeterministicTurn(
                f"Agent {self.id!r} was rolled back, and its turn now asks {label} where it had asked {known.handler}, "
                "whose answer cannot stand for this one; the message goes to the dead letters, and the agent goes on.",
                agent=self.id, asks=[f"{sent.to}.{sent.handler}" for sent in rerun.again.sent if sent.ask],
            )  # fmt: skip
            raise self.broken
        await asyncio.sleep(0)
        return AskMade(out.to, known.n, out.handler, body_of(out), label, known.answer)

    def _next_place(self, to: str, ask: bool) -> int:
        if self._places is None:
            self._places = {}
        k = self._places.get((to, ask), 0)
        self._places[to, ask] = k + 1
        return k

    def _in_order(self) -> asyncio.Lock:
        """Asks and steps are one sequence."""
        if self._order is None:
            self._order = asyncio.Lock()
        return self._order

    def _may_go_on(self) -> None:
        """Raises what keeps this run from making another ask or step."""
        self._open()
        if self.stopped:
            raise TurnStopped
        if self._abandoned:
            raise UsageError(
                f"The handler of agent {self.id!r} cancelled step {self._abandoned!r} and went on; a turn that runs again "
                "could not know. Limit the step itself: step(..., timeout=).",
                agent=self.id, step=self._abandoned,
            )  # fmt: skip

    async def _again(self, k: int) -> Made:
        """What an earlier run did here.  Others of the handler's tasks get the loop, as they did while it was waited for:
        so they come to their own asks and steps in the order in which they came then."""
        await asyncio.sleep(0)
        return self.recorded[k]

    def _otherwise(self, made: Made, label: str) -> NonDeterministicTurn:
        self.broken = NonDeterministicTurn(
            f"A turn of agent {self.id!r} ran again and came to {label} where it had come to {made.label}; "
            "the message goes to the dead letters, and the agent goes on.",
            agent=self.id, asks=[made.label for made in self.recorded],
        )  # fmt: skip
        return self.broken

    def news(self) -> tuple[int, list[Made]]:
        """How many outcomes the log has, and what follows them.  For the record that is being composed."""
        at, made = self._in_log, self.made
        while self._in_log < len(made) and made[self._in_log].answer is not None:
            self._in_log += 1
        return at, made[at:]

    async def _refused(self, agent: str) -> bytes | None:
        """The outcome of an ask to an agent that is not there: it is an outcome like any other, but nothing is sent."""
        log, subject = self._host.home.log, log_subject(agent)
        if await log.last(subject) is not None or await log.settled(subject) is not None:
            return None
        error = NoSuchAgent(f"Agent {self.id!r} asked {agent!r}, which does not exist; spawn it first.", agent=agent)
        return encode_answer(Answer(None, error.to_wire()))

    def _may_record(self) -> None:
        """Asked when it is the record's turn: by then the host may have been closed for a newer one."""
        if not self._host.is_open:
            raise Fenced(f"Agent {self.id!r} is not run by this process any more.", agent=self.id)
        self._open()

    async def _record(self, asked: Out, body: bytes, label: str) -> tuple[Out, AskMade]:
        """The ask is a record before it leaves, after all earlier turns are committed."""
        host = self._host
        await host.flush()

        def compose(head: dict[str, Any]) -> Asked:
            self._may_record()
            out = msgspec.structs.replace(asked, n=host.fold.ledger.next_number(asked.to))
            self.made.append(AskMade(out.to, out.n, out.handler, body, label))
            self._next_place(out.to, True)
            if self.rerun is not None:
                self.rerun.met(out, out.n)
            at, made = self.news()
            host.fold.ledger.send(out)
            return Asked(**head, sender=self.sender, input=self.n, out=out, at=at, made=made)

        record = await host.append(compose)
        made = record.made[-1]
        if not isinstance(made, AskMade):
            raise never("isinstance(made, AskMade) does not hold")
        # Here, and not where the answer is waited for: a number that is in the log must not be a hole (rule 13).
        _ = host.expect(record.out.to, record.out.n)
        host.outbox.push(record.out)
        return record.out, made

    @property
    def waits_for_store(self) -> bool:
        """A record of this turn is on its way, or waits for those before it."""
        return self._recording is not None and not self._recording.done()

    async def settled(self) -> None:
        """Waits for the record that is on its way: a further run that did not know of it would send, or pay, once more."""
        if self._recording is not None and self.waits_for_store:
            await asyncio.wait((self._recording,))

    def _unheard(self, recording: asyncio.Task[tuple[Out, AskMade]]) -> None:
        if not recording.cancelled() and recording.exception() is None:
            out, _ = recording.result()
            self._host.forget(out.to, out.n)

    async def _wait(self, out: Out, made: AskMade, seconds: float | None, is_sent: bool = False) -> bytes:
        """Sends the ask, again while there is no answer, until its deadline: a timeout is an outcome (rule 13)."""
        host = self._host
        timeout = host.home.settings.ask_timeout_s if seconds is None else seconds
        future = host.expect(out.to, out.n)
        pause, is_again, self.why = min(host.home.settings.ask_repeat_s, timeout / 2), False, ""
        try:
            async with asyncio.timeout(timeout) as limit:
                answer: bytes | None = None
                if not is_sent:
                    host.outbox.push(out)
                while answer is None:
                    await asyncio.wait((future,), timeout=pause)
                    if future.done():
                        answer = future.result()
                    elif host.outbox.holds(out):  # it is not stored yet
                        refused = host.outbox.refused(out.to)
                        self.why = f": its inbox does not take it ({refused.rstrip('.')})" if refused else ""
                    else:
                        left_s = (limit.when() or float("inf")) - host.loop.time()
                        answer = await self._reminded(out, is_again, left_s)
                        pause, is_again = min(pause * 2, ASK_REPEAT_S_MAX), True
        except TimeoutError:
            error = AskTimeout(
                f"Agent {self.id!r} had no answer from {out.to}.{out.handler} in {timeout:g} s{self.why}; the ask may still take "
                "effect.", agent=out.to,
            )  # fmt: skip
            answer = encode_answer(Answer(None, error.to_wire()))
        finally:
            host.forget(out.to, out.n)
        self.made[self.made.index(made)] = msgspec.structs.replace(made, answer=answer)
        return answer

    async def _reminded(self, out: Out, is_again: bool, left_s: float) -> bytes | None:
        """The last word of an agent that has ended or cannot answer; else the ask is answered later, or is sent once more now."""
        host = self._host
        asked = requests.Remind(out.to, self.id, 0, host.home.reply_to, [out.n])
        try:
            standing = await remind(host.home.log, host.home.wire, asked, left_s)
        except AgentTerminated:
            return await last_word(host.home.log, out.to, self.id, out.n)
        except CellError as error:
            if isinstance(error, RetryError):
                raise
            return encode_answer(Answer(None, error.to_wire()))
        self.why = f": {standing.why}" if standing.why else ""
        if standing.missing or (standing.missing is None and not is_again):
            host.outbox.push(out)
        return None

    # ---- timers ----------------------------------------------------------------------------------------------

    def set_timer(
        self, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float, period: float, catch_up: str,
        id: str | None,
    ) -> str:  # fmt: skip
        self._open()
        host = self._host
        ledger = host.fold.ledger
        body = host.spec.handler(handler).encode_args(args, kwargs)
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
        due = host.home.wall() + seconds
        timer = Timer(name, handler, body, due, seconds, period, catch_up, self.sender, self.n, k)
        set_anew = self.rerun.timer(timer) if self.rerun is not None else timer
        if set_anew is not None:
            self.timers[name], self.seconds[name] = set_anew, seconds + (set_anew.due - due)
        elif name in self.timers or name in ledger.timers:
            self.timers[name] = None  # it has fired, and what it replaced is gone all the same
        return name

    def _timer_name(self, k: int) -> str:
        if not self.sender:  # a hook that runs again, as `on_arrive` does, sets its timers anew
            return f"{self.message}.{k}"
        return blake3(f"{self.sender}\0{self.n}\0{k}".encode()).hexdigest(8)

    def cancel_timer(self, id: str) -> bool:
        self._open()
        if self.timers is None or self.seconds is None:
            self.timers, self.seconds = {}, {}
        is_there = self.timers.get(id) is not None if id in self.timers else id in self._host.fold.ledger.timers
        if is_there:
            self.timers[id] = None
        return is_there

    # ---- steps -----------------------------------------------------------------------------------------------

    async def run_step(self, name: str, call: Any, args: tuple[Any, ...], retry: Retry, timeout: float | None) -> Any:
        """What `cells.step` says."""
        self._open()
        if not self.sender:
            raise UsageError(f"A hook of agent {self.id!r} cannot make step {name!r}; make it in a handler.")
        if type(name) is not str or not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
            raise UsageError(f"A step of agent {self.id!r} has no name of 1 to {NAME_CHARS_MAX} printable characters.")
        if not callable(call):
            if inspect.iscoroutine(call):
                call.close()
            raise UsageError(
                f"Step {name!r} of agent {self.id!r} was given a {type(call).__name__}; give the function and its arguments, "
                "as step(name, function, argument)."
            )
        codec = codec_of(call)
        async with self._in_order():
            self._may_go_on()
            answer, error = await self._outcome(name, codec, call, args, retry, timeout)
        found = decode_answer(answer)
        if found.error is not None:
            raise from_wire(*found.error) from error
        return codec.load(found.result or b"")

    async def _outcome(
        self, name: str, codec: Codec, call: Callable[..., Any], args: tuple[Any, ...], retry: Retry, timeout: float | None
    ) -> tuple[bytes, BaseException | None]:  # fmt: skip
        """The step's outcome, in the log, and what its last call raised if that was in this run."""
        k = len(self.made)
        if k < len(self.recorded):
            made = await self._again(k)
            if not isinstance(made, StepMade) or made.name != name:
                raise self._otherwise(made, f"step {name!r}")
            self.made.append(made)
            if self._in_log == k:
                self._in_log += 1
            return made.answer, None
        index = sum(isinstance(made, StepMade) and made.name == name for made in self.made)
        finished = self.rerun.steps.get((name, index)) if self.rerun is not None else None
        if finished is not None:
            await asyncio.sleep(0)
            self.made.append(finished)
            return finished.answer, None
        await self._pause()
        step = Within(self, name, self._key(name, index))
        seconds = self._host.home.settings.step_timeout_s if timeout is None else timeout
        self._steps(True)
        error: BaseException | None = None
        try:
            try:
                value = await result_of(step, call, args, retry, seconds, self._rest)
                answer = Answer(codec.encode(value))
            except StepFailed as failed:
                error, answer = failed.__cause__, Answer(None, failed.to_wire())
            made = StepMade(name, encode_answer(answer))
            fits_turn(self.id, self.made, made)
            self._recording = self._host.home.start(self._record_step(made))
            await asyncio.shield(self._recording)
        except asyncio.CancelledError:
            if len(self.made) == k:
                self._abandoned = name
            raise
        except CellError as refused:
            self.broken = refused
            raise
        finally:
            self._steps(False)
        await self._pause()
        return made.answer, error

    def _key(self, name: str, index: int) -> str:
        return blake3(f"{self.id}\0{self.sender}\0{self.n}\0{name}\0{index}".encode()).hexdigest(16)

    def _steps(self, begins: bool) -> None:
        """The turn's deadline is for the handler itself: it rests in a step, and begins anew behind it."""
        self.in_step = begins
        if self.deadline is not None and not self.deadline.expired():
            now, seconds = asyncio.get_running_loop().time(), self._host.home.settings.turn_deadline_s
            self.deadline.reschedule(None if begins else now + seconds)

    async def _record_step(self, made: StepMade) -> None:
        """The outcome is a record before the handler has it, after all earlier turns are committed."""
        host = self._host
        await host.flush()

        def compose(head: dict[str, Any]) -> Stepped:
            self._may_record()
            self.made.append(made)
            at, news = self.news()
            return Stepped(**head, sender=self.sender, input=self.n, at=at, made=news)

        await host.append(compose)

    async def _pause(self) -> None:
        """Between steps: ends this run if the intake is being stopped.  The turn runs again, and has its finished steps."""
        if self._host.intake.is_stopping:
            self.stopped = True
            await asyncio.sleep(0)  # whoever runs the turn learns of its end in one way: by awaiting it
            raise TurnStopped

    async def _rest(self, seconds: float) -> None:
        """Waits between two calls of a step."""
        self._resting = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait((self._resting,), timeout=seconds)
        finally:
            self._resting = None
        await self._pause()

    def wake(self) -> None:
        """The intake is being stopped: a wait between two calls ends."""
        if self._resting is not None and not self._resting.done():
            self._resting.set_result(None)
