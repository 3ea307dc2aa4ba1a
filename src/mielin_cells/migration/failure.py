"""The eight types of failed moves, and the one function that assigns them.

`classify` is the only place where an exception, a refusal or the code of an end becomes a `MigrationErrorType`.  It is driven by the
tables below, which `docs/recovery.md` shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

from mielin_cells.errors import CellError, LostError, RecordInvalid, RetryError, UsageError, storable
from mielin_cells.migration.refusal import Refusal, RefusalKind, as_refusal

CAUSES_MAX = 16
"""How far a chain of causes, and groups in groups, are followed: real ones have two or three links."""


class MigrationErrorType(Enum):
    """What kind of failure ended an attempt.  Values are the seed's names."""

    NETWORK_TRANSIENT = "NetworkTransient"
    NETWORK_PERMANENT = "NetworkPermanent"
    """No retry can help: permissions, authentication, misuse."""
    INSUFFICIENT_RESOURCES = "InsufficientResources"
    INCOMPATIBLE_TARGET = "IncompatibleTarget"
    """The agent can never run there; elsewhere it may."""
    STATE_CORRUPTION = "StateCorruption"
    TIMEOUT = "Timeout"
    TARGET_UNREACHABLE = "TargetUnreachable"
    UNKNOWN = "Unknown"

    @property
    def is_retryable(self) -> bool:
        """The same target may be asked again, now or later."""
        return self in _RETRYABLE

    @property
    def should_change_target(self) -> bool:
        """Another target is to be chosen.  Together with `is_retryable` false: never this one again."""
        return self in _CHANGES_TARGET


TRANSIENT = MigrationErrorType.NETWORK_TRANSIENT
PERMANENT = MigrationErrorType.NETWORK_PERMANENT
RESOURCES = MigrationErrorType.INSUFFICIENT_RESOURCES
INCOMPATIBLE = MigrationErrorType.INCOMPATIBLE_TARGET
CORRUPTION = MigrationErrorType.STATE_CORRUPTION
TIMEOUT = MigrationErrorType.TIMEOUT
UNREACHABLE = MigrationErrorType.TARGET_UNREACHABLE
UNKNOWN = MigrationErrorType.UNKNOWN

_RETRYABLE = frozenset({TRANSIENT, RESOURCES, TIMEOUT, UNREACHABLE})
_CHANGES_TARGET = frozenset({RESOURCES, INCOMPATIBLE, UNREACHABLE})

SEVERITY = (UNKNOWN, TRANSIENT, TIMEOUT, UNREACHABLE, RESOURCES, INCOMPATIBLE, PERMANENT, CORRUPTION)
"""If several failures occur at once, the last in this order counts: those that a retry cannot help win."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationError:
    """A failed attempt to move an agent; a value, not an exception.  `timestamp` is monotonic seconds."""

    error_type: MigrationErrorType
    message: str
    agent_id: str
    target_node: str | None = None
    """The node that it failed with."""
    timestamp: float
    """When the attempt ended."""
    retry_count: int = 0
    """Retries made before it."""

    @classmethod
    def new(
        cls,
        error_type: MigrationErrorType,
        message: str,
        agent_id: str,
        target_node: str | None = None,
        *,
        now: float,
    ) -> MigrationError:
        return cls(
            error_type=error_type,
            message=storable(message),
            agent_id=agent_id,
            target_node=target_node,
            timestamp=now,
        )

    def increment_retry(self) -> MigrationError:
        """The same error with one more retry."""
        return replace(self, retry_count=self.retry_count + 1)

    def age_secs(self, now: float) -> float:
        """Never below 0."""
        return max(0.0, now - self.timestamp)


# ---- what happened -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refused:
    """The target does not take the agent."""

    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class SentBack:
    """The target gave the agent back in probation; the code that its `Returned` carries, "" if it has none."""

    code: str


@dataclass(frozen=True, slots=True)
class Coded:
    """An error known only by its stable code: from the wire, a journal, or a report."""

    code: str
    reason: str = ""
    """For people: nothing is read from it."""


Happened: TypeAlias = BaseException | Refused | SentBack | Coded


# ---- tables --------------------------------------------------------------------------------------------------

CODES: dict[str, MigrationErrorType] = {
    code: kind
    for kind, codes in {
        # Permissions, authentication and misuse: a retry meets the same answer.  `Cancelled`, `Fenced`: see `is_settled`.
        PERMANENT: "AuthFailed PermissionDenied PermissionError SSLCertVerificationError FileNotFoundError JetStreamDisabled "
        "ServerTooOld StoreIncompatible ConfigError HandlerFailed StoreReadOnly StoreInUse Cancelled Fenced",
        # The agent cannot run on that node.  `UnsupportedFormat`: the target has an older version; what is stored is right.
        INCOMPATIBLE: "UnknownClass WrongClass StateTooNew StateUpgradeFailed StateUnloadable FieldRefused UnsupportedFormat "
        "UnknownRecord",
        # No room.  `MigrationRefused`: for a reason that is not known, so the node may take the agent another time.
        RESOURCES: "MigrationRefused StoreFull QuotaExceeded MemoryError InboxFull",
        # Nobody is there.
        UNREACHABLE: "TargetUnreachable NoResponder UnknownNode NodeCordoned NodeStopping ConnectionRefusedError gaierror",
        # Too slow.  `CancelledError`: work is cancelled at a deadline; an operator's cancel has its own code.
        TIMEOUT: "Timeout TimeoutError CancelledError WireTimeout AskTimeout MigrationFailed",
        # Passing.  `SourceLost` says nothing of the target: the next owner tries the same one.
        TRANSIENT: "SourceLost StoreBusy StoreUnreachable MigrationInProgress ConnectionError OSError EOFError "
        "IncompleteReadError",
        # What is stored, or arrived, is not right.
        CORRUPTION: "StoreCorrupt StreamMissing RecordInvalid RecordTruncated TrailingData DigestMismatch WrongAgent "
        "EpochOutOfOrder NotTheOwner LogGap JournalGap EpochRegression PartMissing PartMisplaced",
        # A bug is all that can be said of these.
        UNKNOWN: "InternalError CellError",
    }.items()
    for code in codes.split()
}
"""Types by the name of an exception's class, then of its bases, and by the codes in which migrations end."""

FAMILIES: tuple[tuple[type[CellError], MigrationErrorType], ...] = (
    (RecordInvalid, CORRUPTION),
    (UsageError, PERMANENT),
    (RetryError, TRANSIENT),
    (LostError, PERMANENT),
)
"""Types of this package's errors that `CODES` does not name, by family."""

ERRNOS: dict[int, MigrationErrorType] = {12: RESOURCES, 28: RESOURCES}
"""ENOMEM and ENOSPC, the same everywhere: the only numbers that say more than the exception's class."""

SETTLED = frozenset({"Cancelled", "Fenced", "AgentTerminated"})

REFUSALS: dict[RefusalKind, MigrationErrorType] = {
    **dict.fromkeys((RefusalKind.STOPPING, RefusalKind.CORDONED), UNREACHABLE),
    **dict.fromkeys((RefusalKind.HOSTING, RefusalKind.VERIFYING), TRANSIENT),  # its view of the agent is behind for a moment
    # Of `OTHER` nothing is known: another node is asked, and this one perhaps later.
    **dict.fromkeys(
        (
            RefusalKind.MEMORY, RefusalKind.STORAGE, RefusalKind.FULL, RefusalKind.FAST, RefusalKind.CROWDED,
            RefusalKind.HAS_FAILED, RefusalKind.OTHER,
        ),
        RESOURCES,
    ),
    **dict.fromkeys(
        (
            RefusalKind.CLASS_UNKNOWN, RefusalKind.CLASS_UNUSABLE, RefusalKind.STATE_INVALID, RefusalKind.STATE_NEWER,
            RefusalKind.NO_UPGRADE, RefusalKind.ARCHITECTURE, RefusalKind.STATE_TOO_LARGE, RefusalKind.SIZE_INVALID,
            RefusalKind.FEATURE, RefusalKind.VERSION_MAJOR, RefusalKind.VERSION_OLD, RefusalKind.VERSION_UNREADABLE,
        ),
        INCOMPATIBLE,
    ),
}  # fmt: skip
"""The type of each kind of refusal."""


def classify(happened: Happened) -> MigrationErrorType:
    """The type of a failure.  Total, pure, and never raises.

    A denied permission is permanent also where it shows as a timeout, if it is the timeout's cause.  Only what no table
    names, and no family of ours, is `UNKNOWN`.
    """
    match happened:
        case BaseException():
            return _worst(_of_exception(error) for error in _with_causes(happened))
        case Refused(refusals=refusals):
            return _worst(REFUSALS[as_refusal(one).kind] for one in refusals) if refusals else CODES["MigrationRefused"]
        case SentBack(code=code):
            return _of_return(code)
        case Coded(code=code):
            return _of_code(code)


def is_settled(code: str) -> bool:
    """True if this end is a decision, by a person or the agent's log, and not a failure: nothing is to be recovered."""
    return code in SETTLED


def _worst(kinds: Iterable[MigrationErrorType]) -> MigrationErrorType:
    return max(kinds, key=SEVERITY.index)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it names as its causes, and the members of groups; at most `CAUSES_MAX`."""
    waiting = [error]
    for _ in range(CAUSES_MAX):
        if not waiting:
            return
        member = waiting.pop(0)
        if isinstance(member, BaseExceptionGroup) and member.exceptions:
            waiting.extend(member.exceptions)
            continue
        yield member
        if member.__cause__ is not None:
            waiting.append(member.__cause__)
    # A group deeper than that still yields what was seen; `_worst` needs at least one.
    yield error


def _of_exception(error: BaseException) -> MigrationErrorType:
    number = getattr(error, "errno", None) if isinstance(error, OSError) else None
    if number in ERRNOS:
        return ERRNOS[number]
    kinds = error.facts.get("kinds") if isinstance(error, CellError) else None
    if isinstance(kinds, (list, tuple)) and kinds:
        return _worst(REFUSALS[Refusal(str(kind), {}).kind] for kind in kinds)
    for cls in type(error).__mro__:
        if cls is not CellError and cls.__name__ in CODES:
            return CODES[cls.__name__]
        for family, kind in FAMILIES:
            if cls is family:
                return kind
    return UNKNOWN


def _of_return(code: str) -> MigrationErrorType:
    """The type for an agent that the target returned: unless the cause says otherwise, the agent cannot run there."""
    kind = _of_code(code) if code not in ("", "MigrationRefused", "Returned") else UNKNOWN
    return INCOMPATIBLE if kind is UNKNOWN else kind


def _of_code(code: str) -> MigrationErrorType:
    if code == "Returned":
        return _of_return("")
    if code in CODES:
        return CODES[code]
    pending: list[type[CellError]] = [CellError]
    while pending:
        cls = pending.pop()
        if cls.__name__ == code:
            return next((kind for family, kind in FAMILIES if issubclass(cls, family)), UNKNOWN)
        pending.extend(cls.__subclasses__())
    return UNKNOWN
