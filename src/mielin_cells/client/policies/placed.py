"""`cluster.on(node)` and `cluster.with_policy(policy)`: spawns with something said about where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from mielin_cells.agents.finding.rules import wrong_in
from mielin_cells.agents.reference import Reference
from mielin_cells.errors import UsageError
from mielin_cells.log.policy import Policy

P = ParamSpec("P")
A = TypeVar("A", bound=Reference)


class Placed:
    """Spawns on a node, or with a policy in place of the class's."""

    def __init__(self, spawn: Callable[..., Any], node: str | None, policy: Policy | None = None) -> None:
        self._spawn = spawn
        self._node = node
        self._policy = policy

    def with_policy(self, policy: Policy, /) -> Placed:
        return Placed(self._spawn, self._node, checked(policy))

    async def spawn(self, make: Callable[P, A], id: str, /, *args: P.args, **state: P.kwargs) -> A:
        made: A = await self._spawn(self._node, make, id, args, state, self._policy)
        return made


def checked(policy: Policy) -> Policy:
    """Raises `UsageError` for what is no policy, and for rules that cannot be read."""
    if not isinstance(policy, Policy):
        raise UsageError(f"with_policy takes a cells.Policy(...), and not {policy!r}.")
    if why := wrong_in(policy):
        raise UsageError(f"with_policy: {why}")
    return policy
