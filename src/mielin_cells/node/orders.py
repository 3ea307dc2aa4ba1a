"""Operators' orders to one agent, carried out between turns by its owner."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mielin_cells.agents.agent import STANDBY_MAX
from mielin_cells.agents.reports import AgentInfo
from mielin_cells.errors import (
    AskTimeout,
    EpochRegression,
    HandlerFailed,
    InvalidTransition,
    RecordInvalid,
    StoreUnreachable,
    SupervisionFailed,
    UsageError,
    described,
)
from mielin_cells.log.commit import LetterKey
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.log.records import Cleared, Paused, Record, Resumed, StandbySet, Suspended, Terminated
from mielin_cells.node.activation.writer import Declined, append_failed
from mielin_cells.node.attributes.announcer import announce_end
from mielin_cells.node.family.kinship import END, kinship_of
from mielin_cells.node.ownership import quarantine
from mielin_cells.node.waits.desk import wait_infos
from mielin_cells.redaction import scrubbed
from mielin_cells.rpc import requests
from mielin_cells.rpc.serve import Handlers

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation, Activations
    from mielin_cells.node.moves.manager import Migrations
    from mielin_cells.node.ownership.adoption import Adoption
    from mielin_cells.node.ownership.standby import Standbys

R = TypeVar("R", bound=Record)
T = TypeVar("T")

logger = logging.getLogger("mielin_cells.orders")


class _IsThere(Declined):
    """Another order for the same state was first."""


class _BetweenTurns:
    """Runs a block while no turn runs and all turns are committed.  Raises `AskTimeout` if the running turn does not end.

    It is no generator: one of a process that was killed would be closed by the garbage collector, without an event loop.
    """

    def __init__(self, activation: Activation, order: str, limit_s: float) -> None:
        self._activation = activation
        self._order = order
        self._limit_s = limit_s

    async def stop_intake(self) -> None:
        try:
            await self._activation.intake.stop(self._limit_s)
        except TimeoutError as error:
            agent = self._activation.fold.agent
            said = f"Agent {agent!r} is in a turn that does not end; it was not told to {self._order}."
            raise AskTimeout(said) from error

    async def __aenter__(self) -> None:
        await self.stop_intake()
        try:
            await self._activation.flush_within(self._limit_s)
        except BaseException:
            self._activation.resume_intake()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._activation.resume_intake()


class Orders:
    """Carries out orders to the agents of one node."""

    def __init__(
        self, activations: Activations, migrations: Migrations, standbys: Standbys, adoption: Adoption
    ) -> None:
        self._activations = activations
        self._migrations = migrations
        self._standbys = standbys
        self._adoption = adoption

    def info(self, activation: Activation) -> AgentInfo:
        fold, move = activation.fold, self._migrations.open.get(activation.fold.agent)
        error, running, family = fold.lifecycle.error, activation.runner.running, fold.ledger.family
        return AgentInfo(
            id=fold.agent, cls=fold.cls, version=fold.version, node=self._activations.name, epoch=fold.epoch, state=fold.status.value,
            waiting=activation.inbox.waiting_in_all, bytes=fold.size_bytes, migration=move.migration if move is not None else "",
            dead=len(fold.ledger.dead), error=scrubbed(error.message) if error is not None else "",
            code=error.code if error is not None else "", policy=fold.policy, standby=self._standbys.followers_of(fold.agent),
            running=running[0], running_s=running[1], at=fold.written, parent=family.of if family is not None else "",
            children=len(family.children) if family is not None else 0, waits=wait_infos(fold, activation.desk),
        )  # fmt: skip

    def info_of(self, agent: str) -> AgentInfo | None:
        """An agent that runs here, in memory or not."""
        activation, sleeper = self._activations.live.get(agent), self._activations.asleep.get(agent)
        if activation is not None:
            return self.info(activation)
        return sleeper.info(self._activations.name, self._standbys.followers_of(agent)) if sleeper is not None else None

    @property
    def handlers(self) -> Handlers:
        return {
            requests.Order: lambda request: self.obey(request.agent, request.order, request.reason),
            requests.PurgeLetters: lambda request: self._with(
                request.agent, lambda one: self.purge(one, request.letters)
            ),
            requests.CancelTimer: lambda request: self._with(
                request.agent, lambda one: self.cancel_timer(one, request.timer)
            ),
            requests.SetCopies: lambda request: self._with(
                request.agent, lambda one: self.stand_by(one, request.copies)
            ),
        }

    async def _with(self, agent: str, work: Callable[[Activation], Awaitable[T]]) -> T:
        """Carries an order out to the agent, which is woken for it, and stays in memory meanwhile."""
        activation = await self._activations.awake(agent)
        with activation.kept():
            return await work(activation)

    async def obey(self, agent: str, order: str, reason: str) -> str:
        """Suspends, pauses, resumes or terminates the agent, and returns its state.  An order for the present state does nothing.

        Raises `InvalidTransition` for an edge that the lifecycle does not have, and `AskTimeout` if the turn does not end.
        """
        wanted = {
            "suspend": AgentState.SUSPENDED,
            "pause": AgentState.PAUSED,
            "resume": AgentState.RUNNING,
            "terminate": AgentState.TERMINATED,
            END: AgentState.TERMINATED,
        }.get(order)
        if order == "quarantine":
            return await self._quarantine(agent, reason)
        if order == "restart":
            return await self._with(agent, partial(self._restart, int(reason)))
        if order == "fail":
            return await self._with(agent, partial(self._fail, reason))
        if order == "reload":
            activation = await self._activations.awake(agent)
            return await self._renew(agent) if activation.fold.may_run else activation.fold.lifecycle.state.value
        if order == "renew":
            return await self._renew(agent)
        if wanted is None:
            raise UsageError(f"There is no order {order!r}; there are suspend, pause, resume and terminate.")
        if wanted is AgentState.RUNNING and agent in self._activations.unloadable:
            await self._adoption.take_again(agent)  # behind it the log may say that the agent is suspended
        return await self._with(agent, partial(self._enter, order, reason, wanted))

    async def _enter(self, order: str, reason: str, wanted: AgentState, activation: Activation) -> str:
        fold, agent = activation.fold, activation.fold.agent
        if fold.lifecycle.state is wanted:
            return wanted.value
        is_reread = False
        if wanted is AgentState.TERMINATED:
            await self._migrations.give_up(agent)
        with contextlib.suppress(_IsThere):
            async with self._between_turns(activation, order):
                match wanted:
                    case AgentState.SUSPENDED:
                        await _enter(activation, wanted, lambda head: Suspended(**head, reason=reason))
                    case AgentState.PAUSED:
                        await _enter(activation, wanted, lambda head: Paused(**head, reason=reason))
                    case AgentState.RUNNING:
                        is_reread = quarantine.is_quarantined(fold) and await quarantine.accept_loss(activation)
                        await _resume(activation)
                        activation.fulfil()
                    case _:
                        try:
                            await self._terminate(activation)
                        except BaseException:
                            if activation.is_open and is_ending(activation):  # everybody was told that it ends
                                activation.fulfil()
                            raise
        if wanted is AgentState.TERMINATED:
            announce_end(activation)
            self._activations.drop(activation)
        elif is_reread:
            self._activations.drop(activation)
            self._activations.look(agent)
        return fold.lifecycle.state.value

    async def _restart(self, failure: int, activation: Activation) -> str:
        """By its parent: resumes an agent that is in ERROR by its failure of this number.  A late or repeated order does nothing."""
        fold = activation.fold
        async with self._between_turns(activation, "restart"):
            family = fold.ledger.family
            if fold.lifecycle.state is AgentState.ERROR and family is not None and family.failed == failure:
                await _resume(activation, failure)
        return fold.lifecycle.state.value

    async def _fail(self, reason: str, activation: Activation) -> str:
        """Puts the agent in ERROR, as its last turn has ordered."""
        async with self._between_turns(activation, "fail"):
            wish = activation.fold.wish
            if wish is not None and wish.order == "fail":
                await activation.failed(SupervisionFailed(reason, agent=activation.fold.agent))
        return activation.fold.lifecycle.state.value

    async def _quarantine(self, agent: str, reason: str) -> str:
        """Quarantines the agent, because a client remembers more than the store has.  No state of the agent forbids this."""
        activation = await self._activations.awake(agent)
        async with self._between_turns(activation, "be quarantined"):
            if not quarantine.is_quarantined(activation.fold):
                try:
                    await append_failed(activation.writer, EpochRegression(reason, agent=agent))
                except BaseException:
                    await activation.unappended()
                    raise
                if activation.fold.ledger.family is not None:
                    kinship_of(activation).tell()
        return activation.fold.lifecycle.state.value

    async def _renew(self, agent: str) -> str:
        """Reads the agent from its log with its newer class, which was defined again in this process (a cell of a notebook)."""
        activation = self._activations.running(agent)
        await self._between_turns(activation, "be read again").stop_intake()
        try:
            if activation.fold.may_run:
                await activation.runner.hook("on_depart")
            await self._flush(activation)
        except Exception as error:  # whatever a user's hook raises: the agent is read again all the same
            logger.warning("agent %s: on_depart raised, of a class that was defined again: %s", agent, described(error))
        self._activations.drop(activation)
        self._activations.look(agent)
        return activation.fold.lifecycle.state.value

    async def purge(self, activation: Activation, letters: list[LetterKey]) -> int:
        """Removes dead letters for good, and returns how many of `letters` there were."""
        async with self._between_turns(activation, "purge dead letters"):
            there = {letter.key for letter in activation.fold.ledger.dead}.intersection(letters)
            if there:
                await activation.append(lambda head: Cleared(**head, letters=sorted(there)), at_once=True)
        return len(there)

    async def cancel_timer(self, activation: Activation, timer: str) -> bool:
        """Cancels a timer; False if there is none of this id."""
        async with self._between_turns(activation, "cancel a timer"):
            if timer not in activation.fold.ledger.timers:
                return False
            activation.timers.take({timer: None}, {})
            await self._flush(activation)
        return True

    async def stand_by(self, activation: Activation, copies: int) -> None:
        """Sets how many nodes keep a copy of the agent; fewer do if there are not enough nodes."""
        if not 0 <= copies <= STANDBY_MAX:
            raise UsageError(f"{copies} copies of an agent are out of range; wanted: 0 to {STANDBY_MAX}.")
        async with self._between_turns(activation, "be kept in copies"):
            await activation.append(lambda head: StandbySet(**head, copies=copies), at_once=True)
        self._standbys.served(activation)

    def _between_turns(self, activation: Activation, order: str) -> _BetweenTurns:
        return _BetweenTurns(activation, order, self._activations.settings.turn_deadline_s)

    async def _flush(self, activation: Activation) -> None:
        await activation.flush_within(self._activations.settings.turn_deadline_s)

    async def _terminate(self, activation: Activation) -> None:
        """Terminates once all that the agent sent is stored (rule 20).  Raises `StoreUnreachable` if that takes too long."""
        if activation.fold.may_run and not is_ending(activation):
            try:
                await activation.runner.hook("on_stop")
            except (
                Exception
            ) as error:  # whatever a user's hook raises: ERROR; an agent in ERROR is terminated without its hook
                await activation.failed(error)
                agent = activation.fold.agent
                raise HandlerFailed(
                    f"on_stop of agent {agent!r} raised {described(error)}; the agent is in ERROR and was not terminated. Resume "
                    "it, or terminate it again, which skips the hook.", agent=agent, handler="on_stop",
                ) from error  # fmt: skip
        if activation.fold.ledger.family is not None and not is_ending(activation):
            kinship_of(activation).end()
        await self._flush(activation)
        try:
            async with asyncio.timeout(self._activations.settings.turn_deadline_s):
                await activation.outbox.drained()
        except TimeoutError:
            agent = activation.fold.agent
            raise StoreUnreachable(
                f"Agent {agent!r} was not terminated: messages that it has sent are not stored yet. Try again.",
                agent=agent,
            ) from None
        activation.touch()
        await self._flush(activation)
        await _enter(activation, AgentState.TERMINATED, lambda head: Terminated(**head))


def is_ending(activation: Activation) -> bool:
    wish = activation.fold.wish
    return wish is not None and wish.order == END


async def _enter(activation: Activation, wanted: AgentState, compose: Callable[[dict[str, Any]], R]) -> None:
    """Appends the record that leads to a state, unless another order has led there first.

    Raises `InvalidTransition` if the state cannot be reached any more.
    """

    def composed(head: dict[str, Any]) -> R:
        if activation.fold.lifecycle.state is wanted:
            raise _IsThere
        return compose(head)

    try:
        await activation.append(composed, at_once=True)
    except RecordInvalid as error:
        if isinstance(error.__cause__, InvalidTransition):
            raise error.__cause__ from None
        raise


async def _resume(activation: Activation, failure: int = 0) -> None:
    fold = activation.fold
    fold.lifecycle.to(AgentState.RUNNING)  # refused before any hook runs
    error = fold.lifecycle.error or fold.lifecycle.left
    has_started = error is None or error.has_started
    try:
        await activation.runner.hook("on_arrive")
        if not has_started:
            await activation.runner.hook("on_start")
    except Exception as raised:  # whatever a user's hook raises: the agent stays stopped, and its log says why
        await activation.failed(raised, has_started=has_started)
        return
    await _enter(activation, AgentState.RUNNING, lambda head: Resumed(**head, failure=failure))
    if fold.ledger.family is not None:
        kinship_of(activation).open()
    await activation.flush()
