"""What an agent asks of the nodes that run it: a value that travels in its log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mielin_cells.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Which nodes may run an agent.  Raises `ConfigError` for what cannot be meant.

    The crate's `min_battery` and `max_latency_ms` are not here: no node measures either.
    """

    preferred_architectures: tuple[str, ...] = ()
    """A node of another architecture is refused as the target of a move.  Empty: every architecture will do."""

    def __post_init__(self) -> None:
        # By type, too: a policy is a part of records, and one that does not decode would strand its agent.
        names: Any = self.preferred_architectures
        is_list = isinstance(names, (tuple, list))
        if not (is_list and all(type(name) is str and name and name.isprintable() for name in names)):
            wanted = 'names, such as ("x86_64", "aarch64")'
            raise ConfigError(
                f"A policy's preferred_architectures = {names!r} is out of range ({wanted}).",
                field="preferred_architectures", range=wanted,
            )  # fmt: skip
        object.__setattr__(self, "preferred_architectures", tuple(names))

    def allows_architecture(self, architecture: str) -> bool:
        return not self.preferred_architectures or architecture in self.preferred_architectures


DEFAULT = Policy()
