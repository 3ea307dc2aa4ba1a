"""The shared core of an activation's parts: the agent's log and fold, the batch, and the commits.

Order of things (rules 1, 9, 10, 11): a message is judged by the ledger; its turn changes state and ledger in memory; a commit
carries any number of turns; answers and outputs leave only once the commit is acknowledged.  If another node has taken the log over,
everything since the last acknowledged record is dropped, and the node reads the log again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from mielin_cells.agents.spec import Spec
from mielin_cells.errors import (
    AnswerExpired,
    CellError,
    Fenced,
    InternalError,
    SessionExpired,
    StoreFull,
    StoreUnreachable,
    described,
)  # fmt: skip
from mielin_cells.log.attributes.values import FIELD as ATTRIBUTES
from mielin_cells.log.commit import AskCall, Commit, TurnCall, Wish
from mielin_cells.log.delta import StateDelta
from mielin_cells.log.fold import Fold
from mielin_cells.log.inboxes.lines import line, priority_of
from mielin_cells.log.ledger import Verdict
from mielin_cells.log.message import Answer, Replies, encode_answer, encode_replies, fitting
from mielin_cells.log.records import Committed
from mielin_cells.log.turns.batch import Answers, Batch
from mielin_cells.log.turns.replays import unanswered
from mielin_cells.node.activation.context import NodeContext, error_of, renewed
from mielin_cells.node.activation.outbox import Outbox
from mielin_cells.node.activation.presence.wishes import fulfilled
from mielin_cells.node.activation.readers import Committed as CommittedState
from mielin_cells.node.activation.readers import Readers
from mielin_cells.node.activation.snapshots import Snapshots
from mielin_cells.node.activation.writer import R, Writer, append_failed
from mielin_cells.node.attributes.announcer import Announcer, announce
from mielin_cells.node.family.kinship import Kinship, close
from mielin_cells.node.streams.ends import Ends
from mielin_cells.node.topics.subscriptions import Subscriptions
from mielin_cells.node.waits.desk import Desk
from mielin_cells.settings import MAIL_BYTES_MAX
from mielin_cells.tasks.signal import Signal

logger = logging.getLogger("mielin_cells.activation")


class Core:
    """What the parts of one activation share, and its commits."""

    __slots__ = (
        "_answers", "_batch", "_committing", "_is_failing", "_renewing", "_sealing", "_settled", "asks", "attributes", "desk", "ends",
        "fold", "home", "inflight", "is_open", "is_waking", "kinship", "loop", "lost", "outbox", "readers", "records_first_turn",
        "snapshots", "spec", "stops", "topics", "writer",
    )  # fmt: skip

    def __init__(self, home: NodeContext, spec: Spec, writer: Writer) -> None:
        self.home = home
        self.loop = asyncio.get_running_loop()
        self.spec = spec
        self.writer = writer
        self.fold: Fold = writer.fold
        self.outbox = Outbox(self)
        self.snapshots = Snapshots(self)
        self.ends: Ends | None = None
        self.attributes: Announcer | None = None
        self.topics = Subscriptions(self)
        self.kinship: Kinship | None = None
        self.desk: Desk | None = None
        self.is_open = self.is_waking = False
        self.lost: Exception | None = None
        """Why this node no longer runs the agent, if the activation noticed it itself."""
        self.stops = 0
        """How many callers want no new turn to begin."""
        self.records_first_turn = False
        """The agent was claimed while a message waited, so a record notes when its first turn begins."""
        self.asks: Sequence[TurnCall] = ()
        """The asks and steps of the turn that waits."""
        self.inflight: Batch | None = None
        """The batch of the commit that is being appended."""
        self._batch: Batch | None = None
        self.readers: Readers | None = None
        """Made at the first read that waits."""
        self._is_failing = self._sealing = False
        self._renewing: asyncio.Task[None] | None = None
        self._committing: asyncio.Task[Any] | None = None
        self._settled = Signal()
        writer.refused = self._settled
        self._answers: dict[tuple[str, int], asyncio.Future[bytes]] | None = None

    @property
    def is_stopping(self) -> bool:
        """No new turn may begin."""
        return self.stops > 0

    @property
    def may_send(self) -> bool:
        """True unless the agent may not run, or its intake is being stopped: then nothing is added to what it commits."""
        return self.fold.may_run and self.may_add

    @property
    def may_add(self) -> bool:
        """True unless its intake is being stopped.  Notices and orders of an agent in ERROR are committed, too."""
        return not self._sealing and not self.is_stopping and not self.fold.goes_to

    def close(self) -> None:
        """Stops at once.  What is not committed is dropped; what is committed will be sent again by the next owner."""
        self.is_open = False
        if not self.writer.is_closed:
            self.home.gone_records += self.writer.appended_records
            self.home.gone_bytes += self.writer.appended_bytes
        self.writer.close()
        if self._committing is not None and self._committing is not asyncio.current_task():
            self._committing.cancel()
        self.outbox.close()
        self.snapshots.close()
        self.topics.close()
        close(self.kinship)
        for future in (self._answers or {}).values():
            future.cancel()
        if self.readers is not None:
            self.readers.close()
        self._settled.set()

    def lose(self, error: Exception) -> None:
        """Closes the activation, because it cannot write to the log any more, and tells the node."""
        if self.lost is None:
            self.lost = error
            self.close()
            self.home.lost(self, error)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs an essential part of this activation in a task.  If it fails, the agent is read from its log again."""
        return self.home.start(work, self._part_ended)

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        self.home.ended(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.broke(error)

    def broke(self, error: BaseException) -> None:
        """Closes the activation, because an essential part of it has failed."""
        agent = self.fold.agent
        if not self.writer.is_closed:
            said = f"Agent {agent!r} is read from its log again: {described(error)}."
            self.lose(error if isinstance(error, CellError) else InternalError(said, agent=agent))

    @property
    def error(self) -> CellError | None:
        """The error with which asks of an agent in ERROR fail until the agent is resumed."""
        return error_of(self.fold, self.home.name)

    # ---- committing ------------------------------------------------------------------------------------------

    @property
    def batch(self) -> Batch:
        """The batch of the next commit.  It is created on first use, since a batch takes 700 bytes."""
        batch = self._batch
        if batch is None:
            batch = self._batch = Batch()
        return batch

    @property
    def wish(self) -> Wish | None:
        """An order of the agent for itself that has not been carried out yet.  No turn runs until it has."""
        for batch in (self._batch, self.inflight):
            if batch is not None and batch.wish is not None:
                return batch.wish
        return self.fold.wish

    def fulfil(self) -> None:
        self.home.begin(fulfilled(self))

    @property
    def is_outdated(self) -> bool:
        """The agent's class was defined again in this process, and the newer definition is to run."""
        spec, resolve = self.spec, self.home.resolve
        return spec.cls.__mielin_replaced__ and resolve is not None and resolve(spec.name) is not spec.cls

    def renew(self) -> None:
        """Has the agent loaded again from its log, with the newer definition."""
        if self.home.obey is not None and (self._renewing is None or self._renewing.done()):
            agent = self.fold.agent
            self._renewing = self.home.start(renewed(agent, self.home.obey(agent, "renew", "")))

    def adopt(self, delta: StateDelta | None) -> None:
        """Adds a change of state to the next commit: an upgrade that was made while the agent was taken over."""
        self.batch.change(delta)

    def touch(self) -> None:
        """Makes sure that another commit follows."""
        self.batch.touched = True

    async def append(self, compose: Callable[[dict[str, Any]], R], *, at_once: bool = False) -> R:
        """Appends a record of another kind, after what is in flight.  Raises what kept it from the log, after closing this activation.

        `at_once`: an append that the store asks to repeat is given up too, and then this activation goes on.
        """
        try:
            return await self.writer.append(compose, at_once=at_once)
        except BaseException:
            await self.unappended()
            raise

    async def unappended(self) -> None:
        """Closes this activation if a record was composed that is not known to be in the log.

        State and ledger in memory may then differ from the log, so the agent is read from its log again.  If no store would ever take
        the record, an ERROR record says so first.
        """
        failure = self.writer.failure
        if failure is None or self.lost is not None or self._is_failing or self.writer.is_closed:
            return
        self._is_failing = True
        if self.writer.is_unwritable:
            logger.error("agent %s is in ERROR: %s", self.fold.agent, failure, exc_info=failure)
            try:
                await append_failed(self.writer.successor(), failure)
            except CellError as unsaid:  # most likely `Fenced`: then the new owner reads the log anyway
                logger.warning("agent %s: the ERROR could not be recorded in its log: %s", self.fold.agent, unsaid)
        self.lose(failure)

    def commit_soon(self) -> None:
        if self._committing is None and self.is_open and not self._sealing and (self._batch or self.snapshots.is_ready):
            self._committing = self.start(self._commit())

    async def _commit(self) -> None:
        try:
            while self.is_open and not self._sealing:
                if not self._batch and not self.snapshots.is_ready:
                    break
                snap = self.fold.snap
                await self.writer.append(self._compose, then=self.snapshots.follow)
                await self._acknowledged()
                self.snapshots.consider()
                if self.fold.snap != snap:
                    self.home.begin(self.snapshots.trim())
        except CellError:
            await self.unappended()
        finally:
            self._committing = None
            self._settled.set()

    def _compose(self, head: dict[str, Any]) -> Committed:
        if (keys := self.fold.ledger.keys) is not None:  # a seal drops none: its turns may come back (`unseal`)
            self.batch.keys_dropped = keys.drop_excess(self.home.clock.now(), *self.spec.keeps_keys(self.home.settings))
        return Committed(**head, commit=self.sealed())

    def sealed(self) -> Commit:
        """Takes the batch for the record that is being composed.  State and ledger are exactly as after that record."""
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
        ledger.tidy_topics()
        commit = batch.commit(ledger.cursor, ledger.held, self.spec.version, self.fold.state.digest(), ledger.inboxes)
        self.snapshots.capture(commit)
        if self.readers is not None:
            self.readers.sealed()
        return commit

    async def _acknowledged(self) -> None:
        """Lets the outputs and answers of a commit leave, now that it is in the log."""
        batch, self.inflight = self.inflight, None
        if batch is None:
            return
        for out in batch.outs:
            self.outbox.push(out)
        if batch.delta is not None and ATTRIBUTES in batch.delta.plain:
            announce(self, batch.delta.plain[ATTRIBUTES])
        if self.readers is not None:
            self.readers.acknowledged(self._batch)
        self._settled.set()
        if batch.answers:
            if self.ends is not None:
                self.ends.committed(batch.answers)
            await self._let_out(batch.answers)

    async def flush_within(self, seconds: float) -> None:
        """As `flush`, with a limit.  Raises the store's refusal if the commit is late, and at once if the store is full."""
        agent, writer = self.fold.agent, self.writer
        try:
            async with asyncio.timeout(seconds):
                await self.flush(at_once=True)
        except TimeoutError:
            said = f"What agent {agent!r} has done is not in its log after {seconds:g} s."
            raise writer.waits_for or StoreUnreachable(said, agent=agent) from None

    async def flush(self, *, at_once: bool = False) -> None:
        """Returns when all turns that have run are committed.  Raises `Fenced` if they cannot be; with `at_once` also `StoreFull`."""
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

    async def committed(self) -> CommittedState:
        """The state as of the last acknowledged record, beside the turn that runs.  Raises `Fenced`."""
        if not self.is_open:
            raise Fenced(f"Node {self.home.name} no longer runs agent {self.fold.agent!r}.", agent=self.fold.agent)
        if self.readers is None:
            self.readers = Readers(self.fold)
        return await self.readers.committed(self._batch, self.inflight)

    # ---- answers ---------------------------------------------------------------------------------------------

    async def _let_out(self, answers: Answers) -> None:
        """Sends answers, best effort: a caller that hears nothing reminds this agent, and gets the stored answer."""
        fold = self.fold
        for (reply_to, sender), numbers in answers.items():
            for some in fitting(numbers, MAIL_BYTES_MAX):
                try:
                    replies = Replies(fold.agent, sender, some, fold.seq)
                    await self.home.wire.publish(reply_to, encode_replies([replies]))
                except Exception as error:  # whatever the wire raises, what it carries is in the log
                    logger.info("agent %s: an answer to %s was not sent: %s", fold.agent, sender, described(error))

    def answer_again(self, sender: str, n: int, verdict: Verdict) -> bytes | None:
        """The stored answer, or the error, for an ask that has taken effect or never will (`verdict`); None for a tell."""
        if verdict is Verdict.REPEAT:
            return self.fold.ledger.answer(sender, n)
        agent = self.fold.agent
        error: CellError = (
            AnswerExpired(f"Agent {agent!r}: this ask was closed by its caller before.")
            if verdict is Verdict.CLOSED
            else SessionExpired(f"Agent {agent!r} has forgotten this client session; call again in a new one.")
        )
        return encode_answer(Answer(None, error.to_wire()))

    def reply(self, reply_to: str, sender: str, answers: dict[int, bytes]) -> None:
        """Sends answers that change nothing: at once, or after the pending commit, which may hold what they repeat."""
        batch = self._batch or self.inflight
        if batch is None:
            self.home.begin(self._let_out({(reply_to, sender): answers}))
            return
        for n, answer in answers.items():
            batch.answer(reply_to, sender, n, answer)

    def low(self, to: str) -> int:
        """The lowest number to `to` whose outcome is not durable.  The receiver keeps the answers from there on (rule 14)."""
        ledger = self.fold.ledger
        low = (unanswered(ledger, to) if ledger.replays else None) or ledger.next_number(to)
        opened = self.fold.turn
        for made in (*self.asks, *(opened.calls if opened is not None else ())):
            if isinstance(made, AskCall) and made.to == to and 0 < made.n < low:
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
        to = line(replies.agent, priority_of(replies.sender))
        for n, answer in replies.answers.items():
            future = answers.get((to, n))
            if future is not None and not future.done():
                future.set_result(answer)
