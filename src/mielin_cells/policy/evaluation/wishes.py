"""An agent that should leave its node, as the node asks the leader to move it."""

from __future__ import annotations

import msgspec

from mielin_cells.log.policy import DEFAULT, Policy
from mielin_cells.policy.triggers.needs import Need


class Wish(msgspec.Struct, array_like=True, frozen=True):
    """A hint: the leader decides, and each agent's log knows where the agent is."""

    agent: str
    trigger: str
    priority: int
    why: str
    """With the values that decided."""
    needs: tuple[Need, ...] = ()
    """What the target must have, unless no node says whether it has."""
    avoids: tuple[Need, ...] = ()
    """What it must not lack: the policy's other reasons to leave a node."""
    cooldown_s: float = 60.0
    per_hour: int = 10
    cls: str = ""
    version: int = 0
    epoch: int = 0
    size_bytes: int = 0
    policy: Policy = DEFAULT
    to: str = ""
    """The only target that serves the purpose; "": the leader chooses."""
