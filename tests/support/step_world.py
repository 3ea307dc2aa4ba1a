"""What durable steps call in tests, and agents that call it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import mielin_cells as cells
from mielin_cells.node.activation.turn import Turn

QUICK = cells.Settings(retry_first_s=0, ask_tries=5)
NO_WAIT = cells.Retry(first_s=0)


def is_stopping() -> bool:
    """Whether the intake of the agent whose turn runs is being stopped."""
    running = cells.this()
    assert isinstance(running, Turn)
    return running._core.is_stopping


@dataclass
class World:
    """What is outside of all agents: it counts what it is asked, and answers when it is told to."""

    calls: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    runs: int = 0
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    outlast: set[str] = field(default_factory=set)
    """Calls that last until the agent's intake is being stopped."""
    fails: Counter[str] = field(default_factory=Counter)
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def model(self, prompt: str) -> str:
        self.calls.append(prompt)
        self.keys.append(cells.this().idempotency_key)
        self.nodes.append(cells.this().node)
        self.begun.set()
        if prompt in self.gates:
            await self.gates[prompt].wait()
        if prompt in self.outlast:
            self.outlast.discard(prompt)
            while not is_stopping():
                await asyncio.sleep(0)
        if self.fails[prompt] > 0:
            self.fails[prompt] -= 1
            raise ConnectionError(f"{prompt} busy")
        return f"{prompt}!"


world = World()


def anew() -> None:
    """Nothing has been called."""
    vars(world).update(vars(World()))


class Chat(cells.Agent):
    said: list[str] = []

    @cells.handler
    async def say(self, *, prompts: list[str], fails: int = 0) -> list[str]:
        """One step for each prompt; raises at the end of its first `fails` runs."""
        world.runs += 1
        said = [await cells.step("model", world.model, prompt, retry=NO_WAIT) for prompt in prompts]
        self.said.extend(said)
        if world.runs <= fails:
            raise OSError("the handler fell")
        return said

    @cells.handler
    async def all(self) -> list[str]:
        return self.said

    @cells.handler(cancellable=True)
    async def patient(self, prompt: str) -> str:
        return await cells.step("model", world.model, prompt)


class Scripted(cells.Agent):
    """Does what the test puts into `script`, and raises at the end of its first run."""

    peer: Chat

    @cells.handler
    async def play(self) -> list[str]:
        world.runs += 1
        done = await script[min(world.runs, len(script)) - 1](self)
        if world.runs == 1:
            raise OSError("run again")
        return done


script: list[Callable[[Scripted], Awaitable[list[str]]]] = []


async def played(*scripts: Callable[[Scripted], Awaitable[list[str]]]) -> list[str]:
    script[:] = scripts
    async with cells.local(settings=QUICK) as cluster:
        peer = await cluster.spawn(Chat, "peer")
        agent = await cluster.spawn(Scripted, "s", peer=peer)
        return await agent.play()
