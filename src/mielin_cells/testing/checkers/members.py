"""The checker of the log of the members: I29."""

from __future__ import annotations

from collections import Counter

from mielin_cells.membership.members import (
    AnyRecord,
    Doubted,
    Forgotten,
    Image,
    Joined,
    Leads,
    Left,
    Loads,
    Serving,
    Status,
    Suspected,
    Table,
)
from mielin_cells.testing.checkers.checker import Checker, MemberStep
from mielin_cells.testing.checkers.scene import Scene


class MembersAgree(Checker):
    """I29: a record of the members says what its author may say of the table that all records before it make.

    The leader of the latest term alone suspects, gives up and forgets, and only current incarnations; a node says that it serves,
    leads or leaves only of itself, and nothing once it has left; no incarnation is given twice.
    """

    invariant = "I29"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._table = Table()
        self._given = Counter[str]()
        """By name, the highest incarnation that was ever given."""

    def member(self, step: MemberStep) -> None:
        record, what = step.record, f"{type(step.record).__name__} of {step.author.label} at {step.seq}: {step.record}"
        match record:
            case Joined():
                if record.incarnation <= self._given[record.name]:
                    self.fails(f"{what}: incarnation {self._given[record.name]} was given before")
                self._given[record.name] = record.incarnation
            case Suspected() | Doubted():
                self._by_leader(step, record.term, what)
                self._of_current(record, what, but=(Status.LEFT, Status.SUSPECTED))
            case Forgotten():
                self._by_leader(step, record.term, what)
                if self._table.members[record.name].status is not Status.LEFT:
                    self.fails(f"{what}: the node has not left")
            case Loads() | Image():
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
