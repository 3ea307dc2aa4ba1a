"""Clients of a simulated world that read streams: the caller of each, and others that break off and come back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.errors import CellError
from mielin_cells.testing.checkers.scene import Recital
from mielin_cells.testing.simulator.deployment import Deployment

STREAMING = 0.3
"""The share of the worlds in which clients read streams."""

UNHEARD = frozenset(("AgentTerminated", "AnswerExpired", "NoSuchAgent", "SessionExpired"))
"""Errors of streams that are no violations: there is no such agent any more, or nothing tells how the call has ended."""


def listeners(
    scenario: Deployment, client: Client, cls: type[Any], agents: list[str], name: str
) -> list[Coroutine[Any, Any, None]]:
    """In some worlds a client reads streams beside its calls."""
    if not agents or Random(f"streams {scenario.swarm.seed}").random() > STREAMING:
        return []
    return [_listen(scenario, client, cls, agents, Random(f"streams {scenario.swarm.seed} {name}"))]


async def _listen(scenario: Deployment, client: Client, cls: type[Any], agents: list[str], rng: Random) -> None:
    for _ in range(rng.randint(1, 4)):
        await asyncio.sleep(rng.random() * rng.choice((0.1, 1.0)))
        agent, length = rng.choice(agents), rng.choice((0, 1, 3, 12))
        ref = client.get(cls, agent)
        stream = ref.recite(length)
        others = list[cells.Stream[str]]()
        try:
            _ = await stream.start()
            if rng.random() < 0.5:
                others.append(ref.recite.read(stream.id))
            breaks_off = rng.randint(0, length)
            await asyncio.gather(
                _recited(scenario, client, Recital(agent, length), ref.recite.read, stream),
                *(
                    _recited(scenario, client, Recital(agent, length), ref.recite.read, one, breaks_off)
                    for one in others
                ),
            )
        except CellError as error:
            _unheard(scenario, agent, error)


async def _recited(
    scenario: Deployment, client: Client, recital: Recital, read: Callable[..., cells.Stream[str]], stream: cells.Stream[str],
    breaks_off: int = -1,
) -> None:  # fmt: skip
    """Reads to the end; one that breaks off behind some parts comes back once."""
    n, _, _ = stream.id.partition(".")
    recital.sender, recital.n = client.session(recital.agent).sender, int(n)
    try:
        while True:
            stream.on_restart(recital.restarted)
            async for part in stream:
                recital.parts.append(part)
                if len(recital.parts) == breaks_off:
                    break
            else:
                break
            stream.close()
            stream, breaks_off = read(stream.id, after=stream.position), -1
    except CellError as error:
        _unheard(scenario, recital.agent, error)
        return
    finally:
        stream.close()
    recital.at = scenario.world.loop.time()
    scenario.scene.counts["stream heard"] += 1
    scenario.scene.counts["stream restarted"] += recital.restarts
    scenario.scene.recitals.append(recital)


def _unheard(scenario: Deployment, agent: str, error: CellError) -> None:
    is_undone = error.code == "NonDeterministicTurn" and "taken back by an undo" in error.message
    if not (scenario.is_passing(error) or scenario.is_torn(error) or error.code in UNHEARD or is_undone):
        scenario.violate(f"I31: a stream of {agent} got {error.code}: {error}")
    scenario.scene.counts[f"stream: {error.code}"] += 1
