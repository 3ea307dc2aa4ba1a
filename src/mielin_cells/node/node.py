"""A node: hosts the agents that the log gives it, answers requests, and looks for what it should host but does not (rule 4)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

from mielin_cells.agents.agent import Agent
from mielin_cells.agents.live import Cell
from mielin_cells.agents.reports import AgentInfo
from mielin_cells.agents.spec import Spec, spec_of
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
    StoreFull,
    UnknownClass,
    WrongClass,
    described,
)
from mielin_cells.log.fold import Fold, Phase
from mielin_cells.log.ids import control_subject, log_subject, reply_subject
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.log.message import decode_replies
from mielin_cells.log.policy import DEFAULT
from mielin_cells.log.records import Created
from mielin_cells.membership import table
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.migration.refusal import told
from mielin_cells.node import drain, orders, questions
from mielin_cells.node.activation import overdue
from mielin_cells.node.activation.activation import Host
from mielin_cells.node.activation.context import Home
from mielin_cells.node.activation.steps import is_failure
from mielin_cells.node.activation.writer import Writer
from mielin_cells.node.moves import admission, preview
from mielin_cells.node.moves.manager import Migrations
from mielin_cells.node.moves.target import Copy
from mielin_cells.node.ownership import claims, standby
from mielin_cells.node.ownership.adoption import ADOPTIONS_MAX, Adoption
from mielin_cells.node.ownership.quarantine import Parking
from mielin_cells.node.ownership.returns import Returns
from mielin_cells.rpc import answers, requests
from mielin_cells.rpc.answers import Beat
from mielin_cells.settings import Settings
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Log, Subscription, Wire
from mielin_cells.tasks.supervision import Backoff, Duties, supervised
from mielin_cells.tasks.together import together

T = TypeVar("T")

logger = logging.getLogger("mielin_cells.node")

LEAVE_S = 1.0
"""A stopping node's note in its own log is a hint, and does not wait longer for the store."""


class Node:
    """One incarnation of a node.  `start`, then `stop`; `kill` ends it as a crash would."""

    def __init__(
        self, name: str, log: Log, wire: Wire, classes: Callable[[str], type[Agent] | None], *,
        settings: Settings | None = None, rng: Random | None = None, wall: Callable[[], float],
        about: table.Announcement | None = None, room: Callable[[], admission.Room] = admission.Room,
        recovery: RecoveryConfig | None = None, recovery_of: dict[str, dict[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.settings = settings or Settings()
        self.about = about or table.Announcement()
        self.room = room
        """What is free for agents that move here; asked when one is offered."""
        self.place = table.Place(0, 0)
        self.clock: Callable[[], float] = lambda: asyncio.get_running_loop().time()
        """Measures phases of moves; a loop's own time may be in whole milliseconds."""
        self.heard: Callable[[], list[Beat]] = list
        """Whose heartbeats this node has heard."""
        self.replaced: Callable[[int], None] | None = None
        """Called once this process has stopped for a newer one of its name, with that one's incarnation, or given up, with its own."""
        self._classes = classes
        self.hosts: dict[str, Host] = {}
        self.copies: dict[str, Copy] = {}
        self.migrations = Migrations(self, recovery or RecoveryConfig(), recovery_of or {})
        self.is_stopping = False
        self.is_starting = True
        """It has entered, and still takes over the agents that the log gives it."""
        self.refused_at: float | None = None
        """Since when the store has refused this node's failover, or has not answered it; None while it answers."""
        self.waits_for_room = True
        """On a full store it waits to start; False: `StoreFull` is raised."""
        self.is_leaving = False
        """It is about to stop, and takes no agents any more."""
        self.drains = drain.Drains(self)
        self.standbys = standby.Standbys(self)
        self.home = Home(name, 0, log, wire, rng or Random(), wall, self.settings, "", self._lost)
        self.home.obey = functools.partial(orders.obey, self)
        self.home.resolve = lambda name: self._classes(name)  # noqa: PLW0108 - a test may give the node other ones
        self.making: set[str] = set()
        """Agents that this node has just created or claimed, and whose hooks still run."""
        self.troubled: dict[str, AgentInfo] = {}
        """Agents that the log gives this node and that it cannot run, with the reason: they stay claimable."""
        self.adoption = Adoption(self)
        self.failures: Counter[str] = Counter()
        """Failures of loops that are started again, by name."""
        self.parking = Parking(self)
        self.returns = Returns(lambda: self.clock(), self.settings.reconcile_s)  # noqa: PLW0108 - a clock may be set
        self._subscriptions: list[Subscription] = []

    # ---- life ------------------------------------------------------------------------------------------------

    def refused_s(self) -> float:
        """For how long the store has refused this node, or has not answered.  It may be called from any thread."""
        since = self.refused_at
        return max(0.0, self.clock() - since) if since is not None else 0.0

    async def start(self, entered: Callable[[], None] = lambda: None) -> None:
        """Takes an incarnation and serves requests, then takes every agent that the log gives this node.

        `entered` is called before the agents are taken, which may last: a node that says nothing meanwhile counts as dead.
        """
        home = self.home
        self.place = await self._again(
            lambda: table.enter(home.log, self.name, self.about, lambda: home.rng.randbytes(12))
        )
        home.incarnation = self.place.incarnation
        home.reply_to = reply_subject(f"{self.name}.{home.incarnation}")
        self._subscriptions = [
            await home.wire.subscribe(home.reply_to, self._replied),
            await home.wire.serve(control_subject(self.name), self._answer),
        ]
        self.for_ever("the watch over the node's name", self._watch_name)
        entered()
        await self._again(lambda: self.reconcile(every=True))
        self.is_starting = False
        self.for_ever("reconciling", self._reconcile_for_ever)

    def for_ever(self, name: str, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs a loop that lasts as long as this node; if it raises, it is started again (`failures` counts)."""
        self.home.begin(supervised(f"node {self.name}: {name}", loop, failures=self.failures))

    async def _again(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Until the store answers: a node that starts before its store waits for it."""
        backoff = Backoff()
        while True:
            try:
                return await work()
            except RetryError as error:
                if isinstance(error, StoreFull) and not self.waits_for_room:
                    raise
                logger.info("node %s waits for the store: %s", self.name, error)
            await backoff.wait()

    async def _watch_name(self) -> None:
        """A newer process of this name takes the agents over: this one stops at once, and says so once."""
        newer = await table.newer(self.home.log, self.name, self.place, self._changed)
        if newer and not self.is_stopping:
            logger.error(
                "node %s was started again as incarnation %d: this process, incarnation %d, stops at once; "
                "nothing that was acknowledged is lost", self.name, newer, self.home.incarnation,
            )  # fmt: skip
            self._end(newer)

    def _end(self, incarnation: int) -> None:
        """This incarnation may not go on."""
        self._close_all()
        self.kill()
        if self.replaced is not None:
            self.replaced(incarnation)

    @property
    def is_cordoned(self) -> bool:
        """It keeps the agents that it has, and takes no others."""
        return self.place.is_cordoned or self.is_leaving

    def _changed(self, entered: table.Entered, seq: int) -> None:
        """An operator has cordoned or uncordoned this node."""
        before, self.place = self.place, self.place._replace(is_cordoned=entered.is_cordoned, seq=seq)
        if entered.has_stopped and not self.is_stopping:
            logger.error(
                "node %s, incarnation %d, was not heard for long and was given up by the others: this process stops at once; start "
                "it again, and nothing that was acknowledged is lost", self.name, self.home.incarnation,
            )  # fmt: skip
            self._end(self.home.incarnation)
            return
        if entered.is_cordoned != before.is_cordoned:
            logger.info("node %s is %s", self.name, "cordoned" if entered.is_cordoned else "not cordoned any more")
        if not entered.is_cordoned:
            self.drains.stop()

    async def stop(self, turns_s: float | None = None, until: float | None = None) -> None:
        """Turns end, commits land, `on_depart` runs; the agents stay claimable.  Their inboxes keep what comes.

        A turn that takes longer than `turns_s` (default: `pause_s`, as long as a move would wait for it) runs again elsewhere.  Hooks
        and commits have `pause_s` more (all of it ends `until`, by the loop's clock), and what does not end although it is cancelled
        another `pause_s` and a second.
        """
        self.is_stopping = True
        limit = asyncio.Semaphore(ADOPTIONS_MAX)
        turns_s = self.settings.pause_s if turns_s is None else turns_s
        now = asyncio.get_running_loop().time()
        until = now + turns_s + self.settings.pause_s if until is None else until
        turns_s = max(0.0, min(turns_s, until - now))

        async def depart(host: Host) -> None:
            async with limit:
                await self._depart(host, turns_s, until)

        await together(depart(host) for host in list(self.hosts.values()))
        self._close_all()
        if self.place.seq:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await table.leave(self.home.log, self.name, self.place.incarnation, self.home.rng.randbytes(12))
        self.kill()
        if self.home.tasks:
            _, left = await asyncio.wait(self.home.tasks, timeout=self.settings.pause_s + LEAVE_S)
            if left:
                logger.error("node %s: %d tasks did not end when they were cancelled: %s", self.name, len(left), left)

    def _close_all(self) -> None:
        for host in list(self.hosts.values()):
            self.drop(host)
        for copy in list(self.copies.values()):
            copy.close()
        self.standbys.close()
        self.migrations.close()

    async def _depart(self, host: Host, turns_s: float, until: float) -> None:
        if host.lost is not None:
            return
        if host.is_idle and not host.spec.overrides("on_depart") and await host.intake.stop_at_once():
            return  # thousands of them wait for nothing
        try:
            async with asyncio.timeout_at(until):
                await host.intake.stop(turns_s)
                if host.fold.may_run:
                    await host.intake.hook("on_depart")
                await host.flush()
        except (CellError, TimeoutError) as error:
            logger.warning(
                "agent %s did not come to rest before node %s stopped: %s; what was acknowledged is kept, and its turn "
                "runs again at its next owner", host.fold.agent, self.name, described(error),
            )  # fmt: skip
        except BaseException as error:  # the user's hook: the node stops all the same, and what was committed stays
            if not is_failure(error):
                raise
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
        home, limit_s = self.home, self.settings.regression_s
        return Writer(home.log, fold, self.name, home.incarnation, home.rng, limit_s, home.wall)

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

    # ---- what the log gives this node ------------------------------------------------------------------------

    def look(self, agent: str) -> None:
        """Reads who owns the agent, soon: the log may name this node."""
        self.adoption.look(agent)

    async def reconcile(self, every: bool = False) -> None:
        """Hosts what the log gives this node; see `Adoption.round`."""
        await self.adoption.round(every)

    async def _reconcile_for_ever(self) -> None:
        """Several duties, of which none keeps the others from being done."""
        duties = Duties(self.name, self.failures)
        while not self.is_stopping:
            await asyncio.sleep(self.settings.reconcile_s)
            await duties.do("looking for turns that take too long", self._tell_overdue)
            await duties.do("the search for agents that the log gives this node", self.reconcile)
            await duties.do("settling migrations", self.migrations.settle_due)
            await duties.do("dropping copies that nobody asks for", self.standbys.expire)

    def _tell_overdue(self) -> None:
        for host in self.hosts.values():
            overdue.tell(host)

    def is_taken(self, agent: str) -> bool:
        return agent in self.making or agent in self.parking

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
            request = requests.decode_request(data)
        except RecordInvalid as error:
            logger.warning("node %s: %s", self.name, error)
            return requests.encode_error(error)
        try:
            return requests.encode_result(await self._do(request))
        except CellError as error:
            return requests.encode_error(error)
        except Exception as error:
            logger.exception("node %s: a request failed", self.name)
            return requests.encode_error(InternalError(f"Node {self.name}: {described(error)}."))

    async def _do(self, request: requests.AnyRequest) -> object:
        if self.is_stopping and not isinstance(request, requests.Prepare):  # that one is told every reason
            raise NodeStopping(f"Node {self.name} is stopping; its agents stay claimable.")
        match request:
            case requests.Spawn():
                return await self._spawn(request)
            case requests.Migrate():
                return await self.migrations.start(request)
            case requests.Predict(agent=agent, to=to):
                return await preview.predict(self, agent, to)
            case requests.Abort(agent=agent):
                return await self.migrations.abort(agent)
            case requests.Prepare():
                try:
                    await self.home.at("prepare")
                except CellError as error:
                    return answers.Preparation([told(error.message)])
                return admission.prepare(self, request)
            case requests.Copy(agent=agent, migration=migration, seq=seq):
                copy = self.copies.get(agent)
                if copy is None or copy.migration != migration:
                    raise NoSuchMigration(f"{self.name} holds no copy for migration {migration}.", agent=agent)
                return await copy.reach(seq)
            case requests.Release(agent=agent, migration=migration):
                copy = self.copies.get(agent)
                if copy is not None and copy.migration == migration:
                    copy.expire()
                return None
            case (
                requests.Order()
                | requests.PurgeLetters()
                | requests.CancelTimer()
                | requests.SetCopies()
                | requests.Undo()
            ):
                return await orders.carried_out(self, request)
            case requests.Claim():
                return await claims.claim(self, request)
            case requests.Claims(wishes=wishes):
                return await claims.claim_all(self, wishes)
            case requests.Follow() | requests.Look() | requests.Drain():
                return await self._hinted(request)
            case _:
                return questions.answer(self, request)

    async def _hinted(self, request: requests.Follow | requests.Look | requests.Drain) -> object:
        match request:
            case requests.Follow():
                return self.standbys.follow(request)
            case requests.Drain(name=name, deadline_s=deadline_s):
                return self.drains.begin(name, deadline_s) if name else await drain.planned(self)
            case requests.Look(agent=agent):
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

    async def _spawn(self, request: requests.Spawn) -> bool:
        """Creates the agent, unless it exists.  False: it was made with another initial state than this one."""
        agent, spec = request.agent, self.spec(request.cls)
        host = self.hosts.get(agent)
        if host is None:
            if request.version > spec.version:
                raise StateTooNew(
                    f"Agent {agent!r} was made for {spec.name} version {request.version}; {self.name} has {spec.version}.",
                    agent=agent, have=request.version, need=spec.version,
                )  # fmt: skip
            host = await self._create(request, spec)
        fold = host.fold if host is not None else await self._existing(agent)
        if fold.cls != request.cls:
            raise WrongClass(
                f"Agent {agent!r} exists and is a {fold.cls}.", agent=agent, have=fold.cls, need=request.cls
            )
        return not fold.born or fold.born == request.born

    async def _existing(self, agent: str) -> Fold:
        fold = await load(self.home.log, agent)
        if fold.phase is Phase.TERMINATED:
            raise AgentTerminated(f"Agent {agent!r} has ended; its id is not used again.", agent=agent)
        if fold.owner == self.name:
            self.look(agent)
        return fold

    async def _create(self, request: requests.Spawn, spec: Spec) -> Host | None:
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

    async def _make(self, request: requests.Spawn, spec: Spec, cell: Cell, writer: Writer) -> Host | None:
        try:
            await writer.append(
                lambda head: Created(
                    **head,
                    cls=spec.name,
                    version=spec.version,
                    state=request.state,
                    born=request.born,
                    at=self.home.wall(),
                    policy=spec.cls.__mielin_policy__ if spec.cls.__mielin_policy__ != DEFAULT else None,
                ),
                claim=True,
                at_once=True,
            )
        except Fenced:
            return None
        host = Host(self.home, spec, cell, writer)
        await self.arrive(host)
        self.serve(host)
        await host.flush_within(self.settings.turn_deadline_s)
        return host

    async def arrive(self, host: Host) -> None:
        """The hooks of an agent that becomes active here; `on_start` until it has taken effect once."""
        is_new = host.fold.lifecycle.state is AgentState.CREATED
        try:
            await host.intake.hook("on_arrive")
            if is_new:
                await host.intake.hook("on_start")
                host.touch()
        except BaseException as error:  # whatever a user's hook raises: ERROR until it is resumed
            if not is_failure(error) or host.lost is not None:
                raise
            await host.failed(error, has_started=not is_new)
