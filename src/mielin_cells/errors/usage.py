"""Yours: the call, the class or the setting is wrong; fix it, a retry will not help."""

from __future__ import annotations

from typing import Self

from mielin_cells.errors.base import MigrationError, UsageError


class InvalidAgentId(UsageError):
    """An agent id is 1 to 128 characters of text without control characters."""


class WrongClass(UsageError):
    """The id belongs to an agent of another class.  Facts: agent, have, need."""


class NameTaken(UsageError):
    """A child was to be spawned under the id of an agent that exists, or existed.  Facts: agent, parent."""


class SupervisionFailed(UsageError):
    """The agent went into ERROR because of a child or of a linked agent.  Facts: agent."""


class NoSuchAgent(UsageError):
    """No agent of this id was ever spawned in this deployment.  Facts: agent."""

    @classmethod
    def of(cls, agent: str) -> Self:
        return cls(f"There is no agent {agent!r} in this deployment; spawn it first.", agent=agent)


class AgentTerminated(UsageError):
    """The agent has ended; its id is not used again.  Facts: agent."""

    @classmethod
    def of(cls, agent: str) -> Self:
        return cls(f"Agent {agent!r} has ended; its id is not used again.", agent=agent)


class NoSuchHandler(UsageError):
    """The agent's class has no handler of this name.  Facts: agent, handler."""


class BadArguments(UsageError):
    """The arguments do not fit the handler's signature, or do not encode.  Facts: handler."""


class HandlerFailed(UsageError):
    """The handler raised; the agent's state is as before the turn and the agent goes on.

    Facts: agent, handler, tries; `kind`, the name of the exception's class; `cause`, that name and its text; `causes`, the same of
    each exception in a group.
    """


class CronInvalid(UsageError):
    """A cron expression that is none, or a time zone that this node does not know.  Facts: expression, column (from 1); or zone."""


class TraceInvalid(UsageError):
    """Not a trace context of W3C.  Facts: traceparent or tracestate, its first 80 characters."""


class TopicInvalid(UsageError):
    """Not the name of a topic, or not a pattern.  Facts: topic."""


class AttributeInvalid(UsageError):
    """The name or the value of an agent's attribute cannot be, or there are too many.  Facts: attribute."""


class GroupRefused(UsageError):
    """A group does not take a member: a limit, a role, or a group that would be in itself.  Facts: group, agent."""


class WhereInvalid(UsageError):
    """A condition on attributes that cannot be read.  Facts: text, column (from 1)."""


class FieldRefused(UsageError):
    """A state field or a handler's signature has a type that cannot be stored.  Facts: path."""

    @classmethod
    def at(cls, path: str, why: str) -> FieldRefused:
        """`why` follows the path in the sentence."""
        return cls(f"{path}{why}", path=path)


class StateInvalid(UsageError):
    """A turn left a value that a load would change, or set an attribute that is no state; it was undone.  Facts: agent, path."""


class NotInTurn(UsageError):
    """State is set only inside a turn (a handler or a hook)."""


class ReadOnly(UsageError):
    """A shared handler, or who watches an agent, tried to write, to send, to make a step or to set a timer.  Facts: agent."""


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


class Expired(UsageError):
    """The message's deadline passed before its turn began: the handler did not run for it, and will not.  Facts: agent, handler."""


class Cancelled(UsageError):
    """The call was cancelled before its turn ended: it has no effect.  Steps and asks that it had made stay made.  Facts: agent,
    handler."""


class NoSuchWait(UsageError):
    """Not a token of a wait of this deployment: it was cut or changed, or is of another one."""


class WaitOver(UsageError):
    """The turn that made the wait has ended without an outcome of it, or the outcome is not kept any more.  Facts: wait."""


class WaitTimeout(UsageError):
    """Nobody has resolved the wait before its deadline; a turn that runs again gets the same.  Facts: wait."""


class WaitRejected(UsageError):
    """Somebody has rejected the wait; a turn that runs again gets the same.  Facts: wait, reason."""


class KeyConflict(UsageError):
    """Another call was made under the same key, and has run; this one did not.  Facts: agent, handler, key."""


class SessionExpired(UsageError):
    """The agent has forgotten this client's session; open a new one.  The call may have taken effect before."""


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

    @classmethod
    def of(cls, node: str, known: list[str]) -> Self:
        return cls(f"There is no node {node!r}; there are {', '.join(known) or 'none'}.", node=node, nodes=known)


class NoSuchMigration(MigrationError, UsageError):
    """No migration of this agent or id is open here."""


class TooLateToCancel(MigrationError, UsageError):
    """The handover is decided; the move goes forward.  Facts: agent, migration."""


class NodeCordoned(UsageError):
    """The node takes no agents until it is uncordoned.  Facts: node."""


class RollbackExpired(UsageError):
    """What a rollback would restore is older than the limit.  Facts: migration."""


class StreamGap(UsageError):
    """Parts of a stream were removed before this reader had them; what it has had stands.  Facts: call, offset."""


class StreamRestarted(UsageError):
    """Parts that the reader has had do not stand: the step that emitted them was run again.  The next parts begin at `offset`,
    and the same iterator goes on with them.  Facts: offset."""
