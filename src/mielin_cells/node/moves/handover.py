"""The handover of an agent, and the way back: what a source appends to the agent's log, and reads there, from the seal on.

Rules 6 and 8: `HandedOff` is sent once; while its answer is unknown nobody runs, and the way back is a claim at the same place.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from mielin_cells.errors import Fenced, LogGap, RetryError, never
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import Accepted, Claimed, HandedOff, Returned
from mielin_cells.migration import source as m
from mielin_cells.migration.journal import migration_of
from mielin_cells.migration.outcome import restored
from mielin_cells.migration.validation import Manifest, MigrationValidator, RollbackInfo
from mielin_cells.node.activation.writer import Doubt
from mielin_cells.store.follower import LogFollower
from mielin_cells.store.reader import read_record
from mielin_cells.substrate.ports import Entry
from mielin_cells.tasks.supervision import Backoff

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation, Activations


class Handover:
    """Of one attempt."""

    def __init__(
        self, activations: Activations, activation: Activation, attempt: str, target: str, validator: MigrationValidator
    ) -> None:
        self.activations = activations
        self.activation = activation
        self.attempt = attempt
        self.target = target
        self._validator = validator
        self._follower: LogFollower | None = None
        self.is_sent = False
        """`HandedOff` may be in the log."""
        self.is_handed = False
        """`HandedOff` is in the log."""
        self.restored: dict[str, str] = {}
        """After a rollback that follows the seal: the verified state in which the agent continues."""

    def follow(self) -> None:
        """Follows the log from here on, so that the records after the handover are seen at once."""
        self._follower = LogFollower(self.activations.home.log, self.activation.fold)

    def close(self) -> None:
        if self._follower is not None:
            self._follower.close()

    async def hand_over(self) -> m.Event:
        activation = self.activation
        self.is_sent = True

        def compose(head: dict[str, Any]) -> HandedOff:
            seal = activation.sealed() if activation.has_unsealed else None
            sealed, policy = self._manifest(), activation.fold.policy
            info = RollbackInfo.sealed(
                activation.fold.agent,
                sealed,
                self.activations.clock(),
                policy=policy,
                source_node=self.activations.name,
            )
            self._validator.capture_rollback(migration_of(self.attempt), info, now=self.activations.clock())
            return HandedOff(**head, to=self.target, migration=self.attempt, seal=seal, digest=sealed.checksum)

        try:
            await activation.writer.append_once(compose, self.activations.settings.handover_s)
        except (Doubt, RetryError):
            return m.Doubtful()
        except Fenced:
            if activation.writer.is_closed:  # before it was sent
                return m.Overtaken(False)
            return await self._overtaken()
        self.is_handed = True
        activation.handed_over()
        return m.HandedOver()

    async def claim_back(self, *, is_in_doubt: bool) -> m.Event:
        """`is_in_doubt`: a record that is in the way may be this side's own handover."""
        activation = self.activation
        try:
            cause = f"claimed back from {self.target}"
            await activation.writer.append(lambda head: Claimed(**head, cause=cause, waits=False), claim=True)
            return m.ClaimedBack()
        except Fenced:
            if activation.writer.is_closed:
                raise  # nothing was met: the log alone tells the outcome
            if not is_in_doubt:
                return m.Overtaken(False)
        return await self._overtaken()

    async def _overtaken(self) -> m.Event:
        """The event for the record that took the place of this side's append: its own handover, which had landed, or a claim.

        Raises `LogGap` if that is trimmed already: then only the whole log tells the outcome.
        """
        activation, log = self.activation, self.activations.home.log
        entry = await self._taken()
        record = await read_record(log, activation.fold.agent, entry)
        if record.prev != activation.fold.seq:
            raise LogGap(
                f"The log of agent {activation.fold.agent!r} after record {activation.fold.seq} was trimmed.",
                have=activation.fold.seq,
                need=record.prev,
            )
        if not isinstance(record, HandedOff) or record.migration != self.attempt:
            return m.Overtaken(False)
        activation.fold.settled(entry.seq, record)  # the seal is in ledger and state already
        self.is_handed = True
        activation.handed_over()
        return m.Overtaken(True)

    async def _taken(self) -> Entry:
        """The record after the last one folded.  There is one, since a conditional append met it; a replica may lag."""
        fold, backoff = self.activation.fold, Backoff()
        while True:
            with contextlib.suppress(RetryError):
                entries = await self.activations.home.log.read(log_subject(fold.agent), fold.seq, 1)
                if entries:
                    return entries[0]
            await backoff.wait()

    async def watch(self) -> m.Event:
        """Waits for the record after the handover; silence for the length of a probation leads to a claim."""
        try:
            async with asyncio.timeout(self.activations.settings.probation_s):
                return await self._next()
        except TimeoutError:
            return m.Deadline()

    async def _next(self) -> m.Event:
        if self._follower is None:
            raise never("the log was not followed before the handover")
        match await self._follower.next():
            case Accepted():
                return m.SeenAccepted()
            case Returned(cause=cause, code=code):
                return m.SeenReturned(cause, code)
            case None:
                raise Fenced(f"The node stopped while agent {self.activation.fold.agent!r} was handed over.")
            case record:
                return m.SeenClaimed(record.node)

    def _manifest(self) -> Manifest:
        """State and ledger as they are; the digest is that of the seal."""
        fold = self.activation.fold
        return Manifest(checksum=fold.seal_digest(), size=fold.state.size_bytes)

    def undo(self) -> None:
        """Resumes an agent that is this node's again.  Raises `DigestMismatch` if it differs from the seal; it is then read again."""
        if self.is_handed:
            self.activation.deliver()
        elif self.is_sent:
            self.activation.unseal()
        if not self.is_sent:
            return
        migration, now = migration_of(self.attempt), self.activations.clock()
        self._validator.execute_rollback(migration, now=now)
        back_at = restored(self.activation.fold)
        details = ", ".join(f"{name} {value}" for name, value in back_at.items())
        self._validator.confirm_rollback(migration, self._manifest(), now=now, details=details)
        self.restored = back_at
