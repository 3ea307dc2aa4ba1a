"""One agent on its owner: taking messages, running turns, committing them, and letting out what was committed.

Order of things (rules 1, 9, 10, 11): a message is judged by the ledger; its turn changes state and ledger in memory; a commit
carries any number of turns; only when the commit is acknowledged do answers and outputs leave.  If the log was taken over,
everything since the last acknowledged record is dropped and the node reads the log again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from mielin_cells.core.agent import turn as current_turn
from mielin_cells.core.cell import Cell
from mielin_cells.core.commit import Batch
from mielin_cells.core.fold import Fold
from mielin_cells.core.ledger import Verdict
from mielin_cells.core.lifecycle import AgentError, AgentState
from mielin_cells.core.message import (
    Answer,
    Mail,
    Message,
    Reply,
    encode_answer,
    encode_replies,
)
from mielin_cells.core.records import Commit, Committed, DeadLetter, Failed, Taken
from mielin_cells.core.settings import BURST_S, COMMIT_TURNS_MAX
from mielin_cells.core.spec import Spec
from mielin_cells.core.state import StateDelta
from mielin_cells.errors import (
    AnswerExpired,
    AskTimeout,
    CellError,
    Fenced,
    HandlerFailed,
    NoSuchHandler,
    RecordInvalid,
    RetryError,
    SessionExpired,
    UsageError,
    WrongClass,
)
from mielin_cells.node.compaction import Compaction
from mielin_cells.node.home import Home
from mielin_cells.node.inbox import Arrival, Inbox
from mielin_cells.node.outbox import Outbox
from mielin_cells.node.turn import Resumed, Turn
from mielin_cells.node.writer import R, Writer

logger = logging.getLogger("mielin_cells.host")


class Host:
    """The owner's side of one agent.  Made with a fold that is at the log's end; `open` starts it."""

    def __init__(self, home: Home, spec: Spec, cell: Cell, writer: Writer) -> None:
        self.home = home
        self.spec = spec
        self.cell = cell
        self.writer = writer
        self.fold: Fold = writer.fold
        self.outbox = Outbox(home.log, self.fold.agent, home.reply_to, self._low, home.start)
        self.compaction = Compaction(self)
        self.lost: Exception | None = None
        self.inbox = Inbox(home, self.fold, self.kick)
        self.is_open = False
        self._batch = Batch()
        self._inflight: Batch | None = None
        self._turns = asyncio.Lock()
        self._stops = 0
        self._sealing = False
        self._pump: asyncio.Task[Any] | None = None
        self._committing: asyncio.Task[Any] | None = None
        self._reader: asyncio.Task[Any] | None = None
        self._settled: asyncio.Event = asyncio.Event()
        self._answers: dict[tuple[str, int], asyncio.Future[bytes]] = {}
        self._turn: Turn | None = None
        self._cancellable = False
        self._tries: tuple[str, int, int] = ("", 0, 0)

    # ---- opening and closing ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Begins to serve: re-sends every committed output that the log does not show as stored, and reads the inbox."""
        self.is_open = True
        self.deliver()
        self._reader = self.home.start(self._read())
        self.commit_soon()

    def close(self) -> None:
        """Stops at once.  What is not committed is dropped; what is committed will be re-sent by the next owner."""
        self.is_open = False
        self.inbox.close()
        current = asyncio.current_task()
        for task in (self._reader, self._pump, self._committing):
            if task is not None and task is not current:
                task.cancel()
        self.outbox.close()
        self.compaction.close()
        for future in self._answers.values():
            future.cancel()
        self._settled.set()

    def lose(self, error: Exception) -> None:
        """The log cannot be written by this host any more."""
        if self.lost is None:
            self.lost = error
            self.close()
            self.home.lost(self, error)

    # ---- the inbox -------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            await self.inbox.read()
        except Fenced as error:
            self.lose(error)

    def kick(self) -> None:
        """Runs turns if there are messages and nobody runs them."""
        if self._pump is None and self.inbox.queue and self.is_open and not self._quiet and self.fold.may_run:
            self._pump = self.home.start(self._run())

    async def _run(self) -> None:
        try:
            while self.inbox.queue and self.is_open and not self._quiet and self.fold.may_run:
                async with self._turns:
                    if not self._stopped():
                        await self._burst()
                self.commit_soon()
                if self._batch.turns >= COMMIT_TURNS_MAX:
                    await self.flush()
                else:
                    await asyncio.sleep(0)
        finally:
            self._pump = None
            self.commit_soon()
        self.kick()

    def _stopped(self) -> bool:
        """Asked again after each wait: others change it meanwhile."""
        return self._quiet or not self.fold.may_run

    async def _burst(self) -> None:
        """Turns until the queue is empty, the commit is full, or the loop wants its turn."""
        now = asyncio.get_running_loop().time
        until = now() + BURST_S
        inbox = self.inbox
        queue = inbox.queue
        while queue and self.is_open:
            arrival = queue[0]
            mail = arrival.mail
            if isinstance(mail, RecordInvalid):
                self._bury(DeadLetter(arrival.seq, "", 0, "", mail.message, 1, [], b""))
                inbox.passed(arrival)
            elif not arrival.was_held and inbox.verdict(mail, mail.messages[0]) is Verdict.HOLD:
                inbox.hold(arrival, self._batch)
                continue
            else:
                while arrival.index < len(mail.messages):
                    if self._batch.turns >= COMMIT_TURNS_MAX or now() > until:
                        return
                    if not await self._message(arrival, mail, mail.messages[arrival.index]):
                        return
                    inbox.passed(arrival)
            inbox.done(arrival, self._batch)

    # ---- one message -----------------------------------------------------------------------------------------

    async def _message(self, arrival: Arrival, mail: Mail, message: Message) -> bool:
        """Handles a message.  False: it was not handled and stays first (the intake was stopped, or ownership lost)."""
        verdict = self.inbox.verdict(mail, message)
        if verdict is Verdict.APPLY:
            return await self._apply(arrival, mail, message)
        if verdict is Verdict.REPEAT:
            stored = self.fold.ledger.answer(mail.sender, message.n)
            if message.ask and stored is not None:
                self._reply(mail, message.n, stored)
        elif message.ask:
            agent = self.fold.agent
            error: CellError = (
                AnswerExpired(f"Agent {agent!r}: this ask was closed by its caller before.")
                if verdict is Verdict.CLOSED
                else SessionExpired(f"Agent {agent!r} has forgotten this client session; call again in a new one.")
            )
            self._reply(mail, message.n, encode_answer(Answer(None, error.to_wire())))
        elif verdict is Verdict.EXPIRED:
            cause = "SessionExpired: the client's session was forgotten before this message came."
            self._bury(DeadLetter(arrival.seq, mail.sender, message.n, message.handler, cause, 0, [], message.args))
        return True

    async def _apply(self, arrival: Arrival, mail: Mail, message: Message) -> bool:
        handler = self.spec.handlers.get(message.handler)
        agent = self.fold.agent
        if mail.cls != self.spec.name and mail.cls:
            refusal: CellError = WrongClass(
                f"Agent {agent!r} is a {self.spec.name}, not a {mail.cls}.",
                agent=agent,
                have=self.spec.name,
                need=mail.cls,
            )
            return self._refuse(mail, message, refusal)
        if handler is None:
            refusal = NoSuchHandler(
                f"{self.spec.name} (agent {agent!r}) has no handler {message.handler!r}.",
                agent=agent,
                handler=message.handler,
            )
            return self._refuse(mail, message, refusal)
        tries = handler.tries or self.home.settings.tries
        turn, ran = None, 0
        if self.fold.claims > self.home.settings.tries and not self._inflight and not self._batch.turns:
            error: BaseException = HandlerFailed(
                f"Agent {agent!r} lost its process {self.fold.claims} times at this message.", agent=agent
            )
        else:
            key = (mail.sender, message.n)
            ran = self._tries[2] if self._tries[:2] == key else 0
            while True:
                ran += 1
                self._tries = (*key, ran)
                turn = Turn(self, mail.sender, message.n, message.handler)
                try:
                    args = handler.decode_args(message.args)
                    result = await self._call(turn, handler.fn, args, handler.cancellable)
                    answer = encode_answer(Answer(handler.encode_result(result))) if message.ask else None
                    self._batch.change(self.cell.end())
                except TurnStopped:
                    self.cell.undo()
                    return False
                except Exception as raised:
                    self.cell.undo()
                    error = raised
                else:
                    self._take(mail, message, turn, answer)
                    return True
                finally:
                    turn.closed = True
                if self.lost is not None:
                    return False
                if isinstance(error, RetryError) and not isinstance(error, AskTimeout):
                    ran -= 1  # the world's failure, not the message's
                if ran >= tries or (isinstance(error, UsageError) and not isinstance(error, HandlerFailed)):
                    break
                logger.info("agent %s: %s failed, run %d of %d: %r", agent, message.handler, ran, tries, error)
                await asyncio.sleep(self.home.settings.retry_first_s * 2 ** max(0, ran - 1))
                if self._quiet:
                    return False
        self._fail(arrival, mail, message, turn, error, ran)
        return True

    async def _call(self, turn: Turn, fn: Callable[..., Any], args: dict[str, Any], cancellable: bool) -> Any:
        self.cell.begin()
        self._turn, self._cancellable = turn, cancellable
        token = current_turn.set(turn)
        try:
            coroutine = fn(self.cell.agent, **args)
            try:
                first = coroutine.send(None)
            except StopIteration as stop:
                result = stop.value
            else:
                self.commit_soon()
                try:
                    async with asyncio.timeout(self.home.settings.turn_deadline_s):
                        result = await Resumed(coroutine, first)
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if not (self._quiet and cancellable and self.is_open) or task is None:
                        raise
                    task.uncancel()
                    raise TurnStopped from None
            if turn.broken is not None:
                raise turn.broken
            if self.lost is not None:
                raise TurnStopped
            return result
        finally:
            current_turn.reset(token)
            self._turn = None

    def _take(self, mail: Mail, message: Message, turn: Turn | None, answer: bytes | None) -> None:
        """The message has taken effect, in memory; the next commit makes it so."""
        batch, ledger = self._batch, self.fold.ledger
        batch.turns += 1
        batch.taken.append(Taken(mail.sender, message.n, mail.low, mail.start, answer))
        ledger.take(mail.sender, message.n, mail.low, mail.start, answer)
        if answer is not None:
            batch.answers.append((mail.reply_to, Reply(self.fold.agent, mail.sender, message.n, answer)))
        if turn is not None:
            self._send(turn)
            if turn.moves and self.home.cluster is not None:
                self.home.begin(self._moved_by_itself(turn.move_to))

    def _send(self, turn: Turn) -> None:
        ledger = self.fold.ledger
        for told in turn.tells:
            out = type(told)(
                told.to,
                told.cls,
                ledger.next_number(told.to),
                told.handler,
                told.args,
                False,
                told.sender,
                told.input,
                told.k,
            )
            ledger.send(out)
            self._batch.outs.append(out)
        turn.tells.clear()

    async def _moved_by_itself(self, to: str | None) -> None:
        await self.flush()
        assert self.home.cluster is not None
        try:
            await self.home.cluster.migrate(self.fold.agent, to=to)
        except CellError as error:
            logger.warning("agent %s asked to be moved; it stays: %s", self.fold.agent, error)

    def _refuse(self, mail: Mail, message: Message, error: CellError) -> bool:
        """Closes a message that fits no handler.  A tell, which nobody waits for, is kept as a dead letter."""
        if not message.ask:
            cause = f"{error.code}: {error.message}"
            letter = DeadLetter(0, mail.sender, message.n, message.handler, cause, 0, [], message.args)
            self._bury(letter)
        answer = encode_answer(Answer(None, error.to_wire())) if message.ask else None
        self._take(mail, message, None, answer)
        return True

    def _fail(
        self, arrival: Arrival, mail: Mail, message: Message, turn: Turn | None, error: BaseException, ran: int
    ) -> None:
        """The message goes to the dead letters with its cause; a caller that waits is told, and the agent goes on."""
        agent = self.fold.agent
        cause = f"{type(error).__name__}: {error}"
        asks = [made.label for made in turn.asks] if turn is not None else []
        self._bury(DeadLetter(arrival.seq, mail.sender, message.n, message.handler, cause, ran, asks, message.args))
        answer = None
        if message.ask:
            told = error if isinstance(error, CellError) else self._failure(message, cause, ran)
            answer = encode_answer(Answer(None, told.to_wire()))
        logger.warning("agent %s: %s of %r is a dead letter: %s", agent, message.handler, mail.sender, cause)
        self._take(mail, message, None, answer)

    def _failure(self, message: Message, cause: str, ran: int) -> HandlerFailed:
        return HandlerFailed(
            f"{self.spec.name}.{message.handler} of agent {self.fold.agent!r} raised {cause} ({ran} runs); "
            "its state is as before, and it goes on.",
            agent=self.fold.agent, handler=message.handler, cause=cause, tries=ran,
        )  # fmt: skip

    def _bury(self, letter: DeadLetter) -> None:
        self._batch.dead.append(letter)
        self._batch.touched = True
        self.fold.ledger.bury(letter)

    # ---- hooks -----------------------------------------------------------------------------------------------

    async def hook(self, name: str) -> None:
        """Runs a hook of the class, if it has it, as a turn without a message.  Its changes join the next commit."""
        if not self.spec.overrides(name):
            return
        turn = Turn(self, "", 0, name)
        try:
            await self._call(turn, getattr(self.spec.cls, name), {}, False)
            self._batch.change(self.cell.end())
        except BaseException:
            self.cell.undo()
            raise
        finally:
            turn.closed = True
        if turn.tells:
            self._batch.touched = True
            self._send(turn)

    async def failed(self, error: BaseException) -> None:
        """A hook raised, or the probe failed: the agent is in ERROR until it is resumed."""
        message = f"{type(error).__name__}: {error}"
        logger.error("agent %s is in ERROR: %s", self.fold.agent, message)
        await self.flush()
        if self.fold.lifecycle.state is not AgentState.PAUSED:
            await self.append(lambda head: Failed(**head, error=AgentError(message=message, code=type(error).__name__)))

    # ---- committing ------------------------------------------------------------------------------------------

    async def append(self, compose: Callable[[dict[str, Any]], R], *, claim: bool = False) -> R:
        """Appends a record of another kind, after what is in flight.  Raises `Fenced` after stopping this host."""
        try:
            return await self.writer.append(compose, claim=claim)
        except Fenced as error:
            self.lose(error)
            raise

    def commit_soon(self) -> None:
        if (
            self._committing is None
            and self.is_open
            and not self._sealing
            and (self._batch or self.compaction.is_ready)
        ):
            self._committing = self.home.start(self._commit())

    async def _commit(self) -> None:
        try:
            while self.is_open and not self._sealing:
                if not self._batch and not self.compaction.is_ready:
                    break
                snap = self.fold.snap
                await self.writer.append(self._compose, then=self.compaction.follow)
                await self._acknowledged()
                self.compaction.consider()
                if self.fold.snap != snap:
                    self.home.begin(self.compaction.trim())
        except Fenced as error:
            self.lose(error)
        finally:
            self._committing = None
            self._settled.set()

    def _compose(self, head: dict[str, Any]) -> Committed:
        return Committed(**head, commit=self.sealed())

    def sealed(self) -> Commit:
        """Takes the batch as it is now, for the record that is being composed: state and ledger are exactly after it."""
        batch, self._batch = self._batch, Batch()
        self._inflight = batch
        ledger = self.fold.ledger
        for to, n in self.outbox.progress.items():
            if n > ledger.released.get(to, 0):
                batch.released[to] = n
                ledger.release(to, n)
        excess = ledger.excess()
        if excess:
            batch.forgot.extend(excess)
            ledger.forget(excess)
        commit = batch.commit(ledger.cursor, ledger.held, self.spec.version, self.fold.state.digest())
        self.compaction.capture(commit)
        return commit

    async def _acknowledged(self) -> None:
        """The commit is in the log: what it held may leave."""
        batch, self._inflight = self._inflight, None
        if batch is None:
            return
        for out in batch.outs:
            self.outbox.push(out)
        self._settled.set()
        if batch.answers:
            await self._let_out(batch.answers)

    async def _let_out(self, answers: list[tuple[str, Reply]]) -> None:
        by_receiver: dict[str, list[Reply]] = {}
        for reply_to, reply in answers:
            by_receiver.setdefault(reply_to, []).append(reply)
        for reply_to, replies in by_receiver.items():
            await self.home.wire.publish(reply_to, encode_replies(replies))

    def _reply(self, mail: Mail, n: int, answer: bytes) -> None:
        """An answer that changes nothing: it leaves at once, or after the commit that may hold what it repeats."""
        item = (mail.reply_to, Reply(self.fold.agent, mail.sender, n, answer))
        if self._batch:
            self._batch.answers.append(item)
        elif self._inflight is not None:
            self._inflight.answers.append(item)
        else:
            self.home.begin(self._let_out([item]))

    async def flush(self) -> None:
        """Returns when everything that ran before is committed.  Raises `Fenced` if it cannot be."""
        while (self._batch or self._inflight is not None) and self.lost is None:
            self._settled.clear()
            self.commit_soon()
            if not self.is_open:
                break
            await self._settled.wait()
        if self.lost is not None:
            raise self.lost

    # ---- asks of the current turn ----------------------------------------------------------------------------

    def _low(self, to: str) -> int:
        """The lowest number to `to` whose outcome is not durable: asks of the open turn keep their answers (rule 14)."""
        turn = self._turn
        if turn is not None:
            for made in turn.asks:
                if made.to == to and made.n:
                    return made.n
        opened = self.fold.turn
        if opened is not None:
            for made in opened.asks:
                if made.to == to and made.n:
                    return made.n
        return self.fold.ledger.next_number(to)

    def expect(self, to: str, n: int) -> asyncio.Future[bytes]:
        return self._answers.setdefault((to, n), asyncio.get_running_loop().create_future())

    def forget(self, to: str, n: int) -> None:
        self._answers.pop((to, n), None)

    def replied(self, reply: Reply) -> None:
        future = self._answers.get((reply.agent, reply.n))
        if future is not None and not future.done():
            future.set_result(reply.answer)

    # ---- pausing ---------------------------------------------------------------------------------------------

    async def stop_intake(self, deadline_s: float) -> None:
        """No new turn begins; returns when none runs.  `resume_intake` must follow, unless the host is closed.

        A turn of a handler declared cancellable is cancelled and will run again.  Raises TimeoutError, with the intake
        going on, if the turn does not end in time, and `Fenced` if the agent was lost.
        """
        self._stops += 1
        held = False
        try:
            async with asyncio.timeout(deadline_s):
                if self._turn is not None and self._cancellable and self._pump is not None:
                    self._pump.cancel()
                await self._turns.acquire()
                held = True
            if self.lost is not None:
                raise self.lost
        except BaseException:
            self._go_on(held)
            raise

    async def seal_ready(self) -> None:
        """After `stop_intake`: waits for the commit in flight; what ran since then stays, to be sealed by the handover."""
        self._sealing = True
        while self._committing is not None:
            self._settled.clear()
            await self._settled.wait()
        if self.lost is not None:
            raise self.lost

    def resume_intake(self) -> None:
        """Takes messages again.  Only right if this host still owns the agent (rule 6)."""
        self._sealing = False
        self._go_on(True)

    def _go_on(self, held: bool) -> None:
        self._stops -= 1
        if held:
            self._turns.release()
        self.commit_soon()
        self.kick()

    @property
    def _quiet(self) -> bool:
        return self._stops > 0

    def unseal(self) -> None:
        """A seal that is not in the log: its turns go back to be committed."""
        batch, self._inflight = self._inflight, None
        if batch is not None:
            assert not self._batch
            self._batch = batch

    def handed_over(self) -> None:
        """The seal is in the log: its answers may leave; its outputs are sent by the next owner."""
        batch, self._inflight = self._inflight, None
        if batch is not None and batch.answers:
            self.home.begin(self._let_out(batch.answers))

    def deliver(self) -> None:
        """Delivers what the log holds and does not show as stored.  What the next commit will hold waits for it (rule 9)."""
        waiting = {(out.to, out.n) for out in self._batch.outs}
        self.outbox.push_missing([out for out in self.fold.ledger.unreleased() if (out.to, out.n) not in waiting])

    def adopt(self, delta: StateDelta | None) -> None:
        """A change that joins the next commit: an upgrade of the state made while taking the agent over."""
        self._batch.change(delta)

    def touch(self) -> None:
        """Makes the next commit happen though nothing else asks for it."""
        self._batch.touched = True

    @property
    def has_unsealed(self) -> bool:
        """True if state or ledger is ahead of the log."""
        return bool(self._batch) or self._batch.moved


class TurnStopped(BaseException):
    """The turn was stopped to be run again elsewhere, or its host lost the agent.  No handler can catch it as an Exception."""
