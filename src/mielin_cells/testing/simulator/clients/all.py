"""All that happens in some worlds beside the calls of accounts."""

from __future__ import annotations

from mielin_cells.testing.simulator.clients import deploys, movers, outsiders, resolvers, teams
from mielin_cells.testing.simulator.deployment import Deployment


async def begin(scenario: Deployment) -> None:
    """Before anything else goes wrong, by intention.  After a power cut, once more."""
    resolvers.begin(scenario)
    outsiders.begin(scenario)
    await teams.begin(scenario)
    await movers.begin(scenario)
    deploys.begin(scenario)
