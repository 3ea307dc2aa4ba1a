"""Groups of agents: `Group`, an agent that knows its members, and `Team`, by which they are told and asked together.

A node must know the class `Group`: import this module where the app's agents are defined.
"""

from mielin_cells.agents.groups.group import Group
from mielin_cells.agents.groups.members import Member, Role
from mielin_cells.agents.groups.report import GroupReport
from mielin_cells.client.groups.team import Gathered, Team

__all__ = ["Gathered", "Group", "GroupReport", "Member", "Role", "Team"]
