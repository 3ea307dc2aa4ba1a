"""The records of an agent's log.  Kinds and rules: docs/semantics.md and the protocol that they quote by number.

A record is a tagged struct in a frame (`codec.framed`).  `agent`, `prev` and `nonce` bind it to one place of one log:
a record that is moved, repeated or taken from another agent is refused by the fold.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from mielin_cells.errors import InternalError, described
from mielin_cells.log.codec import UNWRITABLE, Codec, framed, pack
from mielin_cells.log.commit import Commit, LetterKey, OpenTurn, Out, ReplayInput, Timer, TurnCall, Wish
from mielin_cells.log.delta import StateDelta
from mielin_cells.log.family.tree import Parent
from mielin_cells.log.inboxes.lines import NORMAL
from mielin_cells.log.inboxes.places import Places
from mielin_cells.log.ledger import Ledger
from mielin_cells.log.lifecycle import AgentError, Lifecycle
from mielin_cells.log.policy import DEFAULT, Policy
from mielin_cells.log.topics.subs import Sub
from mielin_cells.log.waits.kept import Waits


class PartRef(msgspec.Struct, array_like=True, frozen=True):
    """Where one part of a large record or snapshot is: its sequence on the part subject, size in bytes, BLAKE3."""

    seq: int
    size: int
    digest: bytes


class SnapshotRef(msgspec.Struct, array_like=True, frozen=True):
    """A snapshot that is kept: its record's sequence, what its load needs, and when it was made (wall seconds)."""

    seq: int
    since: int
    inbox: int
    part: str
    at: float
    inboxes: dict[str, int] = {}
    """As `inbox`, of the inboxes of other priorities that were in use."""

    def needs(self, priority: str) -> int:
        """The first entry of this inbox that a load from here needs."""
        return self.inbox if priority == NORMAL else self.inboxes.get(priority, 0)


class Record(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """Head of every record (rule 1).  `snap` is the log's newest snapshot before it (0: none): where a load begins."""

    agent: str
    epoch: int
    node: str
    incarnation: int
    nonce: bytes
    prev: int
    snap: int
    written: float = 0.0
    """When the record was made, in wall seconds by its writer's clock; for people only."""


class Created(Record, tag="Created", frozen=True, kw_only=True):
    cls: str
    version: int
    state: StateDelta
    at: float
    policy: Policy = DEFAULT
    born: bytes = b""
    """Digest of `state` as its spawner gave it (`log.delta.born`)."""
    parent: Parent | None = None


class Committed(Record, tag="Committed", frozen=True, kw_only=True):
    commit: Commit


class Asked(Record, tag="Asked", frozen=True, kw_only=True):
    """A nested ask, recorded before it is sent."""

    sender: str
    input: int
    out: Out
    at: int
    """The log has the outcomes of the turn's first `at` asks and steps already: no outcome is written twice."""
    calls: list[TurnCall]
    """The calls from `at` on, the newest last."""
    more: list[Out] = []
    """What other branches of the turn ask at the same time."""

    @property
    def outs(self) -> list[Out]:
        return [self.out, *self.more]


class Stepped(Record, tag="Stepped", frozen=True, kw_only=True):
    """The outcome of a durable step; `at` and `calls` as in `Asked`."""

    sender: str
    input: int
    at: int
    calls: list[TurnCall]
    sends: bool = False
    """From here on parts of the turn's stream may leave."""


class Snapshot(Record, tag="Snapshot", frozen=True, kw_only=True):
    """State in parts (or `small`), written from `since` on; commits after `since` are replayed over them."""

    cls: str
    version: int
    lifecycle: Lifecycle
    ledger: Ledger
    part: str
    parts: list[PartRef]
    small: bytes | None
    since: int
    digest: bytes
    snapshots: list[SnapshotRef]
    """The earlier snapshots that are kept, without this one."""
    outcomes: dict[str, str]
    turn: OpenTurn | None
    claims: int
    at: float
    handed: dict[str, int] = {}
    undone: list[tuple[int, int]] = []
    policy: Policy = DEFAULT
    standby: int | None = None
    wish: Wish | None = None
    born: bytes = b""


class Suspended(Record, tag="Suspended", frozen=True, kw_only=True):
    reason: str = ""


class Paused(Record, tag="Paused", frozen=True, kw_only=True):
    reason: str = ""


class Resumed(Record, tag="Resumed", frozen=True, kw_only=True):
    failure: int = 0
    """By its parent, for the agent's failure of this number; 0: by an operator."""


class Failed(Record, tag="Failed", frozen=True, kw_only=True):
    error: AgentError


class Terminated(Record, tag="Terminated", frozen=True, kw_only=True):
    pass


class Cleared(Record, tag="Cleared", frozen=True, kw_only=True):
    """An operator has removed dead letters: replayed or purged.  Appended between turns, with everything committed."""

    letters: list[LetterKey]


class StandbySet(Record, tag="StandbySet", frozen=True, kw_only=True):
    """An operator has set how many nodes keep a copy of the agent.  Appended between turns, with everything committed."""

    copies: int


class HandedOff(Record, tag="HandedOff", frozen=True, kw_only=True):
    """The linearization point of a migration.  It may hold the final commit (the seal) of the source."""

    to: str
    migration: str
    seal: Commit | None
    digest: bytes
    """Digest of state and ledger after the seal; the target must have the same before it accepts."""


class Undone(Record, tag="Undone", frozen=True, kw_only=True):
    """The agent is back at record `to`, and takes the messages that came since once more (rules 16 and 17).

    State, cursor, receive marks, held entries and dead letters go back to that record; numbers, released marks, stored
    answers and lifecycle stay.  Nothing runs until `goes_to` has claimed the agent.
    """

    to: int
    goes_to: str
    """The node that claims and runs the agent from here on."""
    migration: str
    """The migration that is undone."""
    version: int
    state: StateDelta
    digest: bytes
    """Of the state after it."""
    cursor: int
    held: list[int]
    marks: dict[str, int]
    """Receive marks of agents that have sent since."""
    unburied: list[LetterKey]
    """Dead letters written since."""
    timers: list[Timer]
    """All timers except those whose messages are in the inbox."""
    replays: list[ReplayInput]
    corrects: bool
    """A message that now differs is sent as a correction of the first; otherwise the first stands."""
    subs: list[Sub] | None = None
    """All subscriptions.  Their positions do not go back: what was taken is in the inbox."""
    inboxes: Places = {}
    """As `cursor` and `held`, for each inbox of another priority that is in use."""
    waits: Waits | None = None
    """All waits.  Their outcomes do not go back: who resolved was told what stands (rule T5)."""


class Accepted(Record, tag="Accepted", frozen=True, kw_only=True):
    migration: str


class Returned(Record, tag="Returned", frozen=True, kw_only=True):
    to: str
    migration: str
    cause: str
    code: str = ""
    """Of the error that kept the agent from running at the target."""


class Claimed(Record, tag="Claimed", frozen=True, kw_only=True):
    cause: str
    waits: bool = True
    """True if a message was waiting that may have killed the former owner; otherwise no message is suspected."""


class Spilled(Record, tag="Spilled", frozen=True, kw_only=True):
    """Stands for a record that is too large for one entry: its bytes are in parts.  Only the adapter's side sees it."""

    part: str
    parts: list[PartRef]


AnyRecord: TypeAlias = (
    Created | Committed | Asked | Stepped | Snapshot | Suspended | Paused | Resumed | Failed | Terminated
    | HandedOff | Accepted | Returned | Claimed | Cleared | StandbySet | Undone | Spilled
)  # fmt: skip


def named_owner(record: Record) -> str:
    """The node that an agent's last record makes its owner ("" after Terminated)."""
    if isinstance(record, (HandedOff, Returned)):
        return record.to
    return "" if isinstance(record, Terminated) else record.node


def made_owner(record: Record) -> str | None:
    """The node that owns the agent from this record on ("": nobody); None if the record does not change the owner.

    The store indexes these records by owner.  `Accepted` is not one of them: its `HandedOff` named the same node.
    """
    if isinstance(record, (Created, HandedOff, Returned, Claimed, Terminated)):
        return named_owner(record)
    return None


_codec = Codec[AnyRecord](AnyRecord, "record", Record)


def encode_record(record: AnyRecord) -> bytes:
    """Raises `InternalError` for a value that cannot be stored: turns and requests check their values before."""
    try:
        return framed(pack(record))
    except UNWRITABLE as error:
        raise InternalError(
            f"A {type(record).__name__} of agent {record.agent!r} cannot be stored: {described(error)}. It was not written. The "
            "value should have been refused earlier, so please report this.",
            agent=record.agent,
        ) from error


def decode_record(data: bytes, where: str) -> AnyRecord:
    """The record in an entry's bytes.  Raises the `RecordInvalid` that names what is wrong; nothing is ever skipped."""
    return _codec.decode_framed(data, where)
