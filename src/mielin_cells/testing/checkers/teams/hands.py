"""The agents of services and groups in the simulator's mix: hands that are called, and a chief that tells a group of them."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import Any

from blake3 import blake3

import mielin_cells as cells
from mielin_cells.agents.groups.group import Group
from mielin_cells.agents.reference import agent_id
from mielin_cells.agents.timer import CatchUp
from mielin_cells.agents.values.wire import plain
from mielin_cells.client.groups.team import Team
from mielin_cells.log.fold import Fold

WORLDS = 0.3
"""The share of the worlds that have such agents."""
CREW = "g0"
"""The group."""
CHIEF = "q0"
CRONS = {"c0": ("*/3 * * * * *", "one"), "c1": ("*/20 * * * * *", "all"), "c2": ("*/4 * * * * *", "none")}
"""By id, the expression of a timer, and what it does about missed times."""
PATIENCE_S = 4.0
"""An agent's patience with another one, which may be waiting for it in turn."""
WAYS = ("tell", "ask", "timer", "priority", "both")
"""How a relay goes on."""


def hands_of(seed: int) -> tuple[str, ...]:
    """The hands of a seed's world; none in most."""
    rng = Random(f"teams {seed}")
    return () if rng.random() > WORLDS else tuple(f"h{n}" for n in range(rng.randint(2, 3)))


def trace_id_of(sender: str, n: int) -> str:
    """The id of the trace that a client's call is part of; "" if it is part of none."""
    return blake3(f"{sender} {n}".encode()).hexdigest(16) if n % 3 else ""


class SimHand(cells.Agent, name="SimHand"):
    served: list[tuple[str, int]] = []  # noqa: RUF012 - a mutable default is copied for each agent
    """Calls of a service: client and number."""
    told: list[str] = []  # noqa: RUF012
    """What the chief has told its group."""
    asked: list[str] = []  # noqa: RUF012
    firings: dict[str, int] = {}  # noqa: RUF012
    """By timer, how often it came."""
    traces: list[tuple[str, int, str]] = []  # noqa: RUF012
    """Of each turn of a relay: client and number, and the id of its trace."""

    @cells.handler
    async def serve(self, sender: str, n: int, nap_s: float) -> str:
        if nap_s:
            await asyncio.sleep(nap_s)
        self.served.append((sender, n))
        return cells.this().id

    @cells.handler
    async def hear(self, what: str) -> None:
        self.told.append(what)

    @cells.handler
    async def answer(self, what: str) -> str:
        self.asked.append(what)
        return cells.this().id

    @cells.handler
    async def begin(self, timer: str) -> None:
        expression, catch_up = CRONS[timer]
        catches: CatchUp = "all" if catch_up == "all" else "none" if catch_up == "none" else "one"
        cells.cron(expression, self.tick, id=timer, catch_up=catches)(timer)

    @cells.handler
    async def end(self, timer: str) -> None:
        cells.cancel(timer)

    @cells.handler
    async def hush(self) -> None:
        """It is to come to rest."""
        for timer in CRONS:
            cells.cancel(timer)

    @cells.handler
    async def tick(self, timer: str) -> None:
        self.firings[timer] = self.firings.get(timer, 0) + 1

    @cells.handler
    async def relay(self, sender: str, n: int, ways: list[str], to: list[str]) -> None:
        """Notes its trace, and goes on in the first of the ways with the first of the others."""
        trace = cells.trace()
        self.traces.append((sender, n, trace.trace_id if trace is not None else ""))
        if not ways:
            return
        other, rest = cells.this().cluster.get(SimHand, to[0]).relay, (sender, n, ways[1:], to[1:])
        match ways[0]:
            case "tell":
                await other.tell(*rest)
            case "timer":  # to itself: the next one goes on
                cells.after(0.3, self.relay)(*rest)
            case "priority":
                await other.options(priority="high").tell(*rest)
            case "both":
                step = asyncio.create_task(cells.step("carry", carry))
                _ = await asyncio.gather(self._ask(other, rest), step)
                self.traces.append((sender, n, step.result()))
            case _:
                await self._ask(other, rest)

    async def _ask(self, other: Any, args: tuple[Any, ...]) -> None:
        with contextlib.suppress(cells.AskTimeout, cells.errors.AskCycle, cells.errors.AgentTerminated):
            await other.options(timeout=PATIENCE_S)(*args)


async def carry() -> str:
    """The trace that a step is part of."""
    await asyncio.sleep(0)
    trace = cells.trace()
    return trace.trace_id if trace is not None else ""


class SimChief(cells.Agent, name="SimChief"):
    said: list[tuple[str, list[str]]] = []  # noqa: RUF012 - a mutable default is copied for each agent
    """What it has told its group, and to whom."""
    wanted: list[tuple[str, list[str], list[str]]] = []  # noqa: RUF012
    """What it has asked, who has answered, and who has not."""

    def _crew(self) -> Team[SimHand]:
        return Team(cells.this().cluster.get(Group, CREW), SimHand)

    @cells.handler
    async def tell_crew(self, what: str) -> None:
        told = list[str]()

        async def tell(hand: SimHand) -> None:
            told.append(agent_id(hand))
            await hand.hear.tell(what)

        with contextlib.suppress(cells.AskTimeout):  # of the group, before anybody is told
            _ = await self._crew().tell_all(tell)
        self.said.append((what, told))

    @cells.handler
    async def ask_crew(self, what: str) -> None:
        try:
            gathered = await self._crew().gather(lambda hand: hand.answer.options(timeout=PATIENCE_S)(what))
        except cells.AskTimeout:  # of the group
            return
        self.wanted.append((what, sorted(gathered.results), sorted(gathered.failed)))


TEAMS = (SimHand, SimChief, Group)
"""The agent classes of services and groups."""


def fields_of(fold: Fold, *names: str) -> list[Any] | None:
    """Fields of an agent's state as its log has them; None for an agent of another class."""
    stored = fold.state.plain
    return [plain(stored[name]) for name in names] if all(name in stored for name in names) else None
