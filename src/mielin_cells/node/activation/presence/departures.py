"""The farewell of a node's agents when it stops."""

from __future__ import annotations

import asyncio
import logging

from mielin_cells.errors import CellError, described
from mielin_cells.node.activation.activation import Activation, Activations
from mielin_cells.node.activation.run import is_failure
from mielin_cells.tasks.together import together

logger = logging.getLogger("mielin_cells.node")

DEPARTURES_MAX = 32
"""Agents that a node lets go at the same time when it stops."""


async def depart(activations: Activations, turns_s: float, until: float) -> None:
    """Lets turns end, commits land and `on_depart` run, for all agents that are live."""
    limit = asyncio.Semaphore(DEPARTURES_MAX)

    async def one(activation: Activation) -> None:
        async with limit:
            await _depart(activations.name, activation, turns_s, until)

    await together(one(activation) for activation in list(activations.live.values()))


async def _depart(node: str, activation: Activation, turns_s: float, until: float) -> None:
    if activation.lost is not None:
        return
    if activation.is_idle and not activation.spec.overrides("on_depart") and await activation.intake.stop_at_once():
        return  # most agents: they need no task and no commit
    try:
        async with asyncio.timeout_at(until):
            await activation.intake.stop(turns_s)
            if activation.fold.may_run:
                await activation.runner.hook("on_depart")
            await activation.flush()
    except (CellError, TimeoutError) as error:
        logger.warning(
            "agent %s did not come to rest before node %s stopped: %s; what was acknowledged is kept, and its turn "
            "runs again at its next owner", activation.fold.agent, node, described(error),
        )  # fmt: skip
    except BaseException as error:  # the user's hook: the node stops all the same, and what was committed stays
        if not is_failure(error):
            raise
        logger.error("agent %s: on_depart raised as node %s stopped: %s", activation.fold.agent, node, described(error))
