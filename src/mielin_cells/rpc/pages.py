"""Lists of agents that are answered page by page, and what they are restricted to."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import msgspec

from mielin_cells.agents.reports import AgentInfo

PAGE_MAX = 1000
"""Items in one answer to `ListAgents`, `ListIds` or `ListCopies`: a message on the wire has a limit."""


class Which(msgspec.Struct, array_like=True, frozen=True):
    """Which agents are listed."""

    cls: str = ""
    """"": of any class."""
    state: str = ""
    """"": in any state."""

    def may_have_class(self, cls: str) -> bool:
        """What a node asks first, because it costs nothing."""
        return self.cls in ("", cls)

    def has(self, info: AgentInfo) -> bool:
        return self.may_have_class(info.cls) and self.state in ("", info.state)


EVERY = Which()


def page_of(ids: Iterable[str], after: str) -> list[str]:
    """The ids of one answer: the first of those after `after`."""
    return heapq.nsmallest(PAGE_MAX, (one for one in ids if one > after))
