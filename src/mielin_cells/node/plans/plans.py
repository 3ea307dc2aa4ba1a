"""All that a node does about plans: it watches its own facts, and leads if it is the leader."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from mielin_cells.membership.members import Table
from mielin_cells.node.plans.leading import Leading
from mielin_cells.node.plans.lender import Lender
from mielin_cells.node.plans.loads import Loads
from mielin_cells.node.plans.rebalancing import Rebalancing
from mielin_cells.node.plans.watching import Watching
from mielin_cells.policy.facts import Facts
from mielin_cells.rpc import plans
from mielin_cells.rpc.serve import Handlers

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations


class Plans:
    """Of one node."""

    def __init__(
        self, activations: Activations, measure: Callable[[], Facts], weigh: Callable[[], Mapping[str, float]]
    ) -> None:
        self._rebalance_s = activations.settings.rebalance_s
        self.watching = Watching(activations, measure, weigh)
        self.leading = Leading(activations)
        self.rebalancing = Rebalancing(activations, self.leading)
        self._loads = Loads(activations)
        self.lender = Lender(activations)

    def changed(self, table: Table) -> None:
        """The log of the members has grown."""
        self.leading.changed(table)
        self.watching.changed(table)
        self.lender.changed(table)

    def begin(
        self, for_ever: Callable[[str, Callable[[], Coroutine[Any, Any, None]]], None], *, may_lead: bool
    ) -> None:
        """Begins the loops, each of which waits until there is something to do."""
        for_ever("what policies wish", self.watching.run)
        if may_lead:
            for_ever("plans of moves", self.leading.run)
            if self._rebalance_s:
                for_ever("rebalancing", self.rebalancing.watch)

    @property
    def handlers(self) -> Handlers:
        return {
            plans.Wishes: self.leading.wish,
            plans.Borrow: self.lender.lend,
            plans.ListLoads: self._loads.measure,
            plans.Rebalance: self.rebalancing.begin,
            plans.ReadRebalance: self.rebalancing.read,
        }
