"""A migration's own log: what was planned, tried, what failed, what was decided by which rule, and how it ended.

The journal explains and lets any node go on; it grants nothing.  Who owns the agent, and so what became of an attempt, is in the
agent's log (rule 7), and the journal's end is written from it.  Records are bound to their place by `prev`, as an agent's.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from mielin_cells.errors import JournalGap, RecordInvalid
from mielin_cells.log.codec import Codec, framed, pack
from mielin_cells.migration.recovery import RecoveryStrategy


def attempt_id(migration: str, number: int) -> str:
    """What the agent's log calls an attempt (rule 7: each has an id of its own)."""
    return f"{migration}.{number}"


def migration_of(attempt: str) -> str:
    return attempt.rpartition(".")[0]


def is_same_migration(attempt: str, other: str) -> bool:
    """True if both are attempts of one migration."""
    return migration_of(attempt) == migration_of(other) != ""


class Head(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """Head of every record.  `at` is wall time: for display, and so that the next owner sees when the time of a recovery is over."""

    migration: str
    agent: str
    node: str
    incarnation: int
    nonce: bytes
    prev: int
    at: float


class Planned(Head, tag="Planned", frozen=True, kw_only=True):
    source: str
    target: str
    """The first target that was asked for; "": the system chooses."""
    epoch: int
    config: dict[str, float]
    """The `RecoveryConfig` that it runs by."""
    parent: str = ""
    """The migration that this one retries."""


class Attempted(Head, tag="Attempted", frozen=True, kw_only=True):
    """An attempt begins.  `id` is what the agent's log calls it."""

    number: int
    id: str
    target: str
    strategy: str
    """Why it is made; "" for the first."""
    epoch: int


class Reached(Head, tag="Reached", frozen=True, kw_only=True):
    """How far the attempt came: finished phases with their seconds.  Written together with the next record."""

    number: int
    phases: list[tuple[str, float]]
    rounds: int
    bytes: int
    pause_ms: float


class Failed(Head, tag="Failed", frozen=True, kw_only=True):
    number: int
    target: str
    kind: str
    """A `MigrationErrorType`'s value."""
    code: str
    message: str


class Decided(Head, tag="Decided", frozen=True, kw_only=True):
    number: int
    strategy: str
    rule: str
    """The rule that made the decision, in words."""
    delay_s: float = 0.0


class Cancelled(Head, tag="Cancelled", frozen=True, kw_only=True):
    """An operator has cancelled the migration: no other attempt begins.  A running one may be past its handover."""


class Ended(Head, tag="Ended", frozen=True, kw_only=True):
    outcome: str
    target: str
    code: str = ""
    reason: str = ""
    restored: dict[str, str] = {}
    """After a rollback: the verified state in which the agent continues."""


class TakenBack(Head, tag="TakenBack", frozen=True, kw_only=True):
    """After its end: the migration was undone on purpose, and the agent is back at `record` of its log."""

    goes_to: str
    record: int
    messages: int
    """Taken again."""
    sent: int


OUTCOMES = ("completed", "rolled_back", "gave_up")

ENDS = frozenset(strategy.value for strategy in RecoveryStrategy if not strategy.is_retry)

AnyRecord: TypeAlias = Planned | Attempted | Reached | Failed | Decided | Cancelled | Ended | TakenBack

_codec = Codec[AnyRecord](AnyRecord, "record", Head)


def encode(record: AnyRecord) -> bytes:
    return framed(pack(record))


def decode(data: bytes, where: str) -> AnyRecord:
    """Raises a `RecordInvalid` that says what is wrong: nothing is guessed from a record that cannot be read."""
    return _codec.decode_framed(data, where)


class Journal:
    """The fold of one migration's journal.  `apply` refuses what cannot follow, and changes nothing then."""

    __slots__ = ("end", "has_failed", "in_attempt", "migration", "planned", "records", "seq")

    def __init__(self, migration: str) -> None:
        self.migration = migration
        self.seq = 0
        self.planned: Planned | None = None
        self.records: list[AnyRecord] = []
        self.in_attempt = False
        """An attempt was begun, and neither failed nor ended since."""
        self.has_failed = False
        """The last attempt failed, and nothing was decided since."""
        self.end: Ended | None = None

    @property
    def is_open(self) -> bool:
        return self.planned is not None and self.end is None

    @property
    def is_cancelled(self) -> bool:
        return any(isinstance(record, Cancelled) for record in self.records)

    @property
    def error_type(self) -> str:
        """What kind of failure the last attempt met, a `MigrationErrorType`'s value; "" if it completed or met none."""
        met = [record.kind for record in self.records if isinstance(record, Failed)]
        return met[-1] if met and not (self.end is not None and self.end.outcome == "completed") else ""

    @property
    def coordinator(self) -> str:
        """The node that wrote last."""
        return self.records[-1].node

    @property
    def attempts(self) -> list[Attempted]:
        return [record for record in self.records if isinstance(record, Attempted)]

    def apply(self, seq: int, record: AnyRecord) -> None:
        self.check(seq, record)
        self.seq = seq
        self.records.append(record)
        match record:
            case Planned():
                self.planned = record
            case Attempted():
                self.in_attempt, self.has_failed = True, False
            case Failed():
                self.in_attempt, self.has_failed = False, True
            case Decided():
                self.has_failed = False
            case Ended():
                self.in_attempt, self.end = False, record
            case _:
                pass

    def check(self, seq: int, record: AnyRecord) -> None:
        where = f"The journal of migration {self.migration} at {seq}"
        facts = {"subject": self.migration, "seq": seq}
        if record.migration != self.migration:
            raise RecordInvalid(f"{where} holds a record of {record.migration}.", **facts)
        if record.prev != self.seq or seq <= self.seq:
            raise JournalGap(
                f"{where} follows {record.prev}, but the last record read is {self.seq}; the journal is left unchanged.",
                have=self.seq, need=record.prev, **facts,
            )  # fmt: skip
        if not self._may_follow(record):
            state = "after its end" if self.end is not None else "out of its order"
            raise RecordInvalid(f"{where} is {type(record).__name__} {state}.", **facts)
        wrong = self._wrong(record)
        if wrong:
            raise RecordInvalid(f"{where} is {type(record).__name__}, and {wrong}.", **facts)

    def _wrong(self, record: AnyRecord) -> str:
        """What is wrong with the contents of a record that is in order; "" if nothing is."""
        match record:
            case Planned(source=source, epoch=epoch):
                return "" if source and epoch > 0 else "it names no owner to begin at"
            case Attempted():
                return self._wrong_attempt(record)
            case Reached(number=number):
                return "" if number else "nothing was attempted"
            case Decided(number=number, delay_s=delay_s):
                if number != len(self.attempts):
                    return f"it decides on attempt {number} of {len(self.attempts)}"
                return "" if delay_s >= 0 else "its delay is negative"
            case Ended(outcome=outcome):
                return "" if outcome in OUTCOMES else f"there is no outcome {outcome!r}"
            case TakenBack(goes_to=goes_to, record=to):
                return "" if goes_to and to > 0 else "it does not say what it goes back to"
            case _:
                return ""

    def _wrong_attempt(self, record: Attempted) -> str:
        if self.is_cancelled:
            return "it was cancelled before"
        if record.id != attempt_id(self.migration, record.number):
            return f"attempt {record.number} cannot be called {record.id!r} (rule 7)"
        if not record.target or record.target == record.node:
            return f"{record.node} cannot move the agent to {record.target!r}"
        epoch = max((one.epoch for one in self.attempts), default=self.planned.epoch if self.planned is not None else 0)
        if record.epoch < epoch:
            return f"it is of epoch {record.epoch}, after {epoch} (rule 7)"
        decided = next((one for one in reversed(self.records) if isinstance(one, Decided)), None)
        if decided is not None and decided.strategy in ENDS:
            return f"{decided.strategy} was decided"
        return ""

    def _may_follow(self, record: AnyRecord) -> bool:
        if isinstance(record, Planned) or self.planned is None:
            return isinstance(record, Planned) and self.planned is None
        if record.agent != self.planned.agent or (self.end is not None) != isinstance(record, TakenBack):
            return False
        match record:
            case Attempted(number=number):
                return not self.in_attempt and not self.has_failed and number == len(self.attempts) + 1
            case Reached(number=number):
                return number == len(self.attempts)
            case Failed(number=number):  # also without an attempt: there was nobody to make it with
                return not self.has_failed and number == len(self.attempts)
            case Decided():
                return self.has_failed
            case _:
                return True
