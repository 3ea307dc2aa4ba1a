"""A group as its users hold it: what is told to all its members, and what is asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from mielin_cells.agents.context import turn
from mielin_cells.agents.groups.group import Group
from mielin_cells.agents.groups.members import Role
from mielin_cells.agents.reference import Reference, agent_id, make_ref
from mielin_cells.agents.spec import spec_of
from mielin_cells.errors import PASSING, EpochRegression

A = TypeVar("A", bound=Reference)
R = TypeVar("R")

AT_ONCE = 32
"""Members that are called at the same time."""


class Gathered(NamedTuple, Generic[R]):
    """What the members of a group have answered.  By id, in order of ids."""

    results: dict[str, R]
    failed: dict[str, Exception]

    @property
    def ok(self) -> bool:
        return not self.failed

    def check(self) -> dict[str, R]:
        """The results.  Raises an `ExceptionGroup` of what has failed, if anything has."""
        if self.failed:
            all_of_them = len(self.failed) + len(self.results)
            raise ExceptionGroup(f"{len(self.failed)} of {all_of_them} members failed", [*self.failed.values()])
        return self.results


class Team(Generic[A]):
    """The members of a group, all of one class, and of the groups in it.

    In a handler: what is told is part of the turn's commit, so each member gets it once, or none does if the turn fails; asks are
    made at the same time, and are recorded.  Outside: calls of a client, so give `options(key=)` to what is repeated.

        >>> from mielin_cells.groups import Group, Team
        >>> crew = Team(await cluster.spawn(Group, "crew"), Till)
        >>> await crew.add(till, await cluster.spawn(Till, "till-2"))
        >>> (await crew.gather(lambda one: one.sell(5))).check()
        {'till-1': 5, 'till-2': 5}
        >>> await crew.tell_all(lambda one: one.sell.tell(1))
        2
    """

    def __init__(self, group: Group, cls: type[A]) -> None:
        self.group = group
        self._cls = cls

    async def add(self, *members: A | str, role: Role = "member") -> None:
        """Raises `GroupRefused`."""
        for member in members:
            await self.group.add(
                agent_id(member) if isinstance(member, Reference) else member, spec_of(self._cls).name, role
            )

    async def add_group(self, group: Group) -> None:
        """Puts a group into this one.  Raises `GroupRefused` for one that has this group in it."""
        await self.group.add(agent_id(group), spec_of(Group).name, "group")

    async def remove(self, *members: A | str) -> None:
        for member in members:
            await self.group.remove(agent_id(member) if isinstance(member, Reference) else member)

    async def members(self, role: str = "") -> list[A]:
        """Each once, in order of ids, without observers; or those of one role."""
        name, caller = spec_of(self._cls).name, self.group.__dict__["__mielin_caller__"]
        there = await self.group.all(role)
        return [make_ref(self._cls, agent, caller) for agent, member in there.items() if member.cls == name]

    async def tell_all(self, tell: Callable[[A], Awaitable[None]], role: str = "") -> int:
        """Tells each member once: `await team.tell_all(lambda worker: worker.work.tell(5))`.  Returns how many there are.

        Raises an `ExceptionGroup` if some could not be told; the others are.
        """
        gathered = await self.gather(tell, role)
        return len(gathered.check())

    async def gather(self, ask: Callable[[A], Awaitable[R]], role: str = "") -> Gathered[R]:
        """Asks each member once: `await team.gather(lambda worker: worker.count())`, some at the same time.  Says who failed, and
        how."""
        members = await self.members(role)
        outcomes = await all_of({agent_id(member): partial(ask, member) for member in members})
        results = {agent: one for agent, one in outcomes.items() if not isinstance(one, Failure)}
        return Gathered(results, {agent: one.error for agent, one in outcomes.items() if isinstance(one, Failure)})


class Failure(NamedTuple):
    error: Exception


async def all_of(calls: Mapping[str, Callable[[], Awaitable[R]]]) -> dict[str, R | Failure]:
    """Awaits all, at most `AT_ONCE` at the same time.  What one raises is its outcome."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(call: Callable[[], Awaitable[R]]) -> R | Failure:
        async with room:
            try:
                return await call()
            except Exception as error:
                if turn.get() is not None and isinstance(error, PASSING) and not isinstance(error, EpochRegression):
                    raise  # the store's word, and no outcome of the ask: the turn runs again
                return Failure(error)

    async with asyncio.TaskGroup() as group:
        tasks = {name: group.create_task(one(call)) for name, call in calls.items()}
    return {name: task.result() for name, task in tasks.items()}
