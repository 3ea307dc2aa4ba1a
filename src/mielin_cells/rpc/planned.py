"""An agent as it is described to a node that may take it."""

from __future__ import annotations

from typing import Protocol

from mielin_cells.log.policy import Policy
from mielin_cells.rpc.requests import Prepare


class Planned(Protocol):
    """An agent as it is described to a node that may take it: a fold has these names, too."""

    @property
    def agent(self) -> str: ...
    @property
    def cls(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def policy(self) -> Policy: ...


def prepare(agent: Planned, source: str, migration: str = "dry run") -> Prepare:
    """The agent as its source describes it."""
    return Prepare(
        agent.agent, migration, source, agent.cls, agent.version, agent.size_bytes, agent.epoch,
        list(agent.policy.preferred_architectures), is_dry=migration == "dry run",
    )  # fmt: skip
