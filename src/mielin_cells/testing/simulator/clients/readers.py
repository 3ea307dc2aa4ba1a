"""Clients of a simulated world that read committed state beside their calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeAlias

from mielin_cells.agents.agent import Agent
from mielin_cells.agents.spec import spec_of
from mielin_cells.client.client import Client
from mielin_cells.errors import CellError
from mielin_cells.log.message import decode_answer
from mielin_cells.membership.reads import read_shared
from mielin_cells.rpc.requests import Read
from mielin_cells.testing.checkers.scene import Read as Seen
from mielin_cells.testing.simulator.deployment import Deployment

ClassOf: TypeAlias = Callable[[str], type[Agent]]
"""The class of an agent, by its name."""

READING = 0.4
"""The share of the worlds in which clients read committed state."""

LINEARIZABLE = 0.3
"""The share of these reads that must see everything."""

READ_S = 4.0
"""A reader's patience."""


def readers(scenario: Deployment, client: Client, class_of: ClassOf, name: str) -> list[Coroutine[Any, Any, None]]:
    """In some worlds a client reads committed state beside its calls."""
    rng = Random(f"reads {scenario.swarm.seed} {name}")
    if Random(f"reads {scenario.swarm.seed}").random() > READING:
        return []
    return [_read(scenario, client, class_of, rng) for _ in range(rng.choice((1, 2)))]


async def _read(scenario: Deployment, client: Client, class_of: ClassOf, rng: Random) -> None:
    scene, clock = scenario.scene, scenario.world.loop.time
    owners, seen = dict[str, str](), client.revisions
    for _ in range(rng.randint(4, 16)):
        await asyncio.sleep(rng.choice((0.0, 0.05, 0.3, 1.0)) * rng.random())
        agent, wants_all = rng.choice(scenario.swarm.agents), rng.random() < LINEARIZABLE
        spec = spec_of(class_of(agent))
        args = spec.handler("look").encode_args((rng.choice((0.0, 0.0, 0.1)),), {})
        least = max(seen.get(agent, 0), scene.folds[agent].seq if wants_all and agent in scene.folds else 0)
        request = Read(agent, spec.name, "look", args, seen.get(agent, 0), wants_all, 0.0)
        try:
            reading = await read_shared(client.log, client.wire, request, READ_S, owners)
        except CellError as error:
            if not scenario.is_passing(error) and not scenario.is_torn(error) and error.code != "NoSuchAgent":
                scenario.violate(f"I26: a read of {agent} got {error.code}: {error}")
            scene.counts[f"read: {error.code}"] += 1
            continue
        answer = decode_answer(reading.answer)
        if answer.result is None:
            scenario.violate(f"I26: a read of {agent} was answered with {answer.error}")
            continue
        seen[agent] = max(seen.get(agent, 0), reading.revision)
        shown = spec.handler("look").decode_result(answer.result)
        scene.counts["read of everything" if wants_all else "read"] += 1
        scene.reads.append(Seen(agent, least, reading.revision, shown, clock()))
