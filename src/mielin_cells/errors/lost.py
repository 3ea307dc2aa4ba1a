"""Lost: ownership moved, or what is stored cannot be used.  Stop, and look."""

from __future__ import annotations

from mielin_cells.errors.base import LostError


class Fenced(LostError):
    """Another node owns the agent now; this one has stopped it and dropped what was not committed.  Facts: agent, epoch, owner.

    Next: nothing, if it happens during a move or a failover: the new owner goes on from the log. `mielin show AGENT` names
    the owner.
    """


class AgentInError(LostError):
    """A hook of the agent raised, or its state does not load: it runs nothing until an operator resumes it.

    What was sent waits, and may still take effect.  Facts: agent, node, cause.

    Next: read the cause with `mielin show AGENT`, mend it (the hook, the class, what its node imports), and run `mielin
    resume AGENT`.
    """


class EpochRegression(Fenced):
    """The store holds less than it had acknowledged; the agent is quarantined.  Facts: agent, have, need.

    Next: find out what the store has lost (`mielin doctor`). Put the newer store back, or accept the loss with `mielin
    resume AGENT`.
    """


class StoreInUse(LostError):
    """Another process has this store file open.  Facts: path.

    Next: stop the other process, or open another file. One process at a time has a store file open.
    """


class StoreCorrupt(LostError):
    """The store file is damaged.  Facts: path.

    Next: put a copy of the file in its place. `mielin doctor --path FILE` says what is damaged.
    """


class StoreReadOnly(LostError):
    """The store file cannot be written.  Facts: path.

    Next: make the file and its folder writable for the process, or mount the disk for writing.
    """


class StreamMissing(LostError):
    """A stream of the deployment is gone from the server, and with it what it held.  Facts: stream.

    Next: put the stream back from a backup. A deployment whose streams are gone is not made again in silence.
    """


class RecordInvalid(LostError):
    """A stored record cannot be used.  Base of the errors below; the agent stays as it was.  Facts: subject, seq.

    Next: run `mielin log AGENT` and `mielin doctor`. Nothing was loaded from the record; put the store back from a backup
    if its bytes are damaged.
    """


class RecordTruncated(RecordInvalid):
    """The record is shorter than its frame says."""


class TrailingData(RecordInvalid):
    """The record is longer than its frame says."""


class DigestMismatch(RecordInvalid):
    """The digest does not match the bytes: they were changed on the way or on disk."""


class UnsupportedFormat(RecordInvalid):
    """The record has a format this version does not read.  Facts: have, need.

    Next: run the version of mielin-cells that wrote the record, or a newer one, on this node.
    """


class UnknownRecord(RecordInvalid):
    """The record is of a kind this version does not know.  Facts: tag.

    Next: update mielin-cells on this node: a newer version wrote the record.
    """


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
    continued.  Facts: have, need.

    Next: bring the missing records back (a replica, a backup). `mielin resume` does not accept this loss, because nobody
    knows what was sent in the gap.
    """


class PartMissing(RecordInvalid):
    """A part of a snapshot or large record is not in the store.  Facts: part.

    Next: bring the part back (a replica, a backup). The agent stays as it was.
    """


class PartMisplaced(RecordInvalid):
    """A part is there, but belongs elsewhere (swapped, repeated, or of another snapshot).  Facts: part."""


class StateTooNew(LostError):
    """The stored state is of a newer class version than this code.  Facts: agent, have, need.

    Next: start a node with the newer code. This node cannot run the agent, and writes nothing for it.
    """


class StateUpgradeFailed(LostError):
    """No upgrade leads from the stored version, or one raised.  Facts: agent, have, need.

    Next: write or mend the upgrade of the class, try it with `mielin check --app NEW`, deploy it, and run `mielin resume
    AGENT`.
    """


class StateUnloadable(LostError):
    """The stored state does not load into the class.  Facts: agent, path.

    Next: give the class a version and an upgrade that turns the stored state into the new fields. `mielin check --app NEW`
    tries it without a node.
    """
