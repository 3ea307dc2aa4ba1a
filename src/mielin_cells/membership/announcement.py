"""What a process says about itself, once, when it joins."""

from __future__ import annotations

from typing import Any

import msgspec

from mielin_cells.agents.reports import NodeInfo
from mielin_cells.log.policy import Policy
from mielin_cells.policy.selectors import Selector


class Announcement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a process says about itself when it joins; shown to operators and used to choose targets of moves."""

    classes: dict[str, int] = {}
    """Agent classes that it knows, with their versions."""
    cores: int = 0
    memory_bytes: int = 0
    architecture: str = ""
    labels: dict[str, str] = {}
    host: str = ""
    process: int = 0
    python: str = ""
    package: str = ""
    at: float = 0.0
    """When it joined, in wall seconds."""
    fleet: str = ""
    """Who has started its process: a fleet of processes that starts the new nodes of a deploy, too."""
    is_reserved: bool = False
    """Under a new name it begins cordoned, and takes agents that are moved to it by name, until it is uncordoned."""
    policies: dict[str, Policy] = {}
    """The policies of its classes, of those that have one: who places a new agent need not have its class."""
    selectors: tuple[Selector, ...] = ()
    """`[[policies]]` of its `mielin.toml`; those of the node that joined last among those that have any count for all."""

    def shown(self) -> dict[str, Any]:
        """Its part of a `NodeInfo`."""
        return {field: getattr(self, field) for field in _SHOWN}


_SHOWN = tuple(field for field in Announcement.__struct_fields__ if field in NodeInfo.__struct_fields__)
