"""Drains a node: its agents are moved away or, if the node is dead, claimed by other nodes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from mielin_cells.agents.reports import DrainReport
from mielin_cells.client.requester import Requester
from mielin_cells.errors import MigrationRefused, NoResponder, RetryError, UnknownNode, WireTimeout
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import named_owner
from mielin_cells.membership import table
from mielin_cells.membership.takeover import Takeover
from mielin_cells.rpc import requests
from mielin_cells.rpc.answers import DONE, OVER, ROWS_MAX, RUNNING, DrainProgress, Row
from mielin_cells.store.reader import list_owned, read_ends, read_record

POLL_S = 0.2
"""Wait between two requests for a drain's progress."""

PATIENCE_S = 5.0
"""A node that is silent for this long during its drain counts as dead."""

ASK_S = 3.0


async def plan_drain(client: Requester, node: str) -> DrainProgress:
    """Says where each agent would go, or why it would stay; nothing is changed.  Raises as `drain_node`."""
    if not await _is_gone(client, node):
        with contextlib.suppress(NoResponder, WireTimeout):
            return await client.request(node, requests.PlanDrain(), client.settings.migration_s)
    await _check_targets(client, node)
    agents = await _list_owned(client, node)
    rows = [Row(agent=agent, state="fits", blocker="its node is dead: it would be claimed") for agent in agents]
    return DrainProgress(node=node, state="dry run", agents=len(rows), rows=rows[:ROWS_MAX])


async def drain_node(
    client: Requester, node: str, deadline_s: float, seen: Callable[[DrainProgress], None] = lambda _: None
) -> DrainReport:
    """See `Cluster.drain`; `seen` is called with each answer of the node.

    Whether the node is there is read from the table of members.  If it has only just died, its silence shows that.
    """
    is_gone = await _is_gone(client, node)
    await _check_targets(client, node)
    await table.cordon(client.log, node, True)
    if is_gone:
        return await _claim_all(client, node, 0, 0.0)
    clock, name = asyncio.get_running_loop().time, f"d-{client.rng.randbytes(8).hex()}"
    began = heard = clock()
    progress = DrainProgress(node=node)
    request: requests.Request[DrainProgress] = requests.Drain(name, deadline_s)
    while True:
        try:
            progress = await client.request(node, request, ASK_S)
            heard, request = clock(), requests.ReadDrain(name)
        except RetryError:
            if clock() - heard > PATIENCE_S:
                return await _claim_all(client, node, progress.moved, clock() - began)
        else:
            seen(progress)
            if progress.state != RUNNING:
                blocked = tuple((row.agent, row.blocker or OVER) for row in progress.rows)
                return DrainReport(
                    node=node, state=progress.state, agents=progress.agents, moved=progress.moved, left=progress.left,
                    blocked=blocked, seconds=progress.seconds,
                )  # fmt: skip
        await asyncio.sleep(POLL_S)


async def _is_gone(client: Requester, node: str) -> bool:
    """The other nodes know already that it does not serve.  Raises `UnknownNode`."""
    member = (await client.members.read_to_end()).get(node)
    if member is None:
        raise UnknownNode.of(node, sorted(client.members.table.members))
    return not member.is_present


async def _check_targets(client: Requester, node: str) -> None:
    """Raises `MigrationRefused` if there are agents, and no other node that takes agents."""
    others = [other for other in client.members.table.infos() if other.name != node]
    if all(other.is_cordoned for other in others) and (agents := len(await _list_owned(client, node))):
        reasons = [f"{other.name} is cordoned" for other in others] or ["there is no other node"]
        raise MigrationRefused(
            f"Node {node} is not drained: nobody takes its {agents} agents ({'; '.join(reasons)}). They run where they ran; start a "
            "node, or uncordon one.", node=node, reasons=reasons,
        )  # fmt: skip


async def _claim_all(client: Requester, node: str, moved: int, seconds: float) -> DrainReport:
    """Has other nodes claim the agents of a node that does not answer."""
    clock = asyncio.get_running_loop().time
    began = clock()
    members = await client.members.read_to_end()
    others = [info for info in members.infos() if info.name != node]
    taken = await Takeover(client.log, client.wire, clock).take({node}, members.members, others, on_order=True)
    blocked = tuple(taken.failed.items())
    return DrainReport(
        node=node, state=DONE if not blocked else OVER, agents=moved + taken.claimed + len(blocked), moved=moved,
        claimed=taken.claimed, left=len(blocked), blocked=blocked, seconds=seconds + clock() - began,
    )  # fmt: skip


async def _list_owned(client: Requester, node: str) -> list[str]:
    """The agents that the log gives to a node."""
    agents = await list_owned(client.log, node, "logs")
    maybe = [agent for agent, record, _ in await read_ends(client.log, agents) if named_owner(record) == node]
    owned = list[str]()
    for agent in maybe:  # few, and what was read of them may be old
        last = await client.log.last(log_subject(agent))
        if last is not None and named_owner(await read_record(client.log, agent, last)) == node:
            owned.append(agent)
    return sorted(owned)
