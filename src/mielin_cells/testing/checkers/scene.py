"""What checkers look at besides the entries that land: calls of clients, reports of migrations, nodes, and agents at rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from mielin_cells.agents.groups.report import GroupReport
from mielin_cells.agents.reports import MigrationReport
from mielin_cells.log.attributes.values import Value
from mielin_cells.log.fold import Fold
from mielin_cells.policy.facts import Facts, tidied
from mielin_cells.testing.checkers.history import History
from mielin_cells.testing.checkers.outside.stream import ForeignStream

if TYPE_CHECKING:
    from mielin_cells.node.node import Node

WALL_S = 1_700_000_000.0
"""True wall time when a run begins."""

STORE_WALL_S = 1_600_000_000.0
"""The store's time when a run begins: no process's wall clock shows it."""

CLOCK_ERROR_S = 60
"""A clock that is off by more makes timers wait longer than a run."""


def machine_of(facts: Facts) -> Facts:
    """The facts of the machine alone, without what cannot be."""
    return tidied(replace(facts, agents=None, waiting=None, oldest_s=None, messages_s=None, store_ms=None))


class Violation(AssertionError):
    """An invariant does not hold."""


def fail(sentence: str) -> None:
    raise Violation(sentence)


@dataclass(slots=True)
class Call:
    """One call of a client.  `answer` is None until the call is known to have taken effect."""

    agent: str
    sender: str
    n: int
    ask: bool
    acked: bool = False
    answer: int | None = None
    at: float = 0.0
    """When it was acknowledged."""
    doomed: str = ""
    """Set for a call whose turn always fails: "stored" once its message is, "failed" once its caller knows why."""
    key: str = ""
    body: int = 0
    """What tells calls under one key from each other."""
    keyed: int | None = None
    """Of a call with a key: what it was answered, 0 for a tell that was stored, -1 for `KeyConflict`."""
    timely: str = ""
    """Of a call with a deadline: "stored" once its message is (a tell), "expired" once its caller knows that it does not run."""


@dataclass(slots=True)
class Hire:
    """A client had a supervisor spawn a child.  `is_made`: what it was answered; None if it was not."""

    boss: str
    kid: str
    is_made: bool | None = None
    cause: str = ""
    """Of the step that failed, if that is what it was told."""


@dataclass(slots=True)
class Read:
    """A read of committed state that was answered."""

    agent: str
    least: int
    """The record that its answer had to be of, or a later one."""
    revision: int
    shown: tuple[int, int]
    at: float


@dataclass(slots=True)
class Recital:
    """What one reader has of one stream."""

    agent: str
    length: int
    """Parts that the handler yields before its step, and that the step emits."""
    sender: str = ""
    n: int = 0
    parts: list[str] = field(default_factory=list)
    restarts: int = 0
    at: float = 0.0
    """When it had ended."""

    def restarted(self, offset: int) -> None:
        del self.parts[offset:]
        self.restarts += 1


@dataclass(slots=True)
class Served:
    """A call of a service that was answered, and by which agent."""

    sender: str
    n: int
    by: str
    at: float


@dataclass(slots=True)
class Ordered:
    """An order for a group that has ended, when it began and ended, and the node that it was about."""

    report: GroupReport
    node: str
    began: float
    ended: float
    asked: dict[str, float]
    """By member: when the order last asked something of it, to carry it out or to take it back."""


@dataclass(slots=True)
class Told:
    """What somebody was told who had the token of a wait."""

    agent: str
    key: bytes
    accepted: bool
    said: str
    """What that person had said."""
    stands: str
    at: float


@dataclass(slots=True)
class Reported:
    """The report of a migration that a client got, and when; `quiet`: no fault has happened since the client asked for it."""

    report: MigrationReport
    at: float
    quiet: bool


@dataclass(slots=True)
class Observed:
    """The state that an agent of the workload reports at rest."""

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
    """Timers that have fired, in order."""
    late: list[str] = field(default_factory=list)
    """Turns that began too late."""
    once_ran: list[tuple[str, int]] = field(default_factory=list)
    """Keys and bodies of the keyed calls that have run, in order."""
    came: list[tuple[str, str, int]] = field(default_factory=list)
    """Messages of topics: topic, publisher and number, in the order in which they were handled."""
    gaps: int = 0
    """Gaps in topics that it was told of."""
    orders: list[tuple[int, int]] = field(default_factory=list)
    """Messages of another system's stream: when the stream was made, and the position, in the order in which they were handled."""
    order_gaps: int = 0
    urged: dict[str, int] = field(default_factory=dict)
    """Per receiving agent and priority, how many messages were sent to it."""
    urgent: dict[str, list[int]] = field(default_factory=dict)
    """Per sending agent and priority, the numbers of its messages in order of arrival."""
    wronged: list[str] = field(default_factory=list)
    """Turns that went on and were told that their ask is cancelled."""
    words: list[tuple[str, str]] = field(default_factory=list)
    """What it waited for: the call that asked, and the outcome."""
    book: dict[str, Any] | None = None
    """For an agent that misbehaves: its other fields."""


class Scene:
    """What checkers look at.  `nodes` is empty where there are only logs, as behind real processes."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.nodes: dict[str, Node] = {}
        """The newest incarnation of each name."""
        self.counts: Counter[str] = Counter()
        """Counts of events other than faults."""
        self.calls: list[Call] = []
        self.reads: list[Read] = []
        self.foreign: ForeignStream | None = None
        """A stream that another system writes, in some worlds."""
        self.recitals: list[Recital] = []
        """Of streams that have ended."""
        self.hires: list[Hire] = []
        self.downs: dict[str, list[tuple[str, int]]] = {}
        """At rest, by supervisor: the agents that it was told of as a watcher, with the numbers of the notices."""
        self.served: list[Served] = []
        self.ordered: list[Ordered] = []
        self.told: list[Told] = []
        self.tokens_given: dict[str, None] = {}
        """Those of waits that somebody outside has, in order."""
        self.reports: list[Reported] = []
        self.observed: dict[str, Observed] = {}
        """At rest."""
        self.waiting: Counter[str] = Counter()
        """`count_waiting_timers` at the time when each agent was observed."""
        self.purged: set[str] = set()
        """Agents whose dead letters an operator may have removed."""
        self.keeps_keys = True
        """No agent drops a keyed call in this run."""
        self.tokens = 0
        self.folds: dict[str, Fold] = {}
        """Production's fold of each log, as far as it has landed."""
        self.loaded: dict[str, Fold] = {}
        """At rest: what loading each agent from the store gives."""
        self.violate: Callable[[str], None] = fail
        """Called with a violation that is seen while production code runs, where raising would only reach that code."""
        self.directory: dict[str, tuple[int, dict[str, Value]]] = {}
        """At rest: by agent, number and values of its attributes in a directory that was made anew."""
        self.lost: frozenset[str] = frozenset()
        """Names that stay dead for good."""
        self.measured: dict[tuple[str, int], list[Facts]] = {}
        """By node and incarnation, what its machine was measured to be, without what cannot be."""

    def note_facts(self, name: str, incarnation: int, facts: Facts) -> None:
        said, before = machine_of(facts), self.measured.setdefault((name, incarnation), [])
        if said not in before:
            before.append(said)

    @property
    def harms(self) -> int:
        """Faults so far."""
        return self.history.faults.total()

    def wall(self) -> float:
        """True wall time."""
        return WALL_S + self.history.now()

    def count_waiting_timers(self) -> Counter[str]:
        """By agent: timers that may still be out at rest, because a clock was wrong when they were set or when they came to a node.

        A node reads its wall clock only then (a clock that is put right later must not make a timer fire early), so such a timer
        may be late by as much as the clock was wrong.
        """
        if self.history.clock_error_max < CLOCK_ERROR_S:
            return Counter()
        return Counter({agent: len(fold.ledger.timers) for agent, fold in self.folds.items()})

    def living(self) -> list[Node]:
        return [node for name, node in self.nodes.items() if name not in self.lost]
