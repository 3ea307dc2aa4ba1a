"""The policy of an agent for the nodes that run it: a value that travels in its log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from mielin_cells.settings import check_ranges

Name = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+$")]
Names = Annotated[tuple[Name, ...], msgspec.Meta(description='names, such as ("x86_64", "aarch64")')]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Which nodes may run an agent.  Raises `ConfigError` for anything but names.

    The crate's `min_battery` and `max_latency_ms` are not here: no node measures either.
    """

    preferred_architectures: Names = ()
    """A node of another architecture is refused as the target of a move.  Empty: every architecture will do."""

    def __post_init__(self) -> None:
        # By type, too: a policy is a part of records, and one that does not decode would strand its agent.
        check_ranges(self, "A policy's {field} = {value!r}")
        object.__setattr__(self, "preferred_architectures", tuple(self.preferred_architectures))

    def allows_architecture(self, architecture: str) -> bool:
        return not self.preferred_architectures or architecture in self.preferred_architectures


DEFAULT = Policy()
