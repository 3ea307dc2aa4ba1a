"""An agent's intake: its messages, one at a time, each a turn in memory that the next commit makes durable (rules 10, 13, 14)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mielin_cells.agents.context import turn as current_turn
from mielin_cells.agents.spec import HandlerSpec
from mielin_cells.errors import (
    AnswerExpired,
    CellError,
    Fenced,
    HandlerFailed,
    MessageTooLarge,
    RecordInvalid,
    SessionExpired,
    described,
    never,
)
from mielin_cells.log.ledger import Verdict
from mielin_cells.log.message import Answer, Mail, Message, encode_answer, sender_text
from mielin_cells.log.records import DeadLetter, Ended, Out, Replayed, Stepped, Taken
from mielin_cells.node.activation import outcomes, overdue, standing
from mielin_cells.node.activation.beginning import Beginning, beginning
from mielin_cells.node.activation.delays import Delays, Fate, stays_first, turn_is_open
from mielin_cells.node.activation.endings import Endings
from mielin_cells.node.activation.inbox import Arrival
from mielin_cells.node.activation.steps import is_failure
from mielin_cells.node.activation.turn import Begun, Turn, TurnStopped
from mielin_cells.node.activation.waiting import Waiting
from mielin_cells.settings import BURST_S, COMMIT_TURNS_MAX, MESSAGE_BYTES_MAX
from mielin_cells.tasks.supervision import Backoff

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Host

logger = logging.getLogger("mielin_cells.intake")

_APPLY, _HOLD, _TAKEN = (
    Verdict.APPLY,
    Verdict.HOLD,
    Fate.TAKEN,
)  # reading them off the enumeration is not free, and there is one a message


NOBODY = ("", 0, 0)


class Intake:
    """Runs the turns of one host.  What they do goes into the host's batch; nothing of it is durable before the commit."""

    __slots__ = (
        "_alone", "_backoff", "_cancellable", "_cell", "_closing", "_endings", "_fold", "_handlers", "_host", "_inbox", "_is_closed",
        "_lock", "_pump", "_spec", "_stops", "cancels", "delays", "turn",
    )  # fmt: skip

    def __init__(self, host: Host) -> None:
        self._host = host
        self._fold = host.fold
        self._spec = host.spec
        self._handlers = host.spec.handlers
        self._cell = host.cell
        self._inbox = host.inbox
        self._lock = asyncio.Lock()
        """Held while turns run, and while they are stopped."""
        self._stops = 0
        self._pump: asyncio.Task[Any] | None = None
        self._cancellable = False
        self.cancels = 0
        """How often `stop` has cancelled the turn that waits."""
        self.delays = Delays(host)
        self._endings = Endings(host)
        self._alone = NOBODY
        """A message that failed and that nobody may pass, and how often it has run."""
        self._backoff: Backoff | None = None
        """Of that message."""
        self._is_closed = False
        self._closing: asyncio.Future[None] | None = None
        """Made by whoever waits for the lock, and done once the intake is closed."""
        self.turn: Turn | None = None
        """The turn that waits.  While one runs without waiting, nobody else can look."""

    def close(self) -> None:
        self._is_closed = True
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)
        self.delays.close()
        if self._pump is not None and self._pump is not asyncio.current_task():
            self._pump.cancel()

    def kick(self) -> None:
        """Runs turns if there are messages and nobody runs them."""
        if (
            self._pump is None
            and (self._inbox.queue or self.delays.due)
            and self._host.is_open
            and not self.is_stopping
            and self._fold.may_run
            and self._host.wish is None
        ):
            self._pump = self._host.start(self._run())
        elif self._inbox.queue and self._fold.lifecycle.error is not None and self._host.is_open:
            standing.tell(self._host)

    @property
    def _is_outdated(self) -> bool:
        """The agent's class was defined again in this process, and the newer definition is to run."""
        cls, resolve = self._spec.cls, self._host.home.resolve
        return cls.__mielin_replaced__ and resolve is not None and resolve(self._spec.name) is not cls

    async def _run(self) -> None:
        if self._is_outdated:
            self._pump = None
            self._host.renew()
            return
        try:
            while (self._inbox.queue or self.delays.due) and self._host.is_open and not self._stopped():
                async with self._lock:
                    if not self._stopped():
                        await self._burst()
                self._host.commit_soon()
                if self._host.batch.turns >= COMMIT_TURNS_MAX:
                    await self._host.flush()
                else:
                    await asyncio.sleep(0)
        finally:
            self._pump = None
            if not self._inbox.queue:
                self._inbox.rest()
            self._host.commit_soon()
        self.kick()

    def _stopped(self) -> bool:
        """Asked again after each wait: others change it meanwhile."""
        return self.is_stopping or not self._fold.may_run or self._host.wish is not None

    async def _burst(self) -> None:
        """Turns until the queue is empty, the commit is full, or the loop wants its turn."""
        now = asyncio.get_running_loop().time
        until = now() + BURST_S
        host, inbox, judge = self._host, self._inbox, self._fold.ledger.judge
        delays, fate = self.delays, _TAKEN
        while host.is_open:
            if (delays.due or delays.early) and not turn_is_open(self._fold):
                delays.come_back()
            if not inbox.queue:
                return
            arrival = inbox.queue[0]
            mail = arrival.mail
            if isinstance(mail, RecordInvalid):
                self._unreadable(arrival, mail)
                continue
            if delays.senders and delays.is_behind(arrival, mail):
                delays.queue(arrival, mail)
                continue
            messages = mail.messages
            if mail.start > self._fold.seq and not await self._has_begun(arrival, mail):
                return
            if judge(mail.sender, messages[arrival.index].n, mail.start) is _HOLD:
                inbox.hold(arrival, host.batch)
                continue
            while arrival.index < len(messages):
                if host.batch.turns >= COMMIT_TURNS_MAX or host.batch.wish is not None or now() > until:
                    return
                message = messages[arrival.index]
                verdict = judge(mail.sender, message.n, mail.start)
                if verdict is not _APPLY:
                    self._closed(arrival, mail, message, verdict)
                elif self._fold.ledger.again and delays.is_early(mail.sender):
                    delays.put_off_early(arrival)
                    break
                else:
                    if host.marks:
                        await self._mark(mail.sender, message.n)
                    begun = self._begin(arrival, mail, message)
                    fate = _TAKEN if begun is None else await self._finish(arrival, mail, message, begun)
                    if fate is not _TAKEN:
                        break
                arrival.index += 1
                inbox.waiting -= 1
            else:
                self._done(arrival, mail)
                continue
            if fate is Fate.STOPPED:
                return

    async def _has_begun(self, arrival: Arrival, mail: Mail) -> bool:
        """Of mail whose session began behind the last record known here: False if it was refused, or turns may not run now."""
        begun_at = await beginning(self._host, mail)
        if begun_at is Beginning.NEVER:
            self._refuse(arrival, mail)
        return begun_at is Beginning.KNOWN and not self._stopped() and self._host.is_open

    def _done(self, arrival: Arrival, mail: Mail) -> None:
        self._inbox.done(arrival, self._host.batch)
        if self.delays.senders:
            self.delays.done(arrival, mail)

    def _unreadable(self, arrival: Arrival, error: RecordInvalid) -> None:
        self._endings.bury(DeadLetter(arrival.seq, "", 0, "", error.message, 1, [], b""))
        self._inbox.waiting -= 1
        self._inbox.done(arrival, self._host.batch)

    def _refuse(self, arrival: Arrival, mail: Mail) -> None:
        logger.warning(
            "agent %s: %s says that it began at %d of a log that ends at %d: refused; has the store been put back?",
            self._fold.agent, sender_text(mail.sender), mail.start, self._fold.seq,
        )  # fmt: skip
        for message in mail.messages[arrival.index :]:
            self._closed(arrival, mail, message, Verdict.EXPIRED)
            arrival.index += 1
            self._inbox.waiting -= 1
        self._done(arrival, mail)

    # ---- one message -----------------------------------------------------------------------------------------

    def _closed(self, arrival: Arrival, mail: Mail, message: Message, verdict: Verdict) -> None:
        """A message that takes no effect (any more): an ask is answered, a tell of a forgotten session buried."""
        if message.ask:
            answer = self.answer_again(mail.sender, message.n, verdict)
            if answer is not None:
                self._host.reply(mail.reply_to, mail.sender, {message.n: answer})
        elif verdict is Verdict.EXPIRED:
            cause = "SessionExpired: the client's session was forgotten before this message came."
            self._endings.bury(
                DeadLetter(arrival.seq, mail.sender, message.n, message.handler, cause, 0, [], message.args)
            )

    def answer_again(self, sender: str, n: int, verdict: Verdict) -> bytes | None:
        """The answer to an ask of which `verdict` says that it has taken effect, or never will; None to what was no ask."""
        if verdict is Verdict.REPEAT:
            return self._fold.ledger.answer(sender, n)
        agent = self._fold.agent
        error: CellError = (
            AnswerExpired(f"Agent {agent!r}: this ask was closed by its caller before.")
            if verdict is Verdict.CLOSED
            else SessionExpired(f"Agent {agent!r} has forgotten this client session; call again in a new one.")
        )
        return encode_answer(Answer(None, error.to_wire()))

    def _begin(self, arrival: Arrival, mail: Mail, message: Message) -> Begun | None:
        """Runs a message's turn up to its first wait or error.  None if that was all of it: it has taken effect.

        Most handlers never wait, and then a turn costs no coroutine but their own.
        """
        handler = self._handlers.get(message.handler)
        if handler is None or (mail.cls != self._spec.name and mail.cls):
            self._endings.misfit(mail, message)
            return None
        turn = Turn(self._host, mail.sender, message.n, message.handler)
        if message.corrects:
            turn.corrects = message.corrects
        if message.chain:
            turn.chain = message.chain
        if self._fold.claims and self._is_poison():
            lost = f"Agent {self._fold.agent!r} lost its process {self._fold.claims} times at this message."
            self._endings.bury_failed(arrival, mail, message, turn, HandlerFailed(lost, agent=self._fold.agent), 0)
            return None
        try:
            self._cell.begin(turn)
            result = self._first(turn, handler.fn, handler.decode_args(message.args))
            if type(result) is Waiting:
                return Begun(turn, handler, None, result)
            self._end(mail, message, turn, handler, result)
        except BaseException as error:
            self._cell.undo()
            turn.closed = True
            if outcomes.ends_task(error):
                raise
            return Begun(turn, handler, error)
        turn.closed = True
        return None

    async def _mark(self, sender: str, n: int) -> None:
        """The first turn of an owner that has claimed: the log says that it begins, in case the process dies of it (rule 5)."""
        host, opened = self._host, self._fold.turn
        host.marks = False
        await host.flush()
        if opened is None or (opened.sender, opened.n) != (sender, n):
            await host.append(lambda head: Stepped(**head, sender=sender, input=n, at=0, made=[]))

    def _is_poison(self) -> bool:
        """Too many processes have ended with this message at the head."""
        host = self._host
        return self._fold.claims > host.home.settings.tries and not host.inflight and not host.batch.turns

    async def _finish(self, arrival: Arrival, mail: Mail, message: Message, begun: Begun) -> Fate:
        """The rest of a turn that waits or has failed."""
        turn, handler, error = begun.turn, begun.handler, begun.error
        if begun.waiting is not None:
            try:
                result = await self._rest(turn, begun.waiting, handler.cancellable)
                self._end(mail, message, turn, handler, result)
            except TurnStopped:
                self._cell.undo()
                return Fate.STOPPED
            except BaseException as raised:
                self._cell.undo()
                if outcomes.ends_task(raised) or begun.waiting.is_closed:
                    raise
                error = raised
            finally:
                turn.closed = True
        if error is None:
            return Fate.TAKEN
        if self._host.lost is not None:
            return Fate.STOPPED
        await turn.settled()
        passes, ran = outcomes.passes(error), self._ran(mail.sender, message.n)
        if not passes:
            ran += 1
            if outcomes.is_final(handler, error) or ran >= self._tries_of(handler, message):
                self._endings.fail(arrival, mail, message, turn, error, ran)
                return Fate.TAKEN
        logger.info("agent %s: %s failed, run %d: %s", turn.id, message.handler, ran, described(error))
        if stays_first(self._fold, mail.sender, message.n):
            await self._wait_first(mail.sender, message.n, ran)
            return Fate.STOPPED
        self.delays.put_off(arrival, mail, message.n, ran, passes, f"{message.handler} failed with {described(error)}")
        return Fate.PUT_OFF

    def _ran(self, sender: str, n: int) -> int:
        alone = self._alone
        return max(self.delays.ran(sender, n), alone[2] if alone[:2] == (sender, n) else 0)

    async def _wait_first(self, sender: str, n: int, ran: int) -> None:
        """Waits, and lets nobody pass.  A stop ends the wait."""
        if self._alone[:2] != (sender, n) or self._backoff is None:
            self._backoff = Backoff(self._host.home.settings.retry_first_s)
        self._alone = (sender, n, ran)
        if not self.is_stopping:
            await self._backoff.wait()

    def _tries_of(self, handler: HandlerSpec, message: Message) -> int:
        settings = self._host.home.settings
        return handler.tries or (settings.ask_tries if message.ask else settings.tries)

    def _first(self, turn: Turn, fn: Callable[..., Any], args: dict[str, Any]) -> Any:
        """What `fn` returns, or `Waiting` if it is not through."""
        token = current_turn.set(turn)
        try:
            coroutine = fn(self._cell.agent, **args)
            waits_for = coroutine.send(None)
        except StopIteration as stop:
            if turn.broken is not None:
                raise turn.broken from None
            return stop.value
        finally:
            current_turn.reset(token)
        return Waiting(coroutine, waits_for)

    async def _rest(self, turn: Turn, waiting: Waiting, cancellable: bool) -> Any:
        """What a function returns that waits.  Raises `TurnStopped` if it is to run again elsewhere."""
        self.turn, self._cancellable, turn.since = turn, cancellable, asyncio.get_running_loop().time()
        token = current_turn.set(turn)
        self._host.commit_soon()
        overdue.watch(self._host, turn, waiting)
        try:
            limit = None if turn.in_step else self._host.home.settings.turn_deadline_s
            async with asyncio.timeout(limit) as turn.deadline:
                result = await waiting
        except asyncio.CancelledError as error:
            if (turn.stopped and is_failure(error)) or (self.cancels and self._host.is_open):
                raise TurnStopped from None
            raise
        except BaseException as error:
            if turn.stopped and is_failure(error):  # in whatever shape: a task group wraps it
                raise TurnStopped from None
            if turn.deadline is not None and turn.deadline.expired() and not waiting.is_closed:
                seconds = self._host.home.settings.turn_deadline_s
                raise outcomes.too_long(turn, self._spec.name, seconds) from (error.__cause__ or error)
            raise
        finally:
            current_turn.reset(token)
            self.turn, self._cancellable, turn.deadline = None, False, None
            self._uncancel()
        if turn.stopped:
            raise TurnStopped
        if turn.broken is not None:
            raise turn.broken
        if self._host.lost is not None:
            raise TurnStopped
        return result

    def _uncancel(self) -> None:
        """The turn that `stop` has cancelled is over, maybe long after, or has kept the cancellation to itself: its task goes on."""
        task = asyncio.current_task()
        while self.cancels and task is not None:
            self.cancels -= 1
            task.uncancel()

    def _end(self, mail: Mail, message: Message, turn: Turn, handler: HandlerSpec, result: Any) -> None:
        """Raises what keeps the turn from taking effect: nothing of it has then, but the live state must be undone."""
        answer = None
        if message.ask:
            answer = encode_answer(Answer(handler.encode_result(result)))
            if len(answer) > MESSAGE_BYTES_MAX:
                raise MessageTooLarge(
                    f"{handler.path} of agent {turn.id!r} returned {len(answer)} bytes; the limit is {MESSAGE_BYTES_MAX}. "
                    "The turn is undone and the agent goes on.",
                    limit=MESSAGE_BYTES_MAX, size=len(answer),
                )  # fmt: skip
        batch = self._host.batch
        batch.delta = self._cell.end(batch.delta)
        if turn.rerun is not None:
            turn.tells = turn.rerun.to_send(turn.tells)
        self.take(mail, message, turn, answer)
        if turn.tells:
            self._send(turn)
        if turn.timers and turn.seconds is not None:
            self._host.timers.take(turn.timers, turn.seconds)
        if turn.moves or turn.wish is not None:
            has_ordered = turn.rerun is not None and turn.rerun.again.taken
            if not has_ordered:  # else an undo has said where the agent is to be, and an operator may have resumed it
                self._ordered(turn)

    def take(self, mail: Mail, message: Message, turn: Turn | None, answer: bytes | None) -> None:
        """The message has taken effect, in memory; the next commit makes it so."""
        batch, ledger, sender, n = self._host.batch, self._fold.ledger, mail.sender, message.n
        batch.turns += 1
        if turn is not None and turn.made:
            self._ended(turn)
        is_again = bool(ledger.again) and (sender, n) in ledger.again
        if is_again:
            answer = self._taken_again(mail, message, turn, answer)
        else:
            batch.taken.append(Taken(sender, n, mail.low, mail.start, answer))
        ledger.take(sender, n, mail.low, mail.start, answer)
        if is_again and not ledger.again:
            self._host.timers.kick()  # they have waited for this
        if answer is not None:
            batch.answer(mail.reply_to, sender, n, answer)

    def _ended(self, turn: Turn) -> None:
        """Outcomes that no record has yet: an undo may want them (rule 13)."""
        at, made = turn.news()
        if made:
            self._host.batch.ended.append(Ended(turn.sender, turn.n, at, made))

    def _taken_again(self, mail: Mail, message: Message, turn: Turn | None, answer: bytes | None) -> bytes | None:
        """An input that is run again after an undo; the answer that leaves: what was answered once stands (rule 17)."""
        batch, ledger, sender, n = self._host.batch, self._fold.ledger, mail.sender, message.n
        again = ledger.again[sender, n]
        if turn is not None and turn.rerun is not None:
            counts = turn.rerun.counts()
        else:
            counts = Replayed(1, missing=len(again.sent))
        if batch.replayed is None:
            batch.replayed = Replayed()
        batch.replayed.add(counts)
        ledger.replayed.add(counts)
        stored = ledger.answer(sender, n) if again.taken else answer
        batch.taken.append(Taken(sender, n, mail.low, mail.start, None if again.taken else answer))
        return stored if message.ask else None

    def _send(self, turn: Turn) -> None:
        ledger = self._fold.ledger
        for told in turn.tells:
            out = Out(
                told.to,
                told.cls,
                ledger.next_number(told.to),
                told.handler,
                told.args,
                False,
                told.sender,
                told.input,
                told.k,
                told.corrects,
            )
            ledger.send(out)
            self._host.batch.outs.append(out)
        turn.tells.clear()

    def _ordered(self, turn: Turn) -> None:
        """The turn has ordered something for its own agent, which takes effect behind the commit."""
        host = self._host
        if turn.wish is not None:
            host.batch.wish = turn.wish
            host.fulfil()
        if turn.moves and host.home.cluster is not None and (turn.wish is None or turn.wish.order != "terminate"):
            host.home.begin(self._moved_by_itself(turn.move_to))

    async def _moved_by_itself(self, to: str | None) -> None:
        await self._host.flush()
        if self._host.home.cluster is None:
            raise never("self._host.home.cluster is not None does not hold")
        try:
            await self._host.home.cluster.migrate(self._fold.agent, to=to)
        except CellError as error:
            logger.warning("agent %s asked to be moved; it stays: %s", self._fold.agent, error)

    # ---- hooks -----------------------------------------------------------------------------------------------

    async def hook(self, name: str) -> None:
        """Runs a hook of the class, if it has it, as a turn without a message.  Its changes join the next commit."""
        if not self._spec.overrides(name):
            return
        turn, waiting = Turn(self._host, "", 0, name), None
        try:
            self._cell.begin(turn)
            result = self._first(turn, getattr(self._spec.cls, name), {})
            if type(result) is Waiting:
                waiting = result
                await self._rest(turn, waiting, False)
            self._host.batch.change(self._cell.end())
        except BaseException as error:
            self._cell.undo()
            if isinstance(error, TurnStopped):
                raise Fenced(
                    f"Agent {turn.id!r} is not run by this process any more.", agent=turn.id
                ) from self._host.lost
            if isinstance(error, Exception) or outcomes.ends_task(error) or (waiting is not None and waiting.is_closed):
                raise
            raise HandlerFailed(f"{name} of agent {turn.id!r} raised {described(error)}.", agent=turn.id) from error
        finally:
            turn.closed = True
        if turn.tells:
            self._host.batch.touched = True
            self._send(turn)
        if turn.timers and turn.seconds is not None:
            self._host.timers.take(turn.timers, turn.seconds)

    # ---- stopping --------------------------------------------------------------------------------------------

    async def stop_at_once(self) -> bool:
        """As `stop`, if no turn runs; else False, and the intake goes on.  Never waits."""
        if self._lock.locked() or self._is_closed:
            return False
        self._stops += 1
        await self._lock.acquire()  # it is free
        return True

    async def stop(self, deadline_s: float) -> None:
        """No new turn begins; returns when none runs.  `resume` must follow, unless the host is closed.

        A turn of a handler declared cancellable is cancelled and will run again; one that comes to a durable step stops there,
        once the step that is under way is in the log, and goes on behind it when it runs again.  Raises TimeoutError, with the intake
        going on, if the turn does not end in time, and `Fenced` if the agent was lost.
        """
        self._stops += 1
        if self._backoff is not None:
            self._backoff.wake()
        held = False
        try:
            async with asyncio.timeout(deadline_s):
                turn = self.turn
                if turn is not None:
                    turn.wake()
                    if self._cancellable and not turn.in_step and self._pump is not None:
                        self.cancels += 1
                        self._pump.cancel()
                await self._locked()
                held = True
            if self._host.lost is not None:
                raise self._host.lost
        except BaseException:
            self.resume(held)
            raise

    async def _locked(self) -> None:
        """Takes the lock.  Raises `Fenced` if the host is closed before: whoever holds it then never gives it back."""
        if self._is_closed:
            raise self._left()
        if self._closing is None:
            self._closing = self._host.loop.create_future()
        acquiring = asyncio.ensure_future(self._lock.acquire())
        try:
            await asyncio.wait((acquiring, self._closing), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not acquiring.cancel() and not acquiring.cancelled():
                self._lock.release()
            raise
        if not acquiring.done():
            acquiring.cancel()
            raise self._left()

    def _left(self) -> Fenced:
        return Fenced(f"Agent {self._fold.agent!r} has left this node; ask its owner.", agent=self._fold.agent)

    def resume(self, held: bool = True) -> None:
        """Takes messages again.  Only right if this host still owns the agent (rule 6)."""
        self._stops -= 1
        if held:
            self._lock.release()
        self._host.timers.kick()
        self._host.commit_soon()
        self.kick()

    @property
    def is_stopping(self) -> bool:
        """No new turn may begin."""
        return self._stops > 0
