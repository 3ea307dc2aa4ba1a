"""Every public exception, in three families that say what the caller should do next.

`UsageError` (yours): the call or the class is wrong; fix it, a retry will not help.
`RetryError` (retry): nothing is broken for good; try again after `retry_after` seconds.
`LostError` (lost): ownership moved or stored data cannot be used; stop, and look.

Each message says what happened, to which agent, whether the agent still runs, and what to do next.
All of them pickle, and travel between nodes as code, sentence and facts (`to_wire`, `from_wire`).
"""

from __future__ import annotations

from typing import Any

TEXT_CHARS_MAX = 4_000
"""Of a text that an error brings into a record or message: enough for any sentence, and no user's exception fills a log."""


class CellError(Exception):
    """Base of all exceptions of this package.  `code` is stable; `facts` are its machine-readable details."""

    retry_after: float | None = None

    def __init__(self, message: str, /, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    @property
    def code(self) -> str:
        return type(self).__name__

    def __getattr__(self, name: str) -> Any:
        facts = self.__dict__.get("facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.facts)

    def to_wire(self) -> tuple[str, str, dict[str, Any]]:
        """Code, sentence and those facts that are plain data: what this gives can be encoded, whatever a user put in."""
        plain = {storable(name): _plain(value) for name, value in self.facts.items() if isinstance(value, _PLAIN)}
        return storable(self.code), storable(str(self.message)), plain


_PLAIN = (str, int, float, bool, list, tuple, type(None))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [storable(str(_plain(item))) for item in value if isinstance(item, (str, int, float))]
    if isinstance(value, str):
        return storable(str(value))
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value) if -(2**63) <= value < 2**64 else storable(f"{value:#x}")  # integers beyond do not encode
    return value


def storable(text: str) -> str:
    """The text as it can be encoded and kept: without lone surrogates, and cut where it is too long."""
    if len(text) > TEXT_CHARS_MAX:
        text = text[:TEXT_CHARS_MAX] + "..."
    return text.encode(errors="replace").decode()


def never(what: str) -> AssertionError:
    """For what cannot be, unless this package itself is wrong.  Raised, and not asserted: `python -O` takes asserts away."""
    return AssertionError(f"This cannot be, and is a bug of mielin-cells: {what}. Please report it.")


def described(error: BaseException) -> str:
    """Kind and text of any exception, storable; of a group, also those of the exceptions in it.

    Never raises: users' exceptions may have a `__str__` that does.
    """
    try:
        text = "".join(str(error))  # a plain one: it may be of a user's class as well
    except Exception as broken:  # noqa: BLE001 - whatever it is, it must not hide the error that is described
        text = f"its text cannot be read ({type(broken).__name__})"
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, BaseExceptionGroup):
        said = f"{said}: {'; '.join(described(one) for one in leaves(error))}"
    return storable(said)


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions that a group holds, and those of the groups in it; of another exception, itself."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for one in error.exceptions for leaf in leaves(one)]


def _rebuild(cls: type[CellError], message: str, facts: dict[str, Any]) -> CellError:
    error = cls.__new__(cls)
    CellError.__init__(error, message, **facts)  # a user's derived class may have an `__init__` of its own
    return error


def from_wire(code: str, message: str, facts: dict[str, Any]) -> CellError:
    """The exception that `to_wire` described.  An unknown code (a newer peer) becomes a plain `CellError`.

    A code of ours is always ours, also if a user's class has the same name.
    """
    pending: list[type[CellError]] = [CellError]
    while pending:
        cls = pending.pop()
        if cls.__name__ == code and (cls.__module__ == __name__ or code not in __all__):
            return _rebuild(cls, message, facts)
        pending.extend(cls.__subclasses__())
    return _rebuild(CellError, message, facts)


class UsageError(CellError):
    """Yours: fix the call, the class or the setting."""


class RetryError(CellError):
    """Retry: a passing condition; the same call may succeed after `retry_after` seconds."""

    retry_after: float | None = 1.0


class LostError(CellError):
    """Lost: ownership moved, or what is stored cannot be used.  Nothing was changed by this call."""


class AlreadySpawned(UserWarning):
    """A spawn named an agent that exists and gave it another initial state, which is not used."""


class InternalError(CellError):
    """A bug in this package: please report it with the sentence it carries."""


# ---- yours: calls and classes --------------------------------------------------------------------------------


class InvalidAgentId(UsageError):
    """An agent id is 1 to 128 characters of text without control characters."""


class WrongClass(UsageError):
    """The id belongs to an agent of another class.  Facts: agent, have, need."""


class NoSuchAgent(UsageError):
    """No agent of this id was ever spawned in this deployment.  Facts: agent."""


class AgentTerminated(UsageError):
    """The agent has ended; its id is not used again.  Facts: agent."""


class NoSuchHandler(UsageError):
    """The agent's class has no handler of this name.  Facts: agent, handler."""


class BadArguments(UsageError):
    """The arguments do not fit the handler's signature, or do not encode.  Facts: handler."""


class HandlerFailed(UsageError):
    """The handler raised; the agent's state is as before the turn and the agent goes on.

    Facts: agent, handler, tries; `kind`, the name of the exception's class; `cause`, that name and its text; `causes`, the same of
    each exception in a group.
    """


class FieldRefused(UsageError):
    """A state field or a handler's signature has a type that cannot be stored.  Facts: path."""


class StateInvalid(UsageError):
    """A turn left a value that a load would change, or set an attribute that is no state; it was undone.  Facts: agent, path."""


class NotInTurn(UsageError):
    """State is set only inside a turn (a handler or a hook)."""


class IsReference(UsageError, AttributeError):
    """A reference has handlers, not state: ask the agent for the value instead.

    It is an `AttributeError` too: to `hasattr` and its like a reference has no such attribute.
    """


class NotConnected(UsageError):
    """A reference was called outside a turn and outside `async with cells.local()` or `connect()`."""


class SelfAsk(UsageError):
    """An agent that asks itself inside a turn would wait for ever; call the method plainly instead."""


class AskCycle(UsageError):
    """An agent was asked that waits for the answer of the one who asks, maybe through others.  Facts: agents."""


class NonDeterministicTurn(UsageError):
    """A turn that is run again made another ask or step than the recorded one.  Facts: agent, asks."""


class StepFailed(UsageError):
    """A durable step raised, to the end of its retries; a turn that runs again gets the same.  Facts: agent, step, cause, tries."""


class StepInvalid(UsageError):
    """A durable step's result would not be loaded as it was, by what its call declares; the turn was undone."""


class MessageTooLarge(UsageError):
    """A message or record is above the limit.  Facts: limit, size."""


class InvalidTransition(UsageError):
    """The lifecycle has no such edge.  Facts: have, need."""


class UnknownClass(UsageError):
    """No agent class of this name is known here.  Facts: name."""


class ConfigError(UsageError):
    """A setting is out of range.  Facts: field, range."""


class JetStreamDisabled(UsageError):
    """The server, or the account on it, has no JetStream.  Facts: url."""


class ServerTooOld(UsageError):
    """The server lacks what the system needs.  Facts: have, need."""


class StoreIncompatible(UsageError):
    """Another version of mielin-cells made the store, in a format that this version does not read.  Facts: store, have, need."""


class AuthFailed(UsageError):
    """The server does not know this user, or not with this credential.  Facts: url."""


class PermissionDenied(UsageError):
    """The server forbids this user the subject; nothing was done, and a retry will not help.  Facts: subject."""


class AnswerExpired(UsageError):
    """The caller had already closed this ask; its stored answer is gone."""


class SessionExpired(UsageError):
    """The agent has forgotten this client's session; open a new one.  The call may have taken effect before."""


# ---- migration -----------------------------------------------------------------------------------------------


class MigrationError(CellError):
    """Base of what an order to move an agent raises: `except cells.MigrationError` catches each of them."""


class MigrationRefused(MigrationError, UsageError):
    """The target cannot take the agent; it runs on where it was.  Facts: agent, migration, reasons."""


class MigrationInProgress(MigrationError, UsageError):
    """One migration per agent is open at a time.  Facts: agent, migration."""


class AlreadyThere(MigrationError, UsageError):
    """The agent already lives on that node.  Facts: agent, node."""


class ClaimRefused(UsageError):
    """The agent's owner answers; a claim would break into its work.  Facts: agent, node."""


class UnknownNode(UsageError):
    """No node of this name is up.  Facts: node, nodes."""


class NoSuchMigration(MigrationError, UsageError):
    """No migration of this agent or id is open here."""


class TooLateToCancel(MigrationError, UsageError):
    """The handover is decided; the move goes forward.  Facts: agent, migration."""


# ---- retry ---------------------------------------------------------------------------------------------------


class TurnDeadlineExceeded(RetryError):
    """The handler did not end within its turn's deadline: it was cancelled, and the turn undone.

    Facts: agent, handler, deadline_s.
    """


class AskTimeout(RetryError):
    """No answer in time.  The ask may still take effect; asking again with the same call does not repeat it."""


class InboxFull(RetryError):
    """The agent has too many messages waiting; this one was not sent.  Facts: agent, waiting, limit."""


class MigrationFailed(MigrationError, RetryError):
    """The move was rolled back; the agent is safe and runs where it ran.  `MigrationReport.check` raises it.

    Facts: agent, migration, reason."""


class NodeCordoned(UsageError):
    """The node takes no agents until it is uncordoned.  Facts: node."""


class NodeStopping(RetryError):
    """The node is stopping; its agents stay claimable."""


class NoResponder(RetryError):
    """Nobody serves this subject now.  Facts: subject."""


class WireTimeout(RetryError):
    """A request on the wire got no answer in time.  Facts: subject."""


class StoreBusy(RetryError):
    """The store did not take the call in time; nothing was written."""


class StoreFull(RetryError):
    """The disk or the store's quota is full; nothing was written and the agent keeps its last durable state."""


class StoreUnreachable(RetryError):
    """The store does not answer."""


class QuotaExceeded(StoreFull):
    """A limit that the server's operator has set is reached; nothing was written.  Facts: limit."""


class RollbackExpired(UsageError):
    """What a rollback would restore is older than the limit.  Facts: migration."""


class RecoveryNotDue(RetryError):
    """A recovery's attempt is not due yet, or one runs already; nothing was begun.  Facts: agent, due."""


# ---- lost: ownership and stored data -------------------------------------------------------------------------


class Fenced(LostError):
    """Another node owns the agent now; this one has stopped it and dropped what was not committed.  Facts: agent, epoch, owner."""


class AgentInError(LostError):
    """A hook of the agent raised, or its state does not load: it runs nothing until an operator resumes it.

    What was sent waits, and may still take effect.  Facts: agent, node, cause.
    """


class EpochRegression(Fenced):
    """The store holds less than it had acknowledged; the agent is parked.  Facts: agent, have, need."""


class StoreInUse(LostError):
    """Another process has this store file open.  Facts: path."""


class StoreCorrupt(LostError):
    """The store file is damaged.  Facts: path."""


class StoreReadOnly(LostError):
    """The store file cannot be written.  Facts: path."""


class StreamMissing(LostError):
    """A stream of the deployment is gone from the server, and with it what it held.  Facts: stream."""


class RecordInvalid(LostError):
    """A stored record cannot be used.  Base of the errors below; the agent stays as it was.  Facts: subject, seq."""


class RecordTruncated(RecordInvalid):
    """The record is shorter than its frame says."""


class TrailingData(RecordInvalid):
    """The record is longer than its frame says."""


class DigestMismatch(RecordInvalid):
    """The digest does not match the bytes: they were changed on the way or on disk."""


class UnsupportedFormat(RecordInvalid):
    """The record has a format this version does not read.  Facts: have, need."""


class UnknownRecord(RecordInvalid):
    """The record is of a kind this version does not know.  Facts: tag."""


class WrongAgent(RecordInvalid):
    """The record belongs to another agent.  Facts: have, need."""


class EpochOutOfOrder(RecordInvalid):
    """The record's epoch is not the one that can follow.  Facts: have, need."""


class NotTheOwner(RecordInvalid):
    """The record was written by a node that could not write it.  Facts: author, owner."""


class LogGap(RecordInvalid):
    """A record between the last one read and this one is missing.  Facts: have, need."""


class JournalGap(LogGap):
    """Records of a log or journal are missing for good: the agent or migration is parked.  Facts: have, need."""


class PartMissing(RecordInvalid):
    """A part of a snapshot or large record is not in the store.  Facts: part."""


class PartMisplaced(RecordInvalid):
    """A part is there, but belongs elsewhere (swapped, repeated, or of another snapshot).  Facts: part."""


class StateTooNew(LostError):
    """The stored state is of a newer class version than this code.  Facts: agent, have, need."""


class StateUpgradeFailed(LostError):
    """No upgrade leads from the stored version, or one raised.  Facts: agent, have, need."""


class StateUnloadable(LostError):
    """The stored state does not load into the class.  Facts: agent, path."""


__all__ = [
    "AgentInError",
    "AgentTerminated",
    "AlreadyThere",
    "AnswerExpired",
    "AskCycle",
    "AskTimeout",
    "AuthFailed",
    "BadArguments",
    "CellError",
    "ClaimRefused",
    "ConfigError",
    "DigestMismatch",
    "EpochOutOfOrder",
    "EpochRegression",
    "Fenced",
    "FieldRefused",
    "HandlerFailed",
    "InboxFull",
    "InternalError",
    "InvalidAgentId",
    "InvalidTransition",
    "IsReference",
    "JetStreamDisabled",
    "JournalGap",
    "LogGap",
    "LostError",
    "MessageTooLarge",
    "MigrationError",
    "MigrationFailed",
    "MigrationInProgress",
    "MigrationRefused",
    "NoResponder",
    "NoSuchAgent",
    "NoSuchHandler",
    "NoSuchMigration",
    "NodeCordoned",
    "NodeStopping",
    "NonDeterministicTurn",
    "NotConnected",
    "NotInTurn",
    "NotTheOwner",
    "PartMisplaced",
    "PartMissing",
    "PermissionDenied",
    "QuotaExceeded",
    "RecordInvalid",
    "RecordTruncated",
    "RecoveryNotDue",
    "RetryError",
    "RollbackExpired",
    "SelfAsk",
    "ServerTooOld",
    "SessionExpired",
    "StateInvalid",
    "StateTooNew",
    "StateUnloadable",
    "StateUpgradeFailed",
    "StepFailed",
    "StepInvalid",
    "StoreBusy",
    "StoreCorrupt",
    "StoreFull",
    "StoreInUse",
    "StoreIncompatible",
    "StoreReadOnly",
    "StoreUnreachable",
    "StreamMissing",
    "TooLateToCancel",
    "TrailingData",
    "TurnDeadlineExceeded",
    "UnknownClass",
    "UnknownNode",
    "UnknownRecord",
    "UnsupportedFormat",
    "UsageError",
    "WireTimeout",
    "WrongAgent",
    "WrongClass",
]


PARKED = frozenset({"EpochRegression", "JournalGap"})
"""Codes of errors with which an agent is parked: an operator decides."""


UNUSABLE = PARKED | {"PartMissing", "DigestMismatch"}
"""What no node can mend: asks fail as soon as it is known, and do not wait for their deadline."""


UNLOADABLE = frozenset({"StateUnloadable", "StateUpgradeFailed", "UnknownClass"})
"""What no node with this code, or with what it has imported, can load."""


OF_STORE = (
    AuthFailed,
    InternalError,
    JetStreamDisabled,
    PermissionDenied,
    RetryError,
    ServerTooOld,
    StoreCorrupt,
    StoreInUse,
    StoreIncompatible,
    StoreReadOnly,
    StreamMissing,
)
"""Errors that are the store's and not one agent's: when the store has recovered, so has the agent."""
