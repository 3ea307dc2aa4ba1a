"""One seed's story: nodes of production code, agents, clients that call them, an operator, and a nemesis.

Two stages.  First everything goes wrong that the seed has drawn, and nothing unsafe may happen.  Then a drawn majority of the
nodes heals, the others stay dead for good, and all must come to rest within a bound (I15), where the checkers look at what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import traceback
from collections.abc import Callable, Container, Coroutine
from functools import partial
from random import Random
from typing import Any, TypeVar

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
    TurnDeadlineExceeded,
)
from mielin_cells.log.fold import Phase
from mielin_cells.log.ids import inbox_subject
from mielin_cells.log.message import decode_mail
from mielin_cells.node.node import Node
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Entry
from mielin_cells.testing.checkers.checkers import WALL_S, Checker, Checkers, Scene, Violation
from mielin_cells.testing.checkers.effects import (
    AcknowledgedIsKept,
    Conserved,
    InOrder,
    SentOnce,
    TakenOnce,
    TimersOnce,
)
from mielin_cells.testing.checkers.moves import (
    Classified,
    ComesToRest,
    NothingLeft,
    OneOutcome,
    RecoveredOnce,
    SameAgain,
    ValidPath,
    WithinBudget,
)
from mielin_cells.testing.checkers.odd import NothingOfIt
from mielin_cells.testing.checkers.owner import (
    CurrentWrites,
    EpochsGrow,
    GoesBackByRecord,
    NobodyRuns,
    NothingUnverified,
    OneServes,
    OwnerRegister,
    SameState,
    StoreTells,
)
from mielin_cells.testing.checkers.till import Till
from mielin_cells.testing.simulator import odd
from mielin_cells.testing.simulator.hearts import Hearts
from mielin_cells.testing.simulator.loop import Killed
from mielin_cells.testing.simulator.matrix import Matrix
from mielin_cells.testing.simulator.nemesis import Nemesis
from mielin_cells.testing.simulator.odd import Moods
from mielin_cells.testing.simulator.refusals import CODES as REFUSED_CODES
from mielin_cells.testing.simulator.refusals import FOR_GOOD, causes
from mielin_cells.testing.simulator.swarm import ASKER, REFUSED, Swarm
from mielin_cells.testing.simulator.view import View
from mielin_cells.testing.simulator.workload import Accounts, Workload
from mielin_cells.testing.simulator.world import World

T = TypeVar("T")
C = TypeVar("C", bound=Checker)

CHECKERS: tuple[type[Checker], ...] = (
    SameState, OneServes, EpochsGrow, CurrentWrites, TakenOnce, SentOnce, AcknowledgedIsKept, InOrder, OneOutcome,
    GoesBackByRecord, NobodyRuns, RecoveredOnce, ValidPath, OwnerRegister, ComesToRest, WithinBudget, TimersOnce, Till,
    NothingLeft, NothingUnverified, Classified, Conserved, SameAgain, StoreTells, NothingOfIt,
)  # fmt: skip
"""One for each invariant, I1 to I25."""

STORY_S = 900.0
"""Virtual time within which a story with its rest is over."""

STAGE_S = 300.0
"""Virtual time that the first stage has."""

REST_S = 200.0
"""Virtual time from healing to rest (I15): several whole migrations, the longest pauses of retries, and the times after which whoever
comes after looks after what others have left."""

TURN_S = 6.0
"""And for each message that waits then: a call that pays at the till twice takes so long, if both are tried again and again."""

LOOK_S = 1.0
"""How often it is looked whether everything has come to rest."""

AFTER_STOP_S = 60.0
"""A request that a node is answering when it stops, it may answer to its end, and wait for what it has asked a slow store."""

FOR_GOOD_S = 1e6

OPERATOR = "operator"


class Bugs(logging.Handler):
    """Turns what production code logs as its own failure into a violation; nothing else is heard of its logs."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(logging.ERROR)
        self._scenario = scenario

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or isinstance(error, GeneratorExit):
            return
        if any(id(one) in self._scenario.world.errors for one in causes(error)):
            self._scenario.scene.counts[f"said of a refusal: {error.__class__.__name__}"] += 1
        elif any(isinstance(one, (odd.Refused, TurnDeadlineExceeded)) for one in causes(error)):
            self._scenario.scene.counts["said of a handler"] += 1
        elif self._scenario.is_torn(error):
            self._scenario.scene.counts[f"stopped by {type(error).__name__}"] += 1  # it says so, and is right
        else:
            trace = "".join(traceback.format_exception(error)[-6:])
            self._scenario.found(f"I21: a bug: {record.getMessage()}\n{trace}")

    def __enter__(self) -> None:
        logger = logging.getLogger("mielin_cells")
        self._before = logger.level, logger.propagate
        logger.addHandler(self)
        logger.setLevel(logging.ERROR)
        logger.propagate = False

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("mielin_cells")
        logger.removeHandler(self)
        level, logger.propagate = self._before
        logger.setLevel(level)  # not `logger.level`: what is disabled is remembered by each logger below


def _is_held(error: BaseException, torn: Container[bytes]) -> bool:
    """True if a variable where the error was raised, or passed by, holds one of these bytes."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            data = value.data if isinstance(value, Entry) else value
            if isinstance(data, bytes) and data in torn:
                return True
    return False


class Scenario:
    """Made inside a `VirtualLoop`; `play` runs it and leaves what was found in `violations`."""

    def __init__(self, swarm: Swarm, workload: Workload | None = None) -> None:
        self.swarm = swarm
        self.world = World(swarm.seed, swarm.faults, budget=swarm.budget)
        self.scene = Scene(self.world)
        self.scene.found = self.found
        self.workload = workload or Accounts()
        self._healed_at = 0.0
        self.checkers = Checkers(self.scene, CHECKERS)
        self.violations: list[str] = []
        self.is_healed = False
        self.operator: Client
        self._at_operator: View
        """The process of that client; another one may be beginning."""
        self.asker: tuple[View, Client]
        self._clients: dict[str, tuple[View, Client]] = {}
        self._failed: asyncio.Future[None] = self.world.loop.create_future()
        self._power: asyncio.Future[None] | None = None
        """After a power cut: done once all is there again that clients call."""
        self._is_dark = False
        self._over = False
        self._jobs: dict[asyncio.Task[Any], None] = {}
        self.old = set(swarm.old)
        """Nodes that start with the older code."""
        self.moods: Moods | None = None
        """Of agents that misbehave, if there are any."""
        self.nemesis = Nemesis(self)
        self.matrix = Matrix(self.scene)
        self.hearts = Hearts(self)
        self.world.on_append(self.hearts.landed)
        self.world.on_append(self._guarded(self.checkers.landed))
        self.world.on_publish(self._guarded(self.checkers.published))
        self.world.on_append(self.nemesis.at_landing)
        self.world.on_harm(self.matrix.harmed)

    def _guarded(self, check: Callable[[str, T, View], None]) -> Callable[[str, T, View], None]:
        def guarded(subject: str, what: T, author: View) -> None:
            if self.violations:
                return
            try:
                check(subject, what, author)
            except Violation as error:
                self.found(str(error))

        return guarded

    def checker(self, kind: type[C]) -> C:
        return next(checker for checker in self.checkers.all if isinstance(checker, kind))

    def found(self, sentence: str) -> None:
        """Notes a violation.  What dead processes do while they are buried, after the story, is nobody's business."""
        if self._over:
            return
        self.violations.append(f"{self.world.loop.time():.6f} s: {sentence}")
        self.world.note(f"VIOLATION {sentence}")
        if not self._failed.done():
            self._failed.set_result(None)

    async def play(self) -> None:
        """The whole story; ends early at the first violation."""
        story = asyncio.ensure_future(self._story())
        try:
            await asyncio.wait((story, self._failed), timeout=STORY_S, return_when=asyncio.FIRST_COMPLETED)
            if story.done():
                story.result()
            elif not self._failed.done():
                self.found(f"I15: the story is not over after {STORY_S:g} s")
        except Violation as error:
            self.found(str(error))
        finally:
            story.cancel()
            for job in self._jobs:
                job.cancel()
            self._over = True
            Till.close()
            odd.close()

    # ---- processes -------------------------------------------------------------------------------------------

    def _wall(self, name: str) -> float:
        return WALL_S + self.world.loop.time() + self.world.clocks[name]

    def _rng_of(self, view: View) -> Random:
        return Random(f"{self.swarm.seed} {view.label}")

    async def _start(self, name: str) -> None:
        """Starts a node, again until it is up, as whoever looks after processes would."""
        while not (self.is_healed and name in self.swarm.dead):
            view, wall = self.world.connect(name), partial(self._wall, name)
            rng, settings = self._rng_of(view), self.swarm.settings
            node = Node(
                name, view.log, view.wire, odd.classes_of(name in self.old), settings=settings, rng=rng, wall=wall,
                recovery=self.swarm.recovery,
            )  # fmt: skip
            node.home.cluster = Client(view.log, view.wire, settings=settings, rng=rng, wall=wall)
            self.scene.nodes[name] = node
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

    async def _started(self, node: Node, view: View) -> None:
        await node.start(lambda: self.hearts.attach(node, view) if self.swarm.keepers else None)

    async def client(self, name: str) -> tuple[View, Client]:
        """A client in a process of its own, open.  Raises `Killed` if that dies before."""
        if name != OPERATOR and self._power is not None:
            await self._power
        view = self.world.connect(name)
        client = Client(
            view.log, view.wire, settings=self.swarm.settings, rng=self._rng_of(view), wall=partial(self._wall, name)
        )
        self._clients[name] = view, client
        await view.process.run(client.open())
        return view, client

    async def _open_asker(self) -> None:
        try:
            self.asker = await self.client(ASKER)
        except Killed:
            self.scene.counts["client died as it began"] += 1

    async def _open_operator(self) -> None:
        self._at_operator, self.operator = await self.client(OPERATOR)

    def crash(self, view: View) -> None:
        """A client dies, unless it has died or the world has healed."""
        if not self.is_healed and self.world.views[view.name] is view:
            self.world.crash(view.name)

    def restart(self, name: str) -> None:
        """Starts a process again, if it is dead and the first stage is not over."""
        if self.is_healed or self._is_dark or not self.world.views[name].process.is_dead:
            return
        self.job(self._open_asker() if name == ASKER else self._start(name))

    def power_is_back(self) -> None:
        """After a power cut: every process is started again."""
        self._power, self._is_dark = self.world.loop.create_future(), True
        self.job(self._powering_on(self._power))

    async def _powering_on(self, power: asyncio.Future[None]) -> None:
        await asyncio.sleep(1.0)
        self._is_dark = False
        await asyncio.gather(*(self._start(name) for name in self.swarm.nodes), self._open_operator())
        await self.workload.begin(self)
        power.set_result(None)
        await self._open_asker()

    def job(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs `work` as part of the first stage, which waits for it."""
        self._jobs[asyncio.ensure_future(work)] = None

    async def as_operator(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs a call in the operator's process.  Raises what it raises, and `Killed`."""
        return await self._at_operator.process.run(call())

    def may_have_ended(self, agent: str) -> bool:
        """True for an agent that an operator or itself may have ended."""
        return agent in self.swarm.odd or agent in self.swarm.crowd

    def is_torn(self, error: BaseException) -> bool:
        """True if the error came of bytes that were torn on their way: somewhere in it they were read."""
        return bool(self.world.torn) and any(
            isinstance(one, RecordInvalid) and _is_held(one, self.world.torn) for one in causes(error)
        )

    def is_passing(self, error: CellError) -> bool:
        """True for what may be tried again, also because the store refuses nobody for ever."""
        return isinstance(error, (AgentInError, RetryError)) or (
            error.code in REFUSED_CODES and bool(self.world.errors)
        )

    async def until_done(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Calls from the operator's process until it is not told to try again."""
        while True:
            try:
                return await self.as_operator(call)
            except CellError as error:
                is_soon = (
                    NoSuchAgent,
                    InvalidTransition,
                    Fenced,
                    RecordInvalid,
                    NodeCordoned,
                    SessionExpired,
                    StateTooNew,
                )
                if not isinstance(error, is_soon) and not self.is_passing(error):
                    raise
                self.scene.counts[f"operator: {error.code}"] += 1
                await asyncio.sleep(0.2)
                if self.is_healed:
                    await self._wake()
            except Killed:
                await asyncio.sleep(2.0)

    # ---- the story -------------------------------------------------------------------------------------------

    async def _story(self) -> None:
        await asyncio.gather(*(self._start(name) for name in self.swarm.nodes))
        await self._open_operator()
        await self._open_asker()
        await self.workload.begin(self)
        for life in self.workload.lives(self):
            self.job(life)
        self.job(self.nemesis.act_all())
        await self._stage_is_over()
        self._heal()
        self._healed_at = self.world.loop.time()
        until = self._healed_at + REST_S + TURN_S * self._unread()
        await self._rest(until)
        await self._settled(until)
        while not await self._is_still():
            await self._settled(until)
        self.checkers.at_rest()
        await self._end()

    @property
    def _healed_s(self) -> float:
        return round(self.world.loop.time() - self._healed_at)

    def _unread(self) -> int:
        """Messages that an agent has not taken from its inbox, each counted once."""
        count = 0
        for agent, fold in self.scene.folds.items():
            found = set[tuple[str, int]]()
            for entry in self.world.store.read(inbox_subject(agent), fold.ledger.cursor, sys.maxsize):
                with contextlib.suppress(RecordInvalid):
                    mail = decode_mail(entry.data, agent)
                    found |= {(mail.sender, message.n) for message in mail.messages}
            count += len(found)
        return count

    async def _stage_is_over(self) -> None:
        """Waits for all jobs, also those that jobs begin; one that does not end may still do so after healing."""
        until = self.world.loop.time() + STAGE_S
        while self._jobs and self.world.loop.time() < until:
            done, _ = await asyncio.wait(self._jobs, timeout=until - self.world.loop.time())
            self._take(done)

    def _take(self, done: Container[asyncio.Task[Any]]) -> None:
        for job in [job for job in self._jobs if job in done]:  # in the order in which they began
            del self._jobs[job]
            job.result()

    def _heal(self) -> None:
        dead, world = self.swarm.dead, self.world
        self.is_healed = True
        if self.moods is not None:
            self.moods.calm()
        self.scene.lost = frozenset(dead)
        world.heal(*dead)
        for name, how in dead.items():
            world.counts[f"dead for good: {how}"] += 1
            if how == "crash":
                world.crash(name)
            elif how == "pause":
                world.pause(name, FOR_GOOD_S)
            elif how == REFUSED:
                world.refuse(name, Random(f"refused {name} {world.seed}").choice(FOR_GOOD), FOR_GOOD_S)
            else:
                world.cut(name, FOR_GOOD_S, store=True)
        for name in sorted(self.old - dead.keys()):
            self.old.discard(name)
            world.crash(name)
        for name in self.swarm.nodes:
            if name not in dead and world.views[name].process.is_dead:
                self.job(self._start(name))
        if world.views[OPERATOR].process.is_dead:
            self.job(self._open_operator())

    def _resting(self) -> str:
        """What is not at rest yet; "" if everything is."""
        if self._jobs:
            return f"{len(self._jobs)} jobs are not over: {[*self._jobs]}"
        if self.world.pending:
            return f"{self.world.pending} late messages have not come yet"
        for agent in self.checkers.agents:
            owner = self.checkers.owner(agent)
            if owner and owner not in self.scene.lost and agent not in self.scene.nodes[owner].hosts:
                return f"{agent}, which is {owner}'s, is not served there"
            if owner in self.scene.lost:
                return f"{agent} belongs to {owner}, which is dead for good"
        for node in self.scene.living():
            if node.copies or node.migrations.open or node.migrations.moves:
                return f"{node.name} has {[*node.copies, *node.migrations.open]} to move"
        journals = self.checker(ValidPath).open
        return f"migrations {journals} have no end" if journals else ""

    async def _rest(self, until: float) -> None:
        """Until everything has come to rest.  Raises a violation of I15 if it has not by `until`."""
        while trouble := self._resting():
            if self.world.loop.time() > until:
                self.checker(ComesToRest).late(f"{self._healed_s:g} s after the world has healed {trouble}")
            await asyncio.sleep(LOOK_S)
            self._take([job for job in self._jobs if job.done()])
            await self._adopt()

    async def _adopt(self) -> None:
        """Whose node is dead for good goes on at another one.  Keepers, where there are some, do this by themselves.

        But an agent that was rolled back to go on at a node that is dead now is an operator's to decide about.
        """
        lost, living = self.scene.lost, [name for name in self.swarm.nodes if name not in self.scene.lost]
        for number, agent in enumerate(self.checkers.agents):
            goes_to = self.scene.folds[agent].goes_to
            owner = self.checkers.owner(agent)
            is_kept = self.swarm.keepers and self.swarm.dead.get(owner) != REFUSED  # that one's heart is heard
            if goes_to not in lost and (is_kept or owner not in lost):
                continue
            force, to = goes_to in lost, goes_to if goes_to in living else living[number % len(living)]
            try:
                await self.as_operator(partial(self.operator.claim, agent, to=to, force=force))
                self.scene.counts["agents taken from the dead"] += 1
            except CellError as error:
                self.scene.counts[f"adopt: {error.code}"] += 1

    async def _settled(self, until: float) -> None:
        """Every agent runs again, answers, and has what was sent to it.  Raises a violation of I15."""
        try:
            async with asyncio.timeout_at(until):
                await self._wake()
                while not await self._has_arrived():
                    await asyncio.sleep(LOOK_S)
                    await self._wake()
        except TimeoutError:
            hosts = {name: sorted(node.hosts) for name, node in self.scene.nodes.items()}
            states = {agent: fold.lifecycle.state.value for agent, fold in self.scene.folds.items()}
            self.checker(ComesToRest).late(
                f"{self._healed_s:g} s after the world has healed not everything is where it was sent; "
                f"agents are {states}, hosted: {hosts}"
            )
        await self._rest(until + REST_S)

    async def _has_arrived(self) -> bool:
        """True if the workload says so, and no message was passed by what it has asked the agents meanwhile."""
        before = self._put_off()
        has_arrived = await self.workload.has_arrived(self)
        return has_arrived and before == self._put_off() and not any(waits for _, _, waits in before.values())

    def _put_off(self) -> dict[str, tuple[int, int, int]]:
        """Of each agent's host: how often a message was put off there, and of how many senders one is now."""
        return {
            agent: (id(host), host.intake.delays.count, len(host.intake.delays.senders))
            for node in self.scene.living()
            for agent, host in node.hosts.items()
        }

    async def _wake(self) -> None:
        """Resumes whom an operator has suspended, or a migration that gave up has parked."""
        for agent in self.checkers.agents:
            fold = self.scene.folds[agent]
            if fold.phase is Phase.RUN and not fold.lifecycle.state.accepts_work:
                try:
                    await self.as_operator(partial(self.operator.resume, agent))
                except CellError as error:
                    self.scene.counts[f"resume: {error.code}"] += 1

    async def _is_still(self) -> bool:
        """Loads every agent afresh; true if nothing has moved meanwhile."""
        before = {agent: fold.seq for agent, fold in self.scene.folds.items()}
        for agent in self.checkers.agents:
            self.scene.loaded[agent] = await self.as_operator(partial(load, self.operator.log, agent))
        return before == {agent: fold.seq for agent, fold in self.scene.folds.items()} and not self._resting()

    async def _end(self) -> None:
        for node in self.scene.living():
            await self.world.views[node.name].process.run(node.stop())
        for view, client in self._clients.values():
            if not view.process.is_dead:
                await view.process.run(client.close())
        checker, until = self.checker(NothingLeft), self.world.loop.time() + AFTER_STOP_S
        while left := checker.stopped():
            if self.world.loop.time() > until:
                checker.fails(left)
            await asyncio.sleep(LOOK_S)
