"""Independent checkers of a run: one class for each invariant of `docs/reliability.md`, which says what each does not check.

Checkers see every entry at the instant it lands and every answer as it is given to the wire, and at the end they see what clients
and agents say.  None trusts what a node remembers: `Owned` derives an agent's owner from its log a second time, in fewer words than
the fold.  A violation is an `AssertionError` that begins with the invariant's number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, NoReturn

from mielin_cells.errors import CellError
from mielin_cells.log.attributes.entries import Listing, decode_listing
from mielin_cells.log.ids import (
    ATTRIBUTES,
    DEPLOYS,
    INBOXES,
    JOURNALS,
    LOGS,
    MEMBERS,
    TOPICS,
    agent_of,
    migration_of,
    reply_subject,
)
from mielin_cells.log.message import Mail, Replies, decode_mail, decode_replies
from mielin_cells.log.records import (
    Accepted,
    AnyRecord,
    Claimed,
    Created,
    HandedOff,
    Returned,
    Terminated,
    decode_record,
)
from mielin_cells.log.topics.posts import Post, decode_post
from mielin_cells.membership.members import AnyRecord as AnyMember
from mielin_cells.membership.members import decode_record as decode_member
from mielin_cells.migration import journal as journals
from mielin_cells.policy.deploys.events import AnyEvent, decode_event
from mielin_cells.substrate.ports import Entry
from mielin_cells.testing.checkers.history import Author
from mielin_cells.testing.checkers.scene import Scene, Violation

REPLIES = reply_subject("")

INVARIANTS = tuple(f"I{number}" for number in range(1, 49))


@dataclass(slots=True)
class Owned:
    """Who may append to one agent's log now, as its ownership records say."""

    seq: int = 0
    epoch: int = 0
    owner: str = ""
    incarnation: int = 0
    source: str = ""
    source_incarnation: int = 0
    migration: str = ""
    """Set while in probation."""
    ended: bool = False

    def after(self, seq: int, record: AnyRecord) -> None:
        self.seq = seq
        match record:
            case Created() | Claimed():
                self.epoch, self.owner, self.incarnation = record.epoch, record.node, record.incarnation
                self.migration = ""
            case HandedOff():
                self.source, self.source_incarnation = record.node, record.incarnation
                self.epoch, self.owner, self.migration = record.epoch + 1, record.to, record.migration
            case Accepted():
                self.incarnation, self.migration = record.incarnation, ""
            case Returned():
                self.epoch, self.owner, self.migration = record.epoch + 1, record.to, ""
                self.incarnation = self.source_incarnation
            case Terminated():
                self.ended = True
            case _:
                pass


class Step(NamedTuple):
    """A record of an agent's log at the instant it lands.  `before`: who owned the agent before it."""

    agent: str
    seq: int
    record: AnyRecord
    author: Author
    at: float
    before: Owned
    clocks: Mapping[str, int]
    """How many seconds each process's clock was off at that time; a process that is not named had the right time."""

    @property
    def what(self) -> str:
        return f"{type(self.record).__name__} of {self.author.label} at {self.seq} of {self.agent}"


class Letter(NamedTuple):
    """Mail at the instant it lands in an inbox."""

    mail: Mail
    seq: int
    author: Author


class Posted(NamedTuple):
    """An entry of a topic at the instant it lands."""

    subject: str
    post: Post
    seq: int
    author: Author


class ListingStep(NamedTuple):
    """What was written of an agent's attributes, at the instant it lands."""

    listing: Listing
    seq: int
    author: Author


class Line(NamedTuple):
    """A record of a migration's journal at the instant it lands."""

    agent: str
    migration: str
    seq: int
    record: journals.AnyRecord
    author: Author
    at: float


class MemberStep(NamedTuple):
    """A record of the log of the members at the instant it lands."""

    seq: int
    record: AnyMember
    author: Author


class DeployStep(NamedTuple):
    """An event of the log of deploys at the instant it lands."""

    seq: int
    event: AnyEvent
    author: Author


class Checker:
    """Base of all checkers.  A class defines what it looks at."""

    invariant: ClassVar[str] = ""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def record(self, step: Step) -> None:
        """A record of an agent's log has landed."""

    def mail(self, letter: Letter) -> None:
        """Mail has landed in an inbox."""

    def post(self, posted: Posted) -> None:
        """An entry of a topic has landed."""

    def listed(self, step: ListingStep) -> None:
        """Attributes of an agent have landed."""

    def journal(self, line: Line) -> None:
        """A record of a migration's journal has landed."""

    def member(self, step: MemberStep) -> None:
        """A record of the log of the members has landed."""

    def deploy(self, step: DeployStep) -> None:
        """An event of the log of deploys has landed."""

    def answers(self, replies: Replies, author: Author) -> None:
        """Answers are given to the wire."""

    def behind(self) -> object:
        """True, or what it is, if something that the logs hold has not come to the agents that were observed."""
        return False

    def at_rest(self) -> None:
        """Everything has come to rest, and the agents were observed."""

    def fails(self, sentence: str) -> NoReturn:
        raise Violation(f"{self.invariant}: {sentence}")


class Checkers:
    """Decodes what lands once, and shows it to every checker.  What cannot be decoded is a violation itself (I20)."""

    def __init__(self, scene: Scene, kinds: Iterable[Callable[[Scene], Checker]]) -> None:
        self.scene = scene
        self._kinds = [*kinds]
        self._history: list[tuple[str, Entry, Author, float, dict[str, int]]] = []
        self._make()

    def _make(self) -> None:
        self.all = [kind(self.scene) for kind in self._kinds]
        self._owned: dict[str, Owned] = {}
        self._records = [c.record for c in self.all if _has(c, "record")]
        self._mails = [c.mail for c in self.all if _has(c, "mail")]
        self._posts = [c.post for c in self.all if _has(c, "post")]
        self._listings = [c.listed for c in self.all if _has(c, "listed")]
        self._journals = [c.journal for c in self.all if _has(c, "journal")]
        self._members = [c.member for c in self.all if _has(c, "member")]
        self._deploys = [c.deploy for c in self.all if _has(c, "deploy")]
        self._answers = [c.answers for c in self.all if _has(c, "answers")]

    def landed(self, subject: str, entry: Entry, author: Author) -> None:
        at, clocks = self.scene.history.now(), dict(self.scene.history.clocks)
        self._history.append((subject, entry, author, at, clocks))
        self._landed(subject, entry, author, at, clocks)

    def _landed(self, subject: str, entry: Entry, author: Author, at: float, clocks: dict[str, int]) -> None:
        try:
            if subject.startswith(LOGS):
                self._record(agent_of(subject), entry, author, at, clocks)
            elif subject.startswith(INBOXES):
                letter = Letter(decode_mail(entry.data, subject), entry.seq, author)
                for see in self._mails:
                    see(letter)
            elif subject == MEMBERS:
                step = MemberStep(entry.seq, decode_member(entry.data, subject), author)
                for see_member in self._members:
                    see_member(step)
            elif subject == DEPLOYS:
                deployed = DeployStep(entry.seq, decode_event(entry.data, subject), author)
                for see_event in self._deploys:
                    see_event(deployed)
            elif subject.startswith(TOPICS):
                posted = Posted(subject, decode_post(entry.data, subject), entry.seq, author)
                for see_post in self._posts:
                    see_post(posted)
            elif subject.startswith(ATTRIBUTES):
                listing = ListingStep(decode_listing(entry.data, subject), entry.seq, author)
                for see_listing in self._listings:
                    see_listing(listing)
            elif subject.startswith(JOURNALS):
                agent, migration = migration_of(subject)
                line = Line(agent, migration, entry.seq, journals.decode(entry.data, subject), author, at)
                for look in self._journals:
                    look(line)
        except CellError as error:
            raise Violation(f"I20: {author.label} appended to {subject} what cannot be read: {error}") from error

    def _record(self, agent: str, entry: Entry, author: Author, at: float, clocks: dict[str, int]) -> None:
        record = decode_record(entry.data, f"the log of {agent} at {entry.seq}")
        owned = self._owned.setdefault(agent, Owned())
        step = Step(agent, entry.seq, record, author, at, owned, clocks)
        for see in self._records:
            see(step)
        owned.after(entry.seq, record)

    def published(self, subject: str, data: bytes, author: Author) -> None:
        if subject.startswith(REPLIES):
            for replies in decode_replies(data):
                for see in self._answers:
                    see(replies, author)

    def at_rest(self) -> None:
        for checker in self.all:
            checker.at_rest()

    def owner(self, agent: str) -> str:
        """The node that the agent's log names now; "" if none."""
        owned = self._owned.get(agent)
        return "" if owned is None or owned.ended else owned.owner

    @property
    def agents(self) -> list[str]:
        return sorted(self._owned)

    def forget(self, since: float, seq: int) -> None:
        """The store has forgotten everything after `seq`, which landed from `since` on.

        Answers and reports since then were true, and need not be any more.
        """
        scene = self.scene
        for call in scene.calls:
            if call.at >= since:
                call.acked, call.answer = False, None
                call.doomed = call.doomed and "maybe"
                call.timely, call.keyed = "", None
        scene.reads = [read for read in scene.reads if read.at < since]
        scene.recitals = [recital for recital in scene.recitals if recital.at < since]
        scene.hires, scene.downs = [], {}
        scene.told = [told for told in scene.told if told.at < since]
        scene.served = [served for served in scene.served if served.at < since]
        scene.ordered = [ordered for ordered in scene.ordered if ordered.ended < since]
        scene.reports = [reported for reported in scene.reports if reported.at < since]
        self._history = [one for one in self._history if one[1].seq <= seq]
        nodes, scene.nodes = scene.nodes, {}
        scene.folds = {}
        self._make()
        for one in self._history:
            self._landed(*one)
        scene.nodes = nodes


def _has(checker: Checker, name: str) -> bool:
    return getattr(type(checker), name) is not getattr(Checker, name)


def migration_name(attempt: str) -> str:
    """The migration that an attempt belongs to."""
    return attempt.partition(".")[0]
