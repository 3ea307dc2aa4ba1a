"""The fold: an agent is what its log says.

`Fold.apply` takes the records of one log in order and refuses everything that the protocol does not allow there: a record of
another agent, over a gap, of a wrong epoch, or by a node that could not write it (rules 3, 7, 19, 20).  A refusal is an
error that names the log and the sequence; it is never skipped.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import msgspec

from mielin_cells.errors import (
    DigestMismatch,
    RecordInvalid,
)
from mielin_cells.log import rules
from mielin_cells.log.commit import Commit, OpenTurn
from mielin_cells.log.family.tree import Family
from mielin_cells.log.image import IN_SNAPSHOT, Image
from mielin_cells.log.inboxes.places import first_needed
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.policy import shared
from mielin_cells.log.records import (
    Accepted,
    AnyRecord,
    Asked,
    Claimed,
    Cleared,
    Committed,
    Created,
    Failed,
    HandedOff,
    Paused,
    Resumed,
    Returned,
    Snapshot,
    SnapshotRef,
    StandbySet,
    Stepped,
    Suspended,
    Terminated,
    Undone,
)
from mielin_cells.log.rules import RULES, commit_of, next_lifecycle
from mielin_cells.log.state import StoredState

OUTCOMES_MAX = 64
"""Migrations whose outcome the fold keeps; older outcomes are in the log until it is trimmed."""


class Fold(Image):
    """An agent, changed record by record: by `apply`, or by `check` and then `settled` where the state is ahead of the log."""

    __slots__ = ()

    # ---- one record ------------------------------------------------------------------------------------------

    def apply(self, seq: int, record: AnyRecord) -> None:
        """Takes the next record.  Raises a `RecordInvalid` and changes nothing if it cannot be the next one."""
        self.check(seq, record)
        commit = commit_of(record)
        wrong = rules.wrong_contents(self, seq, record, commit)
        if wrong:
            raise RecordInvalid(
                f"The log of agent {self.agent!r} at {seq} is {type(record).__name__}, and {wrong}.",
                subject=self.agent, seq=seq,
            )  # fmt: skip
        if commit is not None:
            self._commit(commit)
        elif isinstance(record, Asked):
            for out in record.outs:
                self.ledger.send(out)
        elif isinstance(record, Created):
            self.state.apply(record.state)
        self.settled(seq, record)

    def check(self, seq: int, record: AnyRecord) -> None:
        """Raises the `RecordInvalid` that says why `record` cannot be the one at `seq`, after the last one folded."""
        rules.check(self, seq, record)

    def settled(self, seq: int, record: AnyRecord) -> None:
        """Takes a checked record whose commit is already in ledger and state, as the owner's own is once it is acknowledged."""
        self.lifecycle = next_lifecycle(self.lifecycle, record, RULES[type(record)])
        self.seq, self.written = seq, record.written
        self.behind_records += 1
        match record:
            case Created():
                self.cls, self.version, self.born = record.cls, record.version, record.born
                self.policy = shared(record.policy)
                self.ledger.family = Family(record.parent) if record.parent is not None else None
                self._owns(record.node, record.incarnation, record.epoch)
            case Committed():
                self._ran(record.commit)
            case Asked() | Stepped():
                calls = [*self.calls_before(record)[: record.at], *record.calls]
                self.turn = OpenTurn(record.sender, record.input, calls, self.has_sent(record))
                if record.calls:
                    self.claims = 0
                    self.ledger.learn(record.calls)
            case Snapshot():
                self.snap, self.snapshots = seq, _snapshots(seq, record)
                self.behind_records = self.behind_bytes = 0
            case HandedOff():
                if record.seal is not None:
                    self._ran(record.seal)
                self.source, self.source_incarnation = record.node, record.incarnation
                self.migration = record.migration
                self.handed[record.migration] = seq
                self.owner, self.incarnation, self.epoch = record.to, 0, record.epoch + 1
                self.phase = Phase.PROBATION
            case Accepted():
                self._outcome("completed")
                self._owns(record.node, record.incarnation, record.epoch)
            case Returned():
                self._outcome("rolled_back")
                self._owns(record.to, self.source_incarnation, record.epoch + 1)
            case Claimed():
                self._outcome("rolled_back")
                self.claims += record.waits and self.turn is not None
                self._owns(record.node, record.incarnation, record.epoch)
            case Cleared():
                self.ledger.clear(record.letters)
            case StandbySet():
                self.standby = record.copies
            case Undone():
                self._went_back(record)
            case Failed() | Suspended() | Paused() | Resumed():
                self._fared(record)
            case Terminated():
                self.phase, self.wish = Phase.TERMINATED, None

    def _fared(self, record: Failed | Suspended | Paused | Resumed) -> None:
        ends = (
            ("fail",) if isinstance(record, Failed) else ("suspend", "pause")
        )  # other orders stand until they are done
        if self.wish is not None and self.wish.order in ends:
            self.wish = None
        family = self.ledger.family
        if family is not None and isinstance(record, Failed):
            family.has_failed()
        elif family is not None and isinstance(record, Resumed):
            family.was_resumed()

    def _ran(self, commit: Commit) -> None:
        """An open turn ends with the commit that takes its input: other commits may come between an ask and its turn's end.

        A commit that only releases, resumes or upgrades leaves the turn and the count of claims as they were: the message at
        the head has not been run (rules 5 and 12).
        """
        self.version, self.last_digest = commit.version, commit.digest
        if commit.inputs or commit.dead:
            self.claims = 0
        turn = self.turn
        if turn is not None and any((one.sender, one.n) == (turn.sender, turn.n) for one in commit.inputs):
            self.turn = None
        if commit.wish is not None:
            self.wish = commit.wish

    def _owns(self, node: str, incarnation: int, epoch: int) -> None:
        self.owner, self.incarnation, self.epoch, self.phase = node, incarnation, epoch, Phase.RUN
        self.source = self.migration = self.goes_to = ""

    def _went_back(self, record: Undone) -> None:
        self.state.apply(record.state)
        self.ledger.undo(
            record.cursor, record.held, record.marks, record.unburied, record.timers, record.replays, record.corrects, record.subs,
            record.inboxes, record.waits,
        )  # fmt: skip
        self.version, self.last_digest = record.version, record.digest
        self.turn, self.claims, self.goes_to, self.wish = None, 0, record.goes_to, None
        self.undone = [(to, by) for to, by in self.undone if by > self.floor]
        self.undone.append((record.to, self.seq))
        if self.snapshots:  # a later undo to behind this record needs the inbox from here on
            last = self.snapshots[-1]
            inbox = min(last.inbox, first_needed(self.ledger))
            inboxes = {
                priority: min(last.needs(priority), first_needed(place))
                for priority, place in (self.ledger.inboxes or {}).items()
            }
            self.snapshots = [*self.snapshots[:-1], msgspec.structs.replace(last, inbox=inbox, inboxes=inboxes)]

    def _outcome(self, outcome: str) -> None:
        """Rule 7: a migration that was handed over ends with the next ownership record."""
        if self.phase is not Phase.PROBATION:
            return
        self.outcomes[self.migration] = outcome
        while len(self.outcomes) > OUTCOMES_MAX:
            oldest = next(iter(self.outcomes))
            del self.outcomes[oldest]
            self.handed.pop(oldest, None)

    def _commit(self, commit: Commit) -> None:
        if commit.state is not None:
            self.state.apply(commit.state)
        self.ledger.apply(commit)

    # ---- snapshots -------------------------------------------------------------------------------------------

    @classmethod
    def of_snapshot(cls, seq: int, record: Snapshot, state: StoredState) -> Fold:
        """The fold as of a snapshot whose parts, and the commits made while they were written, are in `state`.

        Raises `DigestMismatch` if `state` is not what the owner had.
        """
        if state.digest() != record.digest:
            raise DigestMismatch(
                f"The snapshot of agent {record.agent!r} at {seq} does not match its digest; use the one before it.",
                subject=record.agent, seq=seq,
            )  # fmt: skip
        fold = cls(record.agent)
        fold.seq = fold.snap = seq
        for name in IN_SNAPSHOT:
            setattr(fold, name, copy(getattr(record, name)))
        fold.policy = shared(record.policy)
        fold._owns(record.node, record.incarnation, record.epoch)
        fold.ledger, fold.state = record.ledger.copy(), state
        fold.last_digest, fold.snapshots = record.digest, _snapshots(seq, record)
        return fold


def snapshot_fields(fold: Fold) -> dict[str, Any]:
    """For a `Snapshot` right behind the last record: copies of the fields that it carries under the same names."""
    return {name: copy(getattr(fold, name)) for name in IN_SNAPSHOT}


def _snapshots(seq: int, record: Snapshot) -> list[SnapshotRef]:
    """The snapshots still needed after `record`, itself the last (rule 18: its floor is what trims may reach)."""
    inbox, places = first_needed(record.ledger), record.ledger.inboxes or {}
    inboxes = {priority: first_needed(place) for priority, place in places.items()}
    return [*record.snapshots, SnapshotRef(seq, record.since, inbox, record.part, record.at, inboxes)]
