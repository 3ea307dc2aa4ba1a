"""Checkers of migrations and of what everything comes to: I9, I12, I13, I15, I16, I19, I21, I23."""

from __future__ import annotations

from mielin_cells.errors import CellError, never
from mielin_cells.log.records import Accepted, Claimed, HandedOff, Returned
from mielin_cells.migration.case import LOSSES_MAX
from mielin_cells.migration.failure import MigrationErrorType
from mielin_cells.migration.journal import Attempted, Decided, Ended, Failed, Journal, Planned
from mielin_cells.migration.recovery import JITTER_MAX, RecoveryStrategy
from mielin_cells.testing.checkers.checker import Checker, Line, Step, migration_name
from mielin_cells.testing.checkers.scene import WALL_S, Scene

PHASES = ("PLANNED", "PREPARING", "COPYING", "PAUSED", "HANDING_OVER", "IN_DOUBT", "VERIFYING")

OUTCOMES = ("completed", "rolled_back", "gave_up")


class OneOutcome(Checker):
    """I9: a migration has one outcome: log, journal and the report to its caller agree, and it is final."""

    invariant = "I9"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._logged: dict[str, str] = {}
        """By attempt."""
        self._journaled: dict[str, Ended] = {}
        self._planned: set[str] = set()

    def record(self, step: Step) -> None:
        record, open_one = step.record, step.before.migration
        if isinstance(record, HandedOff) and record.migration in self._logged:
            self.fails(f"{step.what} hands over {record.migration}, which is {self._logged[record.migration]}")
        if open_one and isinstance(record, (Accepted, Returned, Claimed)):
            self._logged[open_one] = "completed" if isinstance(record, Accepted) else "rolled_back"

    def journal(self, line: Line) -> None:
        if isinstance(line.record, Planned):
            self._planned.add(line.migration)
        if isinstance(line.record, Ended):
            self._same(line.migration, line.record.outcome, f"the journal ({line.author.label}: {line.record.reason})")
            self._journaled[line.migration] = line.record

    def _same(self, migration: str, outcome: str, who: str) -> None:
        if outcome not in OUTCOMES:
            self.fails(f"{migration} is {outcome} by {who}")
        logged = {self._logged[attempt] for attempt in self._logged if migration_name(attempt) == migration}
        if (outcome == "completed") != ("completed" in logged):
            self.fails(f"{migration} is {outcome} by {who}; the log says {sorted(logged)}")

    def at_rest(self) -> None:
        for reported in self.scene.reports:
            report = reported.report
            self._same(report.migration, report.outcome, f"its report ({report.reason})")
            ended = self._journaled.get(report.migration)
            if ended is not None and ended.outcome != report.outcome:
                self.fails(f"{report.migration} ended {ended.outcome}; it was reported as {report.outcome}")
        for migration, ended in self._journaled.items():
            self._same(migration, ended.outcome, f"the journal ({ended.reason})")
        for migration in self._planned - self._journaled.keys():
            self.fails(f"{migration} was planned and has no end")


class RecoveredOnce(Checker):
    """I12: however often recovery is interrupted and begun again, it comes to one end.

    An attempt is handed over at most once; a journal has one end; each process goes on from the last record of the process before.
    """

    invariant = "I12"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._handed: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._ended: set[str] = set()

    def record(self, step: Step) -> None:
        record = step.record
        if isinstance(record, HandedOff) and self._handed.setdefault(record.migration, step.seq) != step.seq:
            self.fails(f"{step.what} hands {record.migration} over a second time")

    def journal(self, line: Line) -> None:
        what = f"{type(line.record).__name__} of {line.author.label} in the journal of {line.migration}"
        if line.record.prev != self._last.get(line.migration, 0):
            self.fails(f"{what} follows {line.record.prev}, but {self._last.get(line.migration, 0)} is there")
        self._last[line.migration] = line.seq
        if isinstance(line.record, Ended):
            if line.migration in self._ended:
                self.fails(f"{what} ends it a second time")
            self._ended.add(line.migration)


class ValidPath(Checker):
    """I13: a journal is a path of the state machine, a report passes its phases in order, and an agent has one open migration.

    Of one agent in one epoch at most one journal is open; each record may follow what is there (`migration.journal`).
    """

    invariant = "I13"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._journals: dict[str, Journal] = {}
        self._open: dict[tuple[str, int], str] = {}

    @property
    def open(self) -> list[str]:
        return [name for name, journal in self._journals.items() if journal.end is None]

    def journal(self, line: Line) -> None:
        record = line.record
        journal = self._journals.setdefault(line.migration, Journal(line.migration))
        try:
            journal.apply(line.seq, record)
        except CellError as error:
            self.fails(f"{line.author.label} wrote {type(record).__name__}: {error}")
        planned = journal.planned
        if planned is None:
            raise never("planned is not None does not hold")
        place = planned.agent, planned.epoch
        if isinstance(record, Planned):
            other = self._open.get(place)
            if other is not None and planned.node == self._journals[other].records[-1].node:
                self.fails(f"{line.author.label} plans {line.migration} of {planned.agent} while {other} is open")
            self._open[place] = line.migration
        elif isinstance(record, Ended) and self._open.get(place) == line.migration:
            del self._open[place]

    def at_rest(self) -> None:
        for reported in self.scene.reports:
            passed = [PHASES.index(name) for name, _ in reported.report.phases]
            if passed != sorted(set(passed)) or (reported.report.ok and passed and PHASES[passed[-1]] != "VERIFYING"):
                self.fails(f"{reported.report.migration} passed {[name for name, _ in reported.report.phases]}")


class ComesToRest(Checker):
    """I15: once faults stop and a majority with a node for every agent stays up, every agent answers and every migration ends.

    `Scenario` measures the time and calls `fails`.
    """

    invariant = "I15"


class WithinBudget(Checker):
    """I16: a migration makes no more attempts than it may, waits as its rules say, and a quiet one pauses briefly.

    Attempts are bounded by the retries that the journal's plan allows and by sources that were lost on the way; what a retry waits
    is within the plan's bounds, and between two attempts of one process that time passes.  A move without faults takes one
    attempt, unless a turn outlasted the pause.
    """

    invariant = "I16"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._planned: dict[str, Planned] = {}
        self._attempts: dict[str, int] = {}
        self._losses: dict[str, int] = {}
        self._due: dict[str, tuple[str, float]] = {}

    def journal(self, line: Line) -> None:
        record, name = line.record, line.migration
        match record:
            case Planned():
                self._planned[name] = record
            case Failed() if record.code == "SourceLost":
                self._losses[name] = self._losses.get(name, 0) + 1
                if self._losses[name] > LOSSES_MAX:
                    self.fails(f"{name} goes on after {self._losses[name]} lost sources")
            case Decided():
                most = self._planned[name].config.get("max_retry_delay_secs", 0.0)
                if not 0 <= record.delay_s <= (1 + JITTER_MAX) * most + 0.001:
                    self.fails(
                        f"{line.author.label} decided to wait {record.delay_s:g} s in {name}; the most is {most:g}"
                    )
                if line.author.name in self.scene.history.clocks:  # by which clock it was decided is not known
                    self._due.pop(name, None)
                else:
                    self._due[name] = line.author.label, min(line.at, record.at - WALL_S) + record.delay_s
            case Attempted():
                self._attempted(line, record)
            case _:
                pass

    def _attempted(self, line: Line, record: Attempted) -> None:
        name = line.migration
        self._attempts[name] = record.number
        allowed = 1 + int(self._planned[name].config.get("max_retries", 0)) + self._losses.get(name, 0)
        if record.number > allowed:
            self.fails(f"{line.author.label} begins attempt {record.number} of {name}, which may have {allowed}")
        author, due = self._due.get(name, ("", 0.0))
        if author == line.author.label and line.at < due - 0.001:
            self.fails(f"{line.author.label} begins attempt {record.number} of {name} {due - line.at:.3f} s too soon")

    def at_rest(self) -> None:
        for reported in self.scene.reports:
            report = reported.report
            late = any(failure.startswith(MigrationErrorType.TIMEOUT.value) for failure in report.failures)
            if reported.quiet and report.attempts > 1 and not late:
                self.fails(f"{report.migration} took {report.attempts} attempts, and nothing went wrong")


class NothingLeft(Checker):
    """I19: at rest no node holds a reservation or an open migration; a stopped one leaves no task, tail or subscription.

    `Scenario` looks at the stopped processes.
    """

    invariant = "I19"

    def at_rest(self) -> None:
        for node in self.scene.living():
            held = [*node.copies.by_agent, *node.migrations.open, *node.migrations.attempts.moves]
            if held:
                self.fails(f"{node.name} at rest still has reservations or migrations of {held}")


class Classified(Checker):
    """I21: each failure of a migration is classified and says what went wrong; what a retry cannot mend is not retried there.

    What nodes log as a bug of their own is a violation, too (`Bugs`).
    """

    invariant = "I21"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._failed: dict[str, Failed] = {}

    def journal(self, line: Line) -> None:
        record = line.record
        if isinstance(record, Failed):
            self._failed[line.migration] = record
            if record.kind == MigrationErrorType.UNKNOWN.value:
                self.fails(
                    f"{line.author.label} calls a failure of {line.migration} unknown: {record.code}: {record.message}"
                )
            if not record.message or not record.code:
                self.fails(f"{line.author.label} does not say what failed in {line.migration}")
        if isinstance(record, Decided) and line.migration in self._failed:
            kind = MigrationErrorType(self._failed[line.migration].kind)
            if kind is MigrationErrorType.NETWORK_PERMANENT and RecoveryStrategy(record.strategy).is_retry:
                self.fails(f"{line.author.label} retries {line.migration} after {kind.value}")


class SameAgain(Checker):
    """I23: a seed that is run twice has the same trace, step by step.

    `story.check` runs some seeds twice and calls `compare`.
    """

    invariant = "I23"

    @staticmethod
    def compare(one: list[str], other: list[str]) -> str:
        if one == other:
            return ""
        at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        return f"I23: the seed tells another story the second time, from line {at} on"
