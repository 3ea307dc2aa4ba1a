"""What must hold of a run with real processes: the simulator's checkers, fed with what the store holds when all has come to rest.

Entries are given in the order in which they landed; of several streams, `torture.tape` finds it.  The author of a record is
who the record says: that it was really that process is not checked here, since the store does not know; the simulator does.
Neither are answers on the wire seen before they arrive, nor instances in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any, NamedTuple

from mielin_cells.agents.reports import MigrationReport
from mielin_cells.errors import CellError
from mielin_cells.log.ids import INBOXES, JOURNALS, LOGS, TOPICS, inbox_subject, journal_subject, log_subject
from mielin_cells.log.inboxes.lines import PRIORITIES
from mielin_cells.log.records import Accepted, decode_record
from mielin_cells.migration import journal as journals
from mielin_cells.store import journal
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Entry, Log
from mielin_cells.testing.checkers import OF_LOGS
from mielin_cells.testing.checkers.checker import Checkers
from mielin_cells.testing.checkers.families import MadeOnce
from mielin_cells.testing.checkers.history import History, Operation
from mielin_cells.testing.checkers.lines.cancels import CancelsHold
from mielin_cells.testing.checkers.lines.priorities import PrioritiesInOrder
from mielin_cells.testing.checkers.ownership import SameState, StoreTells
from mielin_cells.testing.checkers.scene import Call, Observed, Recital, Reported, Scene, Told, Violation
from mielin_cells.testing.checkers.streams import StreamsWhole
from mielin_cells.testing.checkers.waits.outcomes import WaitsStand

PAGE = 1000

KINDS = (*OF_LOGS, StreamsWhole, PrioritiesInOrder, CancelsHold, WaitsStand, MadeOnce)

NEED_FOLDS = (MadeOnce,)
"""Checkers that look at the folds of logs, which another one makes."""


class Read(NamedTuple):
    """Somebody read the end of an agent's log, and was told between the two times."""

    agent: str
    asked: float
    told: float
    seq: int


class Report(NamedTuple):
    """A migration that a client asked for, and was told the end of."""

    report: MigrationReport
    asked: float
    told: float


@dataclass(slots=True)
class Timed:
    """A call of a client, and when it was made and answered."""

    call: Call
    made: float
    answered: float = 0.0


@dataclass(slots=True)
class Recording:
    """What clients recorded; times are of one monotonic clock."""

    agents: list[str] = field(default_factory=list)
    calls: list[Timed] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    recitals: list[Recital] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    """What those were told who resolved waits."""
    tokens: dict[str, None] = field(default_factory=dict)
    """Those that they had."""
    kids: list[str] = field(default_factory=list)
    """Ids of children that agents may have made."""
    errors: Counter[str] = field(default_factory=Counter)
    """What clients were told instead of an answer."""


@dataclass(slots=True)
class Verdict:
    """What was found, and how much was looked at."""

    violations: list[str] = field(default_factory=list)
    landed: Counter[str] = field(default_factory=Counter)
    """Records by kind, and mails."""
    outcomes: dict[str, str] = field(default_factory=dict)
    """Of each attempt that was handed over, as the logs say."""


class Author(NamedTuple):
    name: str
    label: str


async def entries_of(log: Log, agents: Iterable[str]) -> list[tuple[str, Entry]]:
    """Logs, inboxes and journals of the agents, in the order in which their entries landed, if nothing was trimmed of them."""
    found: list[tuple[str, Entry]] = []
    for agent in agents:
        subjects = [log_subject(agent), *(inbox_subject(agent, priority) for priority in PRIORITIES)]
        subjects += [journal_subject(agent, migration) for _, migration in await journal.listed(log, agent)]
        for subject in subjects:
            after = 0
            while page := await log.read(subject, after, PAGE):
                found += [(subject, entry) for entry in page]
                after = page[-1].seq
    return sorted(found, key=lambda item: item[1].seq)


def is_of(subject: str, agents: set[str]) -> bool:
    """True for the subject of a log, an inbox or a journal of one of the agents, or of what it publishes, as subjects name them."""
    words = subject.split(".")
    if subject.startswith(TOPICS):
        return words[-1] in agents
    return words[0] + "." in (LOGS, INBOXES, JOURNALS) and len(words) > 1 and words[1] in agents


class Check:
    """`look`, once the agents have come to rest and every migration has its end; then `verdict` says what was found."""

    def __init__(self, recording: Recording, tokens: int) -> None:
        self.recording = recording
        self.verdict = Verdict()
        self._at = 0
        """How much has landed stands for the time."""
        self._history = History(lambda: self._at)
        self._scenes: list[Scene] = []
        self._checkers: list[Checkers] = []
        for kind in KINDS:  # each by itself: what one says behind its first violation follows from that
            scene = Scene(self._history)
            scene.tokens = tokens * len(recording.agents)
            scene.calls = [timed.call for timed in recording.calls]
            scene.recitals = recording.recitals
            scene.reports = [Reported(one.report, inf, False) for one in recording.reports]
            self._scenes.append(scene)
            scene.told, scene.tokens_given = recording.told, recording.tokens
            self._checkers.append(Checkers(scene, [SameState, kind] if kind in NEED_FOLDS else [kind]))

    async def look(self, log: Log, shown: dict[str, Observed], entries: list[tuple[str, Entry]]) -> None:
        """Judges what has landed of these agents, in the order in which it did."""
        self._count(entries)
        self._register(entries)
        folds = next(s for s, kind in zip(self._scenes, KINDS, strict=True) if kind is SameState).folds
        there = {subject for subject, _ in entries}
        kids = [kid for kid in self.recording.kids if log_subject(kid) in there]
        loaded = {agent: await load(log, agent) for agent in (*self.recording.agents, *kids)}
        for scene, checkers, kind in zip(self._scenes, self._checkers, KINDS, strict=True):
            scene.observed = shown
            if kind is StoreTells:
                scene.folds, scene.loaded = folds, loaded
            self._guarded(partial(self._judge, checkers, entries))

    def _judge(self, checkers: Checkers, entries: list[tuple[str, Entry]]) -> None:
        for self._at, (subject, entry) in enumerate(entries, 1):
            author = Author("?", "a client")
            if subject.startswith(LOGS):
                record: Any = decode_record(entry.data, subject)
                author = Author(record.node, f"{record.node}.{record.incarnation}")
            elif subject.startswith(JOURNALS):
                line = journals.decode(entry.data, subject)
                author = Author(line.node, f"{line.node}.{line.incarnation}")
            checkers.landed(subject, entry, author)
        checkers.at_rest()

    def _count(self, entries: list[tuple[str, Entry]]) -> None:
        open_one: dict[str, str] = {}
        for subject, entry in entries:
            if not subject.startswith(LOGS):
                kind = "journal" if subject.startswith(JOURNALS) else "post" if subject.startswith(TOPICS) else "mail"
                self.verdict.landed[kind] += 1
                continue
            record: Any = decode_record(entry.data, subject)
            name = type(record).__name__
            self.verdict.landed[name] += 1
            if name == "HandedOff":
                open_one[subject] = record.migration
            elif name in ("Accepted", "Returned", "Claimed") and (attempt := open_one.pop(subject, "")):
                self.verdict.outcomes[attempt] = "completed" if name == "Accepted" else "rolled_back"

    def _register(self, entries: list[tuple[str, Entry]]) -> None:
        """Reads of who owns an agent, and completed moves as appends that a client knows of, for the register's model."""
        history, places = self._history.operations, self._history.places
        known = {one.report.migration: one for one in self.recording.reports if one.report.ok}
        for agent in (*self.recording.agents, *self.recording.kids):
            history[log_subject(agent)], places[log_subject(agent)] = [], []
        for read in self.recording.reads:
            history[log_subject(read.agent)].append(Operation("a reader", True, read.asked, read.told, read.seq))
        for subject, entry in entries:
            if not subject.startswith(LOGS):
                continue
            record = decode_record(entry.data, subject)
            one = known.get(record.migration.rpartition(".")[0]) if isinstance(record, Accepted) else None
            appended = Operation(record.node, False, one.asked, one.told, entry.seq) if one is not None else None
            places[subject].append((entry.seq, appended))
            if appended is not None:
                history[subject].append(appended)

    def _guarded(self, check: Callable[[], None]) -> None:
        try:
            check()
        except Violation as error:
            self.verdict.violations.append(str(error))
        except CellError as error:
            self.verdict.violations.append(f"I20: what the store holds cannot be read: {error}")


def has_arrived(shown: dict[str, Observed]) -> bool:
    """Every transfer that was sent is there."""
    return all(len(shown[to].got.get(a, [])) >= n for a, s in shown.items() for to, n in s.sent.items())


def outages(calls: Iterable[Timed], above_s: float) -> list[float]:
    """For each agent, the spans in which calls waited longer than `above_s`, as their lengths in seconds."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for timed in calls:
        if timed.answered - timed.made > above_s:
            spans.setdefault(timed.call.agent, []).append((timed.made, timed.answered))
    found = []
    for some in spans.values():
        begun, ended = 0.0, 0.0
        for made, answered in sorted(some):
            if made > ended:
                found.append(ended - begun)
                begun = made
            ended = max(ended, answered)
        found.append(ended - begun)
    return sorted(length for length in found if length > 0)
