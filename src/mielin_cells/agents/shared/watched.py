"""What `ref.watch()` gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

A_co = TypeVar("A_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Watched(Generic[A_co]):
    """A committed state of an agent."""

    revision: int
    """The record of the agent's log that it is the state of.  `watch(after=revision)` goes on behind it."""
    state: A_co
    """The agent as of that record.  Its fields are read like those of a live agent, do not change any more, and cannot be set."""
