"""What policies are written with: `from mielin_cells.policies import Affinity, MigrationPolicy, Policy, Preference`."""

from __future__ import annotations

from mielin_cells.log.policy import Affinity, Policy, Preference
from mielin_cells.log.triggers.values import (
    Battery,
    Cost,
    Latency,
    Load,
    MigrationPolicy,
    Thermal,
    Window,
    battery,
    cost,
    performance,
)
from mielin_cells.policy.facts import Facts

__all__ = [
    "Affinity", "Battery", "Cost", "Facts", "Latency", "Load", "MigrationPolicy", "Policy", "Preference", "Thermal", "Window",
    "battery", "cost", "performance",
]  # fmt: skip
