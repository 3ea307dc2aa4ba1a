"""What an agent asks of the nodes that run it: a value that travels in its log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mielin_cells.errors import ConfigError

BATTERY_PERCENT = 20
LATENCY_MS = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The crate's policy.  Raises `ConfigError` for what cannot be meant.

    Only `preferred_architectures` is acted on: a node of another architecture is refused.  The two thresholds are kept and moved
    with the agent, and nothing is decided by them yet.
    """

    min_battery: int = BATTERY_PERCENT
    """Per cent, 0 to 100."""
    max_latency_ms: float = LATENCY_MS
    """Above 0."""
    preferred_architectures: tuple[str, ...] = ()
    """Empty: every architecture will do."""

    def __post_init__(self) -> None:
        # By type, too: a policy is a part of records, and one that does not decode would strand its agent.
        battery: Any = self.min_battery
        latency: Any = self.max_latency_ms
        names: Any = self.preferred_architectures
        _check("min_battery", battery, type(battery) is int and 0 <= battery <= 100, "0 to 100, a whole number")
        is_number = type(latency) in (int, float)
        _check("max_latency_ms", latency, is_number and 0 < latency <= 1e9, "above 0, to 1e9")
        is_list = isinstance(names, (tuple, list))
        is_named = is_list and all(type(name) is str and name and name.isprintable() for name in names)
        _check("preferred_architectures", names, is_named, 'names, such as ("x86_64", "aarch64")')
        object.__setattr__(self, "preferred_architectures", tuple(names))

    def allows(self, *, battery: int, latency_ms: float, architecture: str) -> bool:
        """The crate's rule in full: enough battery, a latency that will do, and an architecture that is wanted."""
        return (
            battery >= self.min_battery and latency_ms <= self.max_latency_ms and self.allows_architecture(architecture)
        )

    def allows_architecture(self, architecture: str) -> bool:
        return not self.preferred_architectures or architecture in self.preferred_architectures


def _check(field: str, value: object, is_good: bool, wanted: str) -> None:
    if not is_good:
        raise ConfigError(f"A policy's {field} = {value!r} is out of range ({wanted}).", field=field, range=wanted)


DEFAULT = Policy()
