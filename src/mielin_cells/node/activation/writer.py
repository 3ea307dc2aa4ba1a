"""Appending to an agent's log: one at a time, the same bytes until the outcome is known (rules 1 and 2)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random
from typing import Any, TypeAlias, TypeVar

from mielin_cells.errors import (
    CellError,
    EpochRegression,
    Fenced,
    InternalError,
    InvalidTransition,
    MessageTooLarge,
    RecordInvalid,
    RetryError,
    UsageError,
    described,
)
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject, part_subject
from mielin_cells.log.lifecycle import AgentError, AgentState
from mielin_cells.log.records import Failed, Record, Spilled, Suspended, encode_record, made_owner
from mielin_cells.settings import RECORD_BYTES_MAX, REGRESSION_S
from mielin_cells.substrate import parts
from mielin_cells.substrate.ports import Appended, Conflict, Log, Unknown
from mielin_cells.tasks.signal import Signal
from mielin_cells.tasks.supervision import Backoff

R = TypeVar("R", bound=Record)
Follow: TypeAlias = Callable[[dict[str, Any]], Record]

logger = logging.getLogger("mielin_cells.writer")


class Doubt(Exception):
    """The outcome of an append is unknown: only the same append, or a claim at the same place, may follow."""


class Behind(Doubt):
    """The log ends before what it had acknowledged."""


class Declined(Exception):
    """Raised by a `compose` that finds, when it is its turn, that there is nothing to append.  It has taken nothing."""


class Writer:
    """The only way by which a node appends to one agent's log.  Keeps `fold` at the last record acknowledged.

    An append that is lost to another node raises `Fenced`: the caller drops what it had not committed.  So it must after any other
    error that comes once the record was composed: `failure` is set then, and this writer appends nothing more.
    """

    __slots__ = (
        "_backoff",
        "_limit_s",
        "_lock",
        "_log",
        "_rng",
        "_wall",
        "appended_bytes",
        "appended_records",
        "failure",
        "fold",
        "incarnation",
        "is_closed",
        "is_unwritable",
        "node",
        "refused",
        "waits_for",
    )

    def __init__(
        self,
        log: Log,
        fold: Fold,
        node: str,
        incarnation: int,
        rng: Random,
        regression_s: float = REGRESSION_S,
        wall: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._log = log
        self._limit_s = regression_s
        self._rng = rng
        self._wall = wall
        self._lock = asyncio.Lock()
        self.fold = fold
        self.node = node
        self.incarnation = incarnation
        self.appended_bytes = 0
        self.appended_records = 0
        self.is_closed = False
        """The activation is closed.  Its state and ledger may be ahead of the log, so no record may be made of them any more."""
        self.failure: CellError | None = None
        """Why a composed record is not known to be in the log.  From then on the agent must be read from its log."""
        self.is_unwritable = False
        """The failure is the record's own: no store would take it.  Nothing of it was sent."""
        self.waits_for: CellError | None = None
        """Why the store refuses the append that is being repeated; None while no append is repeated for that reason."""
        self.refused: Signal | None = None
        """Set when an append is to be repeated."""
        self._backoff: Backoff | None = None

    def close(self) -> None:
        """Ends an append that is being repeated.  Only the log tells whether the record has landed."""
        self.is_closed = True
        if self._backoff is not None:
            self._backoff.wake()

    @property
    def is_busy(self) -> bool:
        """True while something is appended, or the end of the log is read."""
        return self._lock.locked()

    def check(self) -> None:
        """Raises the failure, or `Fenced` once the activation is closed."""
        if self.failure is not None:
            raise type(self.failure)(self.failure.message, **self.failure.facts)
        if self.is_closed:
            agent = self.fold.agent
            raise Fenced(f"Node {self.node} no longer runs agent {agent!r}; its log names the owner.", agent=agent)

    def head(self, *, claim: bool = False) -> dict[str, Any]:
        """The fields that every record begins with, for the place after the last record."""
        fold = self.fold
        return {
            "agent": fold.agent,
            "epoch": fold.epoch + 1 if claim else fold.epoch,
            "node": self.node,
            "incarnation": self.incarnation,
            "nonce": self._rng.randbytes(12),
            "prev": fold.seq,
            "snap": fold.snap,
            "written": self._wall(),
        }

    async def append(
        self,
        compose: Callable[[dict[str, Any]], R],
        *,
        claim: bool = False,
        at_once: bool = False,
        then: Callable[[], Follow | None] | None = None,
    ) -> R:
        """Appends the record that `compose` makes of the head, and returns it once it is acknowledged.

        `compose` is called when it is this append's turn, must not wait, and raises before it takes anything from its caller.
        A `RetryError` of the store is waited out like an unknown outcome; `at_once`, for a record that takes nothing from its caller,
        raises it where it is certain that nothing was stored.  `then`, asked after the acknowledgement, may give one
        more record to append before anybody else's turn.  Raises `Fenced` if another record took the place, and else whatever
        kept the record out of the log.
        """
        async with self._lock:
            record = await self._append(compose, claim, at_once)
            follow = then() if then is not None else None
            if follow is not None:
                await self._append(follow, False)
            return record

    async def _append(self, compose: Callable[[dict[str, Any]], R], claim: bool, at_once: bool = False) -> R:
        record, data = self._compose(compose, claim)
        entry, backoff, behind_since, seq = b"", None, -1.0, 0
        is_certain = True
        try:
            while True:
                try:
                    # What `compose` took from its caller is in `record` alone: parts that cannot be stored now are stored later.
                    entry = entry or await self._entry(record, data)
                    seq = await self._try(record, entry)
                    break
                except (Doubt, RetryError) as error:
                    is_certain = is_certain and isinstance(error, RetryError)
                    if at_once and is_certain:
                        raise
                    behind_since = self._still_behind(error, behind_since)
                    logger.info(
                        "agent %s: the append of %s failed; trying again: %s",
                        self.fold.agent,
                        type(record).__name__,
                        error,
                    )
                    self.waits_for = error if isinstance(error, CellError) else None
                    if self.refused is not None:
                        self.refused.set()
                    if backoff is None:
                        backoff = self._backoff = Backoff()
                    await backoff.wait()
                    if self.is_closed:
                        self.check()
        except BaseException as error:
            if at_once and is_certain and isinstance(error, RetryError):
                raise  # nothing is stored, and nothing was taken from the caller
            if claim and isinstance(error, Fenced):
                raise  # a claim takes nothing from its caller, which goes on if the record in its place gives the agent back
            raise self._failed(type(record).__name__, error) from error
        finally:
            self._backoff = self.waits_for = None
        self._took(seq, record, entry)
        return record

    def _still_behind(self, error: Exception, since: float) -> float:
        """Since when the log has ended before a record that it had acknowledged; -1 if it does not.  Raises after too long."""
        if not isinstance(error, Behind):
            return -1.0
        now = asyncio.get_running_loop().time()
        since = now if since < 0 else since
        if now - since >= self._limit_s:
            facts = {"agent": self.fold.agent, "have": 0, "need": self.fold.seq}
            raise EpochRegression(f"Node {self.node} stops agent {self.fold.agent!r}: {error}.", **facts) from error
        return since

    def _failed(self, what: str, error: BaseException) -> BaseException:
        """Notes that a composed record is not known to be in the log.  Returns the error to raise."""
        failure = error
        if not isinstance(error, CellError):
            failure = InternalError(
                f"{what} for the log of agent {self.fold.agent!r} ended with {described(error)}; it is read from there again.",
                agent=self.fold.agent,
            )
        if self.failure is None and not self.is_closed and isinstance(failure, CellError):
            self.failure = failure
            self.is_unwritable = isinstance(error, MessageTooLarge)
        return failure if isinstance(error, Exception) else error

    def successor(self) -> Writer:
        """A writer for the one record that says why this one has failed.  Nothing of this one is on its way."""
        return Writer(self._log, self.fold, self.node, self.incarnation, self._rng, self._limit_s, self._wall)

    async def reaches(self, seq: int) -> bool:
        """False if the log ends before `seq`.  Raises `Fenced` if another node has appended to it, or a `RetryError`."""
        async with self._lock:
            fold = self.fold
            if seq <= fold.seq:
                return True
            last = await self._log.settled(log_subject(fold.agent))
            if last is not None and last.seq > fold.seq:
                raise self._fenced()
            return False

    async def check_owner(self) -> None:
        """Reads the end of the log, from any replica.  Raises `Fenced` if another node has appended to it, and what the store
        raises."""
        async with self._lock:
            last = await self._log.last(log_subject(self.fold.agent))
            if last is not None and last.seq > self.fold.seq:
                raise self._fenced()

    async def append_once(self, compose: Callable[[dict[str, Any]], R], timeout: float) -> R:
        """One try, for a handover.  Raises `Doubt` while the outcome is unknown: then the only append that may follow is a
        claim at the same place (rule 6)."""
        async with self._lock:
            record, data = self._compose(compose, False)
            try:
                async with asyncio.timeout(timeout):
                    entry = await self._entry(record, data)
                    seq = await self._try(record, entry)
            except TimeoutError as error:
                raise Doubt("no answer in time") from error
            except (Doubt, Fenced):
                raise
            except Exception as error:  # whatever the store raises: a claim at the same place decides
                logger.warning("agent %s: the handover's append failed: %s", self.fold.agent, described(error))
                raise Doubt(described(error)) from error
            self._took(seq, record, entry)
            return record

    def _compose(self, compose: Callable[[dict[str, Any]], R], claim: bool) -> tuple[R, bytes]:
        self.check()
        try:
            record = compose(self.head(claim=claim))
            self.fold.check(self.fold.seq + 1, record)  # type: ignore[arg-type]
            return record, encode_record(record)  # type: ignore[arg-type]
        except Exception as error:
            is_late = isinstance(error, RecordInvalid) and isinstance(error.__cause__, InvalidTransition)
            if is_late or isinstance(error, (Declined, Fenced, UsageError)):
                raise  # nothing was taken from the caller
            failure = self._failed("A record", error)
            self.is_unwritable = True
            raise failure from error

    async def _entry(self, record: Record, data: bytes) -> bytes:
        """The bytes to append: the record, or a short one that stands for it if the record is stored in parts."""
        if len(data) <= RECORD_BYTES_MAX:
            return data
        name = record.nonce.hex()
        refs = await parts.put_parts(self._log, part_subject(self.fold.agent, name), data)
        stand_in = Spilled(
            agent=record.agent, epoch=record.epoch, node=record.node, incarnation=record.incarnation,
            nonce=record.nonce, prev=record.prev, snap=record.snap, written=record.written, part=name,
            parts=list(refs),
        )  # fmt: skip
        return encode_record(stand_in)

    async def _try(self, record: Record, data: bytes) -> int:
        """The sequence of `data` in the log.  Raises `Doubt` or `Fenced`."""
        fold = self.fold
        if record.prev != fold.seq:
            raise InternalError(
                f"A record of agent {fold.agent!r} follows {record.prev}, and its fold is at {fold.seq}: somebody else folds on."
            )
        outcome = await self._log.append(log_subject(fold.agent), data, record.prev, made_owner(record))
        match outcome:
            case Appended(seq):
                return seq
            case Unknown(why):
                raise Doubt(why)
            case Conflict():
                return await self._decided(data)

    async def _decided(self, data: bytes) -> int:
        """Decides a conflict by what is in our place.  A read may prove that our record landed, never that it did not."""
        fold = self.fold
        entries = await self._log.read(log_subject(fold.agent), fold.seq, 1)
        if entries and entries[0].data == data:
            return entries[0].seq
        if not entries:
            last = await self._log.last(log_subject(fold.agent))
            end = last.seq if last is not None else 0
            if end < fold.seq:
                raise Behind(f"its log had acknowledged {fold.seq}, and ends at {end}")
            if last is not None and end > fold.seq:
                if last.data == data:
                    return last.seq
                entries = await self._log.read(log_subject(fold.agent), fold.seq, 1)
                if entries and entries[0].data == data:
                    return entries[0].seq
                if not entries:
                    raise Doubt("the log has moved, but the replica that answers has not")
            else:
                raise Doubt("a conflict was reported, but the log has not moved")
        raise self._fenced()

    def _fenced(self) -> Fenced:
        fold = self.fold
        return Fenced(
            f"Agent {fold.agent!r} was taken over while node {self.node} was in epoch {fold.epoch}; "
            "it goes on at its new owner, nothing that was acknowledged is lost.",
            agent=fold.agent, epoch=fold.epoch, node=self.node,
        )  # fmt: skip

    def _took(self, seq: int, record: Record, data: bytes) -> None:
        self.appended_bytes += len(data)
        self.appended_records += 1
        self.fold.settled(seq, record)  # type: ignore[arg-type]
        self.fold.behind_bytes += len(data)


async def append_failed(writer: Writer, error: CellError) -> None:
    """Puts the agent into ERROR from any state.  `writer` is that of its owner."""
    life = writer.fold.lifecycle
    if life.state is AgentState.PAUSED:  # from there no edge leads to ERROR
        await writer.append(lambda head: Suspended(**head, reason=error.message))
    before = life.error or life.left
    has_started = before.has_started if before is not None else life.state is not AgentState.CREATED
    reason = AgentError(message=error.message, code=error.code, has_started=has_started)
    await writer.append(lambda head: Failed(**head, error=reason))
