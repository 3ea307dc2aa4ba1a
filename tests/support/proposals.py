"""A proposal of a rebalancing, in one go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mielin_cells.policy.planning.choice import Node
from mielin_cells.policy.rebalance.proposal import proposing
from mielin_cells.policy.rebalance.values import AgentLoad, Proposal


def propose(nodes: Mapping[str, Node], loads: Mapping[str, Iterable[AgentLoad]], **options: Any) -> Proposal:
    return next(found for found in proposing(nodes, loads, **options) if found is not None)
