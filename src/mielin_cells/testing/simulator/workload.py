"""What clients do to agents in a simulated world, and what must have come of it: accounts that move tokens, by default."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Coroutine
from random import Random
from typing import TYPE_CHECKING, Any

from mielin_cells.agents.agent import Agent
from mielin_cells.client.client import Client
from mielin_cells.errors import AgentTerminated, CellError
from mielin_cells.log.fold import Phase
from mielin_cells.testing.checkers.checkers import Call, Shown
from mielin_cells.testing.simulator.accounts import TOKENS, Account
from mielin_cells.testing.simulator.loop import Killed
from mielin_cells.testing.simulator.odd import DOOMED, Moods, Odd, OddBefore
from mielin_cells.testing.simulator.swarm import CallPlan, Life

if TYPE_CHECKING:
    from mielin_cells.testing.simulator.scenario import Scenario


class Workload:
    """Base: agents of its own, and nothing more.  A scenario calls `begin`, then `lives`, then `has_arrived` until it is true."""

    def agent(self, name: str) -> str:
        """The agent that an operation means which the seed has drawn for `name`."""
        return name

    async def begin(self, scenario: Scenario) -> None:
        """Before anything goes wrong, by intention; faults of the world happen already.  After a power cut, once more."""

    def lives(self, scenario: Scenario) -> list[Coroutine[Any, Any, None]]:
        """What clients do, all at the same time."""
        return []

    async def has_arrived(self, scenario: Scenario) -> bool:
        """Asked after everything has come to rest, again until it is true: whether all that was on its way is there."""
        return True


class Accounts(Workload):
    """Tokens among accounts: none is made or lost, and each call has the place that its answer says."""

    async def begin(self, scenario: Scenario) -> None:
        rng, scene = Random(f"accounts {scenario.swarm.seed}"), scenario.scene
        scene.tokens = TOKENS * len(scenario.swarm.agents)
        if scenario.swarm.odd or scenario.swarm.crowd:
            moods = Random(f"moods {scenario.swarm.seed}")
            scenario.moods = Moods(moods, scenario.swarm.sulks, scenario.swarm.slow_s)
        for agent in (*scenario.swarm.agents, *scenario.swarm.odd):
            nodes = scenario.swarm.nodes
            first = nodes.index(rng.choice(nodes))
            ways = itertools.cycle([*nodes[first:], *nodes[:first]])  # after a power cut one may be cordoned
            cls = OddBefore if scenario.swarm.old and agent in scenario.swarm.odd[::2] else class_of(agent)
            with contextlib.suppress(AgentTerminated):  # after a power cut
                await scenario.until_done(lambda a=agent, w=ways, c=cls: scenario.operator.on(next(w)).spawn(c, a))  # type: ignore[misc]
        turns = itertools.cycle(scenario.swarm.nodes)

        async def made(agent: str) -> None:
            with contextlib.suppress(AgentTerminated):
                await scenario.until_done(lambda: scenario.operator.on(next(turns)).spawn(Odd, agent))  # type: ignore[call-arg]

        await asyncio.gather(*(made(agent) for agent in scenario.swarm.crowd))

    def lives(self, scenario: Scenario) -> list[Coroutine[Any, Any, None]]:
        return [self._life(scenario, life) for life in scenario.swarm.lives]

    async def _life(self, scenario: Scenario, life: Life) -> None:
        for number in range(3):
            try:
                view, client = await scenario.client(life.name)
                if number == 0 and life.dies_at is not None:
                    scenario.world.later(life.dies_at, scenario.crash, view)
                works = [
                    self._work(scenario, client, f"{life.name}.{number}.{w}", p) for w, p in enumerate(life.workers)
                ]
                await view.process.run(_all(works))
                await view.process.run(client.close())
                return
            except Killed:
                if scenario.is_healed:
                    return

    async def _work(self, scenario: Scenario, client: Client, sender: str, plans: list[CallPlan]) -> None:
        numbers: Counter[str] = Counter()
        for plan in plans:
            await asyncio.sleep(plan.rest_s)
            numbers[plan.agent] += 1
            n, ref = numbers[plan.agent], client.get(class_of(plan.agent), plan.agent)
            call = Call(plan.agent, sender, n, not plan.tells, doomed="maybe" if plan.kind in DOOMED else "")
            scenario.scene.calls.append(call)
            await self._called(scenario, plan, call, ref)

    async def _called(self, scenario: Scenario, plan: CallPlan, call: Call, ref: Agent) -> None:
        counts, bound = scenario.scene.counts, getattr(ref, plan.kind)
        args: tuple[Any, ...] = (call.sender, call.n)
        if plan.kind in ("give", "hand", "settle"):
            args = *args, plan.to, plan.amount
        elif plan.kind == "alarm":
            args = *args, plan.amount**2
        try:
            answer = await (bound.tell(*args) if plan.tells else bound(*args))
            if call.doomed:
                call.doomed = "stored" if plan.tells else "answered"
                call.at = scenario.world.loop.time()
                counts["doomed tell stored"] += plan.tells
                return
            call.acked, call.at = True, scenario.world.loop.time()
            call.answer = None if plan.tells else answer
            counts["call acknowledged"] += 1
        except CellError as error:
            if scenario.is_passing(error) or scenario.is_torn(error):
                counts[f"call: {error.code}"] += 1
                return
            if call.doomed and error.code in ("HandlerFailed", "TurnDeadlineExceeded"):
                call.doomed = "told"
                counts[f"call: {error.code}"] += 1
                return
            if error.code == "AgentTerminated" and scenario.may_have_ended(plan.agent):
                counts["call: AgentTerminated"] += 1
                return
            if error.code == "NoSuchAgent" and scenario.world.power:
                counts["call: NoSuchAgent"] += 1  # its creation was forgotten, too, and it is created again
                return
            scenario.found(f"I4: {call.sender} called {call.agent}.{plan.kind} and was told {error.code}: {error}")

    async def has_arrived(self, scenario: Scenario) -> bool:
        shown = scenario.scene.shown
        for agent in (*scenario.swarm.odd, *scenario.swarm.crowd):
            if scenario.scene.folds[agent].phase is Phase.TERMINATED:
                shown.pop(agent, None)  # it was asked while the message that ended it was put off
                continue
            try:
                odd = scenario.operator.get(Odd, agent)
                await scenario.until_done(odd.hush)
                heard, marks, book, _, stray = await scenario.until_done(odd.show)
            except AgentTerminated:
                return False
            shown[agent] = Shown(heard=heard, book={"marks": marks, "book": book, "stray": stray})
        for agent in scenario.swarm.agents:
            ref = scenario.operator.get(Account, agent)
            shown[agent] = Shown(*await scenario.until_done(ref.show))
        transfers = all(len(shown[to].got.get(a, [])) >= n for a, s in shown.items() for to, n in s.sent.items())
        waiting = scenario.scene.waiting = scenario.scene.waiting_timers()
        return transfers and all(len(one.rung) + waiting[a] >= len(one.alarms) for a, one in shown.items())


def class_of(agent: str) -> type[Agent]:
    """The names of those that misbehave begin with b."""
    return Odd if agent.startswith("b") else Account


async def _all(works: list[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for work in works:
            _ = group.create_task(work)
