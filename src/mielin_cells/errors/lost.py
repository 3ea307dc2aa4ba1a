"""Lost: ownership moved, or what is stored cannot be used.  Stop, and look."""

from __future__ import annotations

from mielin_cells.errors.base import LostError


class Fenced(LostError):
    """Another node owns the agent now; this one has stopped it and dropped what was not committed.  Facts: agent, epoch, owner."""


class AgentInError(LostError):
    """A hook of the agent raised, or its state does not load: it runs nothing until an operator resumes it.

    What was sent waits, and may still take effect.  Facts: agent, node, cause.
    """


class EpochRegression(Fenced):
    """The store holds less than it had acknowledged; the agent is quarantined.  Facts: agent, have, need."""


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
    """Records of a log or journal are missing for good: the agent is quarantined, or the migration is not
    continued.  Facts: have, need."""


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
