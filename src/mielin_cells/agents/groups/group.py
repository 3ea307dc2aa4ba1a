"""A group: an agent that knows its members."""

from __future__ import annotations

from mielin_cells.agents import context
from mielin_cells.agents.agent import Agent
from mielin_cells.agents.groups.members import Member, Members, Role, added, check_depth, is_in_itself, joined
from mielin_cells.agents.handler import handler
from mielin_cells.errors import AskCycle, GroupRefused

NEST_S = 10.0
"""Patience with the groups in a group.  Two that are being put into each other at the same time both give up."""


class Group(Agent, name="mielin.Group"):
    """Members with their roles, and groups in it.  It is durable and moves as all agents do; a node must know the class.

    Guarantees: the members that it names are those of one moment of this group.  No group is in itself, also if several are changed at
    the same time.  Not guaranteed: that a member exists.

        >>> from mielin_cells.groups import Group, Team
        >>> crew = Team(await cluster.spawn(Group, "crew"), Till)
        >>> await crew.add(till, role="leader")
        >>> [*await crew.group.all()]
        ['till-1']
    """

    members: dict[str, Member] = {}  # noqa: RUF012 - a mutable default is copied for each agent

    @handler
    async def add(self, agent: str, cls: str, role: Role = "member") -> bool:
        """Adds an agent, or gives it another role.  Returns False if it was there in this role.  Raises `GroupRefused`."""
        group, member = context.this().id, Member(cls, role)
        added(group, self.members, agent, member)
        if self.members.get(agent) == member:
            return False
        if member.is_group:
            inner = context.this().cluster.get(Group, agent)
            try:  # each asks the groups in it while the one that has it waits: a circle comes back to one that waits
                _, depth = await inner.below.options(timeout=NEST_S)()
            except AskCycle as error:
                raise is_in_itself(group, agent, error.facts.get("agents") or []) from error
            check_depth(group, agent, depth)
        self.members[agent] = member
        return True

    @handler
    async def remove(self, agent: str) -> bool:
        """Returns False if it is no member."""
        return self.members.pop(agent, None) is not None

    @handler(shared=True)
    async def own(self) -> Members:
        """The members of this group itself, with the groups in it."""
        return dict(self.members)

    @handler
    async def below(self) -> tuple[Members, int]:
        """All that is in it, groups with it, and how many levels of groups there are."""
        there, depth = dict(self.members), 1
        for agent, member in self.members.items():
            if member.is_group:
                inner, levels = await context.this().cluster.get(Group, agent).below.options(timeout=NEST_S)()
                joined(context.this().id, there, inner)
                check_depth(context.this().id, agent, levels)
                depth = max(depth, levels + 1)
        return there, depth

    @handler
    async def all(self, role: str = "") -> Members:
        """The agents in it and in the groups in it, each once, without those groups; of one role, or all but observers."""
        there, _ = await self.below()
        return {
            agent: one
            for agent, one in sorted(there.items())
            if not one.is_group and (one.role == role if role else one.role != "observer")
        }

    @handler
    async def set_role(self, agent: str, role: Role) -> None:
        """Raises `GroupRefused` for an agent that is no member, and for what would make a group of a member."""
        group, before = context.this().id, self.members.get(agent)
        if before is None or before.is_group or role == "group":
            what = "no member" if before is None else f"a {before.role}"
            raise GroupRefused(
                f"Group {group!r} cannot give {agent!r} the role {role}: it is {what}.", group=group, agent=agent
            )
        self.members[agent] = Member(before.cls, role)
