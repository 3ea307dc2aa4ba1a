"""A story in virtual time: one agent, three nodes, one migration, and processes that end at chosen moments.

A moment is the landing of a record: something has been decided, and nobody but the log knows of it yet.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any

import mielin_cells as cells
from mielin_cells.agents.reference import classes
from mielin_cells.client.client import Client
from mielin_cells.errors import CellError, Fenced, NoSuchAgent, RetryError
from mielin_cells.log.ids import JOURNALS, LOGS
from mielin_cells.log.records import decode_record
from mielin_cells.migration.journal import Journal, decode
from mielin_cells.migration.outcome import journal_outcome
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.node.moves.settling import SETTLE_S
from mielin_cells.node.node import Node
from mielin_cells.store import journal
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Entry
from mielin_cells.testing.checkers.history import Author
from mielin_cells.testing.faults import Faults, FaultySubstrate
from mielin_cells.testing.simulator.loop import Killed, run
from mielin_cells.testing.simulator.world import World

NODES = ("node-1", "node-2", "node-3")
SETTINGS = cells.Settings(
    prepare_s=1.0, pause_s=1.0, handover_s=0.2, probation_s=2.0, migration_s=10.0, reconcile_s=0.5
)
RECOVERY = RecoveryConfig(initial_retry_delay_secs=1, max_retry_delay_secs=4, recovery_timeout_secs=60)
WALL_S = 1_700_000_000.0
END_S = 200.0
"""Every recovery is over by then."""
REST_S = SETTLE_S + 5
"""After an end: looks after claims, and reservations that expire."""


class Ledger(cells.Agent):
    total: int = 0

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.total += n
        return self.total

    @cells.handler
    async def rest(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class Strike:
    """When the `nth` record of kind `at` has landed, and `after_s` have passed, its author ends; then `then`."""

    at: str
    nth: int = 1
    after_s: float = 0.0
    then: str = "restart"
    """restart: of the author, soon; claim NODE: it does, and the author stays dead; pause NODE: the author is only stopped."""
    times: int = 1
    """So many records of the kind, from the `nth` on, are struck."""
    down_s: float = 0.5


class Story:
    def __init__(self, *strikes: Strike, faults: Faults | None = None, recovery: RecoveryConfig = RECOVERY) -> None:
        self.world = World(1)
        self.strikes = strikes
        self.faults = faults or Faults(0)
        self.recovery = recovery
        self.nodes: dict[str, Node] = {}
        self.seen: Counter[str] = Counter()
        self.struck = 0
        self.owners: list[str] = []
        """Authors of journal records, each time it was another."""
        self.wall_offset: dict[str, float] = {}
        """By node, how wrong its clock is."""
        self._jobs: list[asyncio.Task[Any]] = []
        self.world.on_append(self._landed)

    # ---- processes -------------------------------------------------------------------------------------------

    def wall(self, name: str = "") -> float:
        return WALL_S + self.world.loop.time() + self.wall_offset.get(name, 0.0)

    async def start(self, name: str) -> None:
        view = self.world.connect(name)
        seen = FaultySubstrate(view, self.faults, name)
        node = Node(
            name, seen.log, seen.wire, classes.get, settings=SETTINGS, recovery=self.recovery,
            rng=Random(view.label), wall=lambda: self.wall(name),
            cluster=Client(view.log, view.wire, settings=SETTINGS, rng=Random(f"{view.label} c")),
        )  # fmt: skip
        node.home.step = lambda step: self.faults.step(step, name)
        self.nodes[name] = node
        await view.process.run(node.start())

    async def open(self) -> None:
        for name in NODES:
            await self.start(name)
        self.view = self.world.connect("operator")
        self.client = Client(self.view.log, self.view.wire, settings=SETTINGS, rng=Random("op"))
        await self.view.process.run(self.client.open())
        await self.call(lambda: self.client.on("node-1").spawn(Ledger, "a"))
        assert await self.call(self.client.get(Ledger, "a").add) == 1

    async def call(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """As the operator, again while it is told to try again."""
        while True:
            try:
                return await self.view.process.run(work())
            except (RetryError, NoSuchAgent, Fenced):
                await asyncio.sleep(0.2)

    def job(self, work: Coroutine[Any, Any, Any]) -> None:
        self._jobs.append(asyncio.ensure_future(work))

    async def close(self) -> None:
        for job in self._jobs:
            await job
        for name, node in self.nodes.items():
            if not self.world.views[name].process.is_dead:
                await self.world.views[name].process.run(node.stop())
        await self.view.process.run(self.client.close())

    # ---- strikes ---------------------------------------------------------------------------------------------

    def _landed(self, subject: str, entry: Entry, author: Author) -> None:
        record: Any
        if subject.startswith(JOURNALS):
            record = decode(entry.data, subject)
            if self.owners[-1:] != [author.label]:
                self.owners.append(author.label)
        elif subject.startswith(LOGS):
            record = decode_record(entry.data, subject)
        else:
            return
        kind = type(record).__name__
        if subject.startswith(LOGS) and kind in ("Failed", "Claimed"):
            kind = f"agent's {kind}"
        self.seen[kind] += 1
        for strike in self.strikes:
            if strike.at == kind and strike.nth <= self.seen[kind] < strike.nth + strike.times:
                self.struck += 1
                self.world.later(strike.after_s, self._strike, strike, author.name)

    def _strike(self, strike: Strike, victim: str) -> None:
        if strike.then.startswith("pause"):
            self.world.pause(victim, 2 * strike.down_s)
        else:
            self.world.crash(victim)
        if strike.then == "restart":
            self.job(self._later(strike.down_s, lambda: self.start(victim)))
        else:
            to = strike.then.partition(" ")[2]
            self.job(self._later(strike.down_s, lambda: self._claimed(to)))

    async def _later(self, seconds: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Killed:
            return

    async def _claimed(self, to: str) -> None:
        await self.call(lambda: self.client.claim("a", to=to))

    # ---- what came of it -------------------------------------------------------------------------------------

    async def checked(self, report: cells.MigrationReport | None = None) -> Journal:
        """After rest: the one journal has one end, which is what the agent's log says; so is the report; the agent works."""
        async with asyncio.timeout(END_S):
            while not self.seen["Ended"]:
                await asyncio.sleep(1.0)
        await asyncio.sleep(REST_S)
        journals, unreadable = await self.view.process.run(journal.all_of(self.client.log, "a"))
        assert unreadable == []
        [only] = journals
        assert self.seen["Ended"] == 1
        assert only.end is not None, [type(record).__name__ for record in only.records]
        fold = await self.view.process.run(load(self.client.log, "a"))
        outcome, _ = journal_outcome(only, fold)
        assert only.end.outcome == outcome or (only.end.outcome, outcome) == ("gave_up", "rolled_back")
        completed = [attempt for attempt in only.attempts if fold.outcomes.get(attempt.id) == "completed"]
        assert len(completed) <= 1
        if report is not None:
            assert (report.outcome, report.migration) == (only.end.outcome, only.migration)
        for node in self.nodes.values():
            if not self.world.views[node.name].process.is_dead:
                assert (node.migrations.open, node.copies.by_agent) == ({}, {})
        return only


def told(
    *strikes: Strike, to: str | None = None, faults: Faults | None = None, recovery: RecoveryConfig = RECOVERY,
    clocks: dict[str, float] | None = None, besides: Callable[[Story], Coroutine[Any, Any, None]] | None = None,
) -> tuple[Journal, cells.MigrationReport | None, Story]:  # fmt: skip
    """Plays it: the agent is to be moved from node-1; then what has become of it, and what the client was told."""
    result: list[tuple[Journal, cells.MigrationReport | None, Story]] = []

    async def main() -> None:
        story = Story(*strikes, faults=faults, recovery=recovery)
        story.wall_offset.update(clocks or {})
        await story.open()
        if besides is not None:
            story.job(besides(story))
        report: cells.MigrationReport | None
        try:
            report = await story.view.process.run(story.client.migrate("a", to=to))
        except CellError:
            report = None
        found = await story.checked(report)
        if found.end is not None and found.end.outcome == "gave_up":
            await story.call(lambda: story.client.resume("a"))
        assert await story.call(story.client.get(Ledger, "a").add) == 2
        await story.close()
        result.append((found, report, story))

    run(main(), seed=1, steps_max=600_000)
    return result[0]
