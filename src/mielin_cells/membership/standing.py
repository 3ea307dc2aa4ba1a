"""What the log of the members says of the owners whose agents a node is asked to claim."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mielin_cells.errors import Fenced, NodeStopping
from mielin_cells.membership.members import Status, Table
from mielin_cells.membership.table import Members

BATCH_AGENTS, BATCH_S = 100, 1.0
"""Claims that may follow one read of the log, and for how long."""


class Standing:
    """Of one node that claims.  On an older view two live nodes could claim an agent from each other again and again."""

    def __init__(self, name: str, members: Members, clock: Callable[[], float]) -> None:
        self._name = name
        self._members = members
        self._clock = clock
        self._lock = asyncio.Lock()
        self._left = 0
        self._until = 0.0

    async def check(self, owner: str) -> None:
        """Raises if the owner serves, or if this node is suspected itself.  It reads the log to its end once for each batch."""
        async with self._lock:
            if self._left <= 0 or self._clock() >= self._until:
                await self._members.read_to_end()
                self._left, self._until = BATCH_AGENTS, self._clock() + BATCH_S
            self._left -= 1
        check_standing(self._members.table, self._name, owner)


def check_standing(table: Table, me: str, owner: str) -> None:
    """Raises `NodeStopping` if the node itself does not serve now, `Fenced` if the owner does."""
    mine = table.get(me)
    if mine is None or mine.status not in (Status.JOINED, Status.SERVING):
        raise NodeStopping(
            f"Node {me} was not heard by others and claims nothing until it has said that it lives.", node=me
        )
    member = table.get(owner)
    if member is not None and member.status in (Status.JOINED, Status.SERVING):
        raise Fenced(f"Node {owner} serves: its agents are not claimed.", node=owner)
