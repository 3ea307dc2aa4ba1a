"""Chooses the target of a migration that names no node, or whose node has failed."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from mielin_cells.errors import CellError, MigrationRefused, NoNodeFits, UnknownNode
from mielin_cells.membership.selection import UNREAD, need_of, raise_nowhere, sentence
from mielin_cells.membership.whereabouts import Placer
from mielin_cells.migration.case import Ticket
from mielin_cells.migration.manager import MigrationRecoveryManager
from mielin_cells.policy.placement.values import Need, Places

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation, Activations


logger = logging.getLogger("mielin_cells.migration")


async def choose_first(activations: Activations, activation: Activation, unfit: Collection[str]) -> str:
    """The first target of a migration that names none.

    Raises `UnknownNode` if there is nobody to ask, and `NoNodeFits` if the agent's policy rules all of them out.
    """
    others = [
        other for other in activations.members.table.infos() if other.name != activations.name and not other.is_reserved
    ]
    if not others:
        raise UnknownNode("There is no other node; start one.", node="", nodes=[activations.name])
    need, places = await _look(activations, activation)
    spread = _spread(activations)
    fit = spread.choose(unfit, need, places)
    if fit is None and need.policy.decides:
        raise_nowhere(spread.explain(unfit, need, places), need)
    return fit or min(others, key=lambda other: (other.agents, other.name)).name  # which says why not


async def check_named(activations: Activations, activation: Activation, target: str) -> None:
    """Raises `MigrationRefused` if the agent's policy rules out the node that somebody has named.  The node itself checks the rest.

    Raises `NoNodeFits` if the policy depends on attributes that cannot be read now.
    """
    need, places = await _look(activations, activation)
    if not (need.policy.require or need.policy.near or need.policy.apart):
        return
    verdict = _spread(activations).explain((), need, places).of(target)
    reasons = (
        [sentence(target, one) for one in verdict.findings if one.rules_out and one.rule in OWN] if verdict else []
    )
    if reasons:
        raise MigrationRefused(
            f"Agent {need.agent!r} is not moved to {target}: {'; '.join(reasons)}. It runs on where it is.",
            agent=need.agent, reasons=reasons,
        )  # fmt: skip


OWN = ("require", "near", "apart")
"""Rules that the source judges: the target knows its own class and architecture best."""


async def choose_next(activations: Activations, manager: MigrationRecoveryManager, ticket: Ticket) -> str:
    """Chooses a node that the ticket does not exclude and that admits an attempt; "" if there is none now."""
    excluded = {*ticket.excluded}
    try:
        activation = await activations.awake(ticket.agent_id)
    except CellError:  # it does not run here now
        return ""
    try:
        need, places = await _look(activations, activation)
    except NoNodeFits as error:  # it is tried again, as after any failure
        logger.info("%s", error)
        return ""
    spread = _spread(activations)
    while name := spread.choose(excluded, need, places):
        if manager.assign(ticket.token, name, activations.clock()):
            return name
        spread.gives_back(name, need)
        excluded.add(name)
    return ""


async def _look(activations: Activations, activation: Activation) -> tuple[Need, Places]:
    """Raises `NoNodeFits` if it is not known what the agent's policy is, or what it says."""
    need, places = await _spread(activations).look(need_of(activation.fold))
    if not need.is_known:
        said = f"Agent {need.agent!r} is not moved: {UNREAD}. It runs on where it is; try again."
        raise NoNodeFits(said, agent=need.agent, reasons=[UNREAD])
    return need, places


def _spread(activations: Activations) -> Placer:
    """The other nodes, with the agents that this one has sent to each since their numbers were known."""
    activations.spread.follow(activations.members.table, activations.home.rng, activations.name)
    return activations.spread
