"""The fold: an agent is what its log says.

`Fold.apply` takes the records of one log in order and refuses everything that the protocol does not allow there: a record of
another agent, over a gap, of a wrong epoch, or by a node that could not write it (rules 3, 7, 19, 20).  A refusal is an
error that names the log and the sequence; it is never skipped.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import msgspec
from blake3 import blake3

from mielin_cells.errors import (
    DigestMismatch,
    EpochOutOfOrder,
    InvalidTransition,
    LogGap,
    NotTheOwner,
    RecordInvalid,
    WrongAgent,
)
from mielin_cells.log import contents
from mielin_cells.log.codec import pack
from mielin_cells.log.commit import Commit, OpenTurn, TurnCall, Wish
from mielin_cells.log.ledger import Ledger
from mielin_cells.log.lifecycle import AgentState, Lifecycle, Phase
from mielin_cells.log.policy import DEFAULT
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
    Record,
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
from mielin_cells.log.rules import RULES, Rule
from mielin_cells.log.state import StoredState

OUTCOMES_MAX = 64
"""Migrations whose outcome the fold still tells; older ones are in the log until it is trimmed."""


IN_SNAPSHOT = (
    "cls", "version", "lifecycle", "turn", "claims", "outcomes", "handed", "undone", "policy", "standby", "wish", "born",
)  # fmt: skip
"""Fields of a fold that a snapshot carries under the same names, beside state and ledger."""


class Fold:
    """An agent as of record `seq` of its log.  Changed only by `apply` and `settled`."""

    __slots__ = (
        "agent", "behind_bytes", "behind_records", "born", "claims", "cls", "epoch", "goes_to", "handed", "incarnation",
        "last_digest", "ledger", "lifecycle", "migration", "outcomes", "owner", "phase", "policy", "seq", "snap", "snapshots",
        "source", "source_incarnation", "standby", "state", "turn", "undone", "version", "wish", "written",
    )  # fmt: skip

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.seq = 0
        self.written = 0.0
        """When record `seq` was made, by its writer's clock; for people."""
        self.snap = 0
        self.epoch = 0
        self.owner = ""
        self.incarnation = 0
        self.phase = Phase.NONE
        self.source = ""
        """In probation: the node that handed over, and its incarnation."""
        self.source_incarnation = 0
        self.migration = ""
        self.cls = ""
        self.version = 0
        self.lifecycle = Lifecycle()
        self.policy = DEFAULT
        self.standby: int | None = None
        """Nodes that are to keep a copy; None: as many as its class says."""
        self.born = b""
        """Digest of the initial state; empty if that is not known."""
        self.wish: Wish | None = None
        """What the agent has ordered for itself in its last turn, until it has taken effect."""
        self.ledger = Ledger()
        self.state = StoredState()
        self.last_digest: bytes | None = None
        """The digest of the state according to the last commit; None before the first."""
        self.turn: OpenTurn | None = None
        self.claims = 0
        """Claims of the agent with its turn open and nothing new from it: a message that kills its process shows here (rule 5).
        An owner that has claimed opens the first turn by a record before it runs it, so a node that dies of something else,
        before it came to the message, does not count against it."""
        self.outcomes: dict[str, str] = {}
        self.handed: dict[str, int] = {}
        """Of the same migrations: where they handed over."""
        self.undone: list[tuple[int, int]] = []
        """Stretches of the log that were undone: the record gone back to, and the one that says so."""
        self.goes_to = ""
        """After an undo: the node that is to run the agent, until one has claimed it."""
        self.snapshots: list[SnapshotRef] = []
        """Those that are kept, oldest first."""
        self.behind_records = 0
        """Records since the last snapshot: what a load replays."""
        self.behind_bytes = 0
        """Their size, as counted by whoever reads or writes them."""

    @property
    def status(self) -> AgentState:
        """What users see: `Migrating` is derived from the phase (rule 20 keeps the flags apart from ownership)."""
        return AgentState.MIGRATING if self.phase is Phase.PROBATION else self.lifecycle.state

    @property
    def may_run(self) -> bool:
        """True if turns may run: in phase run, and neither suspended, paused, failed nor terminated."""
        return self.phase is Phase.RUN and self.lifecycle.state.accepts_work and not self.goes_to

    @property
    def floor(self) -> int:
        """The log is kept from here on (rule 18); 0: all of it."""
        return self.snapshots[0].seq if self.snapshots else 0

    def is_ancestor(self, seq: int) -> bool:
        """True for a record that the agent's state still comes from: kept, and not itself undone (rule 16)."""
        return max(self.floor, 1) <= seq <= self.seq and not any(to < seq < by for to, by in self.undone)

    def seal_digest(self) -> bytes:
        """What a handover seals: the state as stored, the whole ledger, and the policy."""
        return blake3(self.state.digest() + self.ledger.digest() + pack(self.policy)).digest()

    @property
    def size_bytes(self) -> int:
        """What a move carries: state, and what is kept of messages."""
        return self.state.size_bytes + self.ledger.size_bytes

    def verify(self) -> None:
        """Raises `DigestMismatch` if the state is not the one that its owner had at the last commit."""
        if self.last_digest is not None and self.state.digest() != self.last_digest:
            raise DigestMismatch(
                f"The state of agent {self.agent!r} as read up to {self.seq} does not match the digest of its last commit; "
                "it is not run from here. Its log holds what it was: go back to an earlier snapshot.",
                subject=self.agent, seq=self.seq,
            )  # fmt: skip

    # ---- one record ------------------------------------------------------------------------------------------

    def apply(self, seq: int, record: AnyRecord) -> None:
        """Takes the next record.  Raises a `RecordInvalid` and changes nothing if it cannot be the next one."""
        self.check(seq, record)
        commit = _commit_of(record)
        wrong = self._wrong(seq, record, commit)
        if wrong:
            raise RecordInvalid(
                f"The log of agent {self.agent!r} at {seq} is {type(record).__name__}, and {wrong}.",
                subject=self.agent, seq=seq,
            )  # fmt: skip
        if commit is not None:
            self._commit(commit)
        elif isinstance(record, Asked):
            self.ledger.send(record.out)
        elif isinstance(record, Created):
            self.state.apply(record.state)
        self.settled(seq, record)

    def check(self, seq: int, record: AnyRecord) -> None:
        """Raises what is wrong with `record` as the record at `seq`, after the last one folded."""
        where = f"The log of agent {self.agent!r} at {seq}"
        facts: dict[str, object] = {"subject": self.agent, "seq": seq}
        if record.agent != self.agent:
            raise WrongAgent(
                f"{where} holds a record of {record.agent!r}.", have=record.agent, need=self.agent, **facts
            )
        if record.prev != self.seq or seq <= self.seq:
            raise LogGap(
                f"{where} follows {record.prev}, but the last record read is {self.seq}; read again from a snapshot.",
                have=self.seq, need=record.prev, **facts,
            )  # fmt: skip
        if self.phase is Phase.TERMINATED:
            raise RecordInvalid(f"{where} follows Terminated.", **facts)
        rule = RULES.get(type(record))
        if rule is None:
            raise RecordInvalid(f"{where} stands for a record that was not put together from its parts.", **facts)
        expected = self.epoch + rule.takes_over
        if record.epoch != expected:
            raise EpochOutOfOrder(
                f"{where} is of epoch {record.epoch}, not {expected}.", have=record.epoch, need=expected, **facts
            )
        if self.phase not in rule.phases:
            raise RecordInvalid(f"{where} is {type(record).__name__} in phase {self.phase.value}.", **facts)
        if rule.takes_over:
            return
        if isinstance(record, (Accepted, Returned)) and record.migration != self.migration:
            raise RecordInvalid(
                f"{where} ends migration {record.migration}; {self.migration} is in probation.", **facts
            )
        if isinstance(record, Returned) and record.to != self.source:
            raise RecordInvalid(f"{where} returns to {record.to}; {self.source} handed over.", **facts)
        if record.node != self.owner:
            raise NotTheOwner(
                f"{where} is by {record.node}; {self.owner} owns.", author=record.node, owner=self.owner, **facts
            )
        if self.phase is Phase.RUN and record.incarnation != self.incarnation:
            raise NotTheOwner(
                f"{where} is by incarnation {record.incarnation} of {record.node}; incarnation {self.incarnation} owns.",
                author=record.node, owner=self.owner, **facts,
            )  # fmt: skip
        self._check_turns(where, record, rule, facts)
        try:
            self._next_lifecycle(record, rule)
        except InvalidTransition as error:
            raise RecordInvalid(f"{where}: {error.message}", **facts) from error

    def _wrong(self, seq: int, record: AnyRecord, commit: Commit | None) -> str:
        """What is wrong with what a checked record says, for a reader; "" if nothing is."""
        if commit is not None:
            return contents.wrong_commit(self.ledger, self.turn, commit, seq)
        match record:
            case Asked() | Stepped():
                return contents.wrong_turn(self.ledger, record)
            case Undone():
                return contents.wrong_undone(self.ledger, record)
            case Snapshot():
                return self._wrong_snapshot(record)
            case Terminated():
                return "not all that it sent is released (rule 20)" if self.ledger.pending else ""
            case StandbySet():
                return f"there cannot be {record.copies} copies" if record.copies < 0 else ""
            case _:
                return ""

    def _check_turns(self, where: str, record: AnyRecord, rule: Rule, facts: dict[str, object]) -> None:
        """What a record may say of turns, now."""
        commit = _commit_of(record)
        runs = isinstance(record, (Asked, Stepped)) or (commit is not None and bool(commit.inputs))
        if runs and not self.lifecycle.state.accepts_work:
            raise RecordInvalid(f"{where} holds a turn of an agent that is {self.lifecycle.state.value}.", **facts)
        if runs and self.wish is not None:
            raise RecordInvalid(
                f"{where} holds a turn behind one that ordered the agent's own {self.wish.order}.", **facts
            )
        if self.goes_to and (runs or not rule.may_wait):
            what = "holds a turn" if runs else f"is {type(record).__name__}"
            raise RecordInvalid(
                f"{where} {what} of an agent that {self.goes_to} was to claim first (rule 16).", **facts
            )
        if isinstance(record, HandedOff):
            if record.to in ("", record.node):
                raise RecordInvalid(f"{where} hands over to {record.to!r}, and {record.node} owns (rule 3).", **facts)
            if record.migration in self.handed or record.migration in self.outcomes:
                raise RecordInvalid(f"{where} hands over as {record.migration} a second time (rule 7).", **facts)
        if isinstance(record, Undone) and not self.is_ancestor(record.to):
            raise RecordInvalid(f"{where} goes back to {record.to}, which is trimmed or undone itself.", **facts)
        if isinstance(record, (Asked, Stepped)) and not 0 <= record.at <= len(self._calls_before(record)):
            raise RecordInvalid(f"{where} goes on after outcome {record.at} of a turn, which is not there.", **facts)

    def _wrong_snapshot(self, record: Snapshot) -> str:
        """Rule 18: it carries what the log before it says, and keeps no snapshot that was given up."""
        if any(getattr(record, name) != getattr(self, name) for name in IN_SNAPSHOT) or record.ledger != self.ledger:
            return "it is not what the log before it says (rule 18)"
        if record.digest != self.state.digest():
            return "its digest is not that of the state before it (rule 18)"
        before = {one.seq for one in self.snapshots} | {0}
        kept = [one.seq for one in record.snapshots]
        if kept != sorted(set(kept)) or not before.issuperset(kept):
            return f"it keeps the snapshots {kept}, of {sorted(before)} (rule 18)"
        if not 0 <= record.since <= record.prev or bool(record.parts) == (record.small is not None):
            return "it does not say where its state is (rule 18)"
        return ""

    def _next_lifecycle(self, record: Record, rule: Rule) -> Lifecycle:
        life = self.lifecycle
        if rule.starts and life.state is AgentState.CREATED:
            life = life.to(AgentState.RUNNING)
        if rule.state is None:
            return life
        if not isinstance(record, Failed):
            return life.to(rule.state)
        error, before = record.error, life.error
        if before is not None:
            fatal = error.fatal or before.fatal
            error = msgspec.structs.replace(error, attempts=before.attempts + 1, fatal=fatal)
        if life.state is AgentState.ERROR:  # a resume that failed: same state, one more attempt
            return msgspec.structs.replace(life, error=error)
        return life.to(AgentState.ERROR, error)

    def settled(self, seq: int, record: AnyRecord) -> None:
        """Takes a checked record whose commit is in ledger and state already: the owner's own, now acknowledged."""
        self.lifecycle = self._next_lifecycle(record, RULES[type(record)])
        self.seq, self.written = seq, record.written
        self.behind_records += 1
        match record:
            case Created():
                self.cls, self.version, self.born = record.cls, record.version, record.born
                self.policy = record.policy
                self._owns(record.node, record.incarnation, record.epoch)
            case Committed():
                self._ran(record.commit)
            case Asked() | Stepped():
                calls = [*self._calls_before(record)[: record.at], *record.calls]
                self.turn = OpenTurn(record.sender, record.input, calls)
                if record.calls:
                    self.claims = 0
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
            case Suspended() | Paused() | Resumed():
                if self.wish is not None and self.wish.order != "terminate":  # which stands until it is done
                    self.wish = None
            case Terminated():
                self.phase, self.wish = Phase.TERMINATED, None

    def _calls_before(self, record: Asked | Stepped) -> list[TurnCall]:
        """The calls that the log has of the turn that `record` belongs to."""
        turn = self.turn
        return turn.calls if turn is not None and (turn.sender, turn.n) == (record.sender, record.input) else []

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
            record.cursor, record.held, record.marks, record.unburied, record.timers, record.replays, record.corrects
        )
        self.version, self.last_digest = record.version, record.digest
        self.turn, self.claims, self.goes_to, self.wish = None, 0, record.goes_to, None
        self.undone = [(to, by) for to, by in self.undone if by > self.floor]
        self.undone.append((record.to, self.seq))
        if self.snapshots:  # a later undo to behind this record needs the inbox from here on
            last = self.snapshots[-1]
            inbox = min(last.inbox, _inbox_from(record.cursor, record.held))
            self.snapshots = [*self.snapshots[:-1], msgspec.structs.replace(last, inbox=inbox)]

    @property
    def inbox_from(self) -> int:
        """The first position in the inbox that the agent as of this record still needs."""
        return _inbox_from(self.ledger.cursor, self.ledger.held)

    @property
    def inbox_kept_from(self) -> int:
        """What is before it in the inbox may be trimmed; nothing from which on the agent can be loaded needs it."""
        return min((one.inbox for one in self.snapshots), default=0)

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
        fold._owns(record.node, record.incarnation, record.epoch)
        fold.ledger, fold.state = record.ledger.copy(), state
        fold.last_digest, fold.snapshots = record.digest, _snapshots(seq, record)
        return fold


def snapshot_fields(fold: Fold) -> dict[str, Any]:
    """For a `Snapshot` right behind the last record: copies of the fields that it carries under the same names."""
    return {name: copy(getattr(fold, name)) for name in IN_SNAPSHOT}


def _commit_of(record: AnyRecord) -> Commit | None:
    if isinstance(record, HandedOff):
        return record.seal
    return record.commit if isinstance(record, Committed) else None


def _snapshots(seq: int, record: Snapshot) -> list[SnapshotRef]:
    """The snapshots still needed after `record`, itself the last (rule 18: its floor is what trims may reach)."""
    inbox = _inbox_from(record.ledger.cursor, record.ledger.held)
    return [*record.snapshots, SnapshotRef(seq, record.since, inbox, record.part, record.at)]


def _inbox_from(cursor: int, held: list[int]) -> int:
    return min([cursor + 1, *held])
