"""Taking a node out of service from outside: cordoned, drained, or, if it is dead already, its agents claimed by others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from mielin_cells.agents.reports import DrainReport
from mielin_cells.errors import MigrationRefused, RetryError, UnknownNode
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import named_owner
from mielin_cells.membership import table
from mielin_cells.membership.takeover import Takeover
from mielin_cells.rpc import requests
from mielin_cells.rpc.answers import DONE, OVER, ROWS_MAX, RUNNING, DrainProgress, Row
from mielin_cells.store.reader import ends, known_agents, record_of

if TYPE_CHECKING:
    from mielin_cells.client.client import Client

POLL_S = 0.2
"""How often a drain is asked after."""

PATIENCE_S = 5.0
"""A node in mid-drain that is silent for so long counts as dead."""

ASK_S = 3.0


async def cordon(client: Client, node: str, is_cordoned: bool) -> None:
    """Raises `UnknownNode`, `RecordInvalid`, and a `RetryError` while the store does not answer."""
    await table.cordon(client.log, node, is_cordoned, lambda: client.nonce(12))


async def plan(client: Client, node: str) -> DrainProgress:
    """Where each agent would go, and what would keep it; nothing is changed.  Raises as `evacuate`."""
    await _known(client, node)
    if await client.ping(node) is None:
        agents = await _owned(client, node)
        await _takers(client, node, len(agents))
        rows = [Row(agent=agent, state="fits", blocker="its node is dead: it would be claimed") for agent in agents]
        return DrainProgress(node=node, state="dry run", agents=len(rows), rows=rows[:ROWS_MAX])
    return await client.request(node, requests.Drain(), client.settings.migration_s)


async def evacuate(
    client: Client, node: str, deadline_s: float, seen: Callable[[DrainProgress], None] = lambda _: None
) -> DrainReport:
    """See `Cluster.drain`; `seen` is called with how far it is."""
    await _known(client, node)
    found = await client.ping(node)
    await _takers(client, node, found.agents if found is not None else len(await _owned(client, node)))
    await cordon(client, node, True)
    if found is None:
        return await _taken_over(client, node, 0, 0.0)
    loop, name = asyncio.get_running_loop(), f"d-{client.nonce(8).hex()}"
    began = heard = loop.time()
    told = DrainProgress(node=node)
    request: requests.Request[DrainProgress] = requests.Drain(name, deadline_s)
    while True:
        try:
            told = await client.request(node, request, ASK_S)
            heard, request = loop.time(), requests.ReadDrain(name)
        except RetryError:
            if loop.time() - heard > PATIENCE_S:
                return await _taken_over(client, node, told.moved, loop.time() - began)
        else:
            seen(told)
            if told.state != RUNNING:
                left = tuple((row.agent, row.blocker or OVER) for row in told.rows)
                return DrainReport(
                    node=node, state=told.state, agents=told.agents, moved=told.moved, left=told.left, blocked=left,
                    seconds=told.seconds,
                )  # fmt: skip
        await asyncio.sleep(POLL_S)


async def _known(client: Client, node: str) -> None:
    known = await table.names(client.log)
    if node not in known:
        raise UnknownNode(f"There is no node {node!r}; there are {', '.join(known) or 'none'}.", node=node, nodes=known)


async def _takers(client: Client, node: str, agents: int) -> None:
    """Raises `MigrationRefused` if there are agents, and nobody who takes any."""
    others = [other for other in await client.nodes() if other.name != node]
    if agents and all(other.is_cordoned for other in others):
        reasons = [f"{other.name} is cordoned" for other in others] or ["no other node answers"]
        raise MigrationRefused(
            f"Node {node} is not drained: nobody takes its {agents} agents ({'; '.join(reasons)}). They run where they ran; start a "
            "node, or uncordon one.", node=node, reasons=reasons,
        )  # fmt: skip


async def _taken_over(client: Client, node: str, moved: int, seconds: float) -> DrainReport:
    """The node does not answer: what the log gives it is claimed by others."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    takeover = Takeover(client.log, client.wire, loop.time)
    taken = await takeover.take({node}, await table.registered(client.log))
    blocked = tuple(takeover.failed.items())
    return DrainReport(
        node=node, state=DONE if not blocked else OVER, agents=moved + taken + len(blocked), moved=moved,
        claimed=taken, left=len(blocked), blocked=blocked, seconds=seconds + loop.time() - began,
    )  # fmt: skip


async def _owned(client: Client, node: str) -> list[str]:
    """The agents that the log gives to a node."""
    agents = [agent for agent, _ in await known_agents(client.log)]
    maybe = [agent for agent, record, _ in await ends(client.log, agents) if named_owner(record) == node]
    found = list[str]()
    for agent in maybe:  # few, and what was read of them may be old
        last = await client.log.last(log_subject(agent))
        if last is not None and named_owner(await record_of(client.log, agent, last)) == node:
            found.append(agent)
    return sorted(found)
