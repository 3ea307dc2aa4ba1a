"""The part of a client that finds agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from mielin_cells.agents.finding.where import Where
from mielin_cells.agents.reference import Reference
from mielin_cells.agents.services.service import Choice
from mielin_cells.agents.spec import check_is_agent, spec_of
from mielin_cells.client.finding.find import Search, Wanted, condition, state_named
from mielin_cells.client.finding.service import AgentService
from mielin_cells.client.requester import Requester
from mielin_cells.store.directory import Directory

A = TypeVar("A", bound=Reference)


class Finder(Requester):
    """The part of a client that finds agents."""

    _directory: Directory | None = None

    @property
    def directory(self) -> Directory:
        """Made at the first search."""
        if self._directory is None or self._directory.log is not self.log:
            self._directory = Directory(self.log)
        return self._directory

    def find(
        self, cls: type[A], /, *, where: Where | str | None = None, node: str | None = None, state: str | None = None
    ) -> Search[A]:
        check_is_agent(cls)
        wanted = Wanted(spec_of(cls).name, condition(where), node, state_named(state))
        return Search(self, self.directory, cls, wanted)

    def service(
        self, cls: type[A], /, *, where: Where | str | None = None, choose: Choice = "round_robin",
        near: str | Mapping[str, str] | None = None,
    ) -> AgentService[A]:  # fmt: skip
        return AgentService(self, self.find(cls, where=where), spec_of(cls).name, choose, near)

    def find_named(
        self, cls: str | None, where: Where | str | None, node: str | None, state: str | None
    ) -> Search[Reference]:
        """As `find`, without the class at hand: there are no references."""
        return Search(self, self.directory, None, Wanted(cls, condition(where), node, state_named(state)))
