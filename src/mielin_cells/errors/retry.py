"""Retry: nothing is broken for good; the same call may succeed after `retry_after` seconds."""

from __future__ import annotations

from mielin_cells.errors.base import MigrationError, RetryError


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


class NodeStopping(RetryError):
    """The node is stopping; its agents stay claimable."""


class NoneAvailable(RetryError):
    """A service has no agent that can be called now.  Facts: cls, failing."""


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


class RecoveryNotDue(RetryError):
    """A recovery's attempt is not due yet, or one runs already; nothing was begun.  Facts: agent, due."""
