"""The seven states of an agent and the edges between them.

States and the 22 edges are those of the original mielin-cells, plus Migrating to Paused and to Suspended, which lead only
back to where the agent came from.  The holes of the original are closed: nothing revives a fatal error,
nothing sets a state past the table, attempts at recovery are counted until one succeeds.

`Migrating` is not stored: an agent is migrating while its log is in probation (`Phase`), whatever its lifecycle.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from mielin_cells.errors import InvalidTransition

HISTORY_MAX = 10


class Phase(Enum):
    """Where the ownership of an agent stands."""

    NONE = "none"
    """No record yet."""
    RUN = "run"
    PROBATION = "probation"
    """Handed over, not yet accepted or returned: nobody serves."""
    TERMINATED = "terminated"


class AgentState(Enum):
    """The state of an agent; `.value` is its text, as `AgentInfo.state` has it.

    >>> [state.value for state in cells.AgentState if state.accepts_work]
    ['Created', 'Running']
    """

    CREATED = "Created"
    RUNNING = "Running"
    PAUSED = "Paused"
    """By its own order or its user's."""
    SUSPENDED = "Suspended"
    """By the system or an operator."""
    MIGRATING = "Migrating"
    ERROR = "Error"
    """A hook raised or the state did not load."""
    TERMINATED = "Terminated"

    @property
    def is_active(self) -> bool:
        return self is AgentState.RUNNING

    @property
    def accepts_work(self) -> bool:
        return self in (AgentState.RUNNING, AgentState.CREATED)

    @property
    def is_recoverable(self) -> bool:
        return self in (AgentState.ERROR, AgentState.SUSPENDED, AgentState.PAUSED)


_C, _R, _P, _S, _M, _E, _T = AgentState

EDGES: dict[AgentState, tuple[AgentState, ...]] = {
    _C: (_R, _T),
    _R: (_P, _S, _M, _E, _T),
    _P: (_R, _S, _M, _T),
    _S: (_R, _P, _M, _E, _T),
    _M: (_R, _E, _T, _P, _S),
    _E: (_R, _S, _T),
    _T: (),
}


class AgentError(msgspec.Struct, frozen=True, kw_only=True):
    """Why an agent is in ERROR.  `attempts` counts the tries to resume it since then."""

    message: str
    code: str = ""
    fatal: bool = False
    attempts: int = 0
    has_started: bool = True
    """False: it failed at its creation, and `on_start` is still to take effect."""


class Lifecycle(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's lifecycle as its log tells it; a value."""

    state: AgentState = AgentState.CREATED
    error: AgentError | None = None
    came_from: AgentState | None = None
    """While MIGRATING: the state to go back to."""
    left: AgentError | None = None
    """The error in which it was suspended or paused, which a resume must still clear."""
    history: tuple[AgentState, ...] = ()
    """Earlier states, newest last; at most `HISTORY_MAX`."""

    def to(self, state: AgentState, error: AgentError | None = None) -> Lifecycle:
        """The lifecycle after this edge.  Raises `InvalidTransition` if there is no such edge from here."""
        here = self.state
        allowed = state in EDGES[here]
        if here is _M and state in (_R, _P, _S):
            allowed = state is (self.came_from or _R)
        if here is _E and state is not _T and self.error is not None and self.error.fatal:
            raise InvalidTransition(
                f"The agent's error is fatal ({self.error.message}); it can only be terminated.",
                have=here.value,
                need=state.value,
            )
        if not allowed:
            raise InvalidTransition(
                f"An agent that is {here.value} cannot become {state.value}.", have=here.value, need=state.value
            )
        return Lifecycle(
            state=state,
            error=error if state is _E else None,
            left=(self.error or self.left) if state in (_S, _P, _M) else None,
            came_from=here if state is _M else None,
            history=(*self.history, here)[-HISTORY_MAX:],
        )
