"""Exit codes: 0 done; 1 failed; 2 usage; 3 refused; 4 rolled back, the agent is safe; 5 unknown."""

from __future__ import annotations

from mielin_cells import errors

DONE, FAILED, USAGE, REFUSED, ROLLED_BACK, UNKNOWN = range(6)
INTERRUPTED = 130

# The first that matches counts.  What is in none of them has failed.
_CODES: tuple[tuple[int, tuple[type[errors.CellError], ...]], ...] = (
    (
        UNKNOWN,
        (errors.AgentInError, errors.AskTimeout, errors.WireTimeout),
    ),  # the call may have taken effect, and may still
    (ROLLED_BACK, (errors.MigrationFailed,)),
    (
        REFUSED,
        (
            errors.AgentTerminated,
            errors.AlreadyThere,
            errors.ClaimRefused,
            errors.InboxFull,
            errors.InvalidTransition,
            errors.MigrationInProgress,
            errors.MigrationRefused,
            errors.NodeCordoned,
            errors.RollbackExpired,
            errors.TooLateToCancel,
            errors.WrongClass,
        ),
    ),
    (
        FAILED,
        (errors.HandlerFailed, errors.NonDeterministicTurn, errors.StateInvalid, errors.StepFailed, errors.StepInvalid),
    ),
    (
        FAILED,  # not connected
        (
            errors.AuthFailed,
            errors.JetStreamDisabled,
            errors.NotConnected,
            errors.PermissionDenied,
            errors.ServerTooOld,
        ),
    ),
    (USAGE, (errors.UsageError,)),
)


def code_of(error: errors.CellError) -> int:
    for code, kinds in _CODES:
        if isinstance(error, kinds):
            return code
    return FAILED
