"""What agents that misbehave say of themselves at rest."""

from __future__ import annotations

from mielin_cells.errors import AgentTerminated
from mielin_cells.log.lifecycle import Phase
from mielin_cells.testing.checkers.scene import Observed
from mielin_cells.testing.simulator.deployment import Deployment
from mielin_cells.testing.simulator.misbehaving import Odd


async def observe(scenario: Deployment) -> bool:
    """False if one of them has ended while it was asked."""
    observed = scenario.scene.observed
    for agent in (*scenario.swarm.odd, *scenario.swarm.crowd):
        if scenario.scene.folds[agent].phase is Phase.TERMINATED:
            observed.pop(agent, None)  # it was asked while the message that ended it was put off
            continue
        try:
            odd = scenario.operator.get(Odd, agent)
            await scenario.until_done(odd.hush)
            heard, marks, book, _, stray = await scenario.until_done(odd.show)
        except AgentTerminated:
            return False
        observed[agent] = Observed(heard=heard, book={"marks": marks, "book": book, "stray": stray})
    return True
