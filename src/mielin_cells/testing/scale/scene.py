"""A deployment of many nodes with many agents each, in a simulated world without faults: real nodes, real clients, virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable
from random import Random
from typing import Any

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.errors import CellError
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import decode_record
from mielin_cells.node.node import Node
from mielin_cells.settings import Settings
from mielin_cells.testing.checkers.checker import Owned
from mielin_cells.testing.scale.counted import CountedWorld
from mielin_cells.testing.simulator.deployment import Deployment
from mielin_cells.testing.simulator.swarm import Swarm

AT_ONCE = 64
"""Nodes that start, and agents of one client that are spawned, at the same time."""

NODES_A_CLIENT = 50
LOOK_S = 0.05
"""The interval of looking whether an agent is served again."""


class Tally(cells.Agent, name="ScaleTally"):
    """Its count is how many asks it has handled: more or less than were answered is one doubled or lost."""

    count: int = 0

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.count += n
        return self.count


async def some_at_a_time(works: Iterable[Coroutine[Any, Any, Any]], limit: int = AT_ONCE) -> None:
    waiting = iter(works)

    async def worker() -> None:
        for work in waiting:
            await work

    await asyncio.gather(*(worker() for _ in range(limit)))


class ScaleScene(Deployment):
    """Made inside a `VirtualLoop`."""

    def __init__(self, nodes: int, agents_each: int, seed: int = 1) -> None:
        self.names = tuple(f"node-{number:04}" for number in range(nodes))
        super().__init__(Swarm(seed=seed, nodes=self.names, keepers=True, settings=Settings()), ())
        self.homes = {f"a{number:06}": self.names[number % nodes] for number in range(nodes * agents_each)}
        """Where each agent was created."""
        self.answered = Counter[str]()
        """By agent: asks that were answered."""
        self.unknown = Counter[str]()
        """Asks whose outcome the client does not know."""
        self.asked = 0
        self._callers = list[Client]()
        self._rng = Random(f"scale {seed}")

    def make_world(self) -> CountedWorld:
        self.counted = CountedWorld(self.swarm.seed)
        return self.counted

    # ---- life ------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        await some_at_a_time(self._start(name) for name in self.names)
        await self._open_operator()
        for number in range(max(1, len(self.names) // NODES_A_CLIENT)):
            _, client = await self.client(f"client-{number}")
            self._callers.append(client)

    async def spawn_all(self) -> None:
        callers = self._callers
        places = enumerate(self.homes.items())
        await some_at_a_time(
            (
                callers[number % len(callers)].on(node).spawn(Tally, agent)
                for number, (agent, node) in places
            ),
            AT_ONCE * len(callers),
        )  # fmt: skip

    async def ask_for(self, seconds: float, each_s: float) -> None:
        """Random agents are asked, `each_s` asks a second and node, for so long and until all have answered."""
        loop, agents, asks = self.world.loop, list(self.homes), list[asyncio.Task[int | None]]()
        count = round(seconds * each_s * len(self.names))
        began = loop.time()
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number * seconds / count - loop.time()))
            asks.append(asyncio.ensure_future(self.ask(self._rng.choice(agents))))
        await asyncio.gather(*asks, asyncio.sleep(began + seconds - loop.time()))

    async def ask(self, agent: str, n: int = 1) -> int | None:
        """The agent's answer; None if the outcome is not known."""
        self.asked += 1
        client = self._callers[self.asked % len(self._callers)]
        try:
            answer = await client.get(Tally, agent).add(n)
        except CellError:
            self.unknown[agent] += n
            return None
        self.answered[agent] += n
        return answer

    # ---- what is done to nodes -------------------------------------------------------------------------------

    async def drain(self, names: list[str]) -> float:
        """Drains the nodes at the same time, and stops them.  Virtual seconds until the last one was empty."""
        began = self.world.loop.time()
        reports = await asyncio.gather(*(self.operator.drain(name, 300.0) for name in names))
        took = self.world.loop.time() - began
        left = sum(report.left for report in reports)
        if left:
            self.violate(f"{left} agents stayed on nodes that were drained")
        await asyncio.gather(*(self.world.views[name].process.run(self._node(name).stop()) for name in names))
        for name in names:
            self.world.crash(name)
        return took

    async def fail(self, names: list[str], limit_s: float = 300.0) -> float:
        """Kills the nodes at the same time.  Virtual seconds until others serve the last one of their agents."""
        orphans = {agent for name in names for agent in self._node(name).activations.live}
        for name in names:
            self.world.crash(name)
        began = self.world.loop.time()
        while orphans:
            await asyncio.sleep(LOOK_S)
            for node in self.living():
                orphans -= node.activations.live.keys()
            if self.world.loop.time() - began > limit_s:
                self.violate(f"{len(orphans)} agents of nodes that failed are not served after {limit_s:g} s")
                break
        return self.world.loop.time() - began

    def end(self) -> None:
        """Ends all processes as a crash would."""
        for name in self.world.views:
            self.world.crash(name)

    def _node(self, name: str) -> Node:
        return self.scene.nodes[name]

    def living(self) -> list[Node]:
        return [node for name, node in self.scene.nodes.items() if not self.world.views[name].process.is_dead]

    # ---- what must have come of it ---------------------------------------------------------------------------

    async def check(self, moved: set[str]) -> None:
        """Every agent has one owner, which lives and serves it alone; asks that were answered have counted once.

        Those that were moved, or were asked before, are asked once more.
        """
        living = {node.name: node for node in self.living()}
        served = Counter(agent for node in living.values() for agent in node.activations.live)
        for agent in self.homes:
            owner = self._owner(agent)
            if owner not in living:
                self.violate(f"{agent} belongs to {owner or 'nobody'}, which does not live")
            elif agent not in living[owner].activations.live:
                self.violate(f"{agent} belongs to {owner}, which does not serve it")
            if served[agent] != 1:
                self.violate(f"{agent} is served by {served[agent]} nodes")
        await some_at_a_time(self._check_count(agent) for agent in sorted(moved | self.answered.keys()))

    def _owner(self, agent: str) -> str:
        """As the records of its log say."""
        owned, subject = Owned(), log_subject(agent)
        for entry in self.world.store.read(subject, 0, 1 << 60):
            owned.after(entry.seq, decode_record(entry.data, subject))
        return "" if owned.ended else owned.owner

    async def _check_count(self, agent: str) -> None:
        least, most = self.answered[agent], self.answered[agent] + self.unknown[agent]
        count = await self.ask(agent, 0)
        if count is None or not least <= count <= most:
            self.violate(f"{agent} has counted {count}; {least} asks were answered, and {most} were made")
