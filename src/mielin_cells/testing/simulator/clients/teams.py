"""Clients of a simulated world that call services, give orders to groups, set timers by cron, and begin traces."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Literal, cast, get_args

from mielin_cells import tracing
from mielin_cells.agents.groups.group import Group
from mielin_cells.agents.groups.report import Order
from mielin_cells.agents.services.service import Choice, Service
from mielin_cells.client.client import Client
from mielin_cells.client.groups.team import Team
from mielin_cells.errors import AgentTerminated, CellError
from mielin_cells.log.lifecycle import Phase
from mielin_cells.testing.checkers.scene import Ordered, Served
from mielin_cells.testing.checkers.teams.hands import (
    CHIEF,
    CREW,
    CRONS,
    WAYS,
    SimChief,
    SimHand,
    hands_of,
    trace_id_of,
)
from mielin_cells.testing.simulator.deployment import Deployment

WEIGHTS = {
    "serve": 6.0, "tell": 2.0, "ask": 1.5, "order": 1.5, "join": 0.5, "leave": 0.3, "begin": 2.0, "end": 0.5, "relay": 3.0,
    "move": 1.0, "move chief": 0.7, "end hand": 0.15,
}  # fmt: skip
"""What these clients do, and how often."""
CALLS = frozenset(("serve", "tell", "ask", "join", "leave", "begin", "end", "relay"))
"""Of these it is known which errors they may end with."""
UNDONE = 0.5
"""How likely a move is undone."""
EXPECTED = frozenset(("AgentTerminated", "InboxFull", "NoneAvailable", "NoSuchAgent", "SessionExpired", "GroupRefused"))
"""Errors that are no violations, besides those that may be tried again."""


async def begin(scenario: Deployment) -> None:
    """Before anything goes wrong, by intention: hands, a group of them, and its chief."""
    hands, ways = hands_of(scenario.swarm.seed), itertools.cycle(scenario.swarm.nodes)
    if not hands:
        return
    for cls, agent in (*((SimHand, hand) for hand in hands), (Group, CREW), (SimChief, CHIEF)):
        with contextlib.suppress(AgentTerminated):  # after a power cut
            await scenario.until_done(lambda c=cls, a=agent: scenario.operator.on(next(ways)).spawn(c, a))  # type: ignore[misc]
    for hand in hands:
        await scenario.until_done(lambda h=hand: Team(scenario.operator.get(Group, CREW), SimHand).add(h))  # type: ignore[misc]


def employers(scenario: Deployment, client: Client, name: str) -> list[Coroutine[Any, Any, None]]:
    """In some worlds a client does all this beside its calls."""
    return [Employer(scenario, client, name).work()] if hands_of(scenario.swarm.seed) else []


class Noting:
    """A client that notes when it last asked each agent to change."""

    def __init__(self, client: Client, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self.asked = dict[str, float]()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name not in ("suspend", "resume", "migrate"):
            return method

        def ask(agent: str, *args: Any) -> Any:
            self.asked[agent] = self._clock()
            return method(agent, *args)

        return ask


class Employer:
    def __init__(self, scenario: Deployment, client: Client, name: str) -> None:
        self._scenario = scenario
        self._client = client
        self._name = name
        self._rng = Random(f"teams {scenario.swarm.seed} {name}")
        self._hands = hands_of(scenario.swarm.seed)
        self._n = 0
        self._services = dict[Choice, Service[SimHand]]()

    async def work(self) -> None:
        rng, counts = self._rng, self._scenario.scene.counts
        for _ in range(rng.randint(4, 14)):
            await asyncio.sleep(rng.random() * rng.choice((0.05, 0.5, 1.5)))
            what = rng.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
            self._n += 1
            try:
                await self._do(what)
                counts[f"team: {what}"] += 1
            except CellError as error:
                counts[f"team: {what}: {error.code}"] += 1
                scenario = self._scenario
                if (
                    what in CALLS
                    and error.code not in EXPECTED
                    and not scenario.is_passing(error)
                    and not scenario.is_torn(error)
                ):
                    scenario.violate(f"I39: {self._name} did {what} and got {error.code}: {error}")

    async def _do(self, what: str) -> None:
        rng, client, hand = self._rng, self._client, self._rng.choice(self._hands)
        team, chief = Team(client.get(Group, CREW), SimHand), client.get(SimChief, CHIEF)
        match what:
            case "serve":
                await self._serve()
            case "tell":
                await chief.tell_crew(f"{self._name} {self._n}")
            case "ask":
                await chief.ask_crew(f"{self._name} {self._n}")
            case "order":
                await self._order(rng.choice([one for one in get_args(Order) if one != "stop"]))
            case "join":
                await team.add(hand, role=rng.choice(("member", "leader", "member", "observer")))
            case "leave":
                await team.remove(hand)
            case "begin":
                await client.get(SimHand, hand).begin(rng.choice([*CRONS]))
            case "end":
                await client.get(SimHand, hand).end(rng.choice([*CRONS]))
            case "relay":
                await self._relay(hand)
            case "end hand":
                await (self._order("stop") if rng.random() < 0.3 else client.terminate(hand))
            case _:
                report = await client.migrate(CHIEF if what == "move chief" else hand)
                await asyncio.sleep(rng.random() * 3)
                if report.outcome == "completed" and rng.random() < UNDONE:
                    await client.rollback(report.migration)
                    self._scenario.scene.counts["team: undo"] += 1

    async def _serve(self) -> None:
        """Calls any one of the hands, once: a service must not repeat what may have taken effect."""
        choose: Choice = self._rng.choice(get_args(Choice))
        n, nap_s = self._n, self._rng.choice((0.0, 0.0, 0.5))
        if choose not in self._services:
            near = self._scenario.swarm.nodes[0] if choose == "nearest" else None
            self._services[choose] = self._client.service(SimHand, choose=choose, near=near)
        key = f"k{n}" if choose == "by_key" else ""
        by = await self._services[choose].call(lambda hand: hand.serve(self._name, n, nap_s), key)
        self._scenario.scene.served.append(Served(self._name, n, by, self._scenario.world.loop.time()))

    async def _order(self, order: Literal["suspend", "resume", "migrate", "drain", "stop"]) -> None:
        """One order for all hands; what was suspended is resumed after a while."""
        scenario, clock, began = self._scenario, self._scenario.world.loop.time, self._scenario.world.loop.time()
        node = self._rng.choice(scenario.swarm.nodes) if order in ("migrate", "drain") else None
        to, off = (node, None) if order == "migrate" else (None, node)
        noting = Noting(self._client, clock)
        report = await Client.order_all(cast("Client", noting), self._hands, order, to=to, node=off)
        scenario.scene.ordered.append(Ordered(report, node or "", began, clock(), noting.asked))
        if order == "suspend":
            await asyncio.sleep(self._rng.random() * 2)
            began, noting = clock(), Noting(self._client, clock)
            report = await Client.order_all(cast("Client", noting), self._hands, "resume")
            scenario.scene.ordered.append(Ordered(report, "", began, clock(), noting.asked))

    async def _relay(self, hand: str) -> None:
        rng, n = self._rng, self._n
        ways, to = [rng.choice(WAYS) for _ in range(rng.randint(1, 4))], list[str]()
        for way in ways:
            before = to[-1] if to else hand
            to.append(before if way == "timer" else rng.choice([one for one in self._hands if one != before]))
        trace = trace_id_of(self._name, n)
        with tracing.use(f"00-{trace}-00f067aa0ba902b7-01") if trace else contextlib.nullcontext():
            await self._client.get(SimHand, hand).relay(self._name, n, ways, to)


async def hush(scenario: Deployment) -> None:
    """Timers that repeat are to end: everything is to come to rest."""
    for hand in hands_of(scenario.swarm.seed):
        fold = scenario.scene.folds.get(hand)
        if fold is not None and fold.phase is not Phase.TERMINATED and fold.ledger.timers:
            with contextlib.suppress(AgentTerminated):
                await scenario.until_done(cast("Any", scenario.operator.get(SimHand, hand).hush))
