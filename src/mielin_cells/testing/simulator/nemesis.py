"""Who does what a seed has drawn: an operator that moves, claims, suspends and undoes, and a nemesis that breaks things."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from mielin_cells.client.operator import Operator
from mielin_cells.client.recoveries import retry_move
from mielin_cells.errors import CellError
from mielin_cells.log.ids import LOGS, MEMBERS, agent_of
from mielin_cells.log.records import HandedOff, decode_record
from mielin_cells.substrate.ports import Entry
from mielin_cells.testing.checkers.history import Author
from mielin_cells.testing.checkers.scene import Reported
from mielin_cells.testing.simulator.deployment import Deployment
from mielin_cells.testing.simulator.engine import AFTERMATH_S
from mielin_cells.testing.simulator.environment import REFUSALS
from mielin_cells.testing.simulator.loop import Killed
from mielin_cells.testing.simulator.swarm import ASKER, Op
from mielin_cells.testing.simulator.workload import Workload

STRUCK = ("crash", "pause", "cut", "cut one way", "store cut")
"""What a strike behind a record may be."""


class Nemesis:
    """Of one scenario.  `act` does an operation at its time; `at_landing` strikes behind records."""

    def __init__(self, scenario: Deployment, workload: Workload) -> None:
        self._scenario = scenario
        self._workload = workload
        self._swarm = scenario.swarm
        self._world = scenario.world
        self._counts = scenario.scene.counts
        self._rng = Random(f"strikes {scenario.swarm.seed}")
        self._strikes = scenario.swarm.strikes
        self._at_plans = Random(f"strikes at plans {scenario.swarm.seed}")
        self._kills_leaders = self._at_plans.choice((0.0, 0.5, 1.0))
        """How likely the next plan's author is struck."""

    async def act_all(self) -> None:
        began = self._world.loop.time()
        for op in self._swarm.ops:
            await asyncio.sleep(max(0.0, began + op.at - self._world.loop.time()))
            self.act(op)

    def act(self, op: Op) -> None:
        rng = Random(op.dice)
        op = op._replace(agent=self._workload.agent(op.agent))
        if op.what != "move":
            self._world.troubled_for(AFTERMATH_S)
        match op.what:
            case "move":
                self._scenario.job(self._move(op.agent, op.who or None))
            case "claim":
                self._order("claim", lambda: self._scenario.operator.claim(op.agent, to=op.who))
            case "abort":
                self._order("abort", lambda: self._scenario.operator.abort(op.agent))
            case "suspend":
                self._scenario.job(self._suspend(op.agent, rng.random() * 5))
            case "recover":
                self._scenario.job(self._recover(op.who if rng.random() < 0.5 else None))
            case "undo":
                self._scenario.job(self._undo(op.agent, op.who if rng.random() < 0.3 else None, rng.random() < 0.3))
            case "stop" | "upgrade":
                self._scenario.old -= {op.who} if op.what == "upgrade" else set()
                self._scenario.job(self._stop(op.who, rng.random() * 4, rng.choice((0.0, 3.0))))
            case "drain":
                self._scenario.job(self._drain(op.who, 0.5 + rng.random() * 8, rng.random() * 6))
            case "order pause":
                self._scenario.job(self._suspend(op.agent, rng.random() * 5, "pause"))
            case "stand by":
                copies = rng.randint(0, 2)
                self._order("stand by", lambda: self._scenario.operator.standby(op.agent, copies))
            case "replay":
                self._order("replay", lambda: Operator(self._scenario.operator).replay(op.agent, "1"))
            case "purge":
                self._scenario.scene.purged.add(op.agent)
                self._order("purge", lambda: Operator(self._scenario.operator).purge(op.agent, None))
            case "terminate":
                self._order("terminate", lambda: self._scenario.operator.terminate(op.agent))
            case "power cut":
                self._cut_power(rng.random() * 2)
            case _:
                self.harm(op.what, op.who, rng)

    # ---- the operator ----------------------------------------------------------------------------------------

    def _order(self, what: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._scenario.job(self._ordered(what, call))

    async def _ordered(self, what: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        try:
            result = await self._scenario.as_operator(call)
            self._counts[what] += 1
            return result
        except CellError as error:
            self._counts[f"{what}: {error.code}"] += 1
        except Killed:
            self._counts[f"{what}: operator dead"] += 1
        return None

    async def _suspend(self, agent: str, seconds: float, how: str = "suspend") -> None:
        operator = self._scenario.operator
        await self._ordered(how, lambda: operator.pause(agent) if how == "pause" else operator.suspend(agent))
        await asyncio.sleep(seconds)
        await self._ordered("resume", lambda: self._scenario.operator.resume(agent))

    def _count_harms(self) -> int:
        """Faults, and hooks of agents that have raised."""
        moods = self._scenario.moods
        return self._scenario.scene.harms + (moods.raised if moods is not None else 0)

    async def _move(self, agent: str, to: str | None) -> None:
        scenario, scene = self._scenario, self._scenario.scene
        harms, began = self._count_harms(), self._world.loop.time()
        is_there = to is None or not self._world.views[to].process.is_dead
        try:
            view, client = scenario.asker
            report = await view.process.run(client.migrate(agent, to=to))
        except CellError as error:
            self._counts[f"migration not begun: {error.code}"] += 1
            return
        except Killed:
            self._counts["migration's asker died"] += 1
            return
        self._counts[f"migrations {report.outcome}"] += 1
        self._world.note(f"report {report.migration} {agent} {report.outcome} {report.reason}")
        quiet = (
            is_there and harms == self._count_harms() and not self._world.pending and self._world.troubled_until < began
        )
        scene.reports.append(Reported(report, self._world.loop.time(), quiet))
        self._counts["migrations without a fault"] += quiet
        if report.ok and self._world.loop.time() - began > 1.0:
            self._counts["migrations completed late"] += 1

    async def _recover(self, to: str | None) -> None:
        """Takes up again what gave up or was rolled back last."""
        failed = [one.report for one in self._scenario.scene.reports if not one.report.ok]
        if not failed:
            return
        migration = failed[-1].migration
        report = await self._ordered("recover", lambda: retry_move(self._scenario.operator, migration, to=to))
        if report is not None:
            self._counts[f"recoveries {report.outcome}"] += 1

    async def _undo(self, agent: str, to: str | None, correct: bool) -> None:
        done = [one.report for one in self._scenario.scene.reports if one.report.ok]
        mine = [report for report in done if report.agent == agent] or done
        if not mine:
            return
        migration = mine[-1].migration
        operator = self._scenario.operator
        report = await self._ordered("undo", lambda: operator.rollback(migration, to=to, correct=correct))
        if report is not None:
            self._counts["messages taken again"] += report.replayed

    async def _drain(self, name: str, deadline_s: float, seconds: float) -> None:
        """The node is emptied, dead or alive, is out of service for a while, and takes agents again."""
        scenario = self._scenario
        await self._ordered("drain", lambda: scenario.operator.drain(name, deadline_s))
        await asyncio.sleep(seconds)
        # Tried until it is done: a node that stays cordoned would keep agents from coming to rest.
        await scenario.until_done(lambda: scenario.operator.uncordon(name))

    async def _stop(self, name: str, seconds: float, drain_s: float) -> None:
        """As SIGTERM, or without a time for the drain SIGINT: the node ends in its own time, and is started again."""
        node, view = self._scenario.scene.nodes[name], self._world.views[name]
        if view.process.is_dead:
            return
        self._world.harmed("stop", view)
        try:
            if drain_s:
                node.leave()
                await view.process.run(node.drains.new(drain_s, is_patient=False).run())
            await view.process.run(node.stop())
        except Killed:
            return
        self._world.crash(name)
        await asyncio.sleep(seconds)
        self._scenario.restart(name)

    def _cut_power(self, lost_s: float) -> None:
        scenario = self._scenario
        if scenario.is_healed:
            return
        since, last = self._world.cut_power(lost_s)
        scenario.checkers.forget(since, last)
        scenario.power_on(lambda: self._workload.begin(scenario))

    # ---- the nemesis -----------------------------------------------------------------------------------------

    def harm(self, what: str, who: str, rng: Random) -> None:
        world, scenario = self._world, self._scenario
        if scenario.is_healed or (who and world.views[who].process.is_dead):
            return
        seconds = rng.random() * rng.choice((0.5, 3.0, 8.0))
        way = rng.choice(("in", "out"))
        match what:
            case "crash":
                world.crash(who)
                self._again(who, rng)
            case "crash leader" | "crash watchers":
                self._crash_watchers(what == "crash leader", rng)
            case "crash at call":
                how = rng.choice(("crash before", "crash after", "crash answered"))
                world.crash_at_call(who, rng.randint(1, 60), how)
                self._again(who, rng, seconds + 2.0)
            case "pause":
                world.pause(who, rng.random() * rng.choice((0.2, 3.0, 15.0)))
            case "slow node":
                world.slow_down(who, seconds, rng.choice((5.0, 30.0, 100.0)))
            case "cut":
                world.cut(who, seconds, store=rng.random() < 0.5)
            case "cut one way":
                world.cut(who, seconds, store=rng.random() < 0.5, ways=way)
            case "store cut":
                world.cut_store(who, seconds)
            case "store cut one way":
                world.cut_store(who, seconds, ways=way)
            case "clock step":
                world.step_clock(who, rng.choice((-3600.0, -5.0, 2.0, 30.0, 3600.0)))
            case "outage":
                world.outage(seconds / 2)
            case "refusal":
                world.refuse(who, rng.choice([*REFUSALS]), seconds)
            case "starve":
                world.starve(who, 2 * seconds, rng)
            case "swizzle":
                self._swizzle(rng)
            case _:
                self._part(who, seconds, rng, one_way=what == "partition one way")

    def _crash_watchers(self, leader_alone: bool, rng: Random) -> None:
        """The leader of failover dies, or all that listen to all nodes do."""
        tables = [node.members.table for node in self._scenario.scene.nodes.values()]
        watchers = max(tables, key=lambda table: table.seq).watchers if tables else []
        for who in watchers[:1] if leader_alone else watchers:
            self._scenario.world.crash(who)
            self._again(who, rng, rng.choice((0.0, 4.0, 10.0)))

    def _again(self, who: str, rng: Random, after_s: float = 0.0) -> None:
        """Starts a process again that has died."""
        self._world.later(after_s + rng.random() * rng.choice((0.1, 8.0)), self._scenario.restart, who)

    def _swizzle(self, rng: Random) -> None:
        """Cuts some nodes off one by one; they come back in another order."""
        some = rng.sample(self._swarm.nodes, rng.randint(1, len(self._swarm.nodes)))
        for place, name in enumerate(some):
            self._world.later(place * 0.2, self._cut_off, name, 0.5 + rng.random() * 3)

    def _cut_off(self, name: str, seconds: float) -> None:
        if not self._scenario.is_healed and not self._world.views[name].process.is_dead:
            self._world.cut(name, seconds, store=True)

    def _part(self, who: str, seconds: float, rng: Random, *, one_way: bool) -> None:
        others = [name for name in self._world.views if name != who]
        with_it = rng.sample(others, rng.randint(0, max(0, len(others) - 1)))
        some = [who, *with_it]
        self._world.part(some, [name for name in others if name not in with_it], seconds, one_way=one_way)

    def at_landing(self, subject: str, entry: Entry, author: Author) -> None:
        """Strikes when something has just been decided and no process knows of it."""
        if subject == MEMBERS and b"Planned" in entry.data:
            self._at_plan(author)
        if self._strikes <= 0 or self._scenario.is_healed or not subject.startswith(LOGS):
            return
        record = decode_record(entry.data, agent_of(subject))
        if self._rng.random() >= self._swarm.triggers.get(type(record).__name__, 0.0):
            return
        self._strikes -= 1
        victim = author.name
        if isinstance(record, HandedOff):
            victim = self._rng.choice((author.name, author.name, record.to, record.to, ASKER))
        deed = self._rng.choice(STRUCK)
        after_s = self._rng.random() * self._rng.choice((0.0, 0.01, 0.5))
        self._world.later(after_s, self._strike, deed, victim, self._rng.getrandbits(32))

    def _at_plan(self, author: Author) -> None:
        """In some worlds the leader dies between a plan and its moves, or while they go on."""
        rng = self._at_plans
        if not self._scenario.is_healed and rng.random() < self._kills_leaders:
            self._kills_leaders /= 2
            after_s = rng.random() * rng.choice((0.0, 0.01, 0.5))
            self._world.later(after_s, self._strike, rng.choice(STRUCK), author.name, rng.getrandbits(32))

    def _strike(self, deed: str, victim: str, dice: int) -> None:
        self._counts["struck"] += 1
        self.harm(deed, victim, Random(dice))
