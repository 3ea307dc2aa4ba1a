"""Driving the target's machine: the copy that follows a log, and what makes it the owner (`migration.target` decides)."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from mielin_cells.agents.live import Cell
from mielin_cells.agents.spec import Spec
from mielin_cells.agents.upgrades import upgrade_state
from mielin_cells.errors import (
    CellError,
    DigestMismatch,
    Fenced,
    InternalError,
    RecordInvalid,
    described,
    never,
    storable,
)
from mielin_cells.log.fold import Fold
from mielin_cells.log.ledger import HASH_SLICE
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import Accepted, AnyRecord, HandedOff, Returned
from mielin_cells.migration import target as m
from mielin_cells.migration.journal import is_same_migration
from mielin_cells.migration.validation import Manifest, MigrationValidator
from mielin_cells.node.activation.activation import Activation
from mielin_cells.node.activation.writer import Writer
from mielin_cells.rpc import answers
from mielin_cells.store.follower import LogFollower
from mielin_cells.store.reader import load
from mielin_cells.tasks.limit import Limit

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations

logger = logging.getLogger("mielin_cells.migration")

READS = 3
"""How often a log is read from its snapshot before unusable bytes fail the copy."""


class Ends(Protocol):
    """Learns how a copy ends, and has the places for those that are loaded."""

    places: Limit

    def closed(self, copy: Copy) -> None:
        """The copy has stopped following its log."""

    def served(self, agent: str) -> None:
        """It has become the agent's owner."""


class Copy:
    """One migration on its target: a reservation, a fold that follows the log, then probation."""

    def __init__(
        self,
        activations: Activations,
        ends: Ends,
        validator: MigrationValidator,
        agent: str,
        migration: str,
        spec: Spec,
        reserved_bytes: int = 0,
        epoch: int = 0,
    ) -> None:
        self.activations = activations
        self._ends = ends
        self._validator = validator
        self._arrived: Manifest | None = None
        self.epoch = epoch
        """The agent's, when the reservation was made."""
        self.reserved_bytes = reserved_bytes
        """Memory and storage that are promised to no other agent while this copy is among the node's `Copies`."""
        self.agent = agent
        self.spec = spec
        self.machine = m.Target(migration)
        self.records = 0
        self.bytes = 0
        self._fold: Fold | None = None
        self._follower: LogFollower | None = None
        self._moved = asyncio.Event()
        self._handed: HandedOff | None = None
        self._activation: Activation | None = None
        self._error: CellError | None = None
        self._refused: CellError | None = None
        """The error with which the store refused the verdict: the agent is read again after a back-off."""
        # A reservation that no copy follows is dropped soon: its request may have come late.
        self._expiry = asyncio.get_running_loop().call_later(2 * activations.settings.prepare_s, self.expire)

    @property
    def migration(self) -> str:
        return self.machine.migration

    def expire(self) -> None:
        """The reservation has run out.  In probation this means nothing: there only the log ends it."""
        self.activations.home.begin(self.on(m.Expired()))

    async def on(self, event: m.Event | None) -> None:
        """The driver: feeds the machine and performs its effects, in order.

        An error that no effect expects ends the copy: the log, which this node reads again, says whose the agent is.
        """
        try:
            while event is not None:
                self.machine, effects = self.machine.on(event)
                event = None
                for effect in effects:
                    event = await self._perform(effect) or event
        except Exception as error:  # whatever the store raises, or a bug: of this copy alone
            logger.warning(
                "node %s drops its copy of agent %s: %s", self.activations.name, self.agent, described(error)
            )
            if not isinstance(error, CellError):
                error = InternalError(
                    f"The copy of agent {self.agent!r} ended with {described(error)}.", agent=self.agent
                )
            self._error = error
            self._dropped()
            self.activations.look(self.agent, error)

    async def _perform(self, effect: m.Effect) -> m.Event | None:
        match effect:
            case m.FoldAndTail():
                self.activations.home.begin(self._follow())
            case m.Verify():
                self._expiry.cancel()
                return await self._verify()
            case m.Accept():
                if self._activation is None:
                    raise never("self._activation is not None does not hold")
                return await self._append(self._activation.writer, None)
            case m.Return():
                if self._fold is None:
                    raise never("self._fold is not None does not hold")
                return await self._append(self.activations.writer(self._fold), effect)
            case m.Serve():
                if self._activation is None:
                    raise never("self._activation is not None does not hold")
                self.close()
                self.activations.serve(self._activation)
                self._ends.served(self.agent)
            case m.Drop():
                self._dropped()
                self.activations.look(self.agent, self._refused)
        return None

    def _dropped(self) -> None:
        self.close()
        if self._activation is not None:
            self._activation.close()

    def close(self) -> None:
        self._expiry.cancel()
        if self._follower is not None:
            self._follower.close()
        self._ends.closed(self)
        self._moved.set()

    # ---- copying ---------------------------------------------------------------------------------------------

    def adopt(self, attempt: str, epoch: int, state_bytes: int) -> bool:
        """Lets the next attempt of the same migration use this copy.  False if the copy cannot serve it.

        Only before a handover, and in the epoch that it was made in: the former attempt is over then without having given the
        agent to this node, since its source has begun another (rules 6 and 7).
        """
        if epoch != self.epoch or not is_same_migration(self.migration, attempt):
            return False
        self.machine, _ = self.machine.on(m.Adopted(attempt))
        if self.migration != attempt:
            return False
        settings, is_reserved = self.activations.settings, self.machine.phase is m.TargetPhase.RESERVED
        self.reserved_bytes = state_bytes
        self.records = self.bytes = 0
        self._keep_for(2 * settings.prepare_s if is_reserved else settings.migration_s)
        return True

    def _keep_for(self, seconds: float) -> None:
        """The reservation expires then, unless it is asked for again."""
        self._expiry.cancel()
        self._expiry = asyncio.get_running_loop().call_later(seconds, self.expire)

    async def reach(self, seq: int) -> answers.CopyReport:
        """Returns when the copy has folded the record at `seq`.  Raises what made the copy fail."""
        if self.machine.phase is m.TargetPhase.RESERVED:
            self._keep_for(self.activations.settings.migration_s)
        await self.on(m.CopyAsked())
        while (self._fold is None or self._fold.seq < seq) and not self.machine.phase.is_end and self._error is None:
            self._moved.clear()
            await self._moved.wait()
        if self._error is not None:
            raise self._error
        if self._fold is None:
            raise Fenced(f"The copy of agent {self.agent!r} was dropped.", agent=self.agent)
        return answers.CopyReport(self._fold.seq, self.records, self.bytes)

    async def _follow(self) -> None:
        """Folds the log to its end and on, until the agent has another owner.

        Bytes that were damaged on their way are read again before the copy counts as failed: what is stored may be right.
        """
        for reads_left in reversed(range(READS)):
            try:
                await self.activations.home.at("copy")
                await self._fold_and_tail()
                return
            except RecordInvalid as error:
                logger.warning(
                    "node %s: the log of agent %s could not be read; reading it again: %s",
                    self.activations.name,
                    self.agent,
                    error,
                )
                self._fold = None  # what it has reached does not count
                if not reads_left:
                    await self._failed(error)
            except CellError as error:
                await self._failed(error)
                return
            except Exception as error:
                await self._failed(InternalError(described(error), agent=self.agent))
                return

    async def _failed(self, error: CellError) -> None:
        self._error = error
        logger.warning("node %s: copying agent %s failed: %s", self.activations.name, self.agent, error)
        await self.on(m.Expired())

    async def _fold_and_tail(self) -> None:
        log = self.activations.home.log
        async with self._ends.places.place() as place:
            fold = await load(log, self.agent, hold=place.hold)
        if fold.epoch != self.epoch:  # handed over while it was read again: the node finds that in the log
            await self.on(m.Overtaken())
            return
        self._fold = fold
        self.bytes += fold.state.size_bytes
        while fold.ledger.hash_some(HASH_SLICE):
            await asyncio.sleep(0)
        self._moved.set()
        self._follower = follower = LogFollower(log, fold)
        if self.machine.phase.is_end:
            follower.close()
        try:
            while (record := await follower.next()) is not None:
                self.records += 1
                self.bytes += follower.size
                if fold.epoch != self.epoch or fold.phase is Phase.TERMINATED:
                    follower.detach()
                    await self._owned_by(record)
                    return
                if follower.has_more:
                    continue
                while fold.ledger.hash_some(HASH_SLICE):
                    await asyncio.sleep(0)
                fold.verify()  # batch by batch, while the source serves: all of it at the handover would be part of the pause
                self._moved.set()
        finally:
            follower.close()  # also one that was opened after `close`, by a load that was under way

    async def _owned_by(self, record: AnyRecord) -> None:
        if isinstance(record, HandedOff) and record.to == self.activations.name and record.migration == self.migration:
            self._handed = record
            await self.on(m.HandoverSeen())
        else:
            await self.on(m.Overtaken())

    async def resume_probation(self, fold: Fold, handed: HandedOff | None) -> None:
        """Verifies an agent in probation of which this node has no copy, because it was restarted or the copy was dropped."""
        self._fold, self._handed = fold, handed
        await self.on(m.HandoverSeen())

    # ---- probation -------------------------------------------------------------------------------------------

    async def _verify(self) -> m.Event:
        fold, activations = self._fold, self.activations
        if fold is None:
            raise never("a copy is verified that was never read")
        self._arrived = Manifest(checksum=fold.seal_digest(), size=fold.state.size_bytes)
        problem: Exception | None = None
        try:
            async with asyncio.timeout(activations.settings.probation_s / 2):
                await self._make_activation(fold)
        except (
            Exception
        ) as error:  # a hook, an upgrade or the probe may raise anything: the agent is returned with the cause
            problem = error
        sealed = self._arrived if self._handed is None else replace(self._arrived, checksum=self._handed.digest)
        result = self._validator.verify_post(
            self.migration, self.agent, sealed, self._arrived, agent_responsive=problem is None, now=activations.clock(),
            target=activations.name,
        )  # fmt: skip
        if result.passed:
            return m.Verified()
        problem = problem or DigestMismatch(result.details, subject=self.agent)
        logger.warning("node %s returns agent %s: %r", activations.name, self.agent, problem)
        return m.NotVerified(described(problem), storable(type(problem).__name__))

    async def _make_activation(self, fold: Fold) -> None:
        await self.activations.home.at("probe")
        if self._handed is not None and self._arrived is not None and self._arrived.checksum != self._handed.digest:
            raise DigestMismatch(
                f"The copy of agent {self.agent!r} on {self.activations.name} differs from what {fold.source} sealed.",
                subject=self.agent,
            )
        delta = upgrade_state(self.spec, fold.state, fold.version)
        if delta is not None:
            fold.state.apply(delta)
        cell = Cell(self.spec, fold.state, self.agent)
        activation = Activation(self.activations.home, self.spec, cell, self.activations.writer(fold))
        activation.adopt(delta)
        if fold.lifecycle.state.accepts_work:
            await activation.runner.hook("on_arrive")
            if self.spec.overrides("healthy") and not await cell.agent.healthy():
                raise RuntimeError("healthy() answered False")
        self._activation = activation

    async def _append(self, writer: Writer, back: m.Return | None) -> m.Event:
        """Appends the verdict and returns the event that follows.  If the store refuses it, the agent is read and verified again:
        nothing else ends a probation."""
        migration, source = self.migration, writer.fold.source
        try:
            if back is None:
                await writer.append(lambda head: Accepted(**head, migration=migration))
            else:
                cause, code = back.cause, back.code
                await writer.append(
                    lambda head: Returned(**head, to=source, migration=migration, cause=cause, code=code)
                )
        except Fenced:
            return m.Overtaken()
        except CellError as error:
            logger.warning("node %s could not accept or return agent %s: %s", self.activations.name, self.agent, error)
            self._refused = error
            return m.Overtaken()
        return m.Acknowledged()
