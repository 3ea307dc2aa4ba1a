"""One seed's story: three nodes of production code, a few accounts, clients that call them, and a nemesis.

First everything goes wrong that the seed has drawn; then the world heals, the nodes are started again, and all must come
to rest within a bound (I15), where the checkers look at what is left.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any, TypeVar

from mielin_cells.core.agent import classes
from mielin_cells.core.ids import LOGS, agent_of
from mielin_cells.core.records import AnyRecord, HandedOff, decode_record
from mielin_cells.core.settings import Settings
from mielin_cells.errors import CellError, Fenced, InvalidTransition, NoSuchAgent, RetryError
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.node import journal
from mielin_cells.node.client import Client
from mielin_cells.node.node import Node
from mielin_cells.node.settling import SETTLE_S
from mielin_cells.substrate.ports import Entry
from mielin_cells.testing.accounts import TOKENS, Account
from mielin_cells.testing.checkers import (
    Call,
    Effects,
    Folding,
    Instances,
    Leaks,
    Numbers,
    Ownership,
    Shown,
    Violation,
    violated,
)
from mielin_cells.testing.loop import Killed
from mielin_cells.testing.till import Till
from mielin_cells.testing.view import View
from mielin_cells.testing.world import Faults, World

T = TypeVar("T")

WALL_S = 1_700_000_000.0
"""Wall time when a run begins."""

STORY_S = 900.0
"""Virtual time within which a story with its rest is over."""

REST_S = 150.0
"""Virtual time from healing to rest (I15): several whole migrations, and the longest pauses of retries."""

NODES = ("node-1", "node-2", "node-3")
TRIGGERS = ("HandedOff", "Accepted", "Claimed", "Returned", "Asked", "Stepped", "Snapshot", "Committed", "Created")


class Bugs(logging.Handler):
    """Turns what production code logs as its own failure into a violation; nothing else is heard of its logs."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(logging.ERROR)
        self._scenario = scenario

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, CellError):
            self._scenario.counts[f"task ended by {error.code}"] += 1
        elif error is not None:
            trace = "".join(traceback.format_exception(error)[-6:])
            self._scenario.found(f"bug: {record.getMessage()}\n{trace}")

    def __enter__(self) -> None:
        logger = logging.getLogger("mielin_cells")
        self._before = logger.level, logger.propagate
        logger.addHandler(self)
        logger.setLevel(logging.ERROR)
        logger.propagate = False

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("mielin_cells")
        logger.removeHandler(self)
        logger.level, logger.propagate = self._before


class Scenario:
    """Made inside a `VirtualLoop`; `play` runs it and leaves what was found in `violations`."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = rng = Random(f"scenario {seed}")
        self.world = World(seed, Faults.drawn(rng), budget=rng.choice((10, 40, 150)))
        self.settings = Settings(
            ask_timeout_s=rng.choice((3.0, 10.0)), ask_repeat_s=0.5, turn_deadline_s=20.0, tries=20, prepare_s=3.0,
            pause_s=rng.choice((0.5, 5.0)), handover_s=rng.choice((0.05, 1.0)), probation_s=rng.choice((1.0, 5.0)),
            migration_s=20.0, reconcile_s=rng.choice((0.5, 3.0)), snapshot_records=rng.choice((4, 12, 512)),
            retention_s=rng.choice((0.0, 3.0, 3600.0)), copy_lag_records=rng.choice((1, 64)),
        )  # fmt: skip
        self.recovery = RecoveryConfig(
            max_retries=rng.choice((0, 1, 3)), initial_retry_delay_secs=rng.choice((0.1, 1.0)), max_retry_delay_secs=2.0,
            recovery_timeout_secs=30.0, auto_rollback=True,
        )  # fmt: skip
        self.nodes: dict[str, Node] = {}
        self.agents = [f"a{n}" for n in range(rng.randint(2, 5))]
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        """What happened besides faults: migrations by outcome, calls by outcome, errors by code."""
        self.ownership = Ownership()
        self.effects = Effects(TOKENS * len(self.agents))
        self._failed: asyncio.Future[None] = self.world.loop.create_future()
        self._healed = self._over = False
        self._jobs: list[asyncio.Task[Any]] = []
        self._triggers = {kind: rng.random() * 0.3 for kind in TRIGGERS if rng.random() < 0.4}
        if "Committed" in self._triggers:
            self._triggers["Committed"] *= 0.1
        self._strikes = rng.choice((0, 3, 8))
        """What the nemesis may still do at a landing."""
        numbers = Numbers()
        self.till = Till(seed, self.nodes, self.found, self.counts)
        for checker in (self.ownership, numbers, Folding(), Instances(self.nodes), self.till):
            self.world.on_append(self._guarded(checker.landed))
        self.world.on_publish(self._guarded(numbers.published))
        self.world.on_append(self._at_landing)

    def _guarded(self, check: Callable[[str, T, View], None]) -> Callable[[str, T, View], None]:
        def guarded(subject: str, what: T, author: View) -> None:
            try:
                check(subject, what, author)
            except Violation as error:
                self.found(str(error))

        return guarded

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
            self.till.close()

    # ---- nodes and clients -----------------------------------------------------------------------------------

    def _wall(self) -> float:
        return WALL_S + self.world.loop.time()

    def _rng_of(self, view: View) -> Random:
        return Random(f"{self.seed} {view.label}")

    async def _start(self, name: str) -> None:
        """Starts a node, again until it is up, as whoever looks after processes would."""
        while True:
            view = self.world.connect(name)
            rng = self._rng_of(view)
            node = Node(
                name,
                view.log,
                view.wire,
                classes.get,
                settings=self.settings,
                rng=rng,
                wall=self._wall,
                recovery=self.recovery,
            )
            node.home.cluster = Client(view.log, view.wire, settings=self.settings, rng=rng, wall=self._wall)
            self.nodes[name] = node
            try:
                await view.process.run(node.start())
                return
            except Killed:
                return
            except RetryError as error:
                self.counts[f"node start: {error.code}"] += 1
                self.world.crash(name)
                await asyncio.sleep(0.5)

    async def _client(self, name: str) -> tuple[View, Client]:
        view = self.world.connect(name)
        client = Client(view.log, view.wire, settings=self.settings, rng=self._rng_of(view), wall=self._wall)
        await view.process.run(client.open())
        return view, client

    def _job(self, work: Coroutine[Any, Any, Any]) -> None:
        self._jobs.append(asyncio.ensure_future(work))

    # ---- the story -------------------------------------------------------------------------------------------

    async def _story(self) -> None:
        rng = self.rng
        await asyncio.gather(*(self._start(name) for name in NODES))
        self._operator_view, self._operator = await self._client("operator")
        for agent in self.agents:
            await self._until_done(lambda a=agent: self._operator.on(rng.choice(NODES)).spawn(Account, a))  # type: ignore[misc]
        for number in range(rng.randint(1, 3)):
            self._job(self._life_of_client(f"client-{number}", rng.randint(1, 3), rng.randint(4, 12)))
        self._job(self._moves(rng.randint(2, 10)))
        self._job(self._nemesis(rng.randint(0, 12)))
        await self._ended(STORY_S / 2)
        self._healed = True
        self.world.heal()
        for name in NODES:
            if self.world.views[name].process.is_dead:
                self._job(self._start(name))
        began = self.world.loop.time()
        await self._ended(REST_S)
        shown = await self._rest(began + REST_S)
        self.effects.at_rest(shown)
        self.till.at_rest({agent: state.receipts for agent, state in shown.items()})
        await self._end()

    async def _ended(self, seconds: float) -> None:
        """Waits for all jobs; a job that does not end in time is a breach of liveness only after healing."""
        if self._jobs:
            done, left = await asyncio.wait(self._jobs, timeout=seconds)
            for job in sorted(done, key=lambda job: job.get_name()):
                job.result()
            if left and self._healed:
                violated("I15", f"{len(left)} jobs are not over {seconds:g} s after the world has healed: {left}")
            self._jobs = [job for job in self._jobs if job in left]

    async def _until_done(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Calls from the operator's process until it is not told to try again."""
        while True:
            try:
                return await self._operator_view.process.run(call())
            except (RetryError, NoSuchAgent, InvalidTransition, Fenced) as error:
                self.counts[f"operator: {error.code}"] += 1
                await asyncio.sleep(0.2)

    async def _rest(self, until: float) -> dict[str, Shown]:
        """What the agents say once every transfer has arrived, or at the latest at `until`."""
        for agent in self.agents:
            await self._in_time(until, agent, lambda a=agent: self._operator.resume(a))  # type: ignore[misc]
        while True:
            shown = {}
            for agent in self.agents:
                ref = self._operator.get(Account, agent)
                shown[agent] = Shown(*await self._in_time(until, agent, ref.show))
            if all(len(shown[to].got.get(a, [])) >= n for a, s in shown.items() for to, n in s.sent.items()):
                return shown
            if self.world.loop.time() > until:
                return shown
            await asyncio.sleep(1.0)

    async def _in_time(self, until: float, agent: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        try:
            async with asyncio.timeout_at(until):
                return await self._until_done(call)
        except TimeoutError:
            where = [name for name, node in self.nodes.items() if agent in node.hosts]
            violated("I15", f"{agent} does not answer {REST_S:g} s after the world has healed; hosted by {where}")

    async def _end(self) -> None:
        # A request that was late may have made a reservation, which then expires.
        # A migration may still be retried, and one whose source was lost is ended by the agent's owner.
        rest_s = self.world.faults.late_s + 2 * self.settings.migration_s + self.settings.probation_s
        await asyncio.sleep(rest_s + self.recovery.recovery_timeout_secs + SETTLE_S)
        Leaks.at_rest(self.nodes.values())
        found, parked = await self._operator_view.process.run(journal.all_of(self._operator.log))
        self.ownership.settled(found)
        for migration, error in parked:
            violated("I14", f"the journal of {migration} cannot be read: {error}")
        for name in NODES:
            await self.world.views[name].process.run(self.nodes[name].stop())
        await self._operator_view.process.run(self._operator.close())
        await asyncio.sleep(0)
        Leaks.stopped([self._operator_view, *(self.world.views[name] for name in NODES)])

    # ---- what clients do -------------------------------------------------------------------------------------

    async def _life_of_client(self, name: str, workers: int, calls: int) -> None:
        for life in range(2):
            view, client = await self._client(name)
            works = [self._work(client, f"{name}.{life}.{w}", calls) for w in range(workers)]
            dies = life == 0 and self.rng.random() < 0.3
            if dies:
                self.world.later(self.rng.random() * 5, self.world.crash, name)
            try:
                await view.process.run(_all(works))
                await view.process.run(client.close())
            except Killed:
                continue
            if dies:
                self.world.crash(name)
            return

    async def _work(self, client: Client, sender: str, calls: int) -> None:
        rng = Random(f"{self.seed} {sender}")
        numbers: Counter[str] = Counter()
        for _ in range(calls):
            await asyncio.sleep(rng.random() * rng.choice((0.01, 0.5, 2.0)))
            agent, amount = rng.choice(self.agents), rng.randint(1, 5)
            to = rng.choice([a for a in self.agents if a != agent])
            numbers[agent] += 1
            n, ref, tells = numbers[agent], client.get(Account, agent), rng.random() < 0.3
            call = Call(agent, sender, n, not tells)
            self.effects.calls.append(call)
            kind = rng.choices(("note", "give", "hand", "roam", "settle"), (4, 3, 2, 0.5, 1.5))[0]
            bound: Any = getattr(ref, kind)
            args = (sender, n, to, amount) if kind in ("give", "hand", "settle") else (sender, n)
            try:
                answer = await (bound.tell(*args) if tells else bound(*args))
                call.acked = True
                call.answer = None if tells else answer
                self.counts["call acknowledged"] += 1
            except RetryError as error:
                self.counts[f"call: {error.code}"] += 1
            except CellError as error:
                self.found(f"I4: {sender} called {agent}.{kind} and was told {error.code}: {error}")

    # ---- what goes wrong -------------------------------------------------------------------------------------

    async def _moves(self, count: int) -> None:
        rng = self.rng
        for _ in range(count):
            await asyncio.sleep(rng.random() * 2)
            agent = rng.choice(self.agents)
            to = rng.choice((None, *NODES))
            self._job(self._move(agent, to))
            if rng.random() < 0.15:
                self._job(self._order("abort", lambda a=agent: self._operator.abort(a)))  # type: ignore[misc]

    async def _move(self, agent: str, to: str | None) -> None:
        try:
            report = await self._operator_view.process.run(self._operator.migrate(agent, to=to))
        except CellError as error:
            self.counts[f"migration not begun: {error.code}"] += 1
            return
        self.counts[f"migrations {report.outcome}"] += 1
        self.world.note(f"report {report.migration} {agent} {report.outcome} {report.reason}")
        try:
            self.ownership.reported(report)
        except Violation as error:
            self.found(str(error))

    async def _order(self, what: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        try:
            await self._operator_view.process.run(call())
            self.counts[what] += 1
        except CellError as error:
            self.counts[f"{what}: {error.code}"] += 1

    async def _nemesis(self, count: int) -> None:
        rng, deeds = self.rng, self.rng.sample(("crash", "pause", "cut", "claim", "suspend"), self.rng.randint(1, 5))
        for _ in range(count):
            await asyncio.sleep(rng.random() * 3)
            name, agent, deed = rng.choice(NODES), rng.choice(self.agents), rng.choice(deeds)
            if deed == "claim":
                self._job(self._order("claim", lambda a=agent, n=name: self._operator.claim(a, to=n)))  # type: ignore[misc]
            elif deed == "suspend":
                self._job(self._suspend(agent, rng.random() * 5))
            else:
                self._strike(deed, name)

    async def _suspend(self, agent: str, seconds: float) -> None:
        await self._order("suspend", lambda: self._operator.suspend(agent))
        await asyncio.sleep(seconds)
        await self._order("resume", lambda: self._operator.resume(agent))

    def _strike(self, deed: str, name: str) -> None:
        rng, world = self.rng, self.world
        if self._healed or world.views[name].process.is_dead:
            return
        if deed == "crash":
            world.crash(name)
            world.later(rng.random() * rng.choice((0.1, 8.0)), self._restart, name)
        elif deed == "pause":
            world.pause(name, rng.random() * rng.choice((0.2, 3.0, 15.0)))
        else:
            world.cut(name, rng.random() * rng.choice((0.5, 8.0)), store=rng.random() < 0.5)

    def _restart(self, name: str) -> None:
        if not self._healed and self.world.views[name].process.is_dead:
            self._job(self._start(name))

    def _at_landing(self, subject: str, entry: Entry, author: View) -> None:
        """The nemesis likes the moments when something has just been decided and nobody knows of it."""
        if self._strikes <= 0 or self._healed or not subject.startswith(LOGS):
            return
        record: AnyRecord = decode_record(entry.data, agent_of(subject))
        if self.rng.random() >= self._triggers.get(type(record).__name__, 0.0):
            return
        self._strikes -= 1
        victim = author.name
        if isinstance(record, HandedOff) and self.rng.random() < 0.5:
            victim = record.to
        deed = self.rng.choice(("crash", "pause", "cut"))
        self.world.later(self.rng.random() * self.rng.choice((0.0, 0.01, 0.5)), self._strike, deed, victim)


async def _all(works: list[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        tasks: list[Awaitable[None]] = [group.create_task(work) for work in works]
    assert all(isinstance(task, asyncio.Task) and task.done() for task in tasks)
