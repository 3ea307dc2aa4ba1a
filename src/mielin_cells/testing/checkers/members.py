"""The checker of the log of the members, and of what its processes may run: I29."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from mielin_cells.log.records import Accepted, Claimed, Committed
from mielin_cells.membership.members import (
    NOBODY,
    AnyRecord,
    Doubted,
    Forgotten,
    Image,
    Joined,
    Leads,
    Left,
    Loads,
    PlanEnded,
    Planned,
    Serving,
    Status,
    Suspected,
    Table,
)
from mielin_cells.policy.facts import UNKNOWN
from mielin_cells.policy.noticeable import Change, change_of
from mielin_cells.testing.checkers.checker import Checker, MemberStep, Step
from mielin_cells.testing.checkers.scene import Scene, machine_of


class MembersAgree(Checker):
    """I29: a record of the members says what its author may say of the table that all records before it make.

    The leader of the latest term alone suspects, gives up and forgets, and only current incarnations; a node says that it serves,
    leads or leaves only of itself, and nothing once it has left; no incarnation is given twice.  Facts are what
    the current incarnation has measured, and at rest what it measures is told.  A process claims, accepts and runs
    only agents whose class it has said to know, in a version that is not older than that of the stored state.
    """

    invariant = "I29"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._table = Table()
        self._given = Counter[str]()
        """By name, the highest incarnation that was ever given."""
        self._classes: dict[tuple[str, int], dict[str, int]] = {}
        """By name and incarnation, the classes that the process has said to know, with their versions."""
        self._versions: dict[str, int] = {}
        """By agent, the class version of its state."""

    def record(self, step: Step) -> None:
        record, fold = step.record, self.scene.folds.get(step.agent)
        before = self._versions.get(step.agent, 0)
        if fold is not None:
            self._versions[step.agent] = fold.version
        classes = self._classes.get((record.node, record.incarnation))
        if fold is None or not classes or not isinstance(record, (Claimed, Accepted, Committed)):
            return
        have = classes.get(fold.cls)
        if have is None or have < before:
            self.fails(
                f"{step.what}: the state is of {fold.cls} version {before}, and the process has said to know {have}"
            )

    def member(self, step: MemberStep) -> None:
        record, what = step.record, f"{type(step.record).__name__} of {step.author.label} at {step.seq}: {step.record}"
        match record:
            case Joined():
                if record.incarnation <= self._given[record.name]:
                    self.fails(f"{what}: incarnation {self._given[record.name]} was given before")
                self._given[record.name] = record.incarnation
                self._classes[record.name, record.incarnation] = record.about.classes
            case Suspected() | Doubted():
                self._by_leader(step, record.term, what)
                self._of_current(record, what, but=(Status.LEFT, Status.SUSPECTED))
            case Forgotten():
                self._by_leader(step, record.term, what)
                if self._table.members[record.name].status is not Status.LEFT:
                    self.fails(f"{what}: the node has not left")
            case Loads(term=0) if self._table.leader == NOBODY:
                self._by_itself(step, what)
                self._of_current(record, what)
                self._measured(record, what)
                if {*record.agents, *record.facts} != {record.name}:
                    self.fails(f"{what}: while nobody leads a node tells of itself alone")
            case Loads():
                self._by_leader(step, record.term, what)
                self._measured(record, what)
            case Image() | Planned() | PlanEnded():
                self._by_leader(step, record.term, what)
            case Left(term=term) if term:
                self._by_leader(step, term, what)
                self._of_current(record, what)
            case Serving():
                self._by_itself(step, what)
                self._of_current(record, what)
            case Left():
                self._by_itself(step, what)
                self._of_current(record, what, but=(Status.LEFT, Status.SUSPECTED, Status.DOUBTED))
            case Leads():
                self._by_itself(step, what)
                self._of_current(record, what, but=(Status.LEFT, Status.SUSPECTED, Status.DOUBTED, Status.JOINED))
            case _:
                pass
        self._table.apply(step.seq, record)

    def disagrees(self, living: Collection[str], lost: Collection[str]) -> str:
        """What the table says of nodes that is not so, where nodes do failover; "" if nothing."""
        table = self._table
        for name in sorted(living):
            member = table.get(name)
            if member is None or member.status is not Status.SERVING:
                return f"{name} lives, and is {member.status.value if member is not None else 'not'} in the log of the members"
            now, told = machine_of(self.scene.nodes[name].facts.current()), machine_of(member.facts)
            if change_of(told, now) is not Change.NONE:
                return f"{name} has measured {now}, and is told of as {told}"
        for name in sorted(lost):
            member = table.get(name)
            if member is not None and member.status in (Status.JOINED, Status.SERVING):
                return f"{name} is dead for good, and is {member.status.value} in the log of the members"
        return f"{table.leader[0] or 'nobody'} leads failover" if table.leader[0] in {"", *lost} else ""

    def _measured(self, record: Loads, what: str) -> None:
        """Its facts are what the current incarnations have measured."""
        for name, facts in record.facts.items():
            member = self._table.get(name)
            said = self.scene.measured.get((name, member.incarnation), []) if member is not None else []
            if machine_of(facts) not in [UNKNOWN, *said]:
                self.fails(f"{what}: {name}'s current incarnation has not measured that; it has measured {said}")

    def _by_itself(self, step: MemberStep, what: str) -> None:
        if step.author.name != step.record.name:
            self.fails(f"{what} is not about its author")

    def _by_leader(self, step: MemberStep, term: int, what: str) -> None:
        table = self._table
        if (step.author.name, term) != (table.leader[0], table.term):
            self.fails(f"{what}: {table.leader[0] or 'nobody'} leads, by the record at {table.term}")

    def _of_current(self, record: AnyRecord, what: str, but: tuple[Status, ...] = (Status.LEFT,)) -> None:
        member = self._table.get(record.name)
        if member is None or member.incarnation != record.incarnation or member.status in but:
            known = f"{member.incarnation}, {member.status.value}" if member is not None else "not there"
            self.fails(f"{what}: incarnation {record.incarnation} is meant; it is {known}")
