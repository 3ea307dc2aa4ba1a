"""A node: hosts the agents that the log gives it, answers requests, and looks for what it should host but does not (rule 4)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

from mielin_cells.core.agent import Agent
from mielin_cells.core.cell import Cell
from mielin_cells.core.cluster import AgentInfo
from mielin_cells.core.fold import Fold, Phase
from mielin_cells.core.ids import control_subject, log_subject, reply_subject
from mielin_cells.core.lifecycle import AgentState
from mielin_cells.core.message import decode_replies
from mielin_cells.core.policy import DEFAULT
from mielin_cells.core.records import Created, HandedOff, Spilled, decode_record, named_owner
from mielin_cells.core.settings import RETRY_S_MAX, RETRY_S_MIN, Settings
from mielin_cells.core.spec import Spec, spec_of
from mielin_cells.errors import (
    AgentTerminated,
    CellError,
    Fenced,
    InternalError,
    NodeCordoned,
    NodeStopping,
    NoSuchAgent,
    NoSuchMigration,
    RecordInvalid,
    RetryError,
    StateTooNew,
    StateUnloadable,
    UnknownClass,
    WrongClass,
    described,
)
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.node import (
    admit,
    claims,
    control,
    drain,
    orders,
    predict,
    questions,
    registry,
    standby,
    undo,
)
from mielin_cells.node.heartbeat import Beat
from mielin_cells.node.home import Home
from mielin_cells.node.host import Host
from mielin_cells.node.migrations import Migrations
from mielin_cells.node.parking import Parking, trouble
from mielin_cells.node.reader import known_agents, load, record_of
from mielin_cells.node.returns import Returns
from mielin_cells.node.target import Copy
from mielin_cells.node.together import together
from mielin_cells.node.writer import Writer
from mielin_cells.substrate.ports import Log, Subscription, Wire

T = TypeVar("T")

logger = logging.getLogger("mielin_cells.node")

LOOK_SUBJECTS = 256
"""Subjects looked at before the loop gets its turn."""

ADOPTIONS_MAX = 32
"""Agents that a node takes over at the same time when it starts, and lets go when it stops."""

LEAVE_S = 1.0
"""A stopping node's note in its own log is a hint, and does not wait longer for the store."""


class Node:
    """One incarnation of a node.  `start`, then `stop`; `kill` ends it as a crash would."""

    def __init__(
        self, name: str, log: Log, wire: Wire, classes: Callable[[str], type[Agent] | None], *,
        settings: Settings | None = None, rng: Random | None = None, wall: Callable[[], float],
        about: registry.Announcement | None = None, room: Callable[[], admit.Room] = admit.Room,
        recovery: RecoveryConfig | None = None, recovery_of: dict[str, dict[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.settings = settings or Settings()
        self.about = about or registry.Announcement()
        self.room = room
        """What is free for agents that move here; asked when one is offered."""
        self.place = registry.Place(0, 0)
        self.clock: Callable[[], float] = lambda: asyncio.get_running_loop().time()
        """Measures phases of moves; a loop's own time may be in whole milliseconds."""
        self.heard: Callable[[], list[Beat]] = list
        """Whose heartbeats this node has heard."""
        self.replaced: Callable[[int], None] | None = None
        """Called with the incarnation of a newer process of this name, once this one has stopped for it."""
        self._classes = classes
        self.hosts: dict[str, Host] = {}
        self.copies: dict[str, Copy] = {}
        self.migrations = Migrations(self, recovery or RecoveryConfig(), recovery_of or {})
        self.is_stopping = False
        self.is_leaving = False
        """It is about to stop, and takes no agents any more."""
        self.drains = drain.Drains(self)
        self.standbys = standby.Standbys(self)
        self.home = Home(name, 0, log, wire, rng or Random(), wall, self.settings, "", self._lost)
        self._taking: dict[str, asyncio.Task[Any]] = {}
        self.making: set[str] = set()
        """Agents that this node has just created or claimed, and whose hooks still run."""
        self._quiet: dict[str, int] = {}
        """Logs that were read and name another owner, with their last sequence then."""
        self.troubled: dict[str, AgentInfo] = {}
        """Agents that the log gives this node and that it cannot run, with the reason: they stay claimable."""
        self.moved: dict[str, int] = {}
        """Logs with their last sequence at the last round."""
        self.parking = Parking(self)
        self.returns = Returns(lambda: self.clock(), self.settings.reconcile_s)  # noqa: PLW0108 - a clock may be set
        self._subscriptions: list[Subscription] = []

    # ---- life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes an incarnation, then every agent that the log gives this node, then serves requests."""
        home = self.home
        self.place = await self._again(
            lambda: registry.enter(home.log, self.name, self.about, lambda: home.rng.randbytes(12))
        )
        home.incarnation = self.place.incarnation
        home.reply_to = reply_subject(f"{self.name}.{home.incarnation}")
        self._subscriptions = [
            await home.wire.subscribe(home.reply_to, self._replied),
            await home.wire.serve(control_subject(self.name), self._answer),
        ]
        home.begin(self._watch_name())
        await self._again(lambda: self.reconcile(every=True))
        home.begin(self._reconcile_for_ever())

    async def _again(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Until the store answers: a node that starts before its store waits for it."""
        delay = RETRY_S_MIN
        while True:
            try:
                return await work()
            except RetryError as error:
                logger.info("node %s waits for the store: %s", self.name, error)
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_S_MAX)

    async def _watch_name(self) -> None:
        """A newer process of this name takes the agents over: this one stops at once, and says so once."""
        newer = await registry.newer(self.home.log, self.name, self.place, self._changed)
        if newer and not self.is_stopping:
            logger.error(
                "node %s was started again as incarnation %d: this process, incarnation %d, stops at once; "
                "nothing that was acknowledged is lost", self.name, newer, self.home.incarnation,
            )  # fmt: skip
            self._close_all()
            self.kill()
            if self.replaced is not None:
                self.replaced(newer)

    @property
    def is_cordoned(self) -> bool:
        """It keeps the agents that it has, and takes no others."""
        return self.place.is_cordoned or self.is_leaving

    def _changed(self, entered: registry.Entered) -> None:
        """An operator has cordoned or uncordoned this node."""
        if entered.is_cordoned != self.place.is_cordoned:
            self.place = self.place._replace(is_cordoned=entered.is_cordoned)
            logger.info("node %s is %s", self.name, "cordoned" if entered.is_cordoned else "not cordoned any more")
        if not entered.is_cordoned:
            self.drains.stop()

    async def stop(self, turns_s: float | None = None) -> None:
        """Turns end, commits land, `on_depart` runs; the agents stay claimable.  Their inboxes keep what comes.

        A turn that takes longer than `turns_s` (default: as long as a move would wait for it) runs again elsewhere.
        """
        self.is_stopping = True
        limit = asyncio.Semaphore(ADOPTIONS_MAX)

        async def depart(host: Host) -> None:
            async with limit:
                await self._depart(host, self.settings.pause_s if turns_s is None else turns_s)

        await together(depart(host) for host in list(self.hosts.values()))
        self._close_all()
        if self.place.seq:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await registry.leave(self.home.log, self.name, self.place.incarnation, self.home.rng.randbytes(12))
        self.kill()
        if self.home.tasks:
            await asyncio.gather(*self.home.tasks, return_exceptions=True)

    def _close_all(self) -> None:
        for host in list(self.hosts.values()):
            self.drop(host)
        for copy in list(self.copies.values()):
            copy.close()
        self.standbys.close()
        self.migrations.close()

    async def _depart(self, host: Host, turns_s: float) -> None:
        if host.lost is not None:
            return
        try:
            await host.intake.stop(turns_s)
            if host.fold.may_run:
                await host.intake.hook("on_depart")
            await host.flush()
        except (CellError, TimeoutError) as error:
            logger.warning("agent %s was left in mid-turn by node %s: %s", host.fold.agent, self.name, error)
        except Exception as error:  # the user's hook: the node stops all the same, and what was committed stays
            logger.error(
                "agent %s: on_depart raised as node %s stopped: %s", host.fold.agent, self.name, described(error)
            )

    def kill(self) -> None:
        """Ends this incarnation without any farewell."""
        self.is_stopping = True
        for subscription in self._subscriptions:
            subscription.close()
        current = asyncio.current_task()
        for task in list(self.home.tasks):
            if task is not current:
                task.cancel()

    # ---- hosts -----------------------------------------------------------------------------------------------

    def spec(self, name: str) -> Spec:
        cls = self._classes(name)
        if cls is None:
            raise UnknownClass(
                f"Node {self.name} does not know the agent class {name!r}; import its module there.", name=name
            )
        return spec_of(cls)

    def writer(self, fold: Fold) -> Writer:
        return Writer(self.home.log, fold, self.name, self.home.incarnation, self.home.rng, self.settings.regression_s)

    def serve(self, host: Host) -> None:
        """The log says that this node owns the agent, and the agent is loaded."""
        former = self.hosts.get(host.fold.agent)
        if former is not None and former is not host:  # of an earlier epoch: it would find out at its next append
            self.drop(former)
        if self.is_stopping:  # since the claim was begun: the agent stays claimable
            host.close()
            return
        self.hosts[host.fold.agent] = host
        self.troubled.pop(host.fold.agent, None)  # whatever it was before the agent came here again, by a move
        host.open()
        self.standbys.arrived(host)

    def drop(self, host: Host) -> None:
        if self.hosts.get(host.fold.agent) is host:
            del self.hosts[host.fold.agent]
        host.close()

    def _lost(self, host: Host, error: Exception) -> None:
        if self.hosts.get(host.fold.agent) is host:
            del self.hosts[host.fold.agent]
            logger.warning("node %s: %s", self.name, error)
            self.returns.failed(host.fold.agent, error)
        self.parking.lost(host.fold.agent, host.fold.seq)

    # ---- reconcile -------------------------------------------------------------------------------------------

    def look(self, agent: str) -> None:
        """Reads who owns the agent, soon: the log may name this node."""
        if not self.is_stopping and agent not in self._taking:
            self._taking[agent] = self.home.start(self._look(agent))

    async def _look(self, agent: str) -> None:
        """Until the store has said whose it is, and has taken the claim if it is this node's."""
        try:
            await self.returns.rest(agent)
            while not await self._take_named(agent) and not self.is_stopping:
                await self.returns.rest(agent)
        finally:
            self._taking.pop(agent, None)

    async def reconcile(self, every: bool = False) -> None:
        """Ownership is what the log says, not what this node remembers.

        A log that has moved since the last look has an owner that appends: it is looked at once it has been still for a
        round.  `every`: look at all of them, as at the start.
        """
        limit = asyncio.Semaphore(ADOPTIONS_MAX)

        async def one(agent: str) -> None:
            async with limit:
                await self._take_named(agent)

        still = []
        acknowledged = self.parking.acknowledged()
        listed = await known_agents(self.home.log)
        await self.parking.look(dict(listed), acknowledged)
        for count, (agent, seq) in enumerate(listed, 1):
            if self.parking.is_behind(agent, seq, acknowledged.get(agent, 0)):
                continue
            moved, self.moved[agent] = self.moved.get(agent) != seq, seq
            host = self.hosts.get(agent)
            if host is not None and agent not in self.migrations.moves and seq > host.fold.seq:
                await self._check(host)
            elif host is None and agent not in self.copies and self._quiet.get(agent) != seq and (every or not moved):
                still.append(agent)
            if count % LOOK_SUBJECTS == 0:
                await asyncio.sleep(0)
        for start in range(0, len(still), LOOK_SUBJECTS):
            await together(one(agent) for agent in await self._maybe_ours(still[start : start + LOOK_SUBJECTS]))

    async def _maybe_ours(self, agents: list[str]) -> list[str]:
        """All but those whose logs name another node, read at least as far as they were listed: many cost hardly more than one."""
        by_subject, others = {log_subject(agent): agent for agent in agents}, set[str]()
        try:
            found = await self.home.log.lasts(list(by_subject))
        except CellError as error:
            logger.info("node %s looks at agents one by one: %s", self.name, error)
            return agents
        for subject, last in found.items():
            agent = by_subject[subject]
            if self.is_taken(agent) or last.seq < self.moved.get(agent, last.seq + 1):
                continue
            with contextlib.suppress(RecordInvalid):  # whoever looks at it alone says so
                record = decode_record(last.data, f"The log of agent {agent!r} at {last.seq}")
                if not isinstance(record, Spilled) and named_owner(record) != self.name:
                    others.add(agent)
                    self._others(agent, last.seq)
        return [agent for agent in agents if agent not in others]

    def _others(self, agent: str, seq: int) -> None:
        """Its log names another node up to `seq`, where it ended when it was read."""
        self._quiet[agent] = seq
        self.returns.gone(agent)
        self.troubled.pop(agent, None)

    async def _reconcile_for_ever(self) -> None:
        while not self.is_stopping:
            await asyncio.sleep(self.settings.reconcile_s)
            try:
                await self.reconcile()
                await self.migrations.settle_due()
                self.standbys.expire()
            except CellError as error:
                logger.warning(
                    "node %s looks for its agents again in %g s: %s", self.name, self.settings.reconcile_s, error
                )
            except Exception:  # a bug: the next round is needed all the more
                logger.exception("node %s: a look for its agents failed", self.name)

    async def _check(self, host: Host) -> None:
        """The log is ahead of a host: its own append may just be landing, or it has lost the agent."""
        last = await self.home.log.last(log_subject(host.fold.agent))
        if last is None or last.seq <= host.fold.seq:
            return
        try:
            record = await record_of(self.home.log, host.fold.agent, last)
        except RecordInvalid as error:
            host.lose(error)  # whatever it is: no append of this host can follow it
            return
        mine = record.node == self.name and record.incarnation == self.home.incarnation
        if not mine and self.hosts.get(host.fold.agent) is host and host.fold.agent not in self.migrations.moves:
            host.lose(Fenced(f"Agent {host.fold.agent!r} has another owner now.", agent=host.fold.agent))

    def is_taken(self, agent: str) -> bool:
        return agent in self.making or agent in self.parking

    async def _take_named(self, agent: str) -> bool:
        """Hosts the agent if its log names this node: by a claim, or in probation by verifying (rules 4, 5, 8).

        False if the store has not let this be found out or done: it is to be tried again.
        """
        if agent in self.hosts or agent in self.copies or self.is_taken(agent) or self.is_stopping:
            return True
        fold: Fold | None = None
        try:
            last = await self.home.log.last(log_subject(agent))
            if last is None or self.parking.is_behind(agent, last.seq):
                return True
            record = await record_of(self.home.log, agent, last)  # also of a handover that is in parts
            if named_owner(record) != self.name:
                self._others(agent, last.seq)
                return True
            fold = await load(self.home.log, agent)
            if fold.owner != self.name or agent in self.hosts or agent in self.copies or agent in self.making:
                return True
            if fold.phase is Phase.PROBATION:
                copy = self.copies[agent] = Copy(self, agent, fold.migration, self.spec(fold.cls))
                handed = record if isinstance(record, HandedOff) else None
                await copy.resume_probation(fold, handed)
            elif fold.phase is Phase.RUN and fold.goes_to not in ("", self.name):
                await undo.pass_on(self, fold)
            elif fold.phase is Phase.RUN:
                await claims.take(self, fold, "restarted")
        except (Fenced, NoSuchAgent):
            return True
        except RetryError as error:
            logger.info("node %s looks at agent %s again later: %s", self.name, agent, error)
            return not self.returns.failed(agent, error)
        except Exception as error:  # also a bug: of this agent alone
            if agent in self.hosts:  # it has come here meanwhile, by a move
                return True
            self._cannot_take(agent, fold, error)
            return not self.returns.failed(agent, error)
        self.troubled.pop(agent, None)
        return True

    def _cannot_take(self, agent: str, fold: Fold | None, error: Exception) -> None:
        why = error if isinstance(error, CellError) else InternalError(described(error), agent=agent)
        before = self.troubled.get(agent)
        self.troubled[agent] = trouble(self.name, agent, fold, why)
        if before is None or before.error != why.message:  # once: it is tried again in every round
            logger.error(
                "node %s cannot take agent %s, which stays claimable: %s", self.name, agent, why,
                exc_info=None if why is error else error,
            )  # fmt: skip

    async def take_again(self, agent: str) -> str:
        """Tries once more to run an agent that did not load; its state then.  Raises `StateUnloadable` with the reason."""
        self.returns.wake(agent)
        await self._take_named(agent)
        host = self.hosts.get(agent)
        if host is None:
            found = self.troubled.get(agent)
            reason = found.error if found is not None else "its log names another node"
            raise StateUnloadable(f"Agent {agent!r} still cannot run on {self.name}: {reason}", agent=agent)
        return host.fold.lifecycle.state.value

    # ---- requests --------------------------------------------------------------------------------------------

    def _replied(self, data: bytes) -> None:
        try:
            replies = decode_replies(data)
        except RecordInvalid as error:
            logger.warning("node %s: %s", self.name, error)
            return
        for some in replies:
            host = self.hosts.get(some.sender)
            if host is not None:
                host.replied(some)

    async def _answer(self, data: bytes) -> bytes:
        try:
            request = control.decode_request(data)
        except RecordInvalid as error:
            logger.warning("node %s: %s", self.name, error)
            return control.refused(error)
        try:
            return control.answered(await self._do(request))
        except CellError as error:
            return control.refused(error)
        except Exception as error:
            logger.exception("node %s: a request failed", self.name)
            return control.refused(InternalError(f"Node {self.name}: {described(error)}."))

    async def _do(self, request: control.AnyRequest) -> object:
        if self.is_stopping and not isinstance(request, control.Prepare):  # that one is told every reason
            raise NodeStopping(f"Node {self.name} is stopping; its agents stay claimable.")
        match request:
            case control.Spawn():
                return await self._spawn(request)
            case control.Migrate():
                return await self.migrations.start(request)
            case control.Predict(agent=agent, to=to):
                return await predict.predict(self, agent, to)
            case control.Abort(agent=agent):
                return await self.migrations.abort(agent)
            case control.Prepare():
                try:
                    await self.home.at("prepare")
                except CellError as error:
                    return control.Preparation([error.message])
                return admit.prepare(self, request)
            case control.Copy(agent=agent, migration=migration, seq=seq):
                copy = self.copies.get(agent)
                if copy is None or copy.migration != migration:
                    raise NoSuchMigration(f"{self.name} holds no copy for migration {migration}.", agent=agent)
                return await copy.reach(seq)
            case control.Release(agent=agent, migration=migration):
                copy = self.copies.get(agent)
                if copy is not None and copy.migration == migration:
                    copy.expire()
                return None
            case control.Order() | control.Purge() | control.Copies() | control.Undo():
                return await orders.carried_out(self, request)
            case control.Claim():
                return await claims.claim(self, request)
            case control.Claims(wishes=wishes):
                return await claims.claim_all(self, wishes)
            case control.Follow() | control.Look() | control.Drain():
                return await self._hinted(request)
            case _:
                return questions.answer(self, request)

    async def _hinted(self, request: control.Follow | control.Look | control.Drain) -> object:
        match request:
            case control.Follow():
                return self.standbys.follow(request)
            case control.Drain(name=name, deadline_s=deadline_s):
                return self.drains.begin(name, deadline_s) if name else await drain.planned(self)
            case control.Look(agent=agent):
                self.look(agent)
        return None

    def host(self, agent: str) -> Host:
        """Raises `NoSuchAgent` if the agent does not run here."""
        host = self.hosts.get(agent)
        if host is None and agent in self.troubled:
            why = self.troubled[agent].error
            raise StateUnloadable(
                f"Agent {agent!r} cannot run on {self.name}: {why} Mend it, then resume.", agent=agent
            )
        if host is None:
            raise NoSuchAgent(f"Node {self.name} does not run agent {agent!r}.", agent=agent)
        return host

    async def _spawn(self, request: control.Spawn) -> bool:
        agent, spec = request.agent, self.spec(request.cls)
        host = self.hosts.get(agent)
        if host is None:
            if request.version > spec.version:
                raise StateTooNew(
                    f"Agent {agent!r} was made for {spec.name} version {request.version}; {self.name} has {spec.version}.",
                    agent=agent, have=request.version, need=spec.version,
                )  # fmt: skip
            host = await self._create(request, spec)
        cls = host.fold.cls if host is not None else await self._existing(agent)
        if cls != request.cls:
            raise WrongClass(f"Agent {agent!r} exists and is a {cls}.", agent=agent, have=cls, need=request.cls)
        return True

    async def _existing(self, agent: str) -> str:
        fold = await load(self.home.log, agent)
        if fold.phase is Phase.TERMINATED:
            raise AgentTerminated(f"Agent {agent!r} has ended; its id is not used again.", agent=agent)
        if fold.owner == self.name:
            self.look(agent)
        return fold.cls

    async def _create(self, request: control.Spawn, spec: Spec) -> Host | None:
        """The new agent's host; None if the agent exists already."""
        fold = Fold(request.agent)
        fold.state.apply(request.state)
        cell = Cell(spec, fold.state, request.agent)
        writer = self.writer(fold)
        if await self.home.log.last(log_subject(request.agent)) is not None or request.agent in self.making:
            return None
        self.parking.check_new(request.agent)
        if self.is_cordoned:
            raise NodeCordoned(
                f"{self.name} is cordoned and takes no agents; `mielin uncordon {self.name}`.", node=self.name
            )
        self.migrations.config_of(spec.cls)  # raises now what would keep the agent from ever being moved
        self.making.add(request.agent)
        try:
            return await self._make(request, spec, cell, writer)
        finally:
            self.making.discard(request.agent)

    async def _make(self, request: control.Spawn, spec: Spec, cell: Cell, writer: Writer) -> Host | None:
        try:
            await writer.append(
                lambda head: Created(
                    **head,
                    cls=spec.name,
                    version=spec.version,
                    state=request.state,
                    at=self.home.wall(),
                    policy=spec.cls.__mielin_policy__ if spec.cls.__mielin_policy__ != DEFAULT else None,
                ),
                claim=True,
            )
        except Fenced:
            return None
        host = Host(self.home, spec, cell, writer)
        await self.arrive(host)
        self.serve(host)
        await host.flush()
        return host

    async def arrive(self, host: Host) -> None:
        """The hooks of an agent that becomes active here; `on_start` until it has taken effect once."""
        is_new = host.fold.lifecycle.state is AgentState.CREATED
        try:
            await host.intake.hook("on_arrive")
            if is_new:
                await host.intake.hook("on_start")
                host.touch()
        except Exception as error:  # whatever a user's hook raises: ERROR until it is resumed
            await host.failed(error, has_started=not is_new)
