"""Why an agent runs where it does, and where it would be placed: the answer of the function that places it, and nothing else.

Everything is read from the store: the agent's log, the table of members, and where other agents are.  No node is asked.
"""

from __future__ import annotations

import msgspec

from mielin_cells.client.client import Client
from mielin_cells.errors import AgentTerminated, UnknownClass, UnknownNode
from mielin_cells.log.ids import AgentId
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.policy import DEFAULT, Policy
from mielin_cells.membership.members import Status, Table
from mielin_cells.membership.selection import UNREAD, announced, need_of
from mielin_cells.membership.whereabouts import Placer
from mielin_cells.policy.placement.values import Finding, Need, Placement, Verdict
from mielin_cells.policy.selectors import Resolved
from mielin_cells.store.reader import load

COUNT_MAX = 100_000
"""Agents that are placed in one try."""

GONE = {Status.SUSPECTED: "is silent", Status.DOUBTED: "may be silent", Status.LEFT: "has stopped"}


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Where one agent belongs, by the table of members as it is now."""

    agent: str
    cls: str
    version: int
    node: str
    """Where it runs; "" for an agent that does not exist."""
    policy: Policy
    source: list[str]
    """Where the policy comes from, and which entries of `mielin.toml` contradict each other about it."""
    placement: Placement
    """Where it would be placed now, and the verdict on every node."""
    members: int
    """The position of the members' log up to which the table was read."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """Where new agents of a class would go."""

    explanation: Explanation
    """Of the first of them."""
    nodes: dict[str, int]
    """How many agents each node would get."""
    left: int
    """Agents that no node would take."""


async def why(client: Client, agent: str) -> Explanation:
    """Raises `NoSuchAgent`, `AgentTerminated`."""
    fold = await load(client.log, str(AgentId(agent)))
    if fold.phase is Phase.TERMINATED:
        raise AgentTerminated.of(agent)
    table, placer = await _read(client)
    source = _source(await placer.resolve(need_of(fold)), "its log")
    need, places = await placer.look(need_of(fold))
    if not need.is_known:
        source.append(UNREAD)
    placer.leaves(fold.owner)  # its own load does not count against it
    placement = placer.explain((), need, places)
    return Explanation(
        agent=agent, cls=fold.cls, version=fold.version, node=fold.owner, policy=need.policy, source=source,
        placement=placement, members=table.seq,
    )  # fmt: skip


async def why_not(client: Client, agent: str, node: str) -> tuple[Explanation, Verdict]:
    """The verdict on one node.  Raises as `why`, and `UnknownNode`."""
    explanation = await why(client, agent)
    verdict = explanation.placement.of(node)
    if verdict is not None:
        return explanation, verdict
    member = client.members.table.get(node)
    if member is None:
        raise UnknownNode.of(node, sorted(client.members.table.members))
    gone = Finding(
        rule="out of service", holds=False, is_required=True, why=f"{node} {GONE.get(member.status, 'is away')}"
    )
    return explanation, Verdict(node=node, fits=False, points=0.0, agents=member.agents, findings=[gone])


async def trial(client: Client, cls: str, count: int = 1) -> Trial:
    """Places new agents of the class, and makes none.  Raises `UnknownClass` if no node knows the class."""
    table, placer = await _read(client)
    versions = [member.about.classes[cls] for member in table if cls in member.about.classes]
    if not versions:
        known = sorted({name for member in table for name in member.about.classes})
        raise UnknownClass(f"No node knows the class {cls!r}; they know {', '.join(known) or 'none'}.", name=cls)
    new = Need("", cls, 0, announced(table).get(cls, DEFAULT))
    source = _source(await placer.resolve(new), "its class")
    need, places = await placer.look(new)
    placement = placer.explain((), need, places)
    nodes, left = dict[str, int](), 0
    for number in range(count):
        chosen = placer.choose((), need._replace(agent=f"new {cls} {number}"), places)
        if chosen is None:
            left += 1
        else:
            nodes[chosen] = nodes.get(chosen, 0) + 1
    explanation = Explanation(
        agent="",
        cls=cls,
        version=max(versions),
        node="",
        policy=need.policy,
        source=source,
        placement=placement,
        members=table.seq,
    )
    return Trial(explanation=explanation, nodes=dict(sorted(nodes.items())), left=left)


def _source(resolved: Resolved, own: str) -> list[str]:
    by = [f"mielin.toml, [[policies]] for {resolved.entry}"] if resolved.entry is not None else []
    return [own, *by, *(f"conflict: {one}" for one in resolved.conflicts)]


async def _read(client: Client) -> tuple[Table, Placer]:
    table, placer = await client.members.read_to_end(), Placer(client.log)
    placer.follow(table, None)
    return table, placer
