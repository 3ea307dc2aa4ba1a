"""The processes of a simulated story: nodes of production code, clients and an operator, each started again when it dies.

Nodes send heartbeats and look after each other as production does.  In a real process the heartbeat has a thread of its own; here it
is a task of its process, which is paused and dies with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Coroutine
from functools import partial
from random import Random
from traceback import walk_tb
from typing import Any, TypeVar

from mielin_cells.agents.agent import Agent
from mielin_cells.client.client import Client
from mielin_cells.errors import (
    AgentInError,
    CellError,
    Fenced,
    InvalidTransition,
    NodeCordoned,
    NoSuchAgent,
    RecordInvalid,
    RetryError,
    SessionExpired,
    StateTooNew,
)
from mielin_cells.log.ids import LOGS, agent_of
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import Claimed, decode_record
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.claims import FAILOVER
from mielin_cells.membership.heartbeat import Listener, Speaker
from mielin_cells.node.node import Node
from mielin_cells.policy.facts import UNKNOWN, Facts
from mielin_cells.substrate.ports import Entry
from mielin_cells.testing.checkers.checker import Checker, Checkers
from mielin_cells.testing.checkers.history import Author
from mielin_cells.testing.checkers.scene import WALL_S, Scene, Violation
from mielin_cells.testing.simulator import misbehaving
from mielin_cells.testing.simulator.clients.policies import deploy_of, labels_of, selectors_of
from mielin_cells.testing.simulator.environment import REFUSAL_CODES, causes, drifting
from mielin_cells.testing.simulator.loop import Killed
from mielin_cells.testing.simulator.swarm import ASKER, Swarm
from mielin_cells.testing.simulator.view import View
from mielin_cells.testing.simulator.world import World

T = TypeVar("T")

OPERATOR = "operator"

TRY_AGAIN = (
    NoSuchAgent, InvalidTransition, Fenced, RecordInvalid, NodeCordoned, SessionExpired, StateTooNew
)  # fmt: skip
"""Errors after which the simulated operator tries again, besides those that ask for it."""


class Deployment:
    """The processes of one story, the world that they run in, and the checkers that look at them."""

    def __init__(self, swarm: Swarm, kinds: tuple[type[Checker], ...]) -> None:
        self.swarm = swarm
        self.world = self.make_world()
        self.scene = Scene(self.world.history)
        self.scene.keeps_keys = swarm.settings.keys_bytes > 1000
        self.scene.violate = self.violate
        self.checkers = Checkers(self.scene, kinds)
        self.violations: list[str] = []
        self.is_healed = False
        self.operator: Client
        self._operator_view: View
        """The process of `operator`; a newer one may be starting."""
        self.asker: tuple[View, Client]
        deploy = deploy_of(swarm)
        self.old = set(deploy[0] if deploy is not None and swarm.odd else swarm.old)
        """Nodes that start with the older code."""
        self.told: tuple[type[Agent], ...] = ()
        """The agent classes that nodes say they know when they join; none: all that this process has."""
        self.moods: misbehaving.Moods | None = None
        """Of agents that misbehave, if there are any."""
        self.facts: dict[str, Facts] = {}
        """What each node measures of its machine now; a story changes it.  Nothing, where it has no entry."""
        self._labels, self._selectors = labels_of(swarm), selectors_of(swarm)
        self._clients: dict[str, tuple[View, Client]] = {}
        self._failed: asyncio.Future[None] = self.world.loop.create_future()
        self._power: asyncio.Future[None] | None = None
        """After a power cut: done once everything that clients call is there again."""
        self._is_dark = False
        self._is_over = False
        self._jobs: dict[asyncio.Task[Any], None] = {}
        self._listeners: dict[str, Listener] = {}
        """The listener of each node's newest process."""

    def make_world(self) -> World:
        return World(self.swarm.seed, self.swarm.faults, budget=self.swarm.budget)

    def violate(self, sentence: str) -> None:
        """Notes a violation.  After the story nothing counts: dead processes are being torn down."""
        if self._is_over:
            return
        self.violations.append(f"{self.world.loop.time():.6f} s: {sentence}")
        self.world.note(f"VIOLATION {sentence}")
        if not self._failed.done():
            self._failed.set_result(None)

    def guard(self, check: Callable[[str, T, Author], None]) -> Callable[[str, T, Author], None]:
        """The check as an observer: a `Violation` that it raises is noted, and behind the first one nothing is checked."""

        def guarded(subject: str, value: T, author: Author) -> None:
            if not self.violations:
                try:
                    check(subject, value, author)
                except Violation as error:
                    self.violate(str(error))

        return guarded

    # ---- processes -------------------------------------------------------------------------------------------

    def measured(self, name: str) -> Facts:
        """What the node's machine is measured to be."""
        facts = self.facts.get(name)
        if facts is None:
            facts = drifting(self.swarm.seed, name, self.world.loop.time()) if self.swarm.keepers else UNKNOWN
        return facts

    def _measure_of(self, name: str) -> Callable[[], Facts]:
        """That of one process, whose measures are noted for the checkers.  The first call comes once it has its node."""
        node: list[Node] = []

        def measure() -> Facts:
            facts = self.measured(name)
            if not node:
                node.append(self.scene.nodes[name])
            if facts != UNKNOWN:
                self.scene.note_facts(name, node[0].home.incarnation, facts)
            return facts

        return measure

    def _wall(self, name: str) -> float:
        return WALL_S + self.world.loop.time() + self.world.history.clocks[name]

    def _rng_of(self, view: View) -> Random:
        return Random(f"{self.swarm.seed} {view.label}")

    async def _start(self, name: str) -> None:
        """Starts a node, again until it is up, as a process manager would."""
        while not (self.is_healed and name in self.swarm.dead):
            view, wall = self.world.connect(name), partial(self._wall, name)
            rng, settings = self._rng_of(view), self.swarm.settings
            listener = Listener(self.world.loop.time) if self.swarm.keepers else None
            node = Node(
                name, view.log, view.wire, misbehaving.classes_of(name in self.old), settings=settings, rng=rng, wall=wall,
                recovery=self.swarm.recovery, listener=listener,
                about=self._announcement(name),
                cluster=Client(view.log, view.wire, settings=settings, rng=rng), measure=self._measure_of(name),
            )  # fmt: skip
            node.home.secret.make = rng.randbytes
            self.scene.nodes[name] = node
            if listener is not None:
                self._listeners[name] = listener
            try:
                await view.process.run(self._started(node, view))
                return
            except Killed:
                return
            except CellError as error:
                if not self.is_passing(error):
                    raise
                self.scene.counts[f"node start: {error.code}"] += 1
                self.world.crash(name)
                await asyncio.sleep(0.5)

    def _announcement(self, name: str) -> Announcement:
        return Announcement(
            classes=misbehaving.versions_of(name in self.old, self.told), labels=self._labels.get(name, {}),
            selectors=self._selectors,
        )  # fmt: skip

    async def _started(self, node: Node, view: View) -> None:
        await node.start(lambda: self._attach_heartbeat(node, view) if self.swarm.keepers else None)

    async def client(self, name: str) -> tuple[View, Client]:
        """A client in a process of its own, open.  Raises `Killed` if that dies before."""
        if name != OPERATOR and self._power is not None:
            await self._power
        view = self.world.connect(name)
        client = Client(view.log, view.wire, settings=self.swarm.settings, rng=self._rng_of(view))
        self._clients[name] = view, client
        await view.process.run(client.open())
        return view, client

    async def _open_asker(self) -> None:
        try:
            self.asker = await self.client(ASKER)
        except Killed:
            self.scene.counts["client died as it began"] += 1

    async def _open_operator(self) -> None:
        self._operator_view, self.operator = await self.client(OPERATOR)

    def crash(self, view: View) -> None:
        """A client dies, unless it has died or the world has healed."""
        if not self.is_healed and self.world.views[view.name] is view:
            self.world.crash(view.name)

    def restart(self, name: str) -> None:
        """Starts a process again, if it is dead and the first stage is not over."""
        if self.is_healed or self._is_dark or not self.world.views[name].process.is_dead:
            return
        self.job(self._open_asker() if name == ASKER else self._start(name))

    def power_on(self, begin: Callable[[], Awaitable[None]]) -> None:
        """After a power cut: starts every process again, and then calls `begin`."""
        self._power, self._is_dark = self.world.loop.create_future(), True
        self.job(self._power_on(begin, self._power))

    async def _power_on(self, begin: Callable[[], Awaitable[None]], power: asyncio.Future[None]) -> None:
        await asyncio.sleep(1.0)
        self._is_dark = False
        await asyncio.gather(*(self._start(name) for name in self.swarm.nodes), self._open_operator())
        await begin()
        power.set_result(None)
        await self._open_asker()

    def job(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs `work` as part of the first stage, which waits for it."""
        self._jobs[asyncio.ensure_future(work)] = None

    async def as_operator(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs a call in the operator's process.  Raises what it raises, and `Killed`."""
        return await self._operator_view.process.run(call())

    def may_have_ended(self, agent: str) -> bool:
        """True for an agent that an operator or itself may have ended."""
        return agent in self.swarm.odd or agent in self.swarm.crowd

    def is_torn(self, error: BaseException) -> bool:
        """True if the error came from bytes that were torn on their way: a frame that it went through holds them."""
        return bool(self.world.torn) and any(
            isinstance(one, RecordInvalid) and _is_held(one, self.world.torn) for one in causes(error)
        )

    def is_passing(self, error: CellError) -> bool:
        """True for an error that may be tried again; the store refuses nobody for ever."""
        return isinstance(error, (AgentInError, RetryError)) or (
            error.code in REFUSAL_CODES and bool(self.world.errors)
        )

    async def until_done(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Calls from the operator's process until there is an answer.  Raises errors that no further try mends."""
        while True:
            try:
                return await self.as_operator(call)
            except CellError as error:
                if not isinstance(error, TRY_AGAIN) and not self.is_passing(error):
                    raise
                self.scene.counts[f"operator: {error.code}"] += 1
                await asyncio.sleep(0.2)
                if self.is_healed:
                    await self.wake_all()
            except Killed:
                await asyncio.sleep(2.0)

    async def wake_all(self) -> None:
        """Resumes the agents that an operator, or a migration that gave up, has suspended."""
        for agent in self.checkers.agents:
            fold = self.scene.folds[agent]
            if fold.phase is Phase.RUN and not fold.lifecycle.state.accepts_work:
                try:
                    await self.as_operator(partial(self.operator.resume, agent))
                except CellError as error:
                    self.scene.counts[f"resume: {error.code}"] += 1

    # ---- heartbeats ------------------------------------------------------------------------------------------

    def _attach_heartbeat(self, node: Node, view: View) -> None:
        """The node sends heartbeats and hears the others'."""
        node.home.begin(self._beat(node, view, self._listeners[node.name]))

    async def _beat(self, node: Node, view: View, listener: Listener) -> None:
        speaker = Speaker(view.wire, listener)
        try:
            while not node.is_stopping:
                await speaker.beat(node.beat(), node.leads)
                await asyncio.sleep(node.settings.heartbeat_s)
        finally:
            speaker.close()

    def count_failovers(self, subject: str, entry: Entry, author: Author) -> None:
        """Counts claims by failover.  An observer that must see an entry before the checkers do."""
        if not subject.startswith(LOGS) or FAILOVER.encode() not in entry.data:
            return
        agent = agent_of(subject)
        record = decode_record(entry.data, agent)
        if not isinstance(record, Claimed) or not record.cause.startswith(FAILOVER):
            return
        self.scene.counts["taken over by failover"] += 1
        former = self.world.views.get(self.checkers.owner(agent))
        if former is not None and not former.process.is_dead and former.name not in self.scene.lost:
            self.scene.counts["suspected wrongly"] += 1


def _is_held(error: BaseException, torn: Container[bytes]) -> bool:
    """True if a variable of a frame that the error went through holds one of these bytes."""
    for frame, _ in walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            data = value.data if isinstance(value, Entry) else value
            if isinstance(data, bytes) and data in torn:
                return True
    return False
