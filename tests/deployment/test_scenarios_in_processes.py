"""The scenarios of `tests/policy/test_scenarios.py` in real processes: facts are what sensors of the app read from a file."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from support.processes import Deployment, deployment

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.log.ids import MEMBERS
from mielin_cells.membership.members import Planned, decode_record
from mielin_cells.policies import Battery, Cost, Latency, Load, MigrationPolicy, Policy, Thermal, Window

TRANSCRIPTS = Path(__file__).parents[1] / "policy" / "transcripts"
LINE = re.compile(r"\s*[\d.]+  (\S+) (\S+) -> (\S+) \[(\d+)\]: (.*)")

APP = """
import json, sys
from pathlib import Path

import mielin_cells as cells
from mielin_cells.sensors import sensor

NODE = sys.argv[sys.argv.index("--name") + 1]


class Resident(cells.Agent, name="ScenarioResident"):
    n: int = 0

    @cells.handler
    async def add(self) -> int:
        self.n += 1
        return self.n


def declare(name):
    @sensor(name, every_s=0.1)
    def read():
        return json.loads(Path("facts.json").read_text()).get(NODE, {}).get(name)


for name in ("cpu", "memory", "waiting", "battery", "mains", "temperature_c", "store_ms", "cost_per_hour"):
    declare(name)
"""

SOON = """
[settings]
reconcile_s = 0.5
"""
"""Facts that trigger nothing are told soon, too."""

OFF: dict[str, Any] = dict.fromkeys(("thermal", "battery", "load", "latency"))
LIMIT_S = 200.0


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await holds():
            await asyncio.sleep(0.05)


class Resident(cells.Agent, name="ScenarioResident"):
    n: int = 0

    @cells.handler
    async def add(self) -> int:
        self.n += 1
        return self.n


class Move(NamedTuple):
    agent: str
    source: str
    target: str
    priority: int
    why: str


class World:
    """Real nodes, whose facts a test says."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client = client
        self._file = folder / "facts.json"
        self._facts: dict[str, dict[str, Any]] = {}
        self._agents: list[str] = []
        self._played = 0

    def say(self, **facts: Mapping[str, Any]) -> None:
        """What sensors say from now on, by node (`node_1`); of other nodes it stays."""
        self._facts |= {name.replace("_", "-"): dict(some) for name, some in facts.items()}
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self._facts))
        os.replace(new, self._file)

    async def known(self) -> None:
        """Every node knows from the table of members what the sensors say."""

        async def is_known() -> bool:
            table = await self.client.members.read_to_end()
            return all(
                member is not None and all(member.facts.get(fact) == value for fact, value in said.items())
                for member, said in ((table.get(name), said) for name, said in self._facts.items())
            )

        await until(is_known)

    async def spawn(self, node: str, policy: MigrationPolicy, *agents: str) -> None:
        for agent in agents:
            await self.client.on(node).with_policy(Policy(migration=policy)).spawn(Resident, self._prefix + agent)
            self._agents.append(self._prefix + agent)

    def begin(self) -> None:
        """Another scenario: its agents have names of their own."""
        self._played += 1
        self._agents = []

    @property
    def _prefix(self) -> str:
        return f"s{self._played}."

    async def moves(self) -> list[Move]:
        """All moves that were ever planned for agents of this scenario."""
        records = [decode_record(entry.data, "members") for entry in await self.client.log.read(MEMBERS, 0, 10_000)]
        return [
            Move(move.agent.removeprefix(self._prefix), move.source, move.target, move.priority, move.why)
            for record in records if isinstance(record, Planned)
            for move in record.moves if move.agent.startswith(self._prefix)
        ]  # fmt: skip

    async def arrived(self, expected: list[Move]) -> None:
        """The moves were planned, and no others, and the agents are where the last of them leads."""
        last = {self._prefix + move.agent: move.target for move in expected}

        async def are_there() -> bool:
            where = {info.id: info.node for info in await self.client.agents() if info.id in last}
            return where == last

        await until(are_there)
        assert sorted(await self.moves()) == sorted(expected)

    async def end(self) -> None:
        for agent in self._agents:
            assert await self.client.get(Resident, agent).add() == 1
            await self.client.terminate(agent)


def transcript(name: str, nodes: Mapping[str, str], *, but: str = "") -> list[Move]:
    """The moves of a golden transcript, by nodes of other names."""
    found = [
        match.groups()
        for line in (TRANSCRIPTS / f"{name}.txt").read_text().splitlines()
        if (match := LINE.fullmatch(line))
    ]
    assert found
    return [
        Move(agent, nodes[source], nodes[target], int(priority), why)
        for agent, source, target, priority, why in found if agent != but
    ]  # fmt: skip


async def battery(world: World) -> list[Move]:
    laptop = {"cpu": 20.0, "mains": False}
    world.say(
        node_1={"battery": 16.0, **laptop}, node_2={"battery": 20.0, **laptop}, node_3={"cpu": 60.0, "mains": True}
    )
    await world.known()
    await world.spawn("node-1", MigrationPolicy(battery=Battery(sustained_s=1), cooldown_s=1), "a0", "a1", "a2")
    world.say(node_1={"battery": 14.5, **laptop})
    return transcript("battery", {"laptop": "node-1", "other": "node-2", "desk": "node-3"})


async def heat(world: World) -> list[Move]:
    """Cooldowns are longer than the test: those of the first moves have passed, and the critical one does not wait."""
    world.say(node_1={"temperature_c": 60.0}, node_2={"temperature_c": 55.0}, node_3={})
    await world.known()
    await world.spawn("node-1", MigrationPolicy(thermal=Thermal(sustained_s=1), cooldown_s=3), "a0", "a1", "a2", "a3")
    nodes = {"n1": "node-1", "n2": "node-2", "n3": "node-3"}
    expected = transcript("heat", nodes)
    world.say(node_1={"temperature_c": 76.0})
    await world.arrived(expected[:4])
    world.say(node_1={"temperature_c": 65.0})
    await world.known()
    world.say(node_2={"temperature_c": 88.0})
    return expected


async def cost(world: World) -> list[Move]:
    """It is the time of the window for nobody: that agent waits."""
    world.say(node_1={"cost_per_hour": 0.4}, node_2={"cost_per_hour": 0.9}, node_3={"cost_per_hour": 0.3})
    await world.known()
    thrifty = MigrationPolicy(cost=Cost(max_per_hour=1.0, reduction=20, sustained_s=1), cooldown_s=1, **OFF)
    await world.spawn("node-1", thrifty, "a0", "a1")
    other = (time.gmtime().tm_wday + 3) % 7
    later = Window(begin="00:00", end="06:00", days=(other,))
    await world.spawn("node-1", MigrationPolicy(cost=Cost(sustained_s=1), windows=(later,), cooldown_s=1, **OFF), "w0")
    world.say(node_1={"cost_per_hour": 1.2})
    return transcript("cost", {"spot": "node-1", "dear": "node-2", "cheap": "node-3"}, but="w0")


async def overload(world: World) -> list[Move]:
    """Some agents leave, and not all.  It is the last one: on a slow machine more may leave before the node says that it is well."""
    world.say(node_1={"cpu": 30.0}, node_2={"cpu": 20.0}, node_3={"cpu": 70.0})
    await world.known()
    await world.spawn("node-1", MigrationPolicy(load=Load(sustained_s=1), cooldown_s=1), *(f"a{n}" for n in range(10)))
    before = len(await world.moves())
    world.say(node_1={"cpu": 96.0})

    async def has_begun() -> bool:
        return len(await world.moves()) > before

    await until(has_begun)
    world.say(node_1={"cpu": 60.0})
    expected = transcript("overload", {"n1": "node-1", "n2": "node-2", "n3": "node-3"})[:4]
    assert (await world.moves())[before : before + 4] == expected
    return expected


async def zone_loss(world: World) -> list[Move]:
    """Node 1 is the zone that is far from the store."""
    near = {"store_ms": 6.0}
    world.say(node_1={"store_ms": 5.0}, node_2=near, node_3=near)
    await world.known()
    policy = MigrationPolicy(latency=Latency(max_ms=100, sustained_s=1), cooldown_s=1)
    await world.spawn("node-1", policy, *(f"a{n}" for n in range(6)))
    world.say(node_1={"store_ms": 400.0})
    return transcript("zone_loss", {"a1": "node-1", "b1": "node-2", "b2": "node-3"})


@asynccontextmanager
async def world_of(running: Deployment) -> AsyncIterator[World]:
    address = json.loads((running.folder / ".mielin" / "address.json").read_text())
    async with cells.connect(address["url"]) as client:
        assert isinstance(client, Client)
        yield World(client, running.folder)


def test_scripts_of_facts_move_agents_of_real_nodes_as_the_transcripts_say(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "facts.json").write_text("{}")
    (tmp_path / "mielin.toml").write_text(SOON)

    async def play(running: Deployment) -> None:
        async with world_of(running) as world:
            for scenario in (battery, heat, cost, zone_loss):
                begun = time.monotonic()
                world.begin()
                await world.arrived(await scenario(world))
                await world.end()
                print(f"{scenario.__name__}: {time.monotonic() - begun:.1f} s")
            world.begin()
            await overload(world)
            await world.end()

    with deployment(tmp_path, 3, "--config", "mielin.toml") as running:
        asyncio.run(play(running))
