"""A service: any one of the agents that a search finds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, Protocol, TypeAlias, TypeVar

from mielin_cells.agents.reference import Reference

A_co = TypeVar("A_co", bound=Reference, covariant=True)
R = TypeVar("R")

Choice: TypeAlias = Literal["round_robin", "least_waiting", "nearest", "by_key"]


class Service(Protocol[A_co]):
    """What `cluster.service` gives.  It knows which agents there are, up to a second late, and leaves out those that fail."""

    async def pick(self, key: str = "") -> A_co:
        """A reference to one of them.  Raises `NoneAvailable` if there is none that does not fail, and `UsageError` for a missing
        key."""

    async def call(self, do: Callable[[A_co], Awaitable[R]], key: str = "") -> R:
        """Calls one of them: `await workers.call(lambda worker: worker.work(5))`.

        If an agent certainly has not taken the call (it has ended, or its inbox is full), the next one is called.  Any other error is
        raised: an agent that gave no answer may have done the work.  Give the call a key of its own (`options(key=)`) and repeat
        it yourself where that does no harm.

        An agent that gives no answer, is in ERROR or is full three times in a row is left out.  It is probed after a second, then
        less and less often, and comes back when it answers.  What a handler raises is an answer.
        """

    @property
    def left_out(self) -> list[str]:
        """Ids of the agents that fail now."""
