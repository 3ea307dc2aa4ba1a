"""Nodes and clients at two places, which share one deployment: two clusters with gateways between, and a hub with a leaf server.

The far place has one server, whose death takes all that is connected to it.  Everything is real: servers, node processes, clients.
`make clusters` runs these, and `make ci`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from support.nats_servers import NatsServer, free_ports, nats_cluster
from support.topologies import leaf, open_when_led, supercluster
from torture.agents import TOKENS, Purse
from torture.nodes import NodeProcess

from mielin_cells.client.client import Client
from mielin_cells.deployment.connect import Address, connected
from mielin_cells.errors import CellError, RetryError
from mielin_cells.log.ids import log_subject

SOON_S = 45.0
"""Time for whatever must happen; a busy machine takes a good part of it."""
AGENTS = [f"purse-{number}" for number in range(6)]


class Places(NamedTuple):
    near: list[NatsServer]
    """One cluster, which has the streams."""
    far: NatsServer
    domain: str | None
    """To be given at the far place."""
    round_trip_s: float = 0.0
    """Between the two, at least."""


@asynccontextmanager
async def two_clusters(folder: Path) -> AsyncIterator[Places]:
    async with supercluster(folder) as clusters:
        yield Places(clusters["east"], clusters["west"][0], None)


@asynccontextmanager
async def distant_clusters(folder: Path) -> AsyncIterator[Places]:
    async with supercluster(folder, distance_s=0.04) as clusters:
        yield Places(clusters["east"], clusters["west"][0], None, 0.08)


@asynccontextmanager
async def hub_and_leaf(folder: Path) -> AsyncIterator[Places]:
    ports = free_ports(3)
    async with (
        nats_cluster(folder / "hub", leafs=ports, jetstream={"domain": "hub"}, server_tags=["region:east"]) as hub,
        leaf(folder / "leaf", ports, jetstream={"domain": "edge"}) as edge,
    ):
        yield Places(hub, edge, "hub")


class Story:
    """Calls with numbers, through one client or another; what was acknowledged is in `noted`."""

    def __init__(self) -> None:
        self.noted: dict[str, int] = dict.fromkeys(AGENTS, 0)

    async def note(self, client: Client, agent: str, sender: str, n: int) -> None:
        await client.get(Purse, agent).note(sender, n)
        self.noted[agent] += 1

    async def all_answer(self, client: Client, sender: str, n: int) -> None:
        """Each agent answers this client."""
        async with asyncio.timeout(SOON_S):
            await asyncio.gather(*(self.note(client, agent, sender, n) for agent in AGENTS))


async def owners(client: Client) -> dict[str, str]:
    return {agent.id: agent.node for agent in await client.agents()}


async def until(is_so: Callable[[], Awaitable[bool]], what: str) -> None:
    """An error that passes counts as false."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SOON_S):
            while True:
                with contextlib.suppress(RetryError, TimeoutError):
                    if await is_so():
                        return
                await asyncio.sleep(0.1)
    pytest.fail(f"{what}: not within {SOON_S:g} s")


class Running(NamedTuple):
    nodes: dict[str, NodeProcess]
    here: Client
    """Of the near place."""
    there: Client


@asynccontextmanager
async def running(at: Places, folder: Path) -> AsyncIterator[Running]:
    """Two nodes at each place, and a client; the streams are at the near one."""
    async with contextlib.AsyncExitStack() as stack:
        made = await open_when_led(at.near[0].url, shards=2, placement_tags=("region:east",))
        assert made.replicas == 3
        await made.close()
        far = ("--domain", at.domain) if at.domain else ()
        nodes = {
            name: NodeProcess(folder, name, server.url, *options)
            for name, server, options in [
                ("near-1", at.near[0], ()), ("near-2", at.near[1], ()), ("far-1", at.far, far), ("far-2", at.far, far)
            ]
        }  # fmt: skip
        for node in nodes.values():
            stack.push_async_callback(node.kill)
        await asyncio.gather(*(node.start() for node in nodes.values()))
        await asyncio.gather(*(node.serving() for node in nodes.values()))
        here = await stack.enter_async_context(connected(Address(at.near[2].url)))
        there = await stack.enter_async_context(connected(Address(at.far.url, domain=at.domain)))
        yield Running(nodes, here, there)


async def move_and_pay(story: Story, here: Client, there: Client) -> None:
    """An agent is moved there and back while both call it, and tokens go across."""

    async def call(client: Client, sender: str) -> None:
        for n in range(2, 12):
            await story.note(client, AGENTS[0], sender, n)

    calling = asyncio.gather(call(here, "here"), call(there, "there"))
    for client, to in ((there, "far-1"), (here, "near-2"), (there, "far-2"), (here, "near-1")):
        report = await client.migrate(AGENTS[0], to=to)
        assert report.ok, report
    await calling
    await there.get(Purse, AGENTS[0]).give("there", 12, AGENTS[1], 7)
    await here.get(Purse, AGENTS[1]).hand("here", 2, AGENTS[0], 3)
    story.noted[AGENTS[0]] += 1
    story.noted[AGENTS[1]] += 1


@pytest.mark.timeout(280)
@pytest.mark.parametrize("places", [two_clusters, distant_clusters, hub_and_leaf])
async def test_agents_live_at_two_places_and_outlive_a_node_and_the_far_server(
    places: Callable[[Path], contextlib.AbstractAsyncContextManager[Places]], tmp_path: Path
) -> None:
    async with places(tmp_path / "servers") as at, running(at, tmp_path) as (nodes, here, there):
        story = Story()
        for number, agent in enumerate(AGENTS):  # spawned from both places, at both places
            client, name = (here, there)[number % 2], ("near-1", "far-1", "far-2")[number % 3]
            await client.on(name).spawn(Purse, agent)
        await until(lambda: _are(here, {"near-1", "far-1", "far-2"}), "agents at both places")
        await story.all_answer(here, "here", 1)
        await story.all_answer(there, "there", 1)
        assert await owners(here) == await owners(there)
        began = time.monotonic()
        await there.log.last(log_subject(AGENTS[0]))
        assert time.monotonic() - began >= at.round_trip_s
        await move_and_pay(story, here, there)

        # A node of the far place is killed: its agents go on elsewhere.
        await nodes["far-1"].kill()
        await until(lambda: _are_not(there, "far-1"), "failover of far-1")
        await story.all_answer(here, "here", 20)
        await story.all_answer(there, "there", 20)

        # The server of the far place is killed, with all that is connected to it.
        assert "far-2" in (await owners(here)).values()
        at.far.kill()
        await until(lambda: _are_not(here, "far-2"), "failover of the far place")
        await story.all_answer(here, "here", 21)

        # It comes back: its node, which knows nothing of that, serves nothing that it lost, and may be moved to again.
        await at.far.start()
        await until(lambda: _serves(here, "far-2"), "far-2 serves again")
        await _move(here, AGENTS[2], "far-2")
        await story.all_answer(there, "there", 22)
        await story.all_answer(here, "here", 22)

        shown = {agent: await here.get(Purse, agent).show() for agent in AGENTS}
        assert sum(one[0] for one in shown.values()) == TOKENS * len(AGENTS)
        assert {agent: len(one[1]) for agent, one in shown.items()} == story.noted
        for node in nodes.values():
            assert "Traceback" not in node.logged()


async def _are(client: Client, nodes: set[str]) -> bool:
    return set((await owners(client)).values()) == nodes


async def _are_not(client: Client, node: str) -> bool:
    found = await owners(client)
    return set(found) == set(AGENTS) and node not in found.values()


async def _serves(client: Client, name: str) -> bool:
    return any(node.name == name for node in await client.nodes())


async def _move(client: Client, agent: str, to: str) -> None:
    """Also if that takes several tries: the node has just come back."""
    async with asyncio.timeout(SOON_S):
        while True:
            with contextlib.suppress(CellError):
                if (await client.migrate(agent, to=to)).ok:
                    return
            await asyncio.sleep(0.2)
