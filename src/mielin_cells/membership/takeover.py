"""A takeover lets other nodes claim the agents of nodes that are gone, spread by load.

The leader of failover begins one, or an operator does.  It decides nothing: it asks nodes to claim, and each agent's log decides.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from mielin_cells.agents.reports import NodeInfo
from mielin_cells.errors import CellError
from mielin_cells.membership.claims import Claims, Nodes
from mielin_cells.membership.members import Member, selectors_of
from mielin_cells.membership.orphans import Orphan, find_orphans
from mielin_cells.membership.selection import PATIENCE_S
from mielin_cells.membership.whereabouts import Whereabouts
from mielin_cells.rpc import requests
from mielin_cells.rpc.call import call_pages
from mielin_cells.substrate.ports import Log, Source, Wire
from mielin_cells.tasks.together import prompt

logger = logging.getLogger("mielin_cells.failover")

ASK_S = 2.0
"""For a node to say of which agents it keeps copies."""


class Taken(NamedTuple):
    """What became of one takeover."""

    found: frozenset[str]
    """The nodes that are gone and owned agents."""
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
        self._whereabouts = Whereabouts(log)
        self._clock = clock

    async def take(
        self,
        gone: Collection[str],
        known: Mapping[str, Member],
        nodes: Sequence[NodeInfo],
        *,
        copies: Iterable[str] = (),
        on_order: bool = False,
        force: bool = False,
        source: Source | None = "logs",
    ) -> Taken:
        """Has the agents of the nodes that are gone claimed by `nodes`, of which `copies` keep standby copies.

        `on_order`: an operator says that the nodes are gone, whatever the table of members says.  `force`: also agents that were
        rolled back to go on at one of the nodes that are gone.  `source`: where their agents are looked for (`find_orphans`).  Raises
        a `RetryError` while the store does not answer.
        """
        began = self._clock()
        differ = len({frozenset(node.classes.items()) for node in nodes}) > 1
        orphans = await self._find_orphans(gone, known, source=source, reads_classes=differ)
        if not orphans:
            return Taken(frozenset(), 0, {}, frozenset())
        there = Nodes(nodes, await _list_copies(self._wire, copies))
        failed = await Claims(
            self._wire,
            there,
            known.keys(),
            self._whereabouts,
            selectors_of(known.values()),
            force=force,
            on_order=on_order,
        ).run(orphans)
        taken = Taken(
            frozenset(orphan.owner for orphan in orphans), len(orphans) - len(failed), {orphan.agent: orphan.why for orphan in failed},
            frozenset(orphan.owner for orphan in failed),
        )  # fmt: skip
        logger.warning(
            "%d of %d agents of %s were taken over in %.2f s%s", taken.claimed, len(orphans),
            ", ".join(sorted({orphan.owner for orphan in orphans})), self._clock() - began,
            "".join(f"; {agent}: {why}" for agent, why in list(taken.failed.items())[:3]),
        )  # fmt: skip
        return taken

    async def _find_orphans(
        self, gone: Collection[str], known: Mapping[str, Member], *, source: Source | None, reads_classes: bool
    ) -> list[Orphan]:
        return await find_orphans(self._log, gone, known, source=source, reads_classes=reads_classes)


async def _list_copies(wire: Wire, nodes: Iterable[str]) -> dict[str, list[str]]:
    """By agent, the nodes that keep a copy of it.  A frozen node is not waited for."""
    copies = defaultdict[str, list[str]](list)
    for name, agents in await prompt((_ask_copies(wire, name) for name in nodes), PATIENCE_S):
        for agent in agents:
            copies[agent].append(name)
    return {agent: sorted(names) for agent, names in copies.items()}


async def _ask_copies(wire: Wire, name: str) -> tuple[str, list[str]] | None:
    """The agents that the node keeps copies of; None if it does not answer."""
    try:
        pages = call_pages(wire, name, requests.ListCopies(), str, ASK_S)
        return name, [agent async for page in pages for agent in page]
    except CellError as error:  # it may still be asked to claim
        logger.info("node %s does not say which copies it keeps: %s", name, error)
        return None
