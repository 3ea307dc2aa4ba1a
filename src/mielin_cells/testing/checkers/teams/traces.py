"""The checker of trace context: a turn is part of the trace that its first caller was part of (I42)."""

from __future__ import annotations

from mielin_cells import tracing
from mielin_cells.agents.values.wire import plain
from mielin_cells.testing.checkers.checker import Checker, Letter
from mielin_cells.testing.checkers.teams.hands import fields_of, trace_id_of

RELAY = "relay"


class TracesGoOn(Checker):
    """I42: all that follows from a call of a client is part of the client's trace: asks, tells, timers and steps, in every run.

    What follows from a call that is part of no trace is part of none.
    """

    invariant = "I42"

    def mail(self, letter: Letter) -> None:
        for message in letter.mail.messages:
            text = message.terms.trace if message.terms is not None else ""
            if not text and message.handler != RELAY:
                continue
            trace, wanted = tracing.read(text), ""
            if message.handler == RELAY:
                arguments = plain(message.args)
                wanted = trace_id_of(arguments["sender"], arguments["n"])
            found = trace.trace_id if trace is not None else ""
            if found != wanted:
                self.fails(
                    f"message {message.n} of {letter.mail.sender!r} to {letter.mail.to} ({message.handler}) is part of trace "
                    f"{found!r}, and what it follows from of {wanted!r}"
                )

    def at_rest(self) -> None:
        for agent, fold in self.scene.folds.items():
            found = fields_of(fold, "traces")
            for sender, n, trace in found[0] if found is not None else ():
                if trace != trace_id_of(sender, n):
                    self.fails(f"a turn of {agent} that follows from call {n} of {sender} was part of trace {trace!r}")
                self.scene.counts["turns of a trace" if trace else "turns of no trace"] += 1
