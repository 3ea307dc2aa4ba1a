"""What `cluster.find` finds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Generic, NamedTuple, Protocol, TypeVar

from mielin_cells.agents.reference import Reference
from mielin_cells.log.attributes.values import Value

A = TypeVar("A", bound=Reference)


class Found(NamedTuple, Generic[A]):
    """An agent that was found."""

    id: str
    ref: A
    cls: str
    node: str
    """The node that its log names as its owner."""
    state: str
    """As its node says; "" if no node was asked, because the condition needs attributes alone."""
    attributes: dict[str, Value]
    revision: int
    """These were its attributes when its log had come to this position; 0 if it has none."""


class Page(NamedTuple, Generic[A]):
    """Some of what was found, in order of ids."""

    items: list[Found[A]]
    next: str
    """Where the next page begins; "" if this is the last one."""
    as_of: float
    """In seconds of the store's time: every attribute that was written before is reflected."""
    unheard: list[str]
    """Nodes that did not answer: agents there are found by their attributes alone."""


class Finding(Protocol[A]):
    """A search.  Iterating it gives every agent that it finds, in order of ids, and keeps one page of them at a time."""

    def __aiter__(self) -> AsyncIterator[Found[A]]: ...

    async def page(self, after: str = "", limit: int = 100) -> Page[A]:
        """One page, of agents whose ids come after `after`: give `page.next` for the next one."""

    async def count(self) -> int:
        """How many there are now."""
