"""Another system beside a simulated world's agents: it writes a stream, and clients have agents subscribe to that."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from random import Random
from typing import Any

from mielin_cells.agents.agent import Agent
from mielin_cells.client.client import Client
from mielin_cells.testing.checkers.outside.once import has_stream, heedings
from mielin_cells.testing.checkers.outside.stream import SUBJECTS, ForeignStream
from mielin_cells.testing.checkers.scene import Call, Observed
from mielin_cells.testing.simulator.clients.labellers import Called
from mielin_cells.testing.simulator.deployment import Deployment
from mielin_cells.testing.simulator.outside.seen import HEARD
from mielin_cells.testing.simulator.swarm import CallPlan

ROUNDS = 40
REMOVES, MAKES_ANEW = 0.12, 0.02
"""How often, each time it stores something, the system removes its oldest messages, or deletes the stream and makes it again."""


def begin(scenario: Deployment) -> None:
    """In some worlds there is a stream."""
    if scenario.scene.foreign is None and has_stream(scenario.swarm.seed):
        scenario.scene.foreign = scenario.world.foreign = ForeignStream(_now(scenario))


def writers(scenario: Deployment) -> list[Coroutine[Any, Any, None]]:
    foreign = scenario.scene.foreign
    return [] if foreign is None else [_write(scenario, foreign)]


async def _write(scenario: Deployment, foreign: ForeignStream) -> None:
    rng, world = Random(f"outsider {scenario.swarm.seed}"), scenario.world
    for _ in range(rng.randint(ROUNDS // 4, ROUNDS)):
        await asyncio.sleep(rng.choice((0.0, 0.01, 0.2, 2.0)) * rng.random())
        now = world.loop.time()
        if rng.random() < MAKES_ANEW:
            foreign.make_anew(_now(scenario), now)
            scenario.scene.counts["stream of another system made anew"] += 1
        elif rng.random() < REMOVES:
            foreign.remove_oldest(rng.choice((1, 3, 100)), now)
        for _ in range(rng.choice((0, 1, 1, 4))):
            subject = rng.choice(SUBJECTS)
            foreign.store(subject, now)
            for watch in [*world.network.watches]:
                if watch.matches(HEARD + subject):
                    watch.wake()


def _now(scenario: Deployment) -> int:
    return int(scenario.world.loop.time() * 1e6) + 1


def heeders(
    scenario: Deployment, client: Client, cls: type[Agent], agents: list[str], name: str, called: Called
) -> list[Coroutine[Any, Any, None]]:
    """In those worlds a client has agents subscribe.  `called` makes a call, and takes its answer."""
    return [_heed(scenario, client, cls, agents, name, called)] if scenario.scene.foreign is not None else []


async def _heed(
    scenario: Deployment, client: Client, cls: type[Agent], agents: list[str], sender: str, called: Called
) -> None:
    numbers = Counter[str]()
    for number, heeding in enumerate(heedings(scenario.swarm.seed, sender, agents)):
        await asyncio.sleep(heeding.rest_s)
        numbers[heeding.agent] += 1
        call = Call(heeding.agent, sender, numbers[heeding.agent], True)
        scenario.scene.calls.append(call)
        plan = CallPlan(number, 0.0, heeding.agent, heeding.kind, heeding.pattern, heeding.size, False)
        await called(scenario, plan, call, client.get(cls, heeding.agent))


async def observe(scenario: Deployment, ref: Any, observed: Observed) -> None:
    """What an account has had of the stream."""
    if scenario.scene.foreign is not None:
        observed.orders, observed.order_gaps = await scenario.until_done(ref.heeded)
