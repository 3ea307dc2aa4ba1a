"""The kinds of records: in which phase each may stand, who may write it in which epoch, and what lifecycle it leads to.

The fold enforces the table for everybody; the checkers of the simulator hold what has landed against it by their own accounts.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from mielin_cells.log.lifecycle import AgentState, Phase
from mielin_cells.log.records import (
    Accepted,
    Asked,
    Claimed,
    Cleared,
    Committed,
    Created,
    Failed,
    HandedOff,
    Paused,
    Record,
    Resumed,
    Returned,
    Snapshot,
    StandbySet,
    Stepped,
    Suspended,
    Terminated,
    Undone,
)


class Rule(NamedTuple):
    phases: tuple[Phase, ...] = (Phase.RUN,)
    """In these it may stand.  In RUN only the owner's own incarnation may write, in PROBATION any of the named node's."""
    takes_over: bool = False
    """Any node may write it, and its epoch is the next one; every other record is its owner's, in the owner's epoch."""
    starts: bool = False
    """An agent that was only created is running from here on."""
    state: AgentState | None = None
    """The lifecycle after it; None: unchanged."""
    may_wait: bool = True
    """It may stand between an undo and the claim that the undo calls for (rule 16)."""


RULES: Final[dict[type[Record], Rule]] = {
    Created: Rule((Phase.NONE,), takes_over=True),
    Claimed: Rule((Phase.RUN, Phase.PROBATION), takes_over=True),
    Accepted: Rule((Phase.PROBATION,)),
    Returned: Rule((Phase.PROBATION,)),
    Committed: Rule(starts=True),
    Asked: Rule(may_wait=False),
    Stepped: Rule(may_wait=False),
    Snapshot: Rule(may_wait=False),
    HandedOff: Rule(may_wait=False),
    Undone: Rule(may_wait=False),
    Suspended: Rule(starts=True, state=AgentState.SUSPENDED),
    Paused: Rule(starts=True, state=AgentState.PAUSED),
    Failed: Rule(starts=True, state=AgentState.ERROR),
    Resumed: Rule(state=AgentState.RUNNING),
    Terminated: Rule(state=AgentState.TERMINATED),
    Cleared: Rule(),
    StandbySet: Rule(),
}
"""Every kind but `Spilled`, which stands for another record and is never folded itself."""
