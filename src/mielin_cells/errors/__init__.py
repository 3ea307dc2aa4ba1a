# ruff: noqa: F403, F405 - this module is made of others
"""Every public exception, in three families that say what the caller should do next.

`UsageError` (`usage`): the call or the class is wrong; fix it, a retry will not help.
`RetryError` (`retry`): nothing is broken for good; try again after `retry_after` seconds.
`LostError` (`lost`): ownership moved or stored data cannot be used; stop, and look.

Each message says what happened, to which agent, whether the agent still runs, and what to do next.
Each class has a docstring that ends with `Next:`, what to do about it; `mielin explain CODE` prints it.
All of them pickle, and travel between nodes as code, sentence and facts (`to_wire`, `from_wire`).
"""

from __future__ import annotations

from mielin_cells.errors.base import *
from mielin_cells.errors.base import classes
from mielin_cells.errors.deploys import *
from mielin_cells.errors.lost import *
from mielin_cells.errors.meanings import *
from mielin_cells.errors.moves import *
from mielin_cells.errors.retry import *
from mielin_cells.errors.usage import *

__all__ = [
    "AgentInError", "AgentTerminated", "AlreadyThere", "AnswerExpired", "AskCycle", "AskTimeout", "AttributeInvalid",
    "AuthFailed", "BadArguments",
    "Cancelled", "CellError", "ClaimRefused", "ConfigError", "CronInvalid", "DigestMismatch", "EpochOutOfOrder",
    "EpochRegression", "Expired", "ExpressionInvalid",
    "Fenced", "FieldRefused", "GroupRefused", "HandlerFailed", "InboxFull", "InternalError",
    "InvalidAgentId", "InvalidTransition", "IsReference", "JetStreamDisabled", "JournalGap", "KeyConflict", "LogGap", "LostError",
    "MessageTooLarge", "MigrationError", "MigrationFailed", "MigrationInProgress", "MigrationRefused", "NameTaken", "NoNodeFits",
    "NoResponder", "NoSuchAgent", "NoSuchCall", "NoSuchHandler", "NoSuchMigration", "NoSuchStream", "NoSuchWait", "NodeCordoned",
    "NodeStopping",
    "NonDeterministicTurn", "NoneAvailable", "NotConnected",
    "NotInTurn", "NotPlaced", "NotTheOwner", "PartMisplaced", "PartMissing", "PermissionDenied", "QuotaExceeded", "ReadOnly",
    "RecordInvalid", "RecordTruncated", "RecoveryNotDue", "RetryError", "RollbackExpired", "SelfAsk", "ServerTooOld",
    "SessionExpired", "StateInvalid", "StateTooNew", "StateUnloadable", "StateUpgradeFailed", "StepFailed", "StepInvalid",
    "StoreBusy", "StoreCorrupt", "StoreFull", "StoreInUse", "StoreIncompatible", "StoreReadOnly", "StoreUnreachable", "StreamGap",
    "StreamMissing", "StreamRestarted", "SupervisionFailed", "TooLateToCancel", "TopicInvalid", "TraceInvalid", "TrailingData",
    "TurnDeadlineExceeded", "UnknownClass", "UnknownNode", "UnknownRecord", "UnsupportedFormat", "UsageError", "WaitOver",
    "WaitRejected", "WaitTimeout", "WhereInvalid", "WireTimeout", "WrongAgent", "WrongClass",
]  # fmt: skip

__all__ += ["DeployRefused"]

for _cls in (*classes(), AlreadySpawned):
    _cls.__module__ = __name__  # what users see in a traceback, and what tells our classes from theirs
