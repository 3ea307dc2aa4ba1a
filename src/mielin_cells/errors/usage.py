"""Yours: the call, the class or the setting is wrong; fix it, a retry will not help."""

from __future__ import annotations

from typing import Self

from mielin_cells.errors.base import UsageError


class InvalidAgentId(UsageError):
    """An agent id is 1 to 128 characters of text without control characters.

    Next: give another id.
    """


class WrongClass(UsageError):
    """The id belongs to an agent of another class.  Facts: agent, have, need.

    Next: use the class that the agent was spawned with, or another id.
    """


class NameTaken(UsageError):
    """A child was to be spawned under the id of an agent that exists, or existed.  Facts: agent, parent.

    Next: give the child another id; an id is not used twice.
    """


class SupervisionFailed(UsageError):
    """The agent went into ERROR because of a child or of a linked agent.  Facts: agent.

    Next: look at the child that failed with `mielin tree AGENT`, mend it, and run `mielin resume AGENT`.
    """


class NoSuchAgent(UsageError):
    """No agent of this id was ever spawned in this deployment.  Facts: agent.

    Next: spawn the agent, or correct its id: `mielin agents` lists those that there are.
    """

    @classmethod
    def of(cls, agent: str) -> Self:
        return cls(f"There is no agent {agent!r} in this deployment; spawn it first.", agent=agent)


class AgentTerminated(UsageError):
    """The agent has ended; its id is not used again.  Facts: agent.

    Next: spawn an agent under another id. Messages that it had not taken are dead letters: `mielin dead AGENT`.
    """

    @classmethod
    def of(cls, agent: str) -> Self:
        return cls(f"Agent {agent!r} has ended; its id is not used again.", agent=agent)


class NoSuchHandler(UsageError):
    """The agent's class has no handler of this name.  Facts: agent, handler.

    Next: correct the handler's name. If a deploy removed it, put it back until no message names it: `mielin check` finds
    them.
    """


class BadArguments(UsageError):
    """The arguments do not fit the handler's signature, or do not encode.  Facts: handler.

    Next: give arguments of the types that the handler declares.
    """


class HandlerFailed(UsageError):
    """The handler raised; the agent's state is as before the turn and the agent goes on.

    Facts: agent, handler, tries; `kind`, the name of the exception's class; `cause`, that name and its text; `causes`, the same of
    each exception in a group.

    Next: read `cause` and the traceback in the log of the agent's node. The agent's state is as before the call.
    """


class CronInvalid(UsageError):
    """A cron expression that is none, or a time zone that this node does not know.  Facts: expression, column (from 1); or zone.

    Next: correct the expression at the column that it names, or install the time zone on the node.
    """


class TraceInvalid(UsageError):
    """Not a trace context of W3C.  Facts: traceparent or tracestate, its first 80 characters.

    Next: pass `traceparent` and `tracestate` as the caller's tracer gave them.
    """


class TopicInvalid(UsageError):
    """Not the name of a topic, or not a pattern.  Facts: topic.

    Next: name the topic as levels with dots between them; `*` and `>` stand only in patterns.
    """


class NoSuchStream(UsageError):
    """The NATS server has no stream of this name for this account.  Facts: stream.

    Next: correct the name, or make the stream on the server first.
    """


class AttributeInvalid(UsageError):
    """The name or the value of an agent's attribute cannot be, or there are too many.  Facts: attribute.

    Next: correct the name or the value of the attribute, or remove attributes.
    """


class GroupRefused(UsageError):
    """A group does not take a member: a limit, a role, or a group that would be in itself.  Facts: group, agent.

    Next: read the reason; remove members, or change the limit or the role.
    """


class WhereInvalid(UsageError):
    """A condition on attributes that cannot be read.  Facts: text, column (from 1).

    Next: correct the condition at the column that it names.
    """


class ExpressionInvalid(UsageError):
    """A rule of a policy that cannot be read.  Facts: text, column (from 1).

    Next: correct the rule at the column that it names.
    """


class FieldRefused(UsageError):
    """A state field or a handler's signature has a type that cannot be stored.  Facts: path.

    Next: give the field a type that can be stored, or keep the value out of the state (begin its name with `_`).
    """

    @classmethod
    def at(cls, path: str, why: str) -> FieldRefused:
        """`why` follows the path in the sentence."""
        return cls(f"{path}{why}", path=path)


class StateInvalid(UsageError):
    """A turn left a value that a load would change, or set an attribute that is no state; it was undone.  Facts: agent, path.

    Next: store a value of the declared type; convert it in the handler.
    """


class NotInTurn(UsageError):
    """State is set only inside a turn (a handler or a hook).

    Next: set state in a handler or a hook only; from outside, ask the agent to do it.
    """


class ReadOnly(UsageError):
    """A shared handler, or who watches an agent, tried to write, to send, to make a step or to set a timer.  Facts: agent.

    Next: remove `shared=True` from the handler, or move what writes into another handler.
    """


class IsReference(UsageError, AttributeError):
    """A reference has handlers, not state: ask the agent for the value instead.

    It is an `AttributeError` too: to `hasattr` and its like a reference has no such attribute.

    Next: ask the agent for the value: write a handler that returns it.
    """


class NotConnected(UsageError):
    """A reference was called outside a turn and outside `async with cells.local()` or `connect()`.

    Next: make the call inside `async with cells.connect()` or `cells.local()`; on a command line give `--connect` or
    `MIELIN_URL`.
    """


class SelfAsk(UsageError):
    """An agent that asks itself inside a turn would wait for ever; call the method plainly instead.

    Next: call the method plainly: `await self.method()`.
    """


class AskCycle(UsageError):
    """An agent was asked that waits for the answer of the one who asks, maybe through others.  Facts: agents.

    Next: replace one of the asks by a tell, so that the circle is open.
    """


class NonDeterministicTurn(UsageError):
    """A turn that is run again made another ask or step, or yielded another part, than the recorded one.  Facts: agent, asks.

    Next: make the handler call the same steps and asks in the same order each time: what depends on time, chance or the
    network belongs in a step. After a deploy, put the old code back until the turn has ended. If an undo took the agent back
    while it answered with a stream, call again.
    """


class StepFailed(UsageError):
    """A durable step raised, to the end of its retries; a turn that runs again gets the same.  Facts: agent, step, cause, tries.

    Next: read `cause`. Give the step more retries if the cause passes, or handle the error in the handler.
    """


class StepInvalid(UsageError):
    """A durable step's result would not be loaded as it was, by what its call declares; the turn was undone.

    Next: return plain values of the declared type from the step.
    """


class MessageTooLarge(UsageError):
    """A message or record is above the limit.  Facts: limit, size.

    Next: send less, or store the large value elsewhere and send its name.
    """


class InvalidTransition(UsageError):
    """The lifecycle has no such edge.  Facts: have, need.

    Next: look at the agent's state with `mielin show AGENT`; the order does not fit it.
    """


class UnknownClass(UsageError):
    """No agent class of this name is known here.  Facts: name.

    Next: start the node with an `--app` that has the class.
    """


class ConfigError(UsageError):
    """A setting is out of range.  Facts: field, range.

    Next: set the field within the range that it names.
    """


class JetStreamDisabled(UsageError):
    """The server, or the account on it, has no JetStream.  Facts: url.

    Next: start the NATS server with JetStream, and allow it for the account.
    """


class ServerTooOld(UsageError):
    """The server lacks what the system needs.  Facts: have, need.

    Next: update the NATS server to the version that it names.
    """


class StoreIncompatible(UsageError):
    """Another version of mielin-cells made the store, in a format that this version does not read.  Facts: store, have, need.

    Next: run the version of mielin-cells that reads this format.
    """


class AuthFailed(UsageError):
    """The server does not know this user, or not with this credential.  Facts: url.

    Next: give the right user, password or credentials file (`MIELIN_URL`, `--creds`).
    """


class PermissionDenied(UsageError):
    """The server forbids this user the subject; nothing was done, and a retry will not help.  Facts: subject.

    Next: allow the user the subject that it names in the server's configuration.
    """


class AnswerExpired(UsageError):
    """The caller had already closed this ask; its stored answer is gone.

    Next: read the agent's state instead; the call has taken effect once.
    """


class Expired(UsageError):
    """The message's deadline passed before its turn began: the handler did not run for it, and will not.  Facts: agent, handler.

    Next: send the call again with a later deadline, if it still matters.
    """


class Cancelled(UsageError):
    """The call was cancelled before its turn ended: it has no effect.  Steps and asks that it had made stay made.  Facts: agent,
    handler.

    Next: nothing: the call was cancelled on purpose. Send it again if it is wanted after all.
    """


class NoSuchCall(UsageError):
    """The store has no call of this id to this agent: the id is wrong, of another agent, or of a client that was forgotten long ago.
    Facts: agent, call.

    Next: take the id from `stream.id`. If the call was sent a moment ago, read once more.
    """


class NoSuchWait(UsageError):
    """Not a token of a wait of this deployment: it was cut or changed, or is of another one.

    Next: use the whole token, with the deployment that gave it out.
    """


class WaitOver(UsageError):
    """The turn that made the wait has ended without an outcome of it, or the outcome is not kept any more.  Facts: wait.

    Next: nothing: the first outcome stands.
    """


class WaitTimeout(UsageError):
    """Nobody has resolved the wait before its deadline; a turn that runs again gets the same.  Facts: wait.

    Next: handle the error in the handler: decide what happens when nobody answers.
    """


class WaitRejected(UsageError):
    """Somebody has rejected the wait; a turn that runs again gets the same.  Facts: wait, reason.

    Next: handle the error in the handler; `reason` says why somebody has rejected it.
    """


class KeyConflict(UsageError):
    """Another call was made under the same key, and has run; this one did not.  Facts: agent, handler, key.

    Next: use one key for one call only; give the other call a key of its own.
    """


class SessionExpired(UsageError):
    """The agent has forgotten this client's session; open a new one.  The call may have taken effect before.

    Next: make the call again; if it must not run twice, give it a `key`.
    """


class StreamGap(UsageError):
    """Parts of a stream were removed before this reader had them; what it has had stands.  Facts: call, offset.

    Next: read the agent's state for what was missed; `stream_keep_s` says how long parts are kept.
    """


class StreamRestarted(UsageError):
    """Parts that the reader has had do not stand: the step that emitted them was run again.  The next parts begin at `offset`,
    and the same iterator goes on with them.  Facts: offset.

    Next: drop the parts from `offset` on, and go on reading; or pass `on_restart`.
    """
