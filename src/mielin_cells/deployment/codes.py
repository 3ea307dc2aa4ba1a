"""The exit codes of commands and node processes, and which errors they stand for."""

from __future__ import annotations

from mielin_cells import errors

DONE = 0
FAILED = 1
USAGE = 2
REFUSED = 3
"""The state of the agent or of the target does not allow it; nothing was changed."""
ROLLED_BACK = 4
"""The agent is safe, and runs where it ran."""
UNKNOWN = 5
"""The call may have taken effect, and may still."""
INTERRUPTED = 130

_KINDS: dict[type[errors.CellError], int] = {
    **dict.fromkeys((errors.AgentInError, errors.AskTimeout, errors.WireTimeout), UNKNOWN),
    errors.MigrationFailed: ROLLED_BACK,
    **dict.fromkeys(
        (
            errors.AgentTerminated, errors.AlreadyThere, errors.ClaimRefused, errors.DeployRefused, errors.Expired, errors.InboxFull,
            errors.InvalidTransition, errors.MigrationInProgress, errors.MigrationRefused, errors.NodeCordoned, errors.RollbackExpired,
            errors.TooLateToCancel, errors.WaitOver, errors.WrongClass,
        ),
        REFUSED,
    ),
    **dict.fromkeys(
        (
            errors.HandlerFailed, errors.NonDeterministicTurn, errors.StateInvalid, errors.StepFailed, errors.StepInvalid,
            errors.AuthFailed, errors.JetStreamDisabled, errors.NotConnected, errors.PermissionDenied, errors.ServerTooOld,
        ),
        FAILED,
    ),
    errors.UsageError: USAGE,
}  # fmt: skip
"""The first class that the error is an instance of decides; an error of none of them has failed."""


def code_of(error: errors.CellError) -> int:
    return next((code for kind, code in _KINDS.items() if isinstance(error, kind)), FAILED)
