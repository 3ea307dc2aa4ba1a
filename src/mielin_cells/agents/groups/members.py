"""Who is in a group, and in what role.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

from mielin_cells.errors import GroupRefused

Role: TypeAlias = Literal["member", "leader", "observer", "group"]
"""A leader is a member that others may ask for; an observer is told nothing and asked nothing; a group has members of its own."""

MEMBERS_MAX = 1_000
"""In one group."""
ALL_MAX = 10_000
"""In a group and the groups in it."""
DEPTH_MAX = 8


class Member(msgspec.Struct, frozen=True):
    cls: str
    """The class of the agent, by the name that it has on the wire."""
    role: Role = "member"

    @property
    def is_group(self) -> bool:
        return self.role == "group"


Members: TypeAlias = dict[str, Member]
"""By id."""


def added(group: str, members: Mapping[str, Member], agent: str, member: Member) -> None:
    """Raises `GroupRefused` if the agent cannot be added."""
    if agent == group:
        raise GroupRefused(f"Group {group!r} cannot be a member of itself.", group=group, agent=agent)
    before = members.get(agent)
    if before is None and len(members) >= MEMBERS_MAX:
        raise GroupRefused(
            f"Group {group!r} has {MEMBERS_MAX} members, which is the limit; put some of them into a group of their own, and "
            "add that.", group=group, agent=agent,
        )  # fmt: skip
    if before is not None and (before.cls != member.cls or before.is_group != member.is_group):
        raise GroupRefused(
            f"Group {group!r} has {agent!r} as a {before.role} of class {before.cls} already; remove it first.",
            group=group, agent=agent,
        )  # fmt: skip


def is_in_itself(group: str, inner: str, chain: list[str]) -> GroupRefused:
    """The groups of `chain`, each of which has the next one in it, would be a circle with `inner` in `group`."""
    return GroupRefused(
        f"Group {inner!r} has {group!r} in it, itself or in one of its groups ({' -> '.join(chain)}); so it cannot be added to "
        f"{group!r}.", group=group, agent=inner,
    )  # fmt: skip


def check_depth(group: str, inner: str, depth: int) -> None:
    """Raises `GroupRefused` if the groups of `inner`, which have so many levels, would be nested too deeply in `group`."""
    if depth + 1 > DEPTH_MAX:
        raise GroupRefused(
            f"Group {inner!r} has {depth} levels of groups; {DEPTH_MAX} are allowed in all.", group=group, agent=inner
        )


def joined(group: str, there: Members, more: Mapping[str, Member]) -> None:
    """Adds what an inner group has; an agent that is in several groups is there once, in the first role that it has.

    Raises `GroupRefused` above the limit.
    """
    for agent, member in more.items():
        if agent not in there or (there[agent].role == "observer" and member.role != "observer"):
            there[agent] = member
    if len(there) > ALL_MAX:
        raise GroupRefused(
            f"Group {group!r} has more than {ALL_MAX} members in it and its groups, which is the limit.",
            group=group,
            agent="",
        )
