"""Carries out what a turn has ordered for its own agent."""

from __future__ import annotations

import logging
from typing import Protocol

from mielin_cells.errors import described
from mielin_cells.log.commit import Wish
from mielin_cells.log.fold import Fold
from mielin_cells.node.activation.context import NodeContext
from mielin_cells.node.family.kinship import END
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.activation")


class Owner(Protocol):
    """What an order needs of the agent that it is for."""

    is_open: bool
    fold: Fold

    @property
    def home(self) -> NodeContext: ...

    @property
    def wish(self) -> Wish | None: ...

    async def flush(self) -> None: ...


async def fulfilled(core: Owner) -> None:
    """Carries out the agent's order for itself, and tries again until that succeeds or another node owns the agent.

    An agent that an operator has suspended, or whose `on_stop` raised, is left to the operator: it goes on when it is resumed.
    """
    backoff, logged = Backoff(), set[str]()
    while core.is_open and (wish := core.wish) is not None and core.home.obey is not None:
        if not core.fold.may_run and wish.order != END:
            return
        try:
            await core.flush()
            wish = core.fold.wish
            if wish is not None and core.is_open:
                await core.home.obey(core.fold.agent, wish.order, wish.reason)
                return
        except Exception as error:  # whatever the store raises, or a bug: no turn runs before it is done
            if type(error).__name__ not in logged:
                logged.add(type(error).__name__)
                logger.warning(
                    "agent %s: an order of the agent about itself failed; trying again: %s", core.fold.agent, described(error)
                )  # fmt: skip
        await backoff.wait()
