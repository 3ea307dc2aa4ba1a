"""Independent checkers of a simulated run: one class for each invariant of `docs/reliability.md`, each with what it does not check.

They are fed with every entry at the instant it lands, with every answer as it is given to the wire, and at the end with what
clients and agents say.  None of them trusts what a node remembers; who owns an agent is read here a second time, in fewer words than
the fold's (`Owned`).  A violation is an `AssertionError` that begins with the invariant's number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn

from mielin_cells.agents.reports import MigrationReport
from mielin_cells.errors import CellError
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import JOURNALS, LOGS, agent_of, inbox_subject, migration_of, reply_subject
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
from mielin_cells.migration import journal as journals
from mielin_cells.substrate.ports import Entry
from mielin_cells.testing.simulator.view import View

if TYPE_CHECKING:
    from mielin_cells.node.node import Node
    from mielin_cells.testing.simulator.world import World

INBOXES = inbox_subject("")
REPLIES = reply_subject("")

WALL_S = 1_700_000_000.0
"""True wall time when a run begins."""

WRONG_S = 60
"""Clocks that differ by more make timers wait longer than a run."""

INVARIANTS = tuple(f"I{number}" for number in range(1, 26))


class Violation(AssertionError):
    """An invariant does not hold."""


def violated(invariant: str, sentence: str) -> NoReturn:
    raise Violation(f"{invariant}: {sentence}")


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
    """A record of an agent's log at the instant it lands.  `before`: who owned the agent until then."""

    agent: str
    seq: int
    record: AnyRecord
    author: View
    at: float
    before: Owned
    clocks: Mapping[str, int]
    """By how many seconds the clocks of processes were wrong then; those that are not named were right."""

    @property
    def what(self) -> str:
        return f"{type(self.record).__name__} of {self.author.label} at {self.seq} of {self.agent}"


class Letter(NamedTuple):
    """Mail at the instant it lands in an inbox."""

    mail: Mail
    seq: int
    author: View


class Line(NamedTuple):
    """A record of a migration's journal at the instant it lands."""

    agent: str
    migration: str
    seq: int
    record: journals.AnyRecord
    author: View
    at: float


@dataclass(slots=True)
class Call:
    """One call of a client: `answer` is None while it is not known to have taken effect."""

    agent: str
    sender: str
    n: int
    ask: bool
    acked: bool = False
    answer: int | None = None
    at: float = 0.0
    """When it was acknowledged."""
    doomed: str = ""
    """Of one that never takes effect: "stored" once its message is, "told" once its caller knows why."""


@dataclass(slots=True)
class Told:
    """What a client was told of a migration, and when; `quiet`: no fault has happened since it was asked for."""

    report: MigrationReport
    at: float
    quiet: bool


@dataclass(slots=True)
class Shown:
    """What an agent of the workload says of itself at the end."""

    tokens: int = 0
    heard: list[tuple[str, int]] = field(default_factory=list)
    """Client and number of each call, in the order in which they took effect."""
    got: dict[str, list[int]] = field(default_factory=dict)
    """Per sending agent, the numbers of its transfers in order of arrival."""
    sent: dict[str, int] = field(default_factory=dict)
    """Per receiving agent, how many transfers were sent to it."""
    receipts: list[tuple[str, int]] = field(default_factory=list)
    """From the till: idempotency key and number of each payment."""
    alarms: list[str] = field(default_factory=list)
    """Timers that it has set."""
    rung: list[str] = field(default_factory=list)
    """Those that have come, in order."""
    book: dict[str, Any] | None = None
    """Of one that misbehaves: the other things that it remembers."""


class Scene:
    """What checkers may look at.  `nodes` is empty where there are only logs, as behind real processes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes: dict[str, Node] = {}
        """The newest incarnation of each name."""
        self.counts: Counter[str] = Counter()
        """What happened besides faults."""
        self.calls: list[Call] = []
        self.told: list[Told] = []
        self.shown: dict[str, Shown] = {}
        """At rest."""
        self.waiting: Counter[str] = Counter()
        """By agent: timers that were still out when it showed itself, and may be (`waiting_timers`)."""
        self.purged: set[str] = set()
        """Agents whose dead letters an operator has removed, maybe."""
        self.tokens = 0
        self.folds: dict[str, Fold] = {}
        """Production's fold of each log, as far as it has landed."""
        self.loaded: dict[str, Fold] = {}
        """At rest: what loading each agent from the store gives."""
        self.found: Callable[[str], None] = _raise

        self.lost: frozenset[str] = frozenset()
        """Names that stay dead for good."""

    @property
    def harms(self) -> int:
        """Faults so far."""
        return sum(self.world.counts.values())

    def wall(self) -> float:
        """True wall time."""
        return WALL_S + self.world.loop.time()

    def waiting_timers(self) -> Counter[str]:
        """By agent: timers that may still be out at rest, because a clock was wrong when they were set, or when they came to a node.

        A node reads its wall clock only then (behind it, a clock that is put right must not make a timer fire early), so such a
        timer may be late by as much as the clock was wrong.
        """
        if self.world.clock_error_max < WRONG_S:
            return Counter()
        return Counter({agent: len(fold.ledger.timers) for agent, fold in self.folds.items()})

    def living(self) -> list[Node]:
        return [node for name, node in self.nodes.items() if name not in self.lost]


def _raise(sentence: str) -> None:
    raise Violation(sentence)


class Checker:
    """Base of all checkers: what a class does not define, it does not look at."""

    invariant: ClassVar[str] = ""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def record(self, step: Step) -> None:
        """A record of an agent's log has landed."""

    def mail(self, letter: Letter) -> None:
        """Mail has landed in an inbox."""

    def journal(self, line: Line) -> None:
        """A record of a migration's journal has landed."""

    def answers(self, replies: Replies, author: View) -> None:
        """Answers are given to the wire."""

    def at_rest(self) -> None:
        """Everything has come to rest; agents have shown themselves."""

    def fails(self, sentence: str) -> NoReturn:
        violated(self.invariant, sentence)


class Checkers:
    """Decodes what lands once, and shows it to every checker.  What cannot be decoded is a violation itself (I20)."""

    def __init__(self, scene: Scene, kinds: Iterable[Callable[[Scene], Checker]]) -> None:
        self.scene = scene
        self._kinds = [*kinds]
        self._history: list[tuple[str, Entry, View, float, dict[str, int]]] = []
        self._make()

    def _make(self) -> None:
        self.all = [kind(self.scene) for kind in self._kinds]
        self._owned: dict[str, Owned] = {}
        self._records = [c.record for c in self.all if _has(c, "record")]
        self._mails = [c.mail for c in self.all if _has(c, "mail")]
        self._journals = [c.journal for c in self.all if _has(c, "journal")]
        self._answers = [c.answers for c in self.all if _has(c, "answers")]

    def landed(self, subject: str, entry: Entry, author: View) -> None:
        at, clocks = self.scene.world.loop.time(), dict(self.scene.world.clocks)
        self._history.append((subject, entry, author, at, clocks))
        self._landed(subject, entry, author, at, clocks)

    def _landed(self, subject: str, entry: Entry, author: View, at: float, clocks: dict[str, int]) -> None:
        try:
            if subject.startswith(LOGS):
                self._record(agent_of(subject), entry, author, at, clocks)
            elif subject.startswith(INBOXES):
                letter = Letter(decode_mail(entry.data, subject), entry.seq, author)
                for see in self._mails:
                    see(letter)
            elif subject.startswith(JOURNALS):
                agent, migration = migration_of(subject)
                line = Line(agent, migration, entry.seq, journals.decode(entry.data, subject), author, at)
                for look in self._journals:
                    look(line)
        except CellError as error:
            violated("I20", f"{author.label} appended to {subject} what cannot be read: {error}")

    def _record(self, agent: str, entry: Entry, author: View, at: float, clocks: dict[str, int]) -> None:
        record = decode_record(entry.data, f"the log of {agent} at {entry.seq}")
        owned = self._owned.setdefault(agent, Owned())
        step = Step(agent, entry.seq, record, author, at, owned, clocks)
        for see in self._records:
            see(step)
        owned.after(entry.seq, record)

    def published(self, subject: str, data: bytes, author: View) -> None:
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
        """The store has forgotten all behind `seq`, which landed from `since` on: so nobody may be held to it.

        What clients were told since then was true, and need not be any more.
        """
        scene = self.scene
        for call in scene.calls:
            if call.at >= since:
                call.acked, call.answer = False, None
                call.doomed = call.doomed and "maybe"
        scene.told = [told for told in scene.told if told.at < since]
        history = [one for one in self._history if one[1].seq <= seq]
        self._history = history
        nodes, scene.nodes = scene.nodes, {}
        scene.folds = {}
        self._make()
        for one in history:
            self._landed(*one)
        scene.nodes = nodes


def _has(checker: Checker, name: str) -> bool:
    return getattr(type(checker), name) is not getattr(Checker, name)


def migration_name(attempt: str) -> str:
    """The migration that an attempt belongs to."""
    return attempt.partition(".")[0]
