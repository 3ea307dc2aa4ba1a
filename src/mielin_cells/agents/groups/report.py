"""What became of an order for all members of a group."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Order: TypeAlias = Literal["suspend", "resume", "migrate", "drain", "stop"]


class GroupReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an order for a group.  Ids of agents."""

    order: str
    done: list[str] = []
    unchanged: list[str] = []
    """There was nothing to do."""
    failed: dict[str, str] = {}
    """With the reason."""
    undone: list[str] = []
    """It was done, and taken back, because it failed for others; or nobody could say whether it was done."""
    stuck: dict[str, str] = {}
    """It was done, and could not be taken back, with the reason."""

    @property
    def ok(self) -> bool:
        return not self.failed
