"""Chooses the target of a migration that names no node, or whose node has failed."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from mielin_cells.errors import CellError, UnknownNode
from mielin_cells.membership.selection import Spread
from mielin_cells.migration.case import Ticket
from mielin_cells.migration.manager import MigrationRecoveryManager

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation, Activations


async def choose_first(activations: Activations, activation: Activation, unfit: Collection[str]) -> str:
    """The first target of a migration that names none.  Raises `UnknownNode` if there is nobody to ask."""
    others = [other for other in activations.members.table.infos() if other.name != activations.name]
    if not others:
        raise UnknownNode("There is no other node; start one.", node="", nodes=[activations.name])
    fold = activation.fold
    fit = _spread(activations).choose(unfit, fold.cls, fold.policy.preferred_architectures, fold.version)
    return fit or min(others, key=lambda other: (other.agents, other.name)).name  # which says why not


async def choose_next(activations: Activations, manager: MigrationRecoveryManager, ticket: Ticket) -> str:
    """Chooses a node that the ticket does not exclude and that admits an attempt; "" if there is none now."""
    excluded = {*ticket.excluded}
    try:
        activation = await activations.awake(ticket.agent_id)
    except CellError:  # it does not run here now
        return ""
    architectures = activation.fold.policy.preferred_architectures
    spread = _spread(activations)
    while name := spread.choose(excluded, activation.fold.cls, architectures, activation.fold.version):
        if manager.assign(ticket.token, name, activations.clock()):
            return name
        spread.gives_back(name)
        excluded.add(name)
    return ""


def _spread(activations: Activations) -> Spread:
    """The other nodes, with the agents that this one has sent to each since their numbers were known."""
    return activations.spread.follow(activations.members.table, activations.home.rng, activations.name)
