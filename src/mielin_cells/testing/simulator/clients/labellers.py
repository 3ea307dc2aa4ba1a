"""Clients of a simulated world that have agents set attributes, and search by them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from mielin_cells.agents.agent import Agent
from mielin_cells.client.client import Client
from mielin_cells.errors import CellError
from mielin_cells.store.directory import Directory
from mielin_cells.testing.checkers.attributes import Change, attribute_changes, has_attributes
from mielin_cells.testing.checkers.scene import Call
from mielin_cells.testing.simulator.deployment import Deployment
from mielin_cells.testing.simulator.swarm import CallPlan

Called: TypeAlias = Callable[[Deployment, CallPlan, Call, Any], Coroutine[Any, Any, None]]


def labellers(
    scenario: Deployment, client: Client, cls: type[Agent], agents: list[str], name: str, called: Called
) -> list[Coroutine[Any, Any, None]]:
    """In some worlds a client has agents set attributes.  `called` makes a call, and takes its answer."""
    changes = attribute_changes(scenario.swarm.seed, name, agents)
    return [_label(scenario, client, cls, changes, name, called)] if changes else []


async def _label(
    scenario: Deployment, client: Client, cls: type[Agent], changes: list[Change], sender: str, called: Called
) -> None:
    numbers = Counter[str]()
    for number, change in enumerate(changes):
        await asyncio.sleep(change.rest_s)
        numbers[change.agent] += 1
        call = Call(change.agent, sender, numbers[change.agent], True)
        scenario.scene.calls.append(call)
        plan = CallPlan(number, 0.0, change.agent, "label", str(change.loud), change.mood, False)
        await called(scenario, plan, call, client.get(cls, change.agent))
        if change.searches:
            await _search(scenario, client, cls, change.searches)


async def _search(scenario: Deployment, client: Client, cls: type[Agent], where: str) -> None:
    counts = scenario.scene.counts
    try:
        async for found in client.find(cls, where=where):
            counts["agent found"] += bool(found.attributes)
    except CellError as error:
        if not scenario.is_passing(error) and not scenario.is_torn(error):
            scenario.violate(f"I36: a search got {error.code}: {error}")
        counts[f"search: {error.code}"] += 1


async def look_up(scenario: Deployment) -> None:
    """At rest: notes what a directory says that is made anew."""
    if has_attributes(scenario.swarm.seed):
        directory = Directory(scenario.operator.log)
        await scenario.until_done(directory.refresh)
        scenario.scene.directory = {agent: (one.n, one.values) for agent, one in directory.items()}
