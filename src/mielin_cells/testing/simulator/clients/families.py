"""Supervisors of a simulated world and their children, which fail when they arrive, and clients that have them spawned."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Coroutine
from random import Random
from typing import Any

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.errors import CellError, NameTaken
from mielin_cells.log.lifecycle import Phase
from mielin_cells.testing.checkers.families import MOST, WITHIN_S
from mielin_cells.testing.checkers.scene import Hire
from mielin_cells.testing.simulator.deployment import Deployment
from mielin_cells.testing.simulator.misbehaving import Refused, arrive

FAMILIES = 0.4
"""The share of the worlds that have families."""

SULKS = 0.3
"""How likely a child fails when it arrives."""

UNDONE = 0.5
"""How likely a move of a supervisor is undone."""

KIDS = ("k0", "k1", "k2")
"""Ids of children: each supervisor tries to have them."""


class SimKid(cells.Agent, name="SimKid"):
    worked: int = 0

    async def on_arrive(self) -> None:
        await arrive(is_child=True)

    @cells.handler
    async def work(self) -> int:
        self.worked += 1
        return self.worked

    @cells.handler(tries=1)
    async def fail(self) -> None:
        raise Refused("it never works")


class SimBoss(cells.Agent, name="SimBoss", supervision=cells.Supervision(max_restarts=MOST, within_s=WITHIN_S)):
    downs: list[tuple[str, int]] = []  # noqa: RUF012 - a mutable default is copied for each agent

    @cells.handler
    async def hire(self, name: str) -> bool:
        """Returns False if the name is taken."""
        try:
            kid = await cells.child(dead_letters=2, when_parent_ends="keep").spawn(SimKid, name)
        except NameTaken:
            return False
        await kid.work.tell()
        return True

    @cells.handler
    async def follow(self, kid: SimKid) -> None:
        with contextlib.suppress(cells.AskTimeout, cells.UsageError, cells.errors.AgentInError):
            await cells.monitor(kid, self.on_down)

    @cells.handler
    async def on_down(self, down: cells.Down) -> None:
        self.downs.append((down.agent, down.n))

    @cells.handler
    async def show(self) -> list[tuple[str, int]]:
        return self.downs


KIN = (SimBoss, SimKid)
"""The agent classes of families."""


def bosses(seed: int) -> tuple[str, ...]:
    rng = Random(f"families {seed}")
    return () if rng.random() > FAMILIES else tuple(f"p{n}" for n in range(rng.randint(1, 2)))


def families(scenario: Deployment, client: Client, name: str) -> list[Coroutine[Any, Any, None]]:
    """In some worlds a client has agents spawn others, and has these arrive anew and fail."""
    some = bosses(scenario.swarm.seed)
    return [_life(scenario, client, some, Random(f"families {scenario.swarm.seed} {name}"))] if some else []


async def _life(scenario: Deployment, client: Client, some: tuple[str, ...], rng: Random) -> None:
    for _ in range(rng.randint(3, 10)):
        await asyncio.sleep(rng.random() * rng.choice((0.1, 1.0)))
        boss, kid = client.get(SimBoss, rng.choice(some)), client.get(SimKid, rng.choice(KIDS))
        what = rng.choices(("hire", "follow", "fail", "arrive", "move", "move boss"), (4, 1, 2, 3, 1, 1))[0]
        try:
            match what:
                case "hire":
                    hire = Hire(cells.AgentId(_id(boss)), _id(kid))
                    scenario.scene.hires.append(hire)
                    try:
                        hire.is_made = await boss.hire(hire.kid)
                    except cells.StepFailed as error:
                        hire.cause = error.facts["cause"]
                        raise
                case "follow":
                    await boss.follow(kid)
                case "fail":
                    await client.last_entry(_id(kid))
                    for _ in range(2):
                        await kid.fail.tell()
                case "arrive":
                    await client.suspend(kid)
                    await client.resume(kid)
                case "move":
                    await client.migrate(kid)
                case _:
                    report = await client.migrate(boss)
                    await asyncio.sleep(rng.random() * 3)
                    if report.outcome == "completed" and rng.random() < UNDONE:
                        await client.rollback(report.migration)
                        scenario.scene.counts["family: undo"] += 1
            scenario.scene.counts[f"family: {what}"] += 1
        except CellError as error:
            scenario.scene.counts[f"family: {what}: {error.code}"] += 1


def _id(ref: cells.Agent) -> str:
    agent: str = ref.__dict__["__mielin_id__"]
    return agent


async def spawn_bosses(scenario: Deployment) -> None:
    ways = itertools.cycle(scenario.swarm.nodes)
    for boss in bosses(scenario.swarm.seed):
        await scenario.until_done(lambda b=boss: scenario.operator.on(next(ways)).spawn(SimBoss, b))  # type: ignore[misc]


async def observe(scenario: Deployment) -> bool:
    """Asks supervisors what they were told; False while notices or orders are on their way."""
    for boss in bosses(scenario.swarm.seed):
        ref = scenario.operator.get(SimBoss, boss)
        scenario.scene.downs[boss] = await scenario.until_done(ref.show)
    folds = scenario.scene.folds
    for fold in folds.values():
        family = fold.ledger.family
        if family is None or fold.phase is not Phase.RUN:
            continue
        if family.has_orders or (family.is_watched and family.failed > family.told_failed):
            return False
        parent = folds.get(family.parent.agent) if family.parent is not None else None
        known = parent.ledger.family if parent is not None else None
        child = known.children.get(fold.agent) if known is not None else None
        if child is not None and child.seen < family.told:
            return False
    return True
