"""Independent checkers of a simulated run: each watches one property and raises `Violation` with the invariant's number.

They are fed with every entry at the instant it lands, and with what clients and agents recorded.  None of them trusts what
a node remembers; `Ownership` does not even trust the fold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from mielin_cells.core.cluster import MigrationReport
from mielin_cells.core.fold import Fold
from mielin_cells.core.ids import LOGS, agent_of, inbox_subject, reply_subject
from mielin_cells.core.message import Mail, decode_answer, decode_mail, decode_replies, is_client
from mielin_cells.core.records import (
    Accepted,
    AnyRecord,
    Asked,
    Claimed,
    Commit,
    Committed,
    Created,
    HandedOff,
    Out,
    Returned,
    Terminated,
    decode_record,
)
from mielin_cells.errors import CellError
from mielin_cells.migration.journal import Journal
from mielin_cells.node.node import Node
from mielin_cells.substrate.ports import Entry
from mielin_cells.testing.view import View

INBOXES = inbox_subject("")
REPLIES = reply_subject("")


class Violation(AssertionError):
    """An invariant does not hold."""


def violated(invariant: str, sentence: str) -> NoReturn:
    raise Violation(f"{invariant}: {sentence}")


class Landing:
    """Base: decodes the records of agents' logs and hands them to `record`."""

    def landed(self, subject: str, entry: Entry, author: View) -> None:
        if not subject.startswith(LOGS):
            return
        try:
            record = decode_record(entry.data, f"{subject} at {entry.seq}")
        except CellError as error:
            violated("I20", f"{author.label} appended what cannot be read: {error}")
        self.record(agent_of(subject), entry.seq, record, author)

    def record(self, agent: str, seq: int, record: AnyRecord, author: View) -> None:
        raise NotImplementedError


@dataclass(slots=True)
class _Owned:
    seq: int = 0
    epoch: int = 0
    owner: str = ""
    incarnation: int = 0
    source: str = ""
    migration: str = ""
    """Set while in probation."""
    ended: bool = False


class Ownership(Landing):
    """I1, I2, I3, I9, I10, I11 as the logs show them: a second, smaller reading of who may append what.

    Every record is by the process that it names, in the epoch that the log is in, behind the record that it expects; in
    probation nobody commits; an epoch is followed by the next one; a migration is handed over once and has one outcome.
    Not checked: what nodes do in memory (`Instances`), and whether a record's body is right (`Folding`).
    """

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        """What the logs say of each migration that was handed over."""
        self.closed: dict[str, str] = {}
        """Migrations that have ended, by report or journal: they may not be handed over any more."""
        self._reports: list[MigrationReport] = []
        self._agents: dict[str, _Owned] = {}
        self._processes: dict[tuple[str, int], str] = {}

    def record(self, agent: str, seq: int, record: AnyRecord, author: View) -> None:
        here = self._agents.setdefault(agent, _Owned())
        what = f"{type(record).__name__} of {author.label} at {seq} of {agent}"
        if record.node != author.name:
            violated("I3", f"{what} claims to be by {record.node}")
        process = self._processes.setdefault((record.node, record.incarnation), author.label)
        if process != author.label:
            violated("I3", f"{what} is of incarnation {record.incarnation}, which is {process}")
        if here.ended:
            violated("I3", f"{what} follows Terminated")
        if record.prev != here.seq:
            violated("I3", f"{what} expects {record.prev}, but the log was at {here.seq}")
        opens = isinstance(record, (Created, Claimed))
        if record.epoch != here.epoch + opens:
            violated("I2", f"{what} is of epoch {record.epoch}; the log is in {here.epoch}")
        if isinstance(record, Created) != (here.seq == 0):
            violated("I3", f"{what} is where it cannot be")
        if not opens:
            self._by_owner(here, record, what)
        here.seq = seq
        self._next(here, record)

    def _by_owner(self, here: _Owned, record: AnyRecord, what: str) -> None:
        verdict = isinstance(record, (Accepted, Returned))
        if verdict != bool(here.migration):
            violated("I11", f"{what} lands {'in' if here.migration else 'outside of'} probation")
        if record.node != here.owner or (not here.migration and record.incarnation != here.incarnation):
            violated("I1", f"{what} is by {record.node}.{record.incarnation}; {here.owner}.{here.incarnation} owns it")

    def _next(self, here: _Owned, record: AnyRecord) -> None:
        match record:
            case Created() | Claimed():
                self._end(here.migration, "rolled_back")
                here.epoch, here.owner, here.incarnation, here.migration = (
                    record.epoch,
                    record.node,
                    record.incarnation,
                    "",
                )
            case HandedOff():
                if record.migration in self.outcomes or _migration_of(record.migration) in self.closed:
                    violated("I9", f"{record.migration} is handed over after it has ended")
                here.epoch, here.source, here.owner, here.migration = (
                    record.epoch + 1,
                    record.node,
                    record.to,
                    record.migration,
                )
                here.source, self._source_incarnation = record.node, record.incarnation
                here.incarnation = record.incarnation
            case Accepted():
                self._end(here.migration, "completed")
                here.incarnation, here.migration = record.incarnation, ""
            case Returned():
                if record.to != here.source:
                    violated("I10", f"{record.migration} returns to {record.to}; {here.source} handed it over")
                self._end(here.migration, "rolled_back")
                here.epoch, here.owner, here.migration = record.epoch + 1, record.to, ""
            case Terminated():
                here.ended = True
            case _:
                pass

    def _end(self, migration: str, outcome: str) -> None:
        if migration and self.outcomes.setdefault(migration, outcome) != outcome:
            violated("I9", f"{migration} is {outcome} after it was {self.outcomes[migration]}")

    def reported(self, report: MigrationReport) -> None:
        """I9, I13: what a client is told is what the log says, and the phases follow one another."""
        self._reports.append(report)
        self.ended(report.migration, report.outcome, report.reason)
        order = ["PLANNED", "PREPARING", "COPYING", "PAUSED", "HANDING_OVER", "IN_DOUBT", "VERIFYING"]
        passed = [order.index(name) for name, _ in report.phases]
        if passed != sorted(set(passed)) or (report.ok and passed and passed[-1] != order.index("VERIFYING")):
            violated("I13", f"{report.migration} passed {[name for name, _ in report.phases]}")

    def ended(self, migration: str, outcome: str, reason: str) -> None:
        """I9: a migration is over, and no attempt of it may be handed over any more."""
        logged = {self.outcomes[attempt] for attempt in self.outcomes if _migration_of(attempt) == migration}
        if outcome == "completed" and "completed" not in logged:
            violated("I9", f"{migration} ended completed; the log says {logged}")
        if outcome == "rolled_back" and "completed" in logged:
            violated("I9", f"{migration} ended rolled back ({reason}); the log says completed")
        self.closed[migration] = reason

    def settled(self, journals: Iterable[Journal]) -> None:
        """I9, I14: every migration that was planned has its end, and that is what the agent's log says; so is what clients
        were told, also where the log went on after they were."""
        for report in self._reports:
            self.ended(report.migration, report.outcome, report.reason)
        for journal in journals:
            if journal.end is None:
                violated("I14", f"{journal.migration} has no end: {[type(r).__name__ for r in journal.records]}")
            else:
                self.ended(journal.migration, journal.end.outcome, journal.end.reason)


def _migration_of(attempt: str) -> str:
    return attempt.partition(".")[0]


class Folding(Landing):
    """I8 and the fold: production's fold takes every record that lands, and every digest is of what the log holds.

    Not checked: records in parts (`Spilled`), which the simulator's agents are too small for.
    """

    def __init__(self) -> None:
        self.folds: dict[str, Fold] = {}

    def record(self, agent: str, seq: int, record: AnyRecord, author: View) -> None:
        fold = self.folds.setdefault(agent, Fold(agent))
        try:
            fold.apply(seq, record)
        except CellError as error:
            violated("I3", f"the fold refuses what {author.label} appended: {error}")
        if isinstance(record, Committed) and record.commit.digest != fold.state.digest():
            violated("I8", f"the commit of {author.label} at {seq} of {agent} has the digest of another state")
        if isinstance(record, HandedOff) and record.digest != fold.seal_digest():
            violated("I8", f"{author.label} sealed {agent} at {seq} with the digest of another state or ledger")


class Numbers:
    """I4, I5 and the output rule as logs and inboxes show them.

    Commits take an agent's messages one by one and a client's never twice; outputs are numbered one by one; the cursor never
    goes back.  What an agent has in an inbox is in its log, with this number and body, before it is in the inbox; what
    a log calls released is in the receiver's inbox.
    An answer on the wire is the one in the log, and not before it is there.
    """

    def __init__(self) -> None:
        self._marks: dict[tuple[str, str], int] = {}
        self._taken: dict[tuple[str, str, int], bytes | None] = {}
        self._outs: dict[tuple[str, str], list[bytes]] = {}
        self._stored: dict[tuple[str, str], int] = {}
        self._cursors: dict[str, int] = {}

    def landed(self, subject: str, entry: Entry, author: View) -> None:
        if subject.startswith(INBOXES):
            self._mail(decode_mail(entry.data, subject), author)
        elif subject.startswith(LOGS):
            record = decode_record(entry.data, subject)
            agent = agent_of(subject)
            if isinstance(record, Asked):
                self._out(agent, record.out, author)
            elif isinstance(record, Committed):
                self._commit(agent, record.commit, author)
            elif isinstance(record, HandedOff) and record.seal is not None:
                self._commit(agent, record.seal, author)

    def published(self, subject: str, data: bytes, author: View) -> None:
        if not subject.startswith(REPLIES):
            return
        answers = [(some.agent, some.sender, n, a) for some in decode_replies(data) for n, a in some.answers.items()]
        for agent, sender, n, answer in answers:
            error = decode_answer(answer).error
            if error is not None and error[0] in ("AnswerExpired", "SessionExpired"):
                continue
            if self._taken.get((agent, sender, n)) != answer:
                what = f"number {n} of {sender!r} to {agent}"
                violated("I6", f"{author.label} answers {what}, but this answer is not in the log")

    def _mail(self, mail: Mail, author: View) -> None:
        if is_client(mail.sender):
            return
        pair = mail.sender, mail.to
        outs = self._outs.get(pair, [])
        for message in mail.messages:
            if message.n > len(outs) or outs[message.n - 1] != message.args:
                violated("I5", f"{author.label} sent number {message.n} of {pair}, which is not in the log")
            if message.n == self._stored.get(pair, 0) + 1:
                self._stored[pair] = message.n

    def _commit(self, agent: str, commit: Commit, author: View) -> None:
        if commit.cursor < self._cursors.get(agent, 0):
            violated("I4", f"{author.label} set the cursor of {agent} back to {commit.cursor}")
        self._cursors[agent] = commit.cursor
        for taken in commit.taken:
            pair = agent, taken.sender
            if (*pair, taken.n) in self._taken:
                violated("I4", f"{author.label} took number {taken.n} of {pair} again")
            self._taken[(*pair, taken.n)] = taken.answer
            if is_client(taken.sender):
                continue
            if taken.n != self._marks.get(pair, 0) + 1:
                violated("I4", f"{author.label} took number {taken.n} of {pair} after {self._marks.get(pair, 0)}")
            self._marks[pair] = taken.n
        for out in commit.outs:
            self._out(agent, out, author)
        for to, n in commit.released.items():
            if n > self._stored.get((agent, to), 0):
                violated("I5", f"{author.label} calls {n} from {agent} to {to} released; it is not stored")

    def _out(self, agent: str, out: Out, author: View) -> None:
        outs = self._outs.setdefault((agent, out.to), [])
        if out.n != len(outs) + 1:
            violated("I5", f"{author.label} gave number {out.n} to output {len(outs) + 1} from {agent} to {out.to}")
        outs.append(out.args)


class Instances:
    """I1 in memory: no two nodes serve an agent in one epoch, after each landing.

    Not checked: an instance of an older epoch that does not know yet; what it does cannot land (`Ownership`).
    """

    def __init__(self, nodes: dict[str, Node]) -> None:
        self._nodes = nodes

    def landed(self, subject: str, entry: Entry, author: View) -> None:
        serving: dict[tuple[str, int], str] = {}
        for name, node in self._nodes.items():
            for agent, host in node.hosts.items():
                if host.is_open and host.fold.may_run:
                    other = serving.setdefault((agent, host.fold.epoch), name)
                    if other != name:
                        violated("I1", f"{other} and {name} both serve {agent} in epoch {host.fold.epoch}")


@dataclass(slots=True)
class Call:
    """One call of a client: `answer` is None while it is not known to have taken effect."""

    agent: str
    sender: str
    n: int
    ask: bool
    acked: bool = False
    answer: int | None = None


@dataclass(slots=True)
class Shown:
    """What an agent says of itself at the end."""

    tokens: int
    heard: Sequence[tuple[str, int]]
    """Client and number of each call, in the order in which they took effect."""
    got: dict[str, list[int]] = field(default_factory=dict)
    """Per sending agent, the numbers of its transfers in order of arrival."""
    sent: dict[str, int] = field(default_factory=dict)
    """Per receiving agent, how many transfers were sent to it."""
    receipts: Sequence[tuple[str, int]] = ()
    """From the till: idempotency key and number of each payment."""


class Effects:
    """I4, I5, I6, I7, I22: each acknowledged call took effect once, in order, at the place that its answer says.

    A call without an acknowledgement may have taken effect or not, but not twice.  What agents sent to each other arrived
    once and in order, and no token was made or lost.
    Not checked: the state between the calls, beyond its digests (`Folding`).
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self.calls: list[Call] = []

    def at_rest(self, shown: dict[str, Shown]) -> None:
        for agent, state in shown.items():
            self._heard(agent, state.heard)
        for agent, state in shown.items():
            for to, count in state.sent.items():
                got = shown[to].got.get(agent, [])
                if got != list(range(1, count + 1)):
                    violated("I5", f"{agent} sent {count} transfers to {to}, which got {got}")
        total = sum(state.tokens for state in shown.values())
        if total != self._tokens:
            violated("I22", f"there are {total} tokens; there were {self._tokens}")

    def _heard(self, agent: str, heard: Sequence[tuple[str, int]]) -> None:
        places = {call: place for place, call in enumerate(heard, 1)}
        if len(places) != len(heard):
            twice = sorted({call for call in heard if list(heard).count(call) > 1})
            violated("I4", f"{agent} took {twice} more than once")
        made = {(call.sender, call.n): call for call in self.calls if call.agent == agent}
        for key in places.keys() - made.keys():
            violated("I4", f"{agent} took {key}, which nobody sent")
        for key, call in made.items():
            if call.acked and key not in places:
                violated("I6", f"{agent} has lost {key}, which was acknowledged")
            if call.answer is not None and call.answer != places.get(key):
                violated("I7", f"{agent} answered {key} with place {call.answer}; it is at {places.get(key)}")
        for sender in {call.sender for call in made.values()}:
            order = [n for who, n in heard if who == sender]
            if order != sorted(order):
                violated("I7", f"{agent} took the calls of {sender} in the order {order}")


class Leaks:
    """I19: what a stopped node leaves behind, and what a node at rest still holds.

    Not checked: memory, and parts beside the logs.
    """

    @staticmethod
    def at_rest(nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.copies or node.migrations.open:
                held = [*node.copies, *node.migrations.open]
                violated("I19", f"{node.name} at rest still has reservations or migrations of {held}")

    @staticmethod
    def stopped(views: Iterable[View]) -> None:
        for view in views:
            left = [*view.process.tasks(), *view.tails, *view.subscriptions, *view.servers]
            if left:
                violated("I19", f"{view.label} was stopped and left {left}")
