"""What becomes of an agent that a deploy could not move: whether that counts as a try, and which node is next.  Pure."""

from __future__ import annotations

from typing import NamedTuple

from mielin_cells.agents.reports import MigrationReport
from mielin_cells.errors import CellError, Fenced, MigrationInProgress, NoSuchAgent
from mielin_cells.migration.case import SOURCE_LOST
from mielin_cells.migration.failure import Coded, MigrationErrorType, classify

TRIES = 3
"""Of one agent."""

PATIENCE_S = 120.0
"""How long an agent is waited for whose failures pass by themselves: until then they do not count as tries."""

OTHERS = frozenset({Fenced.__name__, MigrationInProgress.__name__, SOURCE_LOST})
"""Ends of a move in which another move or another owner of the agent came first."""

VERIFYING = "VERIFYING"
"""The phase of a move in which the target runs the agent's hooks."""

_TYPES = {one.value: one for one in MigrationErrorType}


class Failure(NamedTuple):
    """Why an agent did not move."""

    why: str
    code: str
    """The stable code of the cause."""
    passes: bool
    """The new code is not to blame: a node was away, cordoned, stopping or full, or another move came first."""
    target: str = ""
    """The node that it was to go to."""


def failure_of_error(error: CellError, target: str = "") -> Failure:
    """For an error of a request, or of the store."""
    passes = isinstance(error, (MigrationInProgress, NoSuchAgent, Fenced)) or classify(error).is_retryable
    return Failure(error.message, error.code, passes, target)


def failure_of_move(report: MigrationReport, target_stays: bool) -> Failure:
    """For a move that did not complete.  `target_stays`: the process that was the target still serves.

    A move that has run out of time counts only once its target had the agent: before that, the agent's own turn or a busy
    store took the time, and a target that has died since is to blame for nothing.
    """
    kind = _TYPES.get(report.error_type) or classify(Coded(report.code))
    passes = report.code in OTHERS or kind.is_retryable
    if kind is MigrationErrorType.TIMEOUT and target_stays and any(phase == VERIFYING for phase, _ in report.phases):
        passes = False
    why = "; ".join(report.reasons) or report.reason or f"it went to {report.target}"
    return Failure(why, report.code, passes, report.target)


class Tries:
    """Of the agents of one stage, or of an undo.  Times are of one monotonic clock."""

    def __init__(self) -> None:
        self._counted: dict[str, int] = {}
        self._since: dict[str, float] = {}
        """Since when an agent is waited for."""
        self._failures: dict[str, Failure] = {}
        self._turn = 0

    def may(self, agent: str) -> bool:
        """True if the agent is to be tried, for the first time or again."""
        return self._counted.get(agent, 0) < TRIES

    def choose(self, agent: str, able: list[str]) -> str:
        """One of these nodes after the other, and another one than the agent failed to go to before, if there is one."""
        self._turn += 1
        before = self._failures.get(agent)
        others = [node for node in able if before is None or node != before.target] or able
        return others[self._turn % len(others)]

    def failed(self, agent: str, failure: Failure, now: float) -> None:
        if failure.passes:
            counts = now - self._since.setdefault(agent, now) > PATIENCE_S
        else:
            counts = True
            self._since.pop(agent, None)
        self._counted[agent] = self._counted.get(agent, 0) + counts
        self._failures[agent] = failure

    def succeeded(self, agent: str) -> None:
        self._since.pop(agent, None)
        self._failures.pop(agent, None)

    def failure(self, agent: str) -> Failure | None:
        """The last failure of the agent."""
        return self._failures.get(agent)
