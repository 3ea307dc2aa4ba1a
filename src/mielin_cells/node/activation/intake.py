"""An agent's intake: its messages, one at a time, each a turn in memory that the next commit makes durable (rules 10, 13, 14)."""

from __future__ import annotations

import asyncio
import logging

from mielin_cells.agents.family.system import system_handler
from mielin_cells.errors import Fenced, HandlerFailed, RecordInvalid, RetryError, described
from mielin_cells.log.commit import DeadLetter
from mielin_cells.log.inboxes.cancels import CANCEL
from mielin_cells.log.ledger import Verdict
from mielin_cells.log.message import Mail, Message, sender_text
from mielin_cells.log.records import Stepped
from mielin_cells.node.activation.calls.resolves import desk_of
from mielin_cells.node.activation.calls.tasks import TurnStopped
from mielin_cells.node.activation.core import Core
from mielin_cells.node.activation.delays import Delays, Fate, stays_first, turn_is_open
from mielin_cells.node.activation.effects import Effects, is_final, is_of_store
from mielin_cells.node.activation.inbox import Arrival
from mielin_cells.node.activation.presence.refusals import Refusals
from mielin_cells.node.activation.priorities.inboxes import Inboxes
from mielin_cells.node.activation.priorities.orders import Orders
from mielin_cells.node.activation.runner import RESOLVING, Runner, Unfinished
from mielin_cells.node.activation.timers import Timers
from mielin_cells.node.activation.turn import Turn
from mielin_cells.settings import BURST_S, COMMIT_TURNS_MAX
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.intake")

# Reading a member of an enumeration is not free, and each message needs some.
_APPLY, _HOLD, _TAKEN = Verdict.APPLY, Verdict.HOLD, Fate.TAKEN


class Intake:
    """Takes the messages of one agent, and runs their turns unless it is stopped."""

    __slots__ = (
        "_alone", "_backoff", "_closing", "_core", "_fold", "_handlers", "_inbox", "_is_closed", "_lock", "_orders",
        "_pump", "_refusals", "_runner", "_timers", "delays", "effects",
    )  # fmt: skip

    def __init__(self, core: Core, inbox: Inboxes, runner: Runner, effects: Effects, timers: Timers) -> None:
        self._core = core
        self._fold = core.fold
        self._handlers = core.spec.handlers
        self._inbox = inbox
        self._runner = runner
        self.effects = effects
        self._timers = timers
        self.delays = Delays(core, self)
        self._lock = asyncio.Lock()
        """Held while turns run, and by the caller that has stopped them."""
        self._pump: asyncio.Task[None] | None = None
        """The task that runs turns, while there are messages."""
        self._alone = ("", 0, 0)
        """Sender and number of a failed message that no other message may overtake, and how often it has run."""
        self._backoff: Backoff | None = None
        """Of that message's runs."""
        self._is_closed = False
        self._refusals = Refusals(core, inbox, self.delays)
        self._orders: Orders | None = None
        """Made at the first one: most agents get none."""
        self._closing: asyncio.Future[None] | None = None
        """Made when somebody waits for the lock; done once the intake is closed."""

    def close(self) -> None:
        self._is_closed = True
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)
        self.delays.close()
        if self._pump is not None and self._pump is not asyncio.current_task():
            self._pump.cancel()

    def kick(self) -> None:
        """Runs turns if there are messages and nobody runs them."""
        core = self._core
        if self._pump is None and (self._has_work() or self.delays.due) and core.is_open and not self._is_stopped():
            self._pump = core.start(self._run())
        elif self._fold.lifecycle.error is not None and not self._inbox.is_empty and core.is_open:
            self._refusals.give_soon()

    def _has_work(self) -> bool:
        inbox = self._inbox
        return bool(inbox.queue) if inbox.others is None else inbox.next(self._alone[:2]) is not None

    def _is_stopped(self) -> bool:
        """True if no turn may run.  It must be asked again after each wait."""
        core = self._core
        return core.stops > 0 or not self._fold.may_run or core.wish is not None

    async def _run(self) -> None:
        core, inbox = self._core, self._inbox
        if core.is_outdated:
            self._pump = None
            core.renew()
            return
        try:
            while (self._has_work() or self.delays.due) and core.is_open and not self._is_stopped():
                async with self._lock:
                    if not self._is_stopped():
                        await self._burst()
                    if core.desk is not None:
                        core.desk.come_back()
                if self._runner.spent is self._pump:
                    break  # another task goes on
                core.commit_soon()
                if core.batch.turns >= COMMIT_TURNS_MAX:
                    await core.flush()
                else:
                    await asyncio.sleep(0)
        finally:
            self._pump = None
            inbox.rest_all()
            core.commit_soon()
        self.kick()

    async def _burst(self) -> None:
        """Runs turns until the queue is empty, the commit is full, or `BURST_S` is over."""
        now = asyncio.get_running_loop().time
        until = now() + BURST_S
        core, inboxes, judge, delays, fate = self._core, self._inbox, self._fold.ledger.judge, self.delays, _TAKEN
        while core.is_open and until > 0 and (arrival := self._next_arrival()) is not None:
            inbox, mail = arrival.inbox, arrival.mail
            if isinstance(mail, RecordInvalid):
                self._bury_unreadable(arrival, mail)
                continue
            messages = mail.messages
            if mail.start > self._fold.seq and not await self._has_begun(arrival, mail):
                return
            if judge(mail.sender, messages[arrival.index].n, mail.start) is _HOLD:
                inbox.hold(arrival, core.batch)
                continue
            while arrival.index < len(messages):
                batch = core.batch
                if batch.turns >= COMMIT_TURNS_MAX or batch.wish is not None or now() > until:
                    return
                message = messages[arrival.index]
                verdict = judge(mail.sender, message.n, mail.start)
                if verdict is not _APPLY:
                    self._repeat(arrival, mail, message, verdict)
                elif self._fold.ledger.replays and delays.is_early(mail.sender):
                    delays.put_off_early(arrival)
                    break
                else:
                    if core.records_first_turn:
                        await self._record_first(mail.sender, message.n)
                    unfinished = self._begin(arrival, mail, message)
                    fate = _TAKEN if unfinished is None else await self._finish(arrival, mail, message, unfinished)
                    if unfinished is not None and self._runner.spent is self._pump:
                        until = 0.0
                    if fate is not _TAKEN:
                        break
                arrival.index += 1
                inbox.waiting -= 1
                if inboxes.others is not None:
                    inboxes.took(inbox)
                    if arrival.index < len(messages):
                        fate = _TAKEN
                        break
            else:
                self._done(arrival, mail)
                continue
            if fate is Fate.STOPPED:
                return

    def _next_arrival(self) -> Arrival | None:
        """The entry that the next message is taken from, or that cannot be read; None if there is none now."""
        inboxes, delays = self._inbox, self.delays
        while True:
            if (delays.due or delays.early) and not turn_is_open(self._fold):
                delays.come_back()
            inbox = inboxes if inboxes.others is None else inboxes.next(self._alone[:2])
            if inbox is None or not inbox.queue:
                return None
            arrival = inbox.queue[0]
            mail = arrival.mail
            if isinstance(mail, RecordInvalid):
                return arrival
            if not mail.messages:
                inboxes.pass_opening(arrival, mail.sender, self._core.batch)
            elif delays.senders and delays.is_behind(arrival, mail):
                delays.queue(arrival, mail)
            else:
                return arrival

    def _done(self, arrival: Arrival, mail: Mail) -> None:
        arrival.inbox.done(arrival, self._core.batch)
        if self.delays.senders:
            self.delays.done(arrival, mail)

    # ---- one message -----------------------------------------------------------------------------------------

    def _begin(self, arrival: Arrival, mail: Mail, message: Message) -> Unfinished | None:
        """Runs a message's turn up to its first wait or error.  None if the message has taken effect."""
        core = self._core
        handler = self._handlers.get(message.handler) or system_handler(message.handler)
        if handler is None or (mail.cls != core.spec.name and mail.cls):
            if message.handler == CANCEL:
                self.orders.take_cancel(mail, message)
                return None
            return None if self.effects.refuse(mail, message) else RESOLVING
        if self._fold.claims and self._is_poison():
            agent, claims = self._fold.agent, self._fold.claims
            lost = HandlerFailed(f"Agent {agent!r} lost its process {claims} times at this message.", agent=agent)
            turn = Turn(core, mail.sender, message.n, message.handler)
            self.effects.bury_failed(arrival, mail, message, turn, lost, 0)
            return None
        is_over = arrival.inbox.waiting > arrival.inbox.drops_from and mail.sender != self._fold.agent
        ledger, inboxes = self._fold.ledger, self._inbox
        asks_more = is_over or message.terms is not None or ledger.replays or ledger.cancels or inboxes.others
        if asks_more and self.effects.closes(
            arrival, mail, message, is_over, self.orders.sees_cancel(mail.sender, message.n)
        ):
            return None
        return self._runner.begin(mail, message, handler)

    @property
    def orders(self) -> Orders:
        if self._orders is None:
            self._orders = Orders(
                self._core, self._inbox, self.delays, self._runner, self.effects, self._wake_alone
            )  # fmt: skip
        return self._orders

    def _wake_alone(self, sender: str, n: int) -> None:
        if self._alone[:2] == (sender, n) and self._backoff is not None:
            self._backoff.wake()

    def _is_poison(self) -> bool:
        """True if too many processes have ended with this message as the first."""
        core = self._core
        return self._fold.claims > core.home.settings.tries and not core.inflight and not core.batch.turns

    async def _record_first(self, sender: str, n: int) -> None:
        """Records that the first turn after a claim begins, in case the process dies of it (rule 5)."""
        core, opened = self._core, self._fold.turn
        core.records_first_turn = False
        await core.flush()
        if opened is None or (opened.sender, opened.n) != (sender, n):
            await core.append(lambda head: Stepped(**head, sender=sender, input=n, at=0, calls=[]))

    async def _finish(self, arrival: Arrival, mail: Mail, message: Message, unfinished: Unfinished) -> Fate:
        """Runs the rest of a turn that waits, and deals with its failure."""
        if unfinished is RESOLVING:
            return await desk_of(self._core).come_to(arrival, mail, message)
        core, turn, handler, sender, n = self._core, unfinished.turn, unfinished.handler, mail.sender, message.n
        try:
            error = await self._runner.finish(mail, message, unfinished)
        except TurnStopped:
            return Fate.STOPPED
        if error is None:
            return Fate.TAKEN
        if core.lost is not None:
            return Fate.STOPPED
        await turn.settled()
        if turn.cancels is not None:
            self.effects.cancelled(mail, message, turn)
            return Fate.TAKEN
        is_passing, ran = is_of_store(error), self._times_run(sender, n)
        if not is_passing:
            ran, settings = ran + 1, core.home.settings
            tries = handler.tries or (settings.ask_tries if message.ask else settings.tries)
            if is_final(handler, error) or ran >= tries:
                self.effects.fail(arrival, mail, message, turn, error, ran)
                return Fate.TAKEN
        logger.info("agent %s: %s failed, run %d: %s", turn.id, message.handler, ran, described(error))
        if stays_first(self._fold, sender, n):
            await self._wait_first(sender, n, ran)
            return Fate.STOPPED
        self.delays.put_off(arrival, mail, n, ran, is_passing, f"{message.handler} failed with {described(error)}")
        return Fate.PUT_OFF

    def _times_run(self, sender: str, n: int) -> int:
        alone = self._alone
        return max(self.delays.times_run(sender, n), alone[2] if alone[:2] == (sender, n) else 0)

    async def _wait_first(self, sender: str, n: int, ran: int) -> None:
        """Waits, and lets no other message overtake.  A stop ends the wait."""
        if self._alone[:2] != (sender, n) or self._backoff is None:
            self._backoff = Backoff(self._core.home.settings.retry_first_s)
        self._alone = (sender, n, ran)
        if not self._core.is_stopping:
            await self._backoff.wait()

    # ---- messages that are not run ---------------------------------------------------------------------------

    def _repeat(self, arrival: Arrival, mail: Mail, message: Message, verdict: Verdict) -> None:
        """Closes a message that has taken effect or never will.  An ask is answered; a tell of a forgotten session is buried."""
        if message.ask:
            answer = self._core.answer_again(mail.sender, message.n, verdict)
            if answer is not None:
                self._core.reply(mail.reply_to, mail.sender, {message.n: answer})
        elif verdict is Verdict.EXPIRED:
            cause = "SessionExpired: the client's session was forgotten before this message came."
            letter = DeadLetter(arrival.seq, mail.sender, message.n, message.handler, cause, 0, [], message.args)
            self.effects.bury(letter)

    def _bury_unreadable(self, arrival: Arrival, error: RecordInvalid) -> None:
        self.effects.bury(DeadLetter(arrival.seq, "", 0, "", error.message, 1, [], b""))
        arrival.inbox.waiting -= 1
        arrival.inbox.done(arrival, self._core.batch)

    async def _has_begun(self, arrival: Arrival, mail: Mail) -> bool:
        """Checks mail whose session claims to have begun behind the last record known here (rule 15).  False: nothing more runs now.

        Either this owner is about to hear of a record of its own, or another node owns the agent, or the log never got that far.
        Mail of the last kind is refused: once its session was forgotten, all new clients would be refused until the log gets there.
        """
        core, backoff = self._core, Backoff()
        while core.is_open and not core.is_stopping:
            try:
                if mail.sender in self._fold.ledger.peers or await core.writer.reaches(mail.start):
                    return not self._is_stopped() and core.is_open
            except Fenced as error:
                core.lose(error)
            except RetryError:
                await backoff.wait()
            else:
                self._refuse(arrival, mail)
                return False
        return False

    def _refuse(self, arrival: Arrival, mail: Mail) -> None:
        logger.warning(
            "agent %s: mail of %s is refused: its session began at %d, but the log ends at %d; was the store put back to an older "
            "copy?",
            self._fold.agent, sender_text(mail.sender), mail.start, self._fold.seq,
        )  # fmt: skip
        for message in mail.messages[arrival.index :]:
            self._repeat(arrival, mail, message, Verdict.EXPIRED)
            arrival.index += 1
            arrival.inbox.waiting -= 1
        self._done(arrival, mail)

    # ---- stopping --------------------------------------------------------------------------------------------

    async def stop_at_once(self) -> bool:
        """As `stop`, but without waiting: False if a turn runs, and then the intake continues."""
        if self._lock.locked() or self._is_closed:
            return False
        self._core.stops += 1
        await self._lock.acquire()  # it is free
        return True

    async def stop(self, deadline_s: float) -> None:
        """Lets no new turn begin, and returns when none runs.  `resume` must follow, unless the activation is closed.

        A turn of a handler declared cancellable is cancelled and will run again; one that comes to a durable step stops there,
        once the step that is under way is in the log, and goes on behind it when it runs again.  Raises TimeoutError, with the intake
        going on, if the turn does not end in time, and `Fenced` if the agent was lost.
        """
        core = self._core
        core.stops += 1
        if self._backoff is not None:
            self._backoff.wake()
        is_held = False
        try:
            async with asyncio.timeout(deadline_s):
                self._runner.interrupt()
                await self._acquire()
                is_held = True
            if core.lost is not None:
                raise core.lost
        except GeneratorExit:  # the event loop has ended
            raise
        except BaseException:
            self.resume(is_held)
            raise

    async def _acquire(self) -> None:
        """Takes the lock.  Raises `Fenced` if the intake is closed before: the turn that holds the lock then never gives it back."""
        if self._is_closed:
            raise self._gone()
        if self._closing is None:
            self._closing = self._core.loop.create_future()
        acquiring = asyncio.ensure_future(self._lock.acquire())
        try:
            await asyncio.wait((acquiring, self._closing), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not acquiring.cancel() and not acquiring.cancelled():
                self._lock.release()
            raise
        if not acquiring.done():
            acquiring.cancel()
            raise self._gone()

    def _gone(self) -> Fenced:
        return Fenced(f"Agent {self._fold.agent!r} has left this node; ask its owner.", agent=self._fold.agent)

    def resume(self, is_held: bool = True) -> None:
        """Takes messages again.  Only right if this node still owns the agent (rule 6)."""
        self._core.stops -= 1
        if is_held:
            self._lock.release()
        self._timers.kick()
        self._core.topics.kick()
        self._core.commit_soon()
        self.kick()
