"""Retry: nothing is broken for good; the same call may succeed after `retry_after` seconds."""

from __future__ import annotations

from mielin_cells.errors.base import MigrationError, RetryError


class TurnDeadlineExceeded(RetryError):
    """The handler did not end within its turn's deadline: it was cancelled, and the turn undone.

    Facts: agent, handler, deadline_s.

    Next: make the handler shorter, put slow calls into `cells.step`, or raise `turn_deadline_s`.
    """


class AskTimeout(RetryError):
    """No answer in time.  The ask may still take effect; asking again with the same call does not repeat it.

    Next: ask again with the same arguments and a `key`, so that the call runs once. `mielin calls AGENT` shows what the
    agent is busy with.
    """


class InboxFull(RetryError):
    """The agent has too many messages waiting; this one was not sent.  Facts: agent, waiting, limit.

    Next: send more slowly, or raise `inbox_max` of the class. `mielin show AGENT` says how many messages wait.
    """


class MigrationFailed(MigrationError, RetryError):
    """The move was rolled back; the agent is safe and runs where it ran.  `MigrationReport.check` raises it.

    Facts: agent, migration, reason.

    Next: nothing is urgent: the agent runs where it ran. `mielin show m-...` has each attempt and its cause.
    """


class NodeStopping(RetryError):
    """The node is stopping; its agents stay claimable.

    Next: make the call again: another node claims the agent, or has it already.
    """


class NoneAvailable(RetryError):
    """A service has no agent that can be called now.  Facts: cls, failing.

    Next: spawn agents of the service, or resume those that fail: `mielin agents --class CLASS`.
    """


class NoNodeFits(RetryError):
    """No node can take the agent now: its policy rules them out, or they are full; nothing was changed.  Facts: agent, reasons.

    Next: start or label a node that meets the conditions, or change the policy or `agents_max`. `reasons` says what each
    node lacks.
    """


class NotPlaced(RetryError):
    """An agent whose policy decides where it runs was not claimed, since the asker has not looked at its policy.

    Facts: agent, cls, version, policy (as JSON), bytes.

    Next: nothing: the asker looks at the policy, chooses a node, and asks again.
    """


class NoResponder(RetryError):
    """Nobody serves this subject now.  Facts: subject.

    Next: make the call again. If it stays, no node runs or none is reachable: `mielin nodes`.
    """


class WireTimeout(RetryError):
    """A request on the wire got no answer in time.  Facts: subject.

    Next: make the call again; the request may have taken effect. If it stays, look for a node that is stuck: `mielin
    nodes`.
    """


class StoreBusy(RetryError):
    """The store did not take the call in time; nothing was written.

    Next: make the call again. If it stays, the store is slower than what is asked of it: see the page about sizing.
    """


class StoreFull(RetryError):
    """The disk or the store's quota is full; nothing was written and the agent keeps its last durable state.

    Next: free or add disk space. Agents go on by themselves once the store takes records again.
    """


class StoreUnreachable(RetryError):
    """The store does not answer.

    Next: start the server or mend the network. Nodes and clients connect again by themselves.
    """


class QuotaExceeded(StoreFull):
    """A limit that the server's operator has set is reached; nothing was written.  Facts: limit.

    Next: raise the limit of the account or the stream on the NATS server, or free some of it.
    """


class RecoveryNotDue(RetryError):
    """A recovery's attempt is not due yet, or one runs already; nothing was begun.  Facts: agent, due.

    Next: wait until the moment that it names, or let the node that runs the recovery go on.
    """
