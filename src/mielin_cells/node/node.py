"""A node: assembles its parts, enters the table of members, and answers requests."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from random import Random
from typing import Any, TypeVar

from mielin_cells.agents.agent import Agent
from mielin_cells.agents.cluster import Cluster
from mielin_cells.agents.reports import NodeInfo
from mielin_cells.errors import (
    CellError,
    NodeStopping,
    RecordInvalid,
    RetryError,
    StoreFull,
)
from mielin_cells.log.ids import control_subject, reply_subject
from mielin_cells.log.inboxes.lines import end_of
from mielin_cells.log.message import decode_replies
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.heartbeat import Listener
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.migration.refusal import as_refusal
from mielin_cells.node.activation.activation import Activation, Activations, loop_time
from mielin_cells.node.activation.calls.tasks import install
from mielin_cells.node.activation.context import Hosted
from mielin_cells.node.activation.presence.departures import depart
from mielin_cells.node.drain import Drains
from mielin_cells.node.facts import OwnFacts, nothing
from mielin_cells.node.failover import Failover
from mielin_cells.node.metrics import read_metrics
from mielin_cells.node.moves import preview
from mielin_cells.node.moves.admission import Copies, Room
from mielin_cells.node.moves.manager import Migrations
from mielin_cells.node.orders import Orders
from mielin_cells.node.ownership.adoption import Adoption
from mielin_cells.node.ownership.claims import Claims
from mielin_cells.node.ownership.creation import Creation
from mielin_cells.node.ownership.idling import Idling
from mielin_cells.node.ownership.quarantine import Quarantine
from mielin_cells.node.ownership.returns import Returns
from mielin_cells.node.ownership.rounds import Rounds
from mielin_cells.node.ownership.standby import Standbys
from mielin_cells.node.ownership.undo import Undoes
from mielin_cells.node.plans.plans import Plans
from mielin_cells.node.presence import LEAVE_S, Presence
from mielin_cells.node.questions import Questions
from mielin_cells.node.reads import Reads
from mielin_cells.policy.facts import Facts
from mielin_cells.rpc import answers, requests
from mielin_cells.rpc.answers import Beat
from mielin_cells.rpc.metrics import ReadMetrics
from mielin_cells.rpc.serve import Handlers, Server
from mielin_cells.settings import Settings
from mielin_cells.substrate.ports import Log, Subscription, Wire
from mielin_cells.tasks.supervision import Duties, persist, supervised

T = TypeVar("T")

logger = logging.getLogger("mielin_cells.node")


class Node:
    """One incarnation of a node.  `start`, then `stop`; `kill` ends it as a crash would."""

    def __init__(
        self, name: str, log: Log, wire: Wire, classes: Callable[[str], type[Agent] | None], *,
        settings: Settings | None = None, rng: Random | None = None, wall: Callable[[], float],
        clock: Callable[[], float] = loop_time, about: Announcement | None = None,
        room: Callable[[], Room] = Room, listener: Listener | None = None,
        replaced: Callable[[int], None] = lambda incarnation: None, waits_for_room: bool = True,
        recovery: RecoveryConfig | None = None, recovery_of: dict[str, dict[str, Any]] | None = None,
        cluster: Cluster | None = None, measure: Callable[[], Facts] = nothing,
    ) -> None:  # fmt: skip
        """`room` tells what is free for agents that move here.  `listener` hears the other nodes' heartbeats; without it, this node
        does not look for nodes that fail.  `replaced` is called once this process has stopped for a newer one of its name, with the
        newer incarnation, or because the others gave it up, with its own.  `waits_for_room` False: `StoreFull` is raised at the start.
        `cluster` is what the handlers of its agents call other agents by.  `measure` gives the facts of its machine as they were
        measured last, at once, and may be called from any thread.
        """
        self.name, self.settings = name, settings or Settings()
        self.about = about or Announcement()
        self._replaced = replaced
        self._waits_for_room = waits_for_room
        self._is_listening = listener is not None
        self.failures: Counter[str] = Counter()
        """Failures of loops that are started again, by name."""
        self._subscriptions: list[Subscription] = []
        self.activations = Activations(
            name, log, wire, classes, self, settings=self.settings, rng=rng or Random(), wall=wall, clock=clock,
            cluster=cluster,
        )  # fmt: skip
        self.home, self.members = self.activations.home, self.activations.members
        self.migrations = Migrations(self.activations, recovery or RecoveryConfig(), recovery_of or {}, bool(listener))  # fmt: skip
        copies = self.copies = Copies(
            self.activations, self.migrations.settling, architecture=self.about.architecture, room=room,
            is_cordoned=lambda: self.presence.is_closed, validator=self.migrations.manager.validator,
        )  # fmt: skip
        returns = self._returns = Returns(clock, self.settings.reconcile_s)
        self.standbys = Standbys(self.activations, self.copies)
        self.quarantine = Quarantine(self.activations, self.standbys)
        self.claims = Claims(self.activations, self.copies, self.migrations, self.standbys, self.quarantine, returns)
        self.undoes = Undoes(self.activations, self.migrations, self.claims)
        self.adoption = Adoption(
            self.activations, self.copies, self.migrations, self.quarantine, self.claims, self.undoes, returns
        )
        self.facts = OwnFacts(self.activations, measure, lambda: len(self.copies.by_agent))
        self.plans = Plans(self.activations, self.facts.current, self.facts.weights)
        self.rounds = Rounds(
            self.activations, self.copies, self.migrations, self.quarantine, self.adoption,
            lambda: self.failover.is_leader if self._is_listening else True, self.facts.note_trip,
        )  # fmt: skip
        self.creation = Creation(self.activations, self.migrations, copies, self.quarantine, lambda: self.is_cordoned)
        self.orders = Orders(self.activations, self.migrations, self.standbys, self.adoption)
        self.home.obey = self.orders.obey
        self.idling = Idling(self.activations, self.migrations, self.claims, self.adoption, self.quarantine)
        self.drains = Drains(self.activations, self.migrations, self.copies)
        self.presence = Presence(self.activations, self._again, self._end, self.drains.stop, self.plans.changed)
        listener = listener or Listener(clock)
        self.failover = Failover(self.activations, listener, self.beat, self.failures)
        self._questions = Questions(
            self.activations, self.orders, self.migrations, self.standbys, self.drains, listener, self._info
        )
        self._reads = Reads(self.activations, self.standbys)
        self.server = Server(name, self._handlers(), self._check)

    # ---- asked by its rooms ----------------------------------------------------------------------------------

    def look(self, agent: str, error: Exception | None = None) -> None:
        self.adoption.look(agent, error)

    def served(self, activation: Activation) -> None:
        self.standbys.served(activation)
        self.idling.served(activation)
        self.plans.watching.served(activation)

    def lost(self, activation: Hosted, error: Exception | None) -> None:
        if error is not None:
            self._returns.failed(activation.fold.agent, error)
        self.quarantine.lost(activation.fold.agent, activation.fold.seq)

    @property
    def is_cordoned(self) -> bool:
        """True while the node keeps the agents that it has, and takes no others."""
        return self.presence.is_cordoned

    @property
    def is_starting(self) -> bool:
        """True while the node, having entered, takes over the agents that the log gives it."""
        return self.presence.is_starting

    @property
    def is_stopping(self) -> bool:
        return self.activations.is_stopping

    # ---- life ------------------------------------------------------------------------------------------------

    async def start(self, entered: Callable[[], None] = lambda: None) -> None:
        """Takes an incarnation and serves requests, then takes every agent that the log gives this node.

        `entered` is called before the agents are taken, which may last: a node that says nothing meanwhile counts as dead.
        """
        home = self.home
        install(asyncio.get_running_loop())
        nonce = home.rng.randbytes(12)
        await self._again(lambda: self.presence.join(self.about, nonce))
        home.reply_to = reply_subject(f"{self.name}.{home.incarnation}")
        self._subscriptions = [
            await home.wire.subscribe(home.reply_to, self._replied),
            await home.wire.serve(control_subject(self.name), self.server.answer),
            home.log.hear_owned(self.name, self.rounds.hear),
        ]
        self.for_ever("following the log of members", self.presence.follow)
        entered()
        home.begin(self._again(home.clock.refresh))
        if self._is_listening:
            home.begin(self.failover.run())
        await self._again(self.rounds.begin)
        await self.presence.serve()
        self.for_ever("listing this node's agents", self.rounds.relist)
        self.for_ever("reconciling", self._reconcile_for_ever)
        self.for_ever("agents without work", self.idling.run)
        self.plans.begin(self.for_ever, may_lead=self._is_listening)

    def for_ever(self, name: str, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs a loop that lasts as long as this node; if it raises, it is started again (`failures` counts)."""
        self.home.begin(supervised(f"node {self.name}: {name}", loop, failures=self.failures))

    async def _again(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Waits until the store answers, since a node may start before its store."""

        def failed(error: Exception) -> None:
            if isinstance(error, StoreFull) and not self._waits_for_room:
                raise error
            logger.info("node %s waits for the store: %s", self.name, error)

        return await persist(work, RetryError, failed)

    def _end(self, incarnation: int) -> None:
        """This incarnation may not go on."""
        self._close_all()
        self.kill()
        self._replaced(incarnation)

    async def stop(self, turns_s: float | None = None, until: float | None = None) -> None:
        """Turns end, commits land, `on_depart` runs; the agents stay claimable.  Their inboxes keep what comes.

        A turn that takes longer than `turns_s` (default: `pause_s`, as long as a move would wait for it) runs again elsewhere.  Hooks
        and commits have `pause_s` more (all of it ends `until`, by the loop's clock), and what does not end although it is cancelled
        another `pause_s` and a second.
        """
        self.activations.stop()
        turns_s = self.settings.pause_s if turns_s is None else turns_s
        now = asyncio.get_running_loop().time()
        until = now + turns_s + self.settings.pause_s if until is None else until
        turns_s = max(0.0, min(turns_s, until - now))
        await depart(self.activations, turns_s, until)
        self._close_all()
        await self.presence.stop()
        self.kill()
        if self.home.tasks:
            _, unfinished = await asyncio.wait(self.home.tasks, timeout=self.settings.pause_s + LEAVE_S)
            if unfinished:
                logger.error(
                    "node %s: %d tasks did not end when they were cancelled: %s", self.name, len(unfinished), unfinished
                )

    def _close_all(self) -> None:
        self.activations.close()
        self.copies.close()
        self.standbys.close()
        self.migrations.close()

    def leave(self) -> None:
        """The node is about to stop: it takes no more agents, and says so in the log of members."""
        self.presence.leave()

    def kill(self) -> None:
        """Ends this incarnation without any farewell."""
        self.activations.stop()
        for subscription in self._subscriptions:
            subscription.close()
        current = asyncio.current_task()
        for task in list(self.home.tasks):
            if task is not current:
                task.cancel()

    async def _reconcile_for_ever(self) -> None:
        """Runs several duties; one that fails does not stop the others."""
        duties, every = Duties(self.name, self.failures), True
        while not self.is_stopping:
            await asyncio.sleep(self.settings.reconcile_s)
            await duties.do("looking for turns that take too long", self.activations.log_overdue)
            await duties.do("the search for agents that the log gives this node", partial(self.rounds.round, every))
            every = False
            await duties.do("settling migrations", self.migrations.settle_due)
            await duties.do("counting messages that wait", self.facts.look)
            if not self._is_listening:
                await duties.do("telling facts", self.facts.tell)
            await duties.do("dropping copies that nobody asks for", self.standbys.expire)
            await duties.do("telling the other nodes that this one lives", self.presence.say_serving)

    def beat(self, stuck_s: float = 0.0) -> Beat:
        """This node's heartbeat, if its main loop has not answered for `stuck_s`.  May be called from any thread."""
        return Beat(
            self.name, self.home.incarnation, max(stuck_s, self.failover.refused_s()), is_starting=self.is_starting,
            silent=self.failover.watch.silent, agents=self.activations.count, has_copies=bool(self.standbys.copies),
            facts=self.facts.news(),
        )  # fmt: skip

    @property
    def leads(self) -> bool:
        """True while this node leads failover, as far as it knows.  May be called from any thread."""
        return self.failover.is_leader

    def _info(self) -> NodeInfo:
        about = self.about
        announced = {**about.shown(), "is_reserved": self.presence.is_reserved}
        since_s = max(0.0, self.home.wall() - about.at) if about.at else 0.0
        return NodeInfo(
            name=self.name, incarnation=self.home.incarnation, agents=self.activations.count, since_s=since_s,
            state="starting" if self.is_starting else "alive", is_cordoned=self.is_cordoned,
            turns=self.home.turns, facts=self.facts.current(), moves_out=len(self.migrations.open),
            moves_in=len(self.copies.by_agent), moved=self.migrations.ended["completed"], moves=self.migrations.in_words(),
            **announced,
        )  # fmt: skip

    # ---- requests --------------------------------------------------------------------------------------------

    def _replied(self, data: bytes) -> None:
        try:
            replies = decode_replies(data)
        except RecordInvalid as error:
            logger.warning("node %s: %s", self.name, error)
            return
        for some in replies:
            activation = self.activations.live.get(end_of(some.sender))
            if activation is not None:
                activation.replied(some)

    def _check(self, request: requests.AnyRequest) -> None:
        if self.is_stopping and not isinstance(request, requests.Prepare):  # that one is told every reason
            raise NodeStopping(f"Node {self.name} is stopping; its agents stay claimable.")

    def _handlers(self) -> Handlers:
        return {
            **self._questions.handlers,
            **self.orders.handlers,
            **self._reads.handlers,
            **self.plans.handlers,
            ReadMetrics: lambda _: read_metrics(self),
            requests.Spawn: self.creation.spawn,
            requests.Migrate: self.migrations.start,
            requests.Predict: lambda request: preview.predict(self.migrations, request.agent, request.to),
            requests.Abort: lambda request: self.migrations.abort(request.agent, request.migration),
            requests.Prepare: self._prepare,
            requests.Copy: self.copies.reach,
            requests.Release: lambda request: self.copies.release(request.agent, request.migration),
            requests.Undo: self.undoes.undo,
            requests.Claim: self.claims.claim,
            requests.Claims: lambda request: self.claims.claim_all(request.wishes),
            requests.Follow: self.standbys.follow,
            requests.Look: lambda request: self.look(request.agent),
            requests.PlanDrain: lambda _: self.drains.planned(),
            requests.Drain: lambda request: self.drains.begin(request.name, request.deadline_s),
        }

    async def _prepare(self, request: requests.Prepare) -> answers.Preparation:
        try:
            await self.home.at("prepare")
        except CellError as error:
            return answers.Preparation([as_refusal(error.message)])
        return self.copies.prepare(request)
