"""Undoing a completed migration on purpose: the owner reads the agent as it was, appends `Undone`, and has a node claim the agent.

`log.undo` builds the record.  No node runs the agent between the record and the claim, so the messages that came since are taken by
the code that was asked for (rules 16 and 17).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from mielin_cells.agents.reports import NodeInfo
from mielin_cells.errors import (
    AskTimeout,
    CellError,
    ClaimRefused,
    Fenced,
    LogGap,
    MigrationInProgress,
    NoSuchMigration,
    RetryError,
    RollbackExpired,
    UnknownNode,
    UsageError,
)
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import Undone
from mielin_cells.log.undo import Undoing
from mielin_cells.migration.journal import TakenBack
from mielin_cells.migration.refusal import Refusal, as_refusal, kinds
from mielin_cells.node.activation.writer import Declined
from mielin_cells.node.moves.journal import JournalWriter
from mielin_cells.node.ownership.claims import Claims, elsewhere
from mielin_cells.rpc import answers, requests
from mielin_cells.rpc.call import call
from mielin_cells.rpc.planned import prepare
from mielin_cells.store import journal
from mielin_cells.store.reader import READ_RECORDS, load_at, read_record

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation, Activations
    from mielin_cells.node.moves.manager import Migrations
    from mielin_cells.substrate.ports import Log

logger = logging.getLogger("mielin_cells.migration")

CLAIM_S = 2.0
"""Timeout of one request to the chosen node.  The request is repeated for as long as a move's probation lasts."""

RETRY_S = 0.1


class _Moved(Declined):
    """A record was appended after the log was read, so the log is read further."""


class Undoes:
    """Undoes migrations of agents that this node owns."""

    def __init__(self, activations: Activations, migrations: Migrations, claims: Claims) -> None:
        self._activations = activations
        self._migrations = migrations
        self._claims = claims

    async def undo(self, request: requests.Undo) -> answers.UndoPlan:
        """Undoes the migration, unless the plan that is returned has reasons against it, or the request is dry.

        Raises `NoSuchAgent`, `Fenced` if the agent has another owner than was planned for, `MigrationInProgress`,
        `NoSuchMigration`, `UsageError` for one that did not complete or is undone with an earlier one, `RollbackExpired`,
        `UnknownNode`, `AskTimeout` if the turn that runs does not end: then nothing was done either.
        """
        activation = await self._activations.awake(request.agent)
        with activation.kept():
            return await self._undo(activation, request)

    async def _undo(self, activation: Activation, request: requests.Undo) -> answers.UndoPlan:
        fold = activation.fold
        if fold.epoch != request.epoch or fold.phase is not Phase.RUN:
            raise Fenced(f"Agent {fold.agent!r} has changed its owner; plan the rollback again.", agent=fold.agent)
        await self._migrations.settling.one_due(fold.agent)  # a migration that lost its source may go on from here
        moving = self._migrations.open.get(fold.agent)
        if moving is not None:
            raise MigrationInProgress(
                f"Agent {fold.agent!r} is being moved by {moving.migration}; wait for its end, or abort it.",
                agent=fold.agent, migration=moving.migration,
            )  # fmt: skip
        back = await load_at(self._activations.home.log, fold, handover_of(fold, request.migration))
        if lost := back.lost_of(fold):
            needs, kept, which = lost
            raise RollbackExpired(
                f"Migration {request.migration} of agent {fold.agent!r} cannot be undone: what it would take again begins at "
                f"{needs} of its {which}inbox, which is kept from {kept} on.",
                agent=fold.agent, migration=request.migration,
            )  # fmt: skip
        undoing = Undoing(back)
        await _read_on(self._activations.home.log, undoing, fold.seq)
        goes_to, reasons = await self._chosen(undoing.back, request)
        extent = undoing.extent
        plan = answers.UndoPlan(
            agent=fold.agent, migration=request.migration, node=self._activations.name, goes_to=goes_to, record=undoing.back.seq,
            version=fold.version, version_then=undoing.back.version, messages=extent.messages, sent=extent.sent,
            steps=extent.steps, answered=extent.answered, state=fold.lifecycle.state.value,
            state_then=undoing.back.lifecycle.state.value, reasons=[str(one) for one in reasons], kinds=kinds(reasons),
        )  # fmt: skip
        if reasons or request.is_dry:
            return plan
        await self._append(activation, undoing, request, goes_to)
        self._activations.drop(activation)
        self._activations.home.begin(self._note(plan))
        trouble = await self.claim_at(goes_to, fold.agent, f"rollback of {request.migration}")
        return msgspec.structs.replace(plan, trouble=trouble)

    async def _append(self, activation: Activation, undoing: Undoing, request: requests.Undo, goes_to: str) -> None:
        fold = activation.fold

        def compose(head: dict[str, Any]) -> Undone:
            if undoing.seq > fold.seq:  # not a record of this activation: another node has appended
                raise Fenced(f"Agent {fold.agent!r} has another owner now; plan the rollback again.", agent=fold.agent)
            if undoing.seq != fold.seq:
                raise _Moved
            _ = handover_of(fold, request.migration)  # it may have been trimmed, or undone, since
            fields = undoing.fields(fold)
            return Undone(**head, goes_to=goes_to, migration=request.migration, corrects=request.corrects, **fields)

        try:
            await activation.intake.stop(self._activations.settings.turn_deadline_s)
        except TimeoutError as error:
            raise AskTimeout(
                f"Agent {fold.agent!r} is in a turn that does not end; it was not rolled back and goes on.",
                agent=fold.agent,
            ) from error
        try:
            await activation.flush()
            await activation.seal_ready()
            while True:
                await _read_on(self._activations.home.log, undoing, fold.seq)
                try:
                    await activation.append(compose)
                    return
                except _Moved:
                    continue
        except Fenced as error:
            activation.lose(error)
            raise
        except BaseException:
            activation.resume_intake()  # nothing was appended, and the agent goes on as it was
            raise

    async def _chosen(self, back: Fold, request: requests.Undo) -> tuple[str, list[Refusal]]:
        """Chooses the node on which the agent continues; returns it with its reasons against the agent.

        It is the node that the request names; else one that has the class as it was and takes the agent, preferably the migration's
        source; if none takes it, the first of them.

        Raises `UnknownNode` if there is none.
        """
        if request.to:
            return request.to, await self._refusals(request.to, back)
        nodes = self._activations.members.table.infos()

        def fits(info: NodeInfo) -> bool:
            return not info.is_reserved and (not info.classes or info.classes.get(back.cls) == back.version)

        able = sorted(
            (info for info in nodes if fits(info)),
            key=lambda info: (info.name != request.prefer, info.agents, info.name),
        )
        if not able:
            raise UnknownNode(
                f"No node that serves has {back.cls} as of version {back.version}, which agent {back.agent!r} ran at that time. "
                "Start one with that code, or name a node: a newer one takes the messages with its own code.",
                node="", nodes=[info.name for info in nodes],
            )  # fmt: skip
        first: list[Refusal] = []
        for info in able:
            reasons = await self._refusals(info.name, back)
            if not reasons:
                return info.name, []
            first = first or reasons
        return able[0].name, first

    async def _refusals(self, goes_to: str, back: Fold) -> list[Refusal]:
        """Every reason of a node against taking the agent as it was."""
        if goes_to == self._activations.name:
            return []
        try:
            request = prepare(back, self._activations.name)
            return list((await call(self._activations.home.wire, goes_to, request, CLAIM_S)).refusals)
        except RetryError as error:
            return [as_refusal(f"{goes_to} does not answer ({error.code})")]

    async def claim_at(self, goes_to: str, agent: str, cause: str) -> str:
        """Has a node claim the agent; returns why it did not, or ""."""
        if goes_to == self._activations.name:
            try:
                await self._claims.claim(requests.Claim(agent, cause))
                return ""
            except CellError as error:
                return error.message
        request = requests.Claim(agent, cause)
        until = self._activations.clock() + self._activations.settings.probation_s
        while True:
            try:
                await call(self._activations.home.wire, goes_to, request, CLAIM_S)
                return ""
            except (RetryError, Fenced) as error:  # `Fenced`: the node is at it, or another one was first
                why = error.message
            except CellError as error:
                return error.message
            if self._activations.clock() > until:
                return why
            await asyncio.sleep(RETRY_S)

    async def pass_on(self, fold: Fold) -> None:
        """Asks the chosen node to claim an undone agent, which the log still gives to this node.

        Raises `ClaimRefused`, which says what an operator can do, while the node does not.
        """
        trouble = await self.claim_at(fold.goes_to, fold.agent, "rollback")
        if trouble:
            raise ClaimRefused(elsewhere(fold, trouble), agent=fold.agent, node=fold.goes_to)

    async def _note(self, plan: answers.UndoPlan) -> None:
        """Notes in the migration's journal that it was undone.  The note is for people: nothing depends on it."""
        try:
            fold = await journal.read(self._activations.home.log, plan.agent, plan.migration)
            writer = JournalWriter(self._activations.home, plan.agent, plan.migration, fold)
            await writer.write(
                lambda head: TakenBack(
                    **head, goes_to=plan.goes_to, record=plan.record, messages=plan.messages, sent=plan.sent
                )
            )
        except CellError as error:
            logger.warning("migration %s was undone, but its journal could not be written: %s", plan.migration, error)


def handover_of(fold: Fold, migration: str) -> int:
    """The sequence of the migration's handover.  Raises the error that says why the migration cannot be undone."""
    mine = [one for one in fold.handed if one == migration or one.startswith(f"{migration}.")]
    done = [one for one in mine if fold.outcomes.get(one) == "completed"]
    if not done:
        if mine or any(one.startswith(f"{migration}.") for one in fold.outcomes):
            raise UsageError(
                f"Migration {migration} of agent {fold.agent!r} did not complete; there is nothing to undo."
            )
        raise NoSuchMigration(
            f"The log of agent {fold.agent!r} has no completed migration {migration}: it never began a handover, or "
            "is too old to be undone.", agent=fold.agent, migration=migration,
        )  # fmt: skip
    seq = fold.handed[done[-1]]
    if seq < fold.floor:
        raise RollbackExpired(
            f"Migration {migration} of agent {fold.agent!r} cannot be undone: its log is kept from {fold.floor} on, and it handed "
            f"over at {seq}. The setting retention_s says for how long logs are kept.",
            agent=fold.agent, migration=migration,
        )  # fmt: skip
    if not fold.is_ancestor(seq):
        raise UsageError(f"Migration {migration} of agent {fold.agent!r} is undone: a rollback went back to before it.")
    return seq


async def _read_on(log: Log, undoing: Undoing, end: int) -> None:
    agent = undoing.back.agent
    while undoing.seq < end:
        entries = await log.read(log_subject(agent), undoing.seq, READ_RECORDS)
        if not entries:
            raise LogGap(
                f"The log of agent {agent!r} has nothing after record {undoing.seq}.", have=undoing.seq, need=end,
                subject=agent,
            )  # fmt: skip
        for entry in entries:
            record = await read_record(log, agent, entry)
            if record.prev != undoing.seq:
                raise RollbackExpired(
                    f"The log of agent {agent!r} was trimmed at {entry.seq} while it was read for a rollback.",
                    agent=agent,
                )
            undoing.saw(entry.seq, record)
        await asyncio.sleep(0)
