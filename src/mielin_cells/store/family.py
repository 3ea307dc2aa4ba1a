"""Parents and children as their logs tell them, for people."""

from __future__ import annotations

import msgspec

from mielin_cells.errors import AgentTerminated, NoSuchAgent
from mielin_cells.log.family.tree import Child
from mielin_cells.log.fold import Fold
from mielin_cells.log.lifecycle import Phase
from mielin_cells.redaction import scrubbed
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Log

DEPTH_MAX = 64
"""A tree is shown to this depth."""


class Branch(msgspec.Struct, frozen=True, kw_only=True):
    """An agent with its children, in the order in which they were spawned."""

    agent: str
    cls: str
    state: str
    node: str = ""
    parent: str = ""
    on_failure: str = ""
    """What its parent does when it fails; "" for an agent without a parent."""
    when_parent_ends: str = ""
    status: str = ""
    """For its parent: making, running, stopped or escalated."""
    order: str = ""
    """What its parent has decided and what is not carried out yet: restart, reload or suspend."""
    restarts: int = 0
    """How often its parent has decided to restart it."""
    failures: int = 0
    error: str = ""
    watchers: list[str] = []
    """Agents that are told when it fails."""
    children: list[Branch] = []


async def read_tree(log: Log, agent: str) -> Branch:
    """The agent and all below it.  Raises `NoSuchAgent`."""
    return await _branch(log, await load(log, agent), None, DEPTH_MAX)


async def _branch(log: Log, fold: Fold, known: Child | None, depth: int) -> Branch:
    family, error, is_ended = fold.ledger.family, fold.lifecycle.error, fold.phase is Phase.TERMINATED
    below = [await _child(log, child, depth - 1) for child in (family.children.values() if family and depth else ())]
    return Branch(
        agent=fold.agent, cls=fold.cls, state=fold.status.value, node="" if is_ended else fold.owner,
        parent=family.parent.agent if family is not None and family.parent is not None else "",
        on_failure=known.on_failure if known is not None else "", status=known.status if known is not None else "",
        when_parent_ends=known.when_ended if known is not None else "",
        order=known.order if known is not None else "", restarts=known.restarts if known is not None else 0,
        failures=family.failed if family is not None else 0, error=scrubbed(error.message) if error is not None else "",
        watchers=[one.agent for one in family.watchers] if family is not None else [], children=below,
    )  # fmt: skip


async def _child(log: Log, child: Child, depth: int) -> Branch:
    try:
        return await _branch(log, await load(log, child.agent), child, depth)
    except (NoSuchAgent, AgentTerminated):  # it is not made yet
        return Branch(
            agent=child.agent, cls=child.cls, state="", on_failure=child.on_failure, when_parent_ends=child.when_ended,
            status=child.status, order=child.order, restarts=child.restarts,
        )  # fmt: skip
