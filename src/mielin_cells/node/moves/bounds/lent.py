"""The places of a node among the moves of the deployment: its own, and those that the leader lends it (`policy.planning.lending`).

A move for which the node has a place of its own asks nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from mielin_cells.errors import CellError
from mielin_cells.membership.members import NOBODY, Status, Table
from mielin_cells.node.moves.bounds.places import Gate
from mielin_cells.policy.planning.lending import share_of
from mielin_cells.rpc import plans
from mielin_cells.rpc.call import call

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations

logger = logging.getLogger("mielin_cells.migration")

ASK_S = 1.0

RENEW_S = 1.0
"""A loan that is used is renewed this often."""

SHORT_S = 0.25
"""A node that waits for places asks this often."""


def members_of(table: Table) -> int:
    """Nodes that may move agents: also silent ones, which may live."""
    return sum(member.status is not Status.LEFT for member in table)


class LentPlaces:
    """The moves that one node may have open as their source: at most `moves_out`, and no more than it has places for."""

    def __init__(self, activations: Activations, has_leader: bool) -> None:
        """`has_leader`: some node of the deployment leads.  Where none does, each has its part of all places, and one at least."""
        self._activations = activations
        self._settings = activations.settings
        self._loan, self._until, self._asked = 0, 0.0, 0
        self._counted: tuple[Table, int, int] | None = None
        """The table and its position for which the node's own places were counted, and these."""
        self._is_borrowing = False
        self._wake = asyncio.Event()
        self._has_leader = has_leader
        self.gate = Gate(0)

    # ---- how many --------------------------------------------------------------------------------------------

    @property
    def own(self) -> int:
        table = self._activations.members.table
        if self._counted is None or self._counted[0] is not table or self._counted[1] != table.seq:
            limit, nodes = self._settings.moves_all, members_of(table)
            own = share_of(limit, nodes) if self._has_leader else max(1, limit // max(1, nodes))
            self._counted = table, table.seq, own
        return self._counted[2]

    @property
    def loan(self) -> int:
        return self._loan if self._activations.clock() < self._until else 0

    def _count(self) -> int:
        self.gate.limit = limit = min(self._settings.moves_out, self.own + self.loan)
        return limit

    @property
    def why(self) -> str:
        """What moves wait for; "" if they do not wait for places of the deployment."""
        if not self.gate.waiting or self._count() >= self._settings.moves_out:
            return ""
        return f"it waits for a place among the moves of the deployment (moves_all = {self._settings.moves_all})"

    # ---- moves -----------------------------------------------------------------------------------------------

    async def enter(self, unless: asyncio.Future[None]) -> bool:
        """Waits for a place; False, without one, if `unless` is done first."""
        gate = self.gate
        if gate.inside >= self._count() and self._has_leader and self._is_short(1):
            if not self._is_borrowing:
                self._begin_to_borrow()
            elif not gate.waiting:
                self._wake.set()  # what is lent was enough until now
        return await gate.enter(unless)

    def leave(self) -> None:
        self._count()
        self.gate.leave()
        if self.gate.waiting and not self._is_borrowing and self._has_leader and self._goes_on:
            self._begin_to_borrow()  # the node had enough of its own when these came; nodes have come since

    def _begin_to_borrow(self) -> None:
        self._is_borrowing = True
        self._activations.home.begin(self._borrow())

    def _is_short(self, more: int) -> bool:
        """True if so many more moves need places that are not the node's own."""
        return min(self.gate.inside + self.gate.waiting + more, self._settings.moves_out) > self.own

    async def _borrow(self) -> None:
        """Asks for places until the node's own are enough again and the leader has been told so.

        A move that comes while it is told finds nothing lent and begins no other borrowing: this one goes on for it.
        """
        try:
            await asyncio.sleep(0)  # moves that begin together ask together
            is_over = False
            while not is_over:
                self._wake.clear()
                goes_on = self._goes_on
                with contextlib.suppress(CellError):  # the next leader, or this one, is asked again
                    await self._ask()
                self._count()
                self.gate.admit()
                if goes_on:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(SHORT_S if self.gate.waiting else RENEW_S):
                            await self._wake.wait()
                else:
                    is_over = not self._goes_on
        finally:
            self._is_borrowing = False

    @property
    def _goes_on(self) -> bool:
        return self._is_short(0) and not self._activations.is_stopping

    async def _ask(self) -> None:
        home, leader, gate = self._activations.home, self._activations.members.table.leader, self.gate
        if leader == NOBODY:
            return
        needed = min(gate.inside + gate.waiting, self._settings.moves_out) - self.own
        used, want, asked = max(0, gate.inside - self.own), max(0, needed), self._activations.clock()
        self._loan = min(self._loan, want)  # what it does not need it gives back
        self._asked += 1
        number = home.incarnation, self._asked
        lent = await call(home.wire, leader[0], plans.Borrow(home.name, number, self.loan, used, want), ASK_S)
        self._loan, self._until = lent.places, asked + lent.for_s
