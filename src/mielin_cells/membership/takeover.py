"""A takeover lets other nodes claim the agents of nodes that are gone, spread by load.

The leader of failover begins one, or an operator does.  It decides nothing: it asks nodes to claim, and each agent's log decides.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from mielin_cells.agents.reports import NodeInfo
from mielin_cells.errors import CellError
from mielin_cells.membership import selection, table
from mielin_cells.membership.claims import Alive, Claims
from mielin_cells.membership.orphans import Orphan, find_orphans
from mielin_cells.rpc import requests
from mielin_cells.rpc.call import call, call_pages
from mielin_cells.substrate.ports import Log, Wire
from mielin_cells.tasks.together import prompt

logger = logging.getLogger("mielin_cells.failover")

ASK_S = 2.0
"""For a node to answer that it is alive."""
ASK_ROUNDS = 3
"""How often all nodes are asked if none of them answers."""


class Taken(NamedTuple):
    """What became of one takeover."""

    claimed: int
    """Agents that were claimed."""
    failed: dict[str, str]
    """Agents that were not, with the reason."""
    owners: frozenset[str]
    """The nodes that these still belong to."""


class Takeover:
    """Takes over agents, as often as it is asked to."""

    def __init__(self, log: Log, wire: Wire, clock: Callable[[], float]) -> None:
        self._log = log
        self._wire = wire
        self._clock = clock

    async def take(
        self,
        gone: Collection[str],
        known: Mapping[str, table.Entered],
        *,
        force: bool = False,
        by_index: bool = False,
        strays: bool = False,
    ) -> Taken:
        """Has the agents of the nodes that are gone claimed by other known nodes.

        `force`: also those that were rolled back to go on at one of the nodes that are gone.  `by_index`: only
        those that the store's index names, which may be late; otherwise it reads the logs of all agents.  `strays`: also those of
        nodes that were forgotten.  Raises a `RetryError` while the store does not answer.
        """
        began = self._clock()
        alive = await _ask_nodes(self._wire, gone, known)
        differ = len({frozenset(node.classes) for node in alive.nodes}) > 1
        orphans = await self._find_orphans(gone, known, by_index=by_index, strays=strays, reads_classes=differ)
        if not orphans:
            return Taken(0, {}, frozenset())
        failed = await Claims(self._wire, alive, known.keys(), force).run(orphans)
        taken = Taken(
            len(orphans) - len(failed), {orphan.agent: orphan.why for orphan in failed},
            frozenset(orphan.owner for orphan in failed),
        )  # fmt: skip
        logger.warning(
            "%d of %d agents of %s were taken over in %.2f s%s", taken.claimed, len(orphans),
            ", ".join(sorted({orphan.owner for orphan in orphans})), self._clock() - began,
            "".join(f"; {agent}: {why}" for agent, why in list(taken.failed.items())[:3]),
        )  # fmt: skip
        return taken

    async def _find_orphans(
        self,
        gone: Collection[str],
        known: Mapping[str, table.Entered],
        *,
        by_index: bool,
        strays: bool,
        reads_classes: bool,
    ) -> list[Orphan]:
        return await find_orphans(self._log, gone, known, by_index=by_index, strays=strays, reads_classes=reads_classes)


async def _ask_nodes(wire: Wire, gone: Collection[str], known: Mapping[str, table.Entered]) -> Alive:
    """Finds out which nodes can take agents.  A frozen node is not waited for."""
    names = [name for name, entered in known.items() if name not in gone and not entered.has_stopped]
    nodes, copies = list[NodeInfo](), defaultdict[str, list[str]](list)
    for _ in range(ASK_ROUNDS):
        for node, agents in await prompt((_ask_node(wire, name) for name in names), selection.PATIENCE_S):
            nodes.append(node)
            for agent in agents:
                copies[agent].append(node.name)
        if nodes or not names:
            break
    nodes.sort(key=lambda node: node.name)
    return Alive(nodes, copies)


async def _ask_node(wire: Wire, name: str) -> tuple[NodeInfo, list[str]] | None:
    """What the node says of itself, and the agents that it keeps standby copies of; None if it does not answer."""
    try:
        node = await call(wire, name, requests.Ping(), ASK_S)
        pages = call_pages(wire, name, requests.ListCopies(), str, ASK_S)
        return node, [agent async for page in pages for agent in page]
    except CellError as error:  # what it owns is not claimed for that
        logger.info("node %s cannot take agents now: %s", name, error)
        return None
