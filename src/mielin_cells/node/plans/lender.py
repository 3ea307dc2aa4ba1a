"""The leader lends places for moves (`policy.planning.lending`).  A node that does not lead lends none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mielin_cells.errors import RetryError
from mielin_cells.membership.members import Table
from mielin_cells.node.moves.bounds.lent import members_of
from mielin_cells.policy.planning.lending import LENT_S, Ask, Lending, share_of
from mielin_cells.rpc import plans

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations

CHECK_S = 1.0
"""A leader that lends asks the log this often whether it still leads.  What it lends ends `LENT_S` after such a check, as the wait of
the next leader does at the earliest."""


class Lender:
    """Answers the nodes that ask this one for places."""

    def __init__(self, activations: Activations) -> None:
        self._activations = activations
        self._term = 0
        self.lending = Lending(0.0)
        self._checked_at = -1e9

    def _leads(self) -> bool:
        home = self._activations.home
        return self._activations.members.table.leader == (home.name, home.incarnation)

    def changed(self, table: Table) -> None:
        """The log of the members has grown: this node may have begun to lead."""
        if self._leads() and self._term != table.term:
            self._term, self.lending = table.term, Lending(self._activations.clock())

    async def lend(self, request: plans.Borrow) -> plans.Lent:
        clock, members = self._activations.clock, self._activations.members
        if not self._leads():
            return plans.Lent(0, 0.0)
        if clock() - self._checked_at >= CHECK_S:
            checked = clock()
            try:
                await members.read_to_end()
            except RetryError:
                return plans.Lent(0, 0.0)
            self._checked_at = max(self._checked_at, checked)
        table = members.table
        if not self._leads():
            return plans.Lent(0, 0.0)
        self.changed(table)
        limit, nodes = self._activations.settings.moves_all, members_of(table)
        pool = limit - share_of(limit, nodes) * nodes
        ask = Ask(request.node, request.number, request.held, request.used, request.want)
        places = self.lending.lend(clock(), ask, pool)
        return plans.Lent(places, max(0.0, self._checked_at + LENT_S - clock()))
