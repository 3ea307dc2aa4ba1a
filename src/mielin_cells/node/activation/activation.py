"""One agent on its owner: taking messages, running turns, committing them, and letting out what was committed.

Order of things (rules 1, 9, 10, 11): a message is judged by the ledger; its turn changes state and ledger in memory; a commit
carries any number of turns; only when the commit is acknowledged do answers and outputs leave.  If the log was taken over,
everything since the last acknowledged record is dropped and the node reads the log again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from mielin_cells.agents.live import Cell
from mielin_cells.agents.spec import Spec
from mielin_cells.errors import (
    CellError,
    InternalError,
    StoreFull,
    StoreUnreachable,
    described,
    never,
    storable,
)
from mielin_cells.log.commit import Answers, Batch
from mielin_cells.log.fold import Fold
from mielin_cells.log.lifecycle import AgentError, AgentState
from mielin_cells.log.message import (
    Replies,
    encode_replies,
)
from mielin_cells.log.records import AskMade, Commit, Committed, Failed, Wish
from mielin_cells.log.state import StateDelta
from mielin_cells.node.activation.context import Home
from mielin_cells.node.activation.inbox import Inbox
from mielin_cells.node.activation.intake import Intake
from mielin_cells.node.activation.outbox import Outbox
from mielin_cells.node.activation.snapshots import Compaction
from mielin_cells.node.activation.timers import Timers
from mielin_cells.node.activation.writer import R, Writer, append_failed
from mielin_cells.settings import MAIL_BYTES_MAX
from mielin_cells.tasks.signal import Signal
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.host")


class Host:
    """The owner's side of one agent.  Made with a fold that is at the log's end; `open` starts it."""

    __slots__ = (
        "__weakref__", "_answers", "_batch", "_committing", "_is_failing", "_is_renewing", "_reader", "_sealing", "_settled", "cell",
        "compaction", "fold", "home", "inbox", "inflight", "intake", "is_open", "loop", "lost", "marks", "outbox", "spec", "timers",
        "writer",
    )  # fmt: skip

    def __init__(self, home: Home, spec: Spec, cell: Cell, writer: Writer) -> None:
        self.home = home
        self.loop = asyncio.get_running_loop()
        self.spec = spec
        self.cell = cell
        self.writer = writer
        self.fold: Fold = writer.fold
        self.outbox = Outbox(self)
        self.compaction = Compaction(self)
        self.lost: Exception | None = None
        self.inbox = Inbox(self)
        self.timers = Timers(self)
        self.intake = Intake(self)
        self.is_open = False
        self._is_failing = False
        self._is_renewing = False
        self.marks = False
        """The agent was claimed with a message waiting: the first turn is opened by a record."""
        self._batch: Batch | None = None
        self.inflight: Batch | None = None
        self._sealing = False
        self._committing: asyncio.Task[Any] | None = None
        self._reader: asyncio.Task[Any] | None = None
        self._settled = Signal()
        writer.refused = self._settled
        self._answers: dict[tuple[str, int], asyncio.Future[bytes]] | None = None

    # ---- opening and closing ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Begins to serve: re-sends every committed output that the log does not show as stored, and reads the inbox."""
        self.is_open = True
        self.deliver()
        self._reader = self.start(self.inbox.read())
        self.timers.open()
        self.commit_soon()
        if self.fold.wish is not None:  # whoever owned the agent before did not come to it
            self.fulfil()

    def close(self) -> None:
        """Stops at once.  What is not committed is dropped; what is committed will be re-sent by the next owner."""
        self.is_open = False
        self.writer.close()
        self.inbox.close()
        current = asyncio.current_task()
        self.intake.close()
        for task in (self._reader, self._committing):
            if task is not None and task is not current:
                task.cancel()
        self.outbox.close()
        self.timers.close()
        self.compaction.close()
        for future in (self._answers or {}).values():
            future.cancel()
        self._settled.set()

    def lose(self, error: Exception) -> None:
        """The log cannot be written by this host any more."""
        if self.lost is None:
            self.lost = error
            self.close()
            self.home.lost(self, error)

    async def failed(self, error: BaseException, *, has_started: bool = True) -> None:
        """A hook raised, or the probe failed: the agent is in ERROR until it is resumed.

        `has_started` False: `on_start` is still to run.  If this host was lost meanwhile, the hook has not failed: why is raised.
        """
        if self.lost is not None:
            raise self.lost
        # A user's exception may hold what no record takes.
        message, code = described(error), storable(type(error).__name__)
        logger.error("agent %s is in ERROR: %s", self.fold.agent, message, exc_info=error)
        await self.flush()
        if self.fold.lifecycle.state is not AgentState.PAUSED:
            found = AgentError(message=message, code=code, has_started=has_started)
            await self.append(lambda head: Failed(**head, error=found))

    def kick(self) -> None:
        self.intake.kick()

    # ---- committing ------------------------------------------------------------------------------------------

    @property
    def batch(self) -> Batch:
        """What the next commit will hold.  A batch takes 700 bytes: an idle agent has none."""
        batch = self._batch
        if batch is None:
            batch = self._batch = Batch()
        return batch

    async def append(self, compose: Callable[[dict[str, Any]], R], *, at_once: bool = False) -> R:
        """Appends a record of another kind, after what is in flight.  Raises what kept it from the log, after stopping this host;
        `at_once`: also what the store asks to repeat, and then this host goes on."""
        try:
            return await self.writer.append(compose, at_once=at_once)
        except BaseException:
            await self.unappended()
            raise

    async def unappended(self) -> None:
        """If a record was composed and is not known to be in the log, this host goes no further: what it has in memory may be no
        log's, and the agent is read from its log again.  If no store would ever take the record, the log says so first."""
        failure = self.writer.failure
        if failure is None or self.lost is not None or self._is_failing or self.writer.is_closed:
            return
        self._is_failing = True
        if self.writer.is_unwritable:
            logger.error("agent %s is in ERROR: %s", self.fold.agent, failure, exc_info=failure)
            try:
                await append_failed(self.writer.successor(), failure)
            except CellError as unsaid:  # most likely `Fenced`: whoever was first reads the log anyway
                logger.warning("agent %s: its log does not say so: %s", self.fold.agent, unsaid)
        self.lose(failure)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a part of this host that it cannot be without: if it fails, the agent is read from its log again."""
        return self.home.start(work, self._part_ended)

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        self.home.ended(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.broke(error)

    def broke(self, error: BaseException) -> None:
        """A part of this host has failed."""
        agent = self.fold.agent
        if not self.writer.is_closed:
            said = f"Agent {agent!r} is read from its log again: {described(error)}."
            self.lose(error if isinstance(error, CellError) else InternalError(said, agent=agent))

    def commit_soon(self) -> None:
        if (
            self._committing is None
            and self.is_open
            and not self._sealing
            and (self._batch or self.compaction.is_ready)
        ):
            self._committing = self.start(self._commit())

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
        except CellError:
            await self.unappended()
        finally:
            self._committing = None
            self._settled.set()

    def _compose(self, head: dict[str, Any]) -> Committed:
        return Committed(**head, commit=self.sealed())

    def sealed(self) -> Commit:
        """Takes the batch as it is now, for the record that is being composed: state and ledger are exactly after it."""
        batch, self._batch = self.batch, None
        self.inflight = batch
        ledger = self.fold.ledger
        for to, n in self.outbox.take_stored().items():
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
        batch, self.inflight = self.inflight, None
        if batch is None:
            return
        for out in batch.outs:
            self.outbox.push(out)
        self._settled.set()
        if batch.answers:
            await self._let_out(batch.answers)

    async def _let_out(self, answers: Answers) -> None:
        """Best effort: who hears nothing reminds this agent, and is answered from what it has stored."""
        for (reply_to, sender), numbers in answers.items():
            for some in _fitting(numbers):
                try:
                    await self.home.wire.publish(reply_to, encode_replies([Replies(self.fold.agent, sender, some)]))
                except Exception as error:  # whatever the wire raises, what it carries is in the log
                    logger.info(
                        "agent %s: an answer for %s was not sent: %s", self.fold.agent, sender, described(error)
                    )

    def reply(self, reply_to: str, sender: str, answers: dict[int, bytes]) -> None:
        """Answers that change nothing: they leave at once, or after the commit that may hold what they repeat."""
        batch = self._batch or self.inflight
        if batch is None:
            self.home.begin(self._let_out({(reply_to, sender): answers}))
            return
        for n, answer in answers.items():
            batch.answer(reply_to, sender, n, answer)

    async def flush_within(self, seconds: float) -> None:
        """As `flush`.  Raises what the store refuses a commit with if it is not through by then; at once on a full store."""
        agent, writer = self.fold.agent, self.writer
        try:
            async with asyncio.timeout(seconds):
                await self.flush(at_once=True)
        except TimeoutError:
            said = f"What agent {agent!r} has done is not in its log after {seconds:g} s."
            raise writer.waits_for or StoreUnreachable(said, agent=agent) from None

    async def flush(self, *, at_once: bool = False) -> None:
        """Returns when everything that ran before is committed.  Raises `Fenced` if it cannot be, and `at_once` on a full store."""
        while (self._batch or self.inflight is not None) and self.lost is None:
            self.writer.check()
            if at_once and isinstance(self.writer.waits_for, StoreFull):
                raise self.writer.waits_for
            self.commit_soon()
            if not self.is_open:
                break
            await self._settled.wait()
        if self.lost is not None:
            raise self.lost

    # ---- asks of the current turn ----------------------------------------------------------------------------

    def low(self, to: str) -> int:
        """The lowest number to `to` whose outcome is not durable: asks of the open turn keep their answers (rule 14)."""
        ledger = self.fold.ledger
        low = (ledger.unanswered(to) if ledger.again else None) or ledger.next_number(to)
        turn, opened = self.intake.turn, self.fold.turn
        for made in (*(turn.made if turn is not None else ()), *(opened.made if opened is not None else ())):
            if isinstance(made, AskMade) and made.to == to and 0 < made.n < low:
                low = made.n
        return low

    def expect(self, to: str, n: int) -> asyncio.Future[bytes]:
        if self._answers is None:
            self._answers = {}
        return self._answers.setdefault((to, n), asyncio.get_running_loop().create_future())

    def forget(self, to: str, n: int) -> None:
        if self._answers is not None:
            self._answers.pop((to, n), None)
            if not self._answers:
                self._answers = None

    def replied(self, replies: Replies) -> None:
        answers = self._answers
        if answers is None:
            return
        for n, answer in replies.answers.items():
            future = answers.get((replies.agent, n))
            if future is not None and not future.done():
                future.set_result(answer)

    # ---- the agent's own orders ------------------------------------------------------------------------------

    @property
    def wish(self) -> Wish | None:
        """What the agent has ordered for itself and what has not taken effect: no turn runs."""
        for batch in (self._batch, self.inflight):
            if batch is not None and batch.wish is not None:
                return batch.wish
        return self.fold.wish

    def fulfil(self) -> None:
        self.home.begin(self._fulfilled())

    async def _fulfilled(self) -> None:
        """Carries out what the agent has ordered for itself, again until it is done; once another node owns it, that node does.

        An agent that an operator has suspended, or whose `on_stop` raised, is left to the operator: it goes on when it is resumed.
        """
        backoff, told = Backoff(), set[str]()
        while self.is_open and self.wish is not None and self.home.obey is not None and self.fold.may_run:
            try:
                await self.flush()
                wish = self.fold.wish
                if wish is not None and self.is_open:
                    await self.home.obey(self.fold.agent, wish.order, wish.reason)
                    return
            except Exception as error:  # whatever the store raises, or a bug: no turn runs before it is done
                if type(error).__name__ not in told:
                    told.add(type(error).__name__)
                    logger.warning(
                        "agent %s: what it has ordered for itself waits: %s", self.fold.agent, described(error)
                    )
            await backoff.wait()

    def renew(self) -> None:
        """The agent's class was defined again: its log is read again, with the newer definition."""
        if not self._is_renewing and self.home.obey is not None:
            self._is_renewing = True
            self.home.begin(self._renewed(self.home.obey(self.fold.agent, "renew", "")))

    async def _renewed(self, order: Awaitable[object]) -> None:
        try:
            await order
        except CellError as error:
            logger.warning("agent %s still runs the earlier definition of its class: %s", self.fold.agent, error)
        finally:
            self._is_renewing = False

    # ---- pausing ---------------------------------------------------------------------------------------------

    def seal_at_once(self) -> bool:
        """After the intake has stopped: True if no commit is in flight; what ran stays, to be sealed by the handover."""
        self._sealing = True
        return self._committing is None and self.lost is None

    async def seal_ready(self) -> None:
        """As `seal_at_once`, after waiting for the commit in flight."""
        self._sealing = True
        while self._committing is not None:
            await self._settled.wait()
        if self.lost is not None:
            raise self.lost
        self.writer.check()  # else a host that was closed meanwhile would hand over without what was in flight

    def resume_intake(self) -> None:
        """Takes messages again.  Only right if this host still owns the agent (rule 6)."""
        self._sealing = False
        self.intake.resume()

    def unseal(self) -> None:
        """A seal that is not in the log: its turns go back to be committed."""
        batch, self.inflight = self.inflight, None
        if batch is not None:
            if self._batch:
                raise never("not self.batch")
            self._batch = batch

    def handed_over(self) -> None:
        """The seal is in the log: its answers may leave; its outputs are sent by the next owner."""
        batch, self.inflight = self.inflight, None
        if batch is not None and batch.answers:
            self.home.begin(self._let_out(batch.answers))

    def deliver(self) -> None:
        """Delivers what the log holds and does not show as stored.  What the next commit will hold waits for it (rule 9)."""
        waiting = {(out.to, out.n) for out in self._batch.outs} if self._batch else ()
        self.outbox.push_missing([out for out in self.fold.ledger.unreleased() if (out.to, out.n) not in waiting])

    def adopt(self, delta: StateDelta | None) -> None:
        """A change that joins the next commit: an upgrade of the state made while taking the agent over."""
        self.batch.change(delta)

    def touch(self) -> None:
        """Makes the next commit happen though nothing else asks for it."""
        self.batch.touched = True

    @property
    def may_send(self) -> bool:
        """True unless the agent may not run, or its intake is being stopped: then nothing is added to what it commits."""
        return self.fold.may_run and not self._sealing and not self.intake.is_stopping

    @property
    def is_idle(self) -> bool:
        """True if all that was read of the inbox has taken effect, and is committed."""
        waits = self.inbox.queue or self.intake.delays.senders
        return not waits and self.inflight is None and not self._batch and self.is_open

    @property
    def has_unsealed(self) -> bool:
        """True if state or ledger is ahead of the log."""
        return self._batch is not None and (bool(self._batch) or self._batch.moved)


def _fitting(answers: dict[int, bytes]) -> list[dict[int, bytes]]:
    """The answers, cut so that each lot fits one message of the wire."""
    size = sum(map(len, answers.values()))
    if size <= MAIL_BYTES_MAX:
        return [answers]
    lots: list[dict[int, bytes]] = []
    for n, answer in answers.items():
        size += len(answer)
        if not lots or size > MAIL_BYTES_MAX:
            lots.append({})
            size = len(answer)
        lots[-1][n] = answer
    return lots
